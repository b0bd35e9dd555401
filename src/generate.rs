//! The loop: choose a byte, hand it out, read it, until something says stop.
//!
//! ```no_run
//! use blt::{GenerateOptions, Model, Session, SessionOptions};
//!
//! let model = Model::open("model.safetensors")?;
//! let mut session = Session::new(&model, SessionOptions::default())?;
//! session.feed(b"Once upon a time")?;
//! for byte in session.generate(&GenerateOptions::default())? {
//!     print!("{}", byte? as char);
//! }
//! # Ok::<(), blt::Error>(())
//! ```

#![forbid(unsafe_code)]

mod options;
mod stop_strings;
mod utf8_chunks;

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::sampler::Sampler;
use crate::session::{DraftPolicy, FeedRequest, GenerationStep, Session, next_ids, run_together};
use crate::vocab::Id;

pub use crate::session::MAX_DRAFT;
pub use options::GenerateOptions;
pub use stop_strings::{Stop, StopMatcher};
pub use utf8_chunks::{Strings, Utf8Stream};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model chose the end-of-sequence id (which the session does not read).
    Eos,
    /// A stop string was complete.
    StopString,
    /// The largest number of bytes allowed.
    MaxBytes,
}

/// The bytes with which a model continues a text, one at a time.
///
/// The session reads a byte when the next one is requested, so that no work is done for a byte that
/// nobody needs; [`Generator::finish`] reads the last one too.
#[derive(Debug)]
pub struct Generator<'a> {
    session: &'a mut Session,
    sampler: Sampler,
    stops: StopMatcher,
    /// Chosen and not yet handed out: the beginning of what may become a stop string, or the text
    /// before one.
    pending: VecDeque<u8>,
    /// How many of `pending` can be handed out.
    ready: usize,
    /// Chosen and not yet read by the session.
    unread: Option<Id>,
    policy: DraftPolicy,
    /// Bytes that may still be chosen.
    room: usize,
    reason: Option<FinishReason>,
    failed: bool,
}

impl Session {
    /// Continues the text. An empty session is given BOS first.
    ///
    /// # Errors
    /// [`Error::Argument`] for sampler settings out of range, a grammar that needs more bytes than
    /// `max_bytes`, an empty stop string, a draft too long, or
    /// a session without BOS that has read nothing; errors of reading as [`Session::feed_ids`].
    pub fn generate(&mut self, options: &GenerateOptions) -> Result<Generator<'_>> {
        let mut sampler = Sampler::with_choices(options.sampler.clone(), self.model().choices())?;
        if let Some(grammar) = &options.grammar {
            sampler = sampler.with_grammar(grammar.matcher(options.max_bytes)?);
        }
        let stops = StopMatcher::new(&options.stop)?;
        let policy = DraftPolicy::new(options.draft)?;
        self.begin()?;
        if self.is_empty() {
            return Err(Error::argument(
                "prompt",
                "expected at least one byte when BOS is left out, found none",
            ));
        }
        Ok(Generator {
            session: self,
            sampler,
            stops,
            pending: VecDeque::new(),
            ready: 0,
            unread: None,
            policy,
            room: options.max_bytes.unwrap_or(usize::MAX),
            reason: None,
            failed: false,
        })
    }
}

impl Generator<'_> {
    /// Why the generation ended; `None` while it continues.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.reason.filter(|_| self.ready == 0)
    }

    /// The session, for its patches and entropies. The byte handed out last is not in it yet.
    pub fn session(&self) -> &Session {
        self.session
    }

    /// What chooses the bytes, in its present random state.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Lets another sampler choose from here on: one that continues the random numbers of an earlier
    /// generation.
    ///
    /// A grammar belongs to its sampler: the one in [`GenerateOptions::grammar`] is gone afterwards.
    pub fn set_sampler(&mut self, sampler: Sampler) {
        self.sampler = sampler.choosing_among(self.session.model().choices());
    }

    /// Lets the session read the byte chosen last, so that it has the whole text and can continue.
    ///
    /// # Errors
    /// As [`Session::feed_ids`].
    pub fn finish(mut self) -> Result<()> {
        match self.unread.take() {
            Some(id) => self.session.feed_written(&[id]),
            None => Ok(()),
        }
    }

    /// [`Generator::finish`] before another generator continues with the sampler of this one: the session
    /// may draft.
    #[cfg(feature = "capi")]
    pub(crate) fn finish_and_draft(mut self) -> Result<()> {
        let mut step = self.step();
        step.room = usize::MAX; // how many bytes the next generator will ask for is not known
        crate::session::read_ids(&mut [step]).remove(0).map(|_| ())
    }

    /// The next step: the byte chosen last is read.
    fn step(&mut self) -> GenerationStep<'_> {
        GenerationStep {
            session: self.session,
            unread: self.unread.take(),
            sampler: &mut self.sampler,
            policy: self.policy,
            room: self.room,
        }
    }

    /// Whether another byte must be chosen before one can be handed out or the end is known.
    fn needs_byte(&mut self) -> bool {
        let needs = self.ready == 0 && self.reason.is_none() && !self.failed;
        if needs && self.room == 0 {
            self.end(FinishReason::MaxBytes, 0);
            return false;
        }
        needs
    }

    /// Takes the id chosen next.
    fn add(&mut self, id: Id) {
        let choices = self.session.model().choices();
        if choices.is_stop(id) {
            return self.end(FinishReason::Eos, 0);
        }
        self.unread = Some(id);
        self.room -= 1;
        // Other special ids are read but have no byte.
        let Some(byte) = choices.byte(id) else { return };
        self.pending.push_back(byte);
        match self.stops.push(byte) {
            Stop::Held(n) => self.ready = self.pending.len() - n,
            Stop::Found { len, .. } => self.end(FinishReason::StopString, len),
        }
    }

    /// [`Generator::finish`] of several generators, whose sessions read together.
    pub(crate) fn finish_all(generators: Vec<Generator<'_>>) -> Vec<Result<()>> {
        let (mut sessions, unread): (Vec<_>, Vec<_>) = (generators.into_iter())
            .map(|g| (g.session, g.unread))
            .unzip();
        let requests = sessions.iter_mut().zip(&unread);
        let mut requests: Vec<FeedRequest<'_>> = requests
            .map(|(session, id)| FeedRequest::new(session, id.as_slice()).written())
            .collect();
        run_together(&mut requests);
        let finished = requests.into_iter().map(FeedRequest::finish);
        finished.map(|result| result.map(|_| ())).collect()
    }

    /// The next byte of several generators, as [`Iterator::next`] gives it. Their sessions read together.
    pub(crate) fn next_of_all(
        generators: &mut [&mut Generator<'_>],
    ) -> SmallVec<[Option<Result<u8>>; 1]> {
        let mut errors: SmallVec<[Option<Error>; 1]> = generators.iter().map(|_| None).collect();
        loop {
            let needy = generators.iter_mut().zip(&mut *errors);
            let needy = needy.filter_map(|(g, e)| g.needs_byte().then_some((g, e)));
            let mut needy: SmallVec<[_; 1]> = needy.collect();
            if needy.is_empty() {
                break;
            }
            let mut steps: SmallVec<[_; 1]> = needy.iter_mut().map(|(g, _)| g.step()).collect();
            let results = next_ids(&mut steps);
            drop(steps);
            for ((generator, error), result) in needy.into_iter().zip(results) {
                match result {
                    Ok(id) => generator.add(id),
                    Err(e) => {
                        generator.failed = true;
                        *error = Some(e);
                    }
                }
            }
        }
        let next = |(generator, error): (&mut &mut Generator<'_>, Option<Error>)| {
            if let Some(error) = error {
                return Some(Err(error));
            }
            generator.ready = generator.ready.checked_sub(1)?;
            generator.pending.pop_front().map(Ok)
        };
        generators.iter_mut().zip(errors).map(next).collect()
    }

    /// Ends, dropping the last `n_dropped` bytes.
    fn end(&mut self, reason: FinishReason, n_dropped: usize) {
        self.pending.truncate(self.pending.len() - n_dropped);
        self.ready = self.pending.len();
        self.reason = Some(reason);
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<u8>;

    /// The next byte. After an error there is nothing more.
    fn next(&mut self) -> Option<Result<u8>> {
        Generator::next_of_all(&mut [self])
            .into_iter()
            .next()
            .flatten()
    }
}
