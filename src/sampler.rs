//! Chooses an id by its logits; owns the random state.
//!
//! Steps, in this order: banned ids, repetition penalty, temperature, top-k, top-p, min-p, one
//! random draw. The same seed, settings and logits give the same bytes on every platform and with
//! any number of threads: everything is computed in `f64` in one fixed order from operations that
//! IEEE 754 defines to the last bit (`exp` is our own for that reason), and the random numbers are
//! SplitMix64. Stop rules are not here; see [`crate::generate`].

#![forbid(unsafe_code)]

mod config;
mod exact;

use std::cmp::Ordering;

pub use self::config::SamplerConfig;
use self::exact::exp;
use crate::error::Result;
use crate::grammar::{Allowed, Matcher};
use crate::model::sequence::IdChoice;
use crate::random::SplitMix64;
use crate::vocab::{BYTE_OFFSET, Choices, EOS, Id};

/// Chooses ids by a [`SamplerConfig`]. A clone continues with the same random numbers.
#[derive(Debug)]
pub struct Sampler {
    config: SamplerConfig,
    choices: Choices,
    random: SplitMix64,
    constraint: Option<Constraint>,
    scratch: Vec<Candidate>, // kept so that a draw allocates nothing
}

impl Clone for Sampler {
    fn clone(&self) -> Self {
        Sampler {
            config: self.config.clone(),
            choices: self.choices.clone(),
            random: self.random.clone(),
            constraint: self.constraint.clone(),
            scratch: Vec::new(),
        }
    }

    fn clone_from(&mut self, other: &Self) {
        self.config.clone_from(&other.config);
        self.choices.clone_from(&other.choices);
        self.random = other.random.clone();
        self.constraint.clone_from(&other.constraint);
    }
}

/// A grammar that the chosen bytes obey. Some of them may have been chosen elsewhere (see
/// [`Sampler::skip`]), so the matcher takes them from the history at its next use.
#[derive(Debug, Clone)]
struct Constraint {
    matcher: Matcher,
    /// Ids chosen since the grammar began, and how many of them the matcher has taken.
    n_chosen: usize,
    n_matched: usize,
}

impl Constraint {
    /// Takes the ids at the end of `history` that have been chosen since the last call.
    fn allowed(&mut self, history: &[Id], choices: &Choices) -> Allowed {
        let n_new = self.n_chosen - self.n_matched;
        let new = &history[history.len().saturating_sub(n_new)..];
        for byte in new.iter().filter_map(|&id| choices.byte(id)) {
            self.matcher.push(byte);
        }
        self.n_matched = self.n_chosen;
        self.matcher.allowed()
    }

    /// Whether both allow the same bytes after the same text.
    fn is_like(&self, other: &Constraint) -> bool {
        self.n_chosen == other.n_chosen && self.matcher.has_same_grammar(&other.matcher)
    }
}

/// An id that can still be chosen.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: Id,
    logit: f64,
    weight: f64, // probability, not normalised
}

impl Sampler {
    /// A sampler for a BLT, at the start of its random numbers.
    ///
    /// # Errors
    /// As [`SamplerConfig::validate`].
    pub fn new(config: SamplerConfig) -> Result<Self> {
        Sampler::with_choices(config, Choices::default())
    }

    /// A sampler for a model that chooses among `choices`: see [`Model::choices`](crate::Model::choices).
    ///
    /// # Errors
    /// As [`SamplerConfig::validate`].
    pub fn with_choices(config: SamplerConfig, choices: Choices) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            random: SplitMix64(config.seed),
            config,
            choices,
            constraint: None,
            scratch: Vec::new(),
        })
    }

    /// This sampler, for a model that chooses among `choices`.
    pub(crate) fn choosing_among(self, choices: Choices) -> Self {
        Sampler { choices, ..self }
    }

    /// Chooses only what the grammar of `matcher` allows: its bytes, and the end where the text may end. If no
    /// byte can follow, the end is chosen even if it is banned.
    #[must_use]
    pub fn with_grammar(mut self, matcher: Matcher) -> Self {
        self.constraint = Some(Constraint {
            matcher,
            n_chosen: 0,
            n_matched: 0,
        });
        self
    }

    /// The settings.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Chooses an id by `logits` (one per id); `history` holds the ids so far, oldest first, and
    /// matters only for the repetition penalty.
    ///
    /// Takes one random number, whatever the logits, or none if the temperature is 0. A NaN logit
    /// counts as minus infinity; logits of plus infinity share all probability. If no allowed id
    /// has a logit above minus infinity, the lowest allowed id is chosen: EOS, unless it is banned.
    pub fn sample(&mut self, logits: &[f32], history: &[Id]) -> Id {
        let mut candidates = std::mem::take(&mut self.scratch);
        let choices = &self.choices;
        let allowed = (self.constraint.as_mut()).map(|c| c.allowed(history, choices));
        self.weigh(logits, history, allowed.as_ref(), &mut candidates);
        let draw = if self.config.temperature == 0.0 {
            0.0
        } else {
            self.random.unit()
        };
        let id = choose(&candidates, draw);
        self.scratch = candidates;
        if let Some(constraint) = &mut self.constraint {
            constraint.n_chosen += 1;
        }
        id.unwrap_or_else(|| self.lowest_allowed(logits.len(), allowed.as_ref()))
    }

    /// The next choice of [`sample`](Self::sample) in numbers, for a device that has the logits; `None` if the choice
    /// depends on more than the logits.
    pub(crate) fn choice(&self, n_logits: usize) -> Option<IdChoice> {
        let config = &self.config;
        if config.repeat_penalty != 1.0 || self.constraint.is_some() {
            return None;
        }
        let all = u32::try_from(n_logits).ok()?;
        let banned = (0..BYTE_OFFSET).filter(|&id| !self.is_allowed(id, None));
        Some(IdChoice {
            draw: self.random.clone().unit(),
            temperature: config.temperature.into(),
            top_p: config.top_p.unwrap_or(1.0).into(),
            min_p: config.min_p.unwrap_or(0.0).into(),
            top_k: (config.top_k).map_or(all, |k| u32::try_from(k).unwrap_or(all).min(all)),
            banned: banned.fold(0, |bits, id| bits | 1 << id),
            fallback: self.lowest_allowed(n_logits, None).into(),
        })
    }

    /// Whether both choose the same ids, now and later.
    pub(crate) fn same_choices(&self, other: &Sampler) -> bool {
        let same_constraint = match (&self.constraint, &other.constraint) {
            (None, None) => true,
            (Some(own), Some(other)) => own.is_like(other),
            _ => false,
        };
        same_constraint
            && self.random.0 == other.random.0
            && self.config == other.config
            && self.choices == other.choices
    }

    /// Consumes the random number of a choice that was made elsewhere.
    pub(crate) fn skip(&mut self) {
        if self.config.temperature != 0.0 {
            self.random.unit();
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.n_chosen += 1;
        }
    }

    /// Probability of each id (one per logit, sum 1) of being chosen by [`sample`](Self::sample).
    /// Empty for no logits.
    pub fn distribution(&self, logits: &[f32], history: &[Id]) -> Vec<f64> {
        let mut candidates = Vec::new();
        let constraint = self.constraint.clone();
        let allowed = constraint.map(|mut c| c.allowed(history, &self.choices));
        self.weigh(logits, history, allowed.as_ref(), &mut candidates);
        let mut probabilities = vec![0.0; logits.len()];
        let total = total_weight(&candidates);
        for c in &candidates {
            probabilities[usize::from(c.id)] = c.weight / total;
        }
        if candidates.is_empty() {
            let id = usize::from(self.lowest_allowed(logits.len(), allowed.as_ref()));
            if let Some(p) = probabilities.get_mut(id) {
                *p = 1.0;
            }
        }
        probabilities
    }

    fn is_allowed(&self, id: Id, allowed: Option<&Allowed>) -> bool {
        let must_end = allowed.is_some_and(Allowed::must_end);
        if self.choices.is_stop(id) {
            let may_end = allowed.is_none_or(Allowed::may_end);
            return may_end && (!self.config.ignore_eos || must_end);
        }
        if let Some(allowed) = allowed {
            let byte = self.choices.byte(id);
            return byte.is_some_and(|byte| allowed.contains(byte));
        }
        // An id that the model cannot read is never offered.
        !self.choices.is_special(id) || !(self.config.ban_special || self.choices.has_flags())
    }

    /// What is chosen when the logits say nothing; EOS even if banned when there is nothing else.
    fn lowest_allowed(&self, n_logits: usize, allowed: Option<&Allowed>) -> Id {
        let end = Id::try_from(n_logits).unwrap_or(Id::MAX);
        (0..end)
            .find(|&id| self.is_allowed(id, allowed))
            .unwrap_or(EOS)
    }

    /// Leaves in `candidates` the ids that can be chosen, most probable first, with their weights.
    fn weigh(
        &self,
        logits: &[f32],
        history: &[Id],
        allowed: Option<&Allowed>,
        candidates: &mut Vec<Candidate>,
    ) {
        candidates.clear();
        candidates.extend(
            (0..=Id::MAX)
                .zip(logits)
                .filter(|&(id, &logit)| logit > f32::NEG_INFINITY && self.is_allowed(id, allowed))
                .map(|(id, &logit)| Candidate {
                    id,
                    logit: f64::from(logit) + 0.0, // -0 would sort below 0
                    weight: 0.0,
                }),
        );
        self.penalise(history, candidates);
        let Some(max) = candidates.iter().map(|c| c.logit).reduce(f64::max) else {
            return;
        };
        if self.config.temperature == 0.0 {
            let first = candidates.iter().position(|c| c.logit == max);
            candidates.swap(0, first.unwrap_or(0));
            candidates.truncate(1);
            candidates[0].weight = 1.0;
            return;
        }
        if let Some(k) = self.config.top_k.filter(|&k| k < candidates.len()) {
            candidates.select_nth_unstable_by(k, descending);
            candidates.truncate(k);
            // Only the set is certain so far, and the sum below needs one order.
            candidates.sort_unstable_by(descending);
        }
        let temperature = f64::from(self.config.temperature);
        for c in candidates.iter_mut() {
            // Equality first: infinity minus infinity is NaN.
            c.weight = if c.logit == max {
                1.0
            } else {
                exp((c.logit - max) / temperature)
            };
        }
        // Min-p comes last, but what it drops is at the end of the order by which top-p goes, so
        // only the rest has to be sorted: a few of 260. The largest weight is 1, so the share of
        // it is the weight itself.
        let total = total_weight(candidates);
        let least = f64::from(self.config.min_p.unwrap_or(0.0));
        candidates.retain(|c| c.weight > 0.0 && c.weight >= least);
        candidates.sort_unstable_by(descending);
        if let Some(p) = self.config.top_p.filter(|&p| p < 1.0) {
            let enough = f64::from(p) * total;
            let mut sum = 0.0;
            let last = candidates.iter().position(|c| {
                sum += c.weight;
                sum >= enough
            });
            candidates.truncate(last.map_or(candidates.len(), |last| last + 1));
        }
    }

    /// The repetition penalty on the logits of the bytes among the last ids; special ids are
    /// exempt, or a long text would never end.
    fn penalise(&self, history: &[Id], candidates: &mut [Candidate]) {
        let penalty = f64::from(self.config.repeat_penalty);
        if penalty == 1.0 {
            return;
        }
        let mut seen = [false; 256];
        let window = &history[history.len().saturating_sub(self.config.repeat_window)..];
        for byte in window.iter().filter_map(|&id| self.choices.byte(id)) {
            seen[usize::from(byte)] = true;
        }
        for c in candidates {
            if self
                .choices
                .byte(c.id)
                .is_some_and(|byte| seen[usize::from(byte)])
            {
                c.logit = if c.logit > 0.0 {
                    c.logit / penalty
                } else {
                    c.logit * penalty
                };
            }
        }
    }
}

/// Largest logit first, of equal ones the lowest id.
fn descending(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

fn total_weight(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| c.weight).sum()
}

/// The candidate at `draw` (0 to below 1) of the total weight; `None` if there is none.
fn choose(candidates: &[Candidate], draw: f64) -> Option<Id> {
    let target = draw * total_weight(candidates);
    let mut sum = 0.0;
    let hit = candidates.iter().find(|c| {
        sum += c.weight;
        sum > target
    });
    // A draw next to 1 can round up to the total, which no sum exceeds.
    hit.or(candidates.last()).map(|c| c.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::VOCAB_SIZE;

    fn plain() -> SamplerConfig {
        SamplerConfig {
            temperature: 1.0,
            top_p: None,
            min_p: None,
            ban_special: false,
            ..SamplerConfig::default()
        }
    }

    fn sampler(config: SamplerConfig) -> Sampler {
        Sampler::new(config).unwrap()
    }

    fn random_logits(random: &mut SplitMix64) -> Vec<f32> {
        let scale = 1.0 + 9.0 * random.unit();
        (0..VOCAB_SIZE)
            .map(|_| ((random.unit() - 0.5) * scale) as f32)
            .collect()
    }

    /// The definition: probabilities, then each filter by asking for every id who is above it.
    fn naive(config: &SamplerConfig, logits: &[f32], history: &[Id]) -> Vec<f64> {
        let mut l: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
        for (id, l) in l.iter_mut().enumerate() {
            let special = id < 4;
            let back = history.len().min(config.repeat_window);
            if !special && history[history.len() - back..].contains(&(id as Id)) {
                let penalty = f64::from(config.repeat_penalty);
                *l = if *l > 0.0 { *l / penalty } else { *l * penalty };
            }
            let banned = if id == 2 {
                config.ignore_eos
            } else {
                special && config.ban_special
            };
            if banned || l.is_nan() {
                *l = f64::NEG_INFINITY;
            }
        }
        let normalise = |p: &mut Vec<f64>| {
            let sum: f64 = p.iter().sum();
            p.iter_mut().for_each(|p| *p /= sum);
        };
        let max = l.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let t = f64::from(config.temperature);
        let mut p: Vec<f64> = l.iter().map(|x| ((x - max) / t).exp()).collect();
        normalise(&mut p);
        let above = |p: &[f64], i: usize| -> Vec<usize> {
            let better = |j: usize| p[j] > p[i] || p[j] == p[i] && j < i;
            (0..p.len()).filter(|&j| better(j)).collect()
        };
        if let Some(k) = config.top_k {
            let keep: Vec<bool> = (0..p.len()).map(|i| above(&p, i).len() < k).collect();
            p.iter_mut().zip(keep).for_each(|(p, k)| *p *= f64::from(k));
            normalise(&mut p);
        }
        if let Some(top) = config.top_p {
            let mass = |i| above(&p, i).iter().map(|&j| p[j]).sum::<f64>();
            let keep: Vec<bool> = (0..p.len()).map(|i| mass(i) < f64::from(top)).collect();
            p.iter_mut().zip(keep).for_each(|(p, k)| *p *= f64::from(k));
            normalise(&mut p);
        }
        if let Some(min) = config.min_p {
            let max = p.iter().copied().fold(0.0, f64::max);
            p.iter_mut()
                .filter(|p| **p < f64::from(min) * max)
                .for_each(|p| *p = 0.0);
            normalise(&mut p);
        }
        p
    }

    #[test]
    fn distributions_are_those_of_the_definition() {
        for seed in 0..300 {
            let mut random = SplitMix64(seed);
            let logits = random_logits(&mut random);
            let history: Vec<Id> = (0..40).map(|_| (random.next() % 260) as Id).collect();
            let mut pick = |values: &[f32]| values[(random.next() % values.len() as u64) as usize];
            let config = SamplerConfig {
                temperature: pick(&[0.3, 0.8, 1.0, 2.5]),
                top_k: [None, Some(1), Some(7), Some(1000)][pick(&[0.0, 1.0, 2.0, 3.0]) as usize],
                top_p: [None, Some(pick(&[0.1, 0.5, 0.95, 1.0]))][pick(&[0.0, 1.0]) as usize],
                min_p: [None, Some(pick(&[0.0, 0.05, 0.5, 1.0]))][pick(&[0.0, 1.0]) as usize],
                repeat_penalty: pick(&[1.0, 1.3, 0.8]),
                repeat_window: pick(&[0.0, 5.0, 64.0]) as usize,
                seed,
                ban_special: pick(&[0.0, 1.0]) > 0.0,
                ignore_eos: pick(&[0.0, 1.0]) > 0.0,
            };
            let found = sampler(config.clone()).distribution(&logits, &history);
            let expected = naive(&config, &logits, &history);
            let sum: f64 = found.iter().sum();
            assert!((sum - 1.0).abs() < 1e-12, "seed {seed}: sum {sum}");
            for (id, (f, e)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (f - e).abs() < 1e-12,
                    "seed {seed}, id {id}: {f} {e}, {config:?}"
                );
            }
        }
    }

    #[test]
    fn draws_have_the_frequencies_of_the_distribution() {
        const DRAWS: usize = 40_000;
        for seed in 0..4 {
            let logits = random_logits(&mut SplitMix64(77 + seed));
            let mut s = sampler(SamplerConfig {
                seed,
                top_k: Some(20),
                ..plain()
            });
            let expected = s.distribution(&logits, &[]);
            let mut counts = vec![0usize; VOCAB_SIZE];
            for _ in 0..DRAWS {
                counts[usize::from(s.sample(&logits, &[]))] += 1;
            }
            let mut chi_square = 0.0;
            for (id, (&n, p)) in counts.iter().zip(&expected).enumerate() {
                let e = p * DRAWS as f64;
                assert!(e > 0.0 || n == 0, "id {id} was drawn, its probability is 0");
                if e > 0.0 {
                    chi_square += (n as f64 - e).powi(2) / e;
                }
            }
            // 19 degrees of freedom: one in a thousand is above 43.8.
            assert!(chi_square < 43.8, "seed {seed}: {chi_square}");
        }
    }

    #[test]
    fn a_seed_gives_these_bytes_everywhere() {
        let logits: Vec<f32> = (0..VOCAB_SIZE)
            .map(|i| ((i * 7919) % 263) as f32 / 32.0)
            .collect();
        for (seed, expected) in [
            (0, [80, 63, 136, 34, 145, 45, 154, 153, 163, 143, 54, 17]),
            (1, [90, 144, 34, 63, 63, 153, 207, 81, 36, 162, 190, 99]),
            (
                u64::MAX,
                [89, 234, 27, 190, 126, 180, 134, 163, 153, 136, 136, 171],
            ),
        ] {
            let mut s = sampler(SamplerConfig {
                seed,
                ..SamplerConfig::default()
            });
            let ids: Vec<Id> = (0..12).map(|_| s.sample(&logits, &[])).collect();
            assert_eq!(ids, expected, "seed {seed}");
        }
    }

    #[test]
    fn a_clone_goes_on_alike_and_each_draw_takes_one_number() {
        let logits = random_logits(&mut SplitMix64(5));
        let mut a = sampler(plain());
        let mut b = a.clone();
        b.sample(&[f32::NAN; 260], &[]);
        a.sample(&logits, &[]);
        let mut c = a.clone();
        for _ in 0..50 {
            let id = a.sample(&logits, &[]);
            assert_eq!(id, b.sample(&logits, &[]));
            assert_eq!(id, c.sample(&logits, &[]));
        }
    }

    #[test]
    fn greedy_takes_the_largest_and_of_equal_ones_the_lowest_id() {
        let mut s = sampler(SamplerConfig::greedy());
        let mut logits = vec![-3.0; VOCAB_SIZE];
        assert_eq!(s.sample(&logits, &[]), EOS, "all equal: the lowest allowed");
        assert_eq!(s.sample(&[-1.0, -1.0, -1.0, -1.0, -0.0, 0.0], &[]), 4);
        logits[1] = 9.0; // banned
        logits[200] = 2.0;
        logits[100] = 2.0;
        logits[50] = f32::NAN;
        assert_eq!(s.sample(&logits, &[]), 100);
        logits[150] = f32::INFINITY;
        assert_eq!(s.sample(&logits, &[]), 150);
    }

    #[test]
    fn equal_logits_are_uniform_over_what_is_allowed() {
        for value in [0.0, -1e30, 1e30, f32::MAX, f32::MIN, f32::INFINITY] {
            for (ban_special, ignore_eos, n) in
                [(false, false, 260), (true, false, 257), (true, true, 256)]
            {
                let p = sampler(SamplerConfig {
                    ban_special,
                    ignore_eos,
                    ..plain()
                })
                .distribution(&[value; VOCAB_SIZE], &[]);
                assert_eq!(p.iter().filter(|p| **p > 0.0).count(), n, "{value}");
                assert!(p.iter().all(|&p| p == 0.0 || p == 1.0 / n as f64));
            }
        }
    }

    #[test]
    fn infinite_logits_share_everything() {
        let mut logits = vec![5.0; VOCAB_SIZE];
        logits[70] = f32::INFINITY;
        logits[90] = f32::INFINITY;
        logits[0] = f32::NAN;
        let p = sampler(plain()).distribution(&logits, &[]);
        assert_eq!((p[70], p[90]), (0.5, 0.5));
    }

    #[test]
    fn logits_that_say_nothing_give_the_lowest_allowed_id() {
        for value in [f32::NAN, f32::NEG_INFINITY] {
            for temperature in [0.0, 1.0] {
                for (ban_special, ignore_eos, expected) in
                    [(true, false, EOS), (true, true, 4), (false, false, 0)]
                {
                    let mut s = sampler(SamplerConfig {
                        temperature,
                        ban_special,
                        ignore_eos,
                        ..SamplerConfig::default()
                    });
                    assert_eq!(s.sample(&[value; VOCAB_SIZE], &[]), expected);
                    let p = s.distribution(&[value; VOCAB_SIZE], &[]);
                    assert_eq!(p[usize::from(expected)], 1.0);
                    assert_eq!(p.iter().sum::<f64>(), 1.0);
                }
            }
        }
        let mut s = sampler(SamplerConfig::default());
        assert_eq!(s.sample(&[], &[]), EOS);
        assert!(s.distribution(&[], &[]).is_empty());
    }

    #[test]
    fn the_penalty_moves_bytes_of_the_window_and_spares_special_ids() {
        let config = SamplerConfig {
            temperature: 0.0,
            repeat_penalty: 2.0,
            repeat_window: 3,
            ..plain()
        };
        let mut logits = vec![-9.0; VOCAB_SIZE];
        (logits[10], logits[20], logits[EOS as usize]) = (4.0, 3.0, -1.0);
        let mut s = sampler(config);
        assert_eq!(s.sample(&logits, &[10]), 20);
        assert_eq!(s.sample(&logits, &[10, 20]), 10);
        assert_eq!(
            s.sample(&logits, &[10, 30, 31, 32]),
            10,
            "out of the window"
        );
        (logits[10], logits[20]) = (-1.5, -2.0);
        assert_eq!(s.sample(&logits, &[10, EOS]), EOS);
        logits[EOS as usize] = -9.0;
        assert_eq!(s.sample(&logits, &[10, EOS]), 20, "-1.5 becomes -3");
    }

    #[test]
    fn flags_make_two_candidates_of_a_byte_and_special_ids_are_never_offered() {
        for (stop_ids, ignore_eos, n) in [
            (&[1][..], false, 514),
            (&[1, 14], false, 514),
            (&[1], true, 512),
            (&[2, 14], true, 510),
        ] {
            let config = SamplerConfig {
                ignore_eos,
                ..plain()
            };
            let sampler = Sampler::with_choices(config, Choices::with_flags(stop_ids)).unwrap();
            let p = sampler.distribution(&[0.0; 520], &[]);
            assert_eq!(p.iter().filter(|p| **p > 0.0).count(), n, "{stop_ids:?}");
            for id in [0, 3, 260, 263] {
                assert_eq!(p[id], 0.0, "{id}");
            }
        }
        let config = SamplerConfig {
            temperature: 0.0,
            repeat_penalty: 2.0,
            ..plain()
        };
        let mut logits = [-9.0; 520];
        (logits[270], logits[11], logits[263]) = (4.0, 3.0, 90.0);
        let mut sampler = Sampler::with_choices(config, Choices::with_flags(&[1])).unwrap();
        assert_eq!(sampler.sample(&logits, &[]), 270);
        assert_eq!(
            sampler.sample(&logits, &[10]),
            11,
            "both of a byte's ids are punished"
        );
    }

    #[test]
    fn tiny_temperatures_become_greedy_without_nan() {
        for temperature in [f32::MIN_POSITIVE, 1e-45, 1e-10] {
            let mut logits = vec![f32::MIN; VOCAB_SIZE];
            (logits[8], logits[9]) = (f32::MAX, 1.0);
            let p = sampler(SamplerConfig {
                temperature,
                ..plain()
            })
            .distribution(&logits, &[]);
            assert_eq!(p[8], 1.0);
        }
    }
}
