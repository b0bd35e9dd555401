//! The two things measured: reading a prompt, and generating after a text of a given length.

use std::time::{Duration, Instant};

use blt::config::PatchingMode;
use blt::sampler::SamplerConfig;
use blt::{GenerateOptions, Generator, KvType, Model, Result, Session, SessionOptions, batch};

use blt::cli::interrupt;
use blt::cli::units;

/// What is read: plain English, since what a trained model makes patches of is not noise.
const TEXT: &[u8] = b"The little boat had been on the lake all morning. Anna counted three ducks, a \
heron and something green that might have been a frog, and wrote them down in her book. \"We should \
go back before it rains,\" said her brother, who had never liked the water. The clouds were grey and \
low over the hills, but the wind was warm, and neither of them was in a hurry to be home again.\n";

/// Bytes read before anything is timed, so that the weights are in memory.
const WARM_UP: usize = 64;

/// Times of one test.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    /// Bytes of a session in a run.
    pub n_bytes: usize,
    /// Sessions that read together.
    pub n_sessions: usize,
    /// Bytes in view when a run begins.
    pub context: usize,
    /// How long each run took.
    pub times: Vec<Duration>,
    /// Patches begun in all runs, by all sessions.
    pub patches: usize,
    /// Bytes that the caches of one session hold in the end.
    pub cache_bytes: usize,
    /// Steps of all runs in which any session began a patch: the weights of a patch's path are then read
    /// once for all of them.
    pub patch_steps: usize,
    /// Kernels that a GPU started in all runs: all, and those for patches that ended.
    pub kernels: Option<(usize, usize)>,
}

impl Runs {
    /// Bytes per second of all sessions: median, slowest, fastest.
    pub fn speeds(&self) -> (f64, f64, f64) {
        let mut speeds: Vec<f64> = (self.times.iter())
            .map(|&t| units::per_second(self.n_bytes * self.n_sessions, t))
            .collect();
        speeds.sort_by(f64::total_cmp);
        match (speeds.first(), speeds.last()) {
            (Some(&slowest), Some(&fastest)) => {
                let (a, b) = (speeds[(speeds.len() - 1) / 2], speeds[speeds.len() / 2]);
                ((a + b) / 2.0, slowest, fastest)
            }
            _ => (f64::NAN, f64::NAN, f64::NAN),
        }
    }

    /// Patches begun per byte.
    pub fn patches_per_byte(&self) -> f64 {
        units::ratio(
            self.patches,
            self.n_bytes * self.n_sessions * self.times.len(),
        )
    }

    /// Kernels per step without those for patches, and per step with a patch.
    pub fn kernels_per_step(&self) -> Option<(f64, f64)> {
        let (all, closing) = self.kernels?;
        let steps = self.n_bytes * self.times.len();
        Some((
            units::ratio(all - closing, steps),
            units::ratio(closing, self.patch_steps),
        ))
    }

    /// Steps with a patch per step.
    pub fn patch_steps_per_step(&self) -> f64 {
        units::ratio(self.patch_steps, self.n_bytes * self.times.len())
    }
}

/// A model and how its patches are cut.
pub struct Bench<'a> {
    pub model: &'a Model,
    /// Length of every patch; `None`: as the model cuts them.
    pub patch_length: Option<usize>,
    pub kv: KvType,
    pub n_runs: usize,
    /// Sessions that read together.
    pub n_sessions: usize,
}

impl Bench<'_> {
    /// Whether generation runs the entropy model.
    pub fn runs_entropy_model(&self) -> bool {
        let mode = self.model.config().patcher.mode;
        self.model.has_entropy_model()
            && (self.patch_length.is_some() || mode == PatchingMode::Entropy)
    }

    /// A session that has room for `n_bytes`.
    pub fn session(&self, n_bytes: usize) -> Result<Session> {
        let lengths = |length: usize| {
            let patches = n_bytes / length + 2;
            std::iter::once(1)
                .chain(std::iter::repeat_n(length, patches))
                .collect()
        };
        Session::new(
            self.model,
            SessionOptions {
                patch_lengths: self.patch_length.map(lengths),
                // Given lengths stand in for what the entropy model would say: it runs all the same.
                entropies: self.patch_length.is_some() && self.model.has_entropy_model(),
                kv: Some(self.kv),
                ..SessionOptions::default()
            },
        )
    }

    fn forks(&self, session: &Session) -> Vec<Session> {
        vec![session.clone(); self.n_sessions]
    }

    /// Reads and generates a little.
    pub fn warm_up(&self) -> Result<()> {
        let mut session = self.session(2 * WARM_UP)?;
        session.feed(&text(WARM_UP))?;
        generate(&mut self.forks(&session), 4, 0).map(|_| ())
    }

    /// Reads `n_bytes` after BOS, again and again.
    pub fn prompt(&self, n_bytes: usize, mut done: impl FnMut(usize)) -> Result<Runs> {
        let text = text(n_bytes);
        let mut runs = Runs {
            n_bytes,
            n_sessions: self.n_sessions,
            ..Runs::default()
        };
        for run in 0..self.n_runs {
            let mut first = self.session(n_bytes)?;
            first.begin()?;
            let mut sessions = self.forks(&first);
            let mut feeds: Vec<(&mut Session, &[u8])> =
                sessions.iter_mut().map(|s| (s, &text[..])).collect();
            let start = Instant::now();
            batch::feed(&mut feeds)
                .into_iter()
                .collect::<Result<()>>()?;
            runs.times.push(start.elapsed());
            runs.patches += sessions.iter().map(|s| patches_in(s, 1)).sum::<usize>();
            runs.cache_bytes = sessions[0].cache_bytes();
            done(run + 1);
            if interrupt::requested() {
                break;
            }
        }
        Ok(runs)
    }

    /// Generates `n_bytes` after a text of `context` bytes, again and again.
    pub fn generate(
        &self,
        n_bytes: usize,
        context: usize,
        mut done: impl FnMut(usize),
    ) -> Result<Runs> {
        let mut runs = Runs {
            n_bytes,
            n_sessions: self.n_sessions,
            context,
            ..Runs::default()
        };
        let mut base = self.session(context + n_bytes)?;
        base.begin()?;
        base.feed(&text(context))?;
        for run in 0..self.n_runs {
            let mut sessions = self.forks(&base);
            let before = self.model.gpu_kernels();
            let start = Instant::now();
            runs.patch_steps += generate(&mut sessions, n_bytes, run as u64)?;
            runs.times.push(start.elapsed());
            if let (Some(before), Some(after)) = (before, self.model.gpu_kernels()) {
                let (all, closing) = runs.kernels.unwrap_or_default();
                runs.kernels = Some((all + after.0 - before.0, closing + after.1 - before.1));
            }
            let patches = sessions.iter().map(|s| patches_in(s, base.len()));
            runs.patches += patches.sum::<usize>();
            runs.cache_bytes = sessions[0].cache_bytes();
            done(run + 1);
            if interrupt::requested() {
                break;
            }
        }
        Ok(runs)
    }
}

/// Lets all sessions generate, each with its own random numbers; returns in how many steps any of them
/// began a patch.
fn generate(sessions: &mut [Session], n_bytes: usize, seed: u64) -> Result<usize> {
    let n_starts = |session: &Session| session.patch_starts().len();
    let options = |i: usize| GenerateOptions {
        max_bytes: Some(n_bytes),
        sampler: SamplerConfig {
            seed: seed << 32 | i as u64,
            ignore_eos: true,
            ..SamplerConfig::default()
        },
        stop: Vec::new(),
    };
    let mut before: usize = sessions.iter().map(n_starts).sum();
    let generators = sessions.iter_mut().enumerate();
    let generators = generators.map(|(i, session)| session.generate(&options(i)));
    let mut generators: Vec<Generator<'_>> = generators.collect::<Result<_>>()?;
    let mut patch_steps = 0;
    let mut count = |n_starts: usize| {
        patch_steps += usize::from(n_starts > before);
        before = n_starts;
    };
    for _ in 0..n_bytes {
        let mut all: Vec<&mut Generator<'_>> = generators.iter_mut().collect();
        for byte in batch::next_bytes(&mut all) {
            byte.transpose()?;
        }
        count(generators.iter().map(|g| n_starts(g.session())).sum());
    }
    (batch::finish(generators).into_iter()).collect::<Result<()>>()?;
    count(sessions.iter().map(n_starts).sum());
    Ok(patch_steps)
}

fn text(n_bytes: usize) -> Vec<u8> {
    TEXT.iter().copied().cycle().take(n_bytes).collect()
}

/// Patches that start at position `from` or later.
fn patches_in(session: &Session, from: usize) -> usize {
    let positions = from..session.len();
    session
        .patch_starts()
        .iter()
        .filter(|s| positions.contains(s))
        .count()
}
