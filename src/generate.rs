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

mod options;
mod stop_strings;
mod utf8_chunks;

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::sampler::Sampler;
use crate::session::{FeedRequest, Session, run_together};
use crate::vocab::Id;

pub use options::GenerateOptions;
pub use stop_strings::{Stop, StopMatcher};
pub use utf8_chunks::{Strings, Utf8Stream};

/// Most bytes drafted at a time.
pub const MAX_DRAFT: usize = 64;

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model chose the end-of-sequence id (which the session does not read).
    Eos,
    /// A stop string was complete.
    StopString,
    /// As many bytes as asked for.
    MaxBytes,
}

/// The bytes a model goes on with, one at a time.
///
/// A byte is read by the session when the next one is asked for, so that no work is done for a byte
/// nobody wants; [`Generator::finish`] reads the last one too.
#[derive(Debug)]
pub struct Generator<'a> {
    session: &'a mut Session,
    sampler: Sampler,
    stops: StopMatcher,
    /// Chosen and not yet handed out: the beginning of what may become a stop string, or the text
    /// before one.
    held: VecDeque<u8>,
    /// How many of `held` can be handed out.
    ready: usize,
    /// Chosen and not yet read by the session.
    unread: Option<Id>,
    draft: Option<usize>,
    left: usize,
    reason: Option<FinishReason>,
    failed: bool,
}

impl Session {
    /// Goes on with the text. An empty session is given BOS first.
    ///
    /// # Errors
    /// [`Error::Argument`] for sampler settings out of range, a grammar that needs more bytes than
    /// `max_bytes`, an empty stop string, a draft too long, or
    /// a session without BOS that has read nothing; errors of request as [`Session::feed_ids`].
    pub fn generate(&mut self, options: &GenerateOptions) -> Result<Generator<'_>> {
        let mut sampler = Sampler::with_choices(options.sampler.clone(), self.model().choices())?;
        if let Some(grammar) = &options.grammar {
            sampler = sampler.with_grammar(grammar.matcher(options.max_bytes)?);
        }
        let stops = StopMatcher::new(&options.stop)?;
        if let Some(draft) = options.draft.filter(|&n| n > MAX_DRAFT) {
            let message = format!("expected at most {MAX_DRAFT} bytes, found {draft}");
            return Err(Error::argument("draft", message));
        }
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
            held: VecDeque::new(),
            ready: 0,
            unread: None,
            draft: options.draft,
            left: options.max_bytes.unwrap_or(usize::MAX),
            reason: None,
            failed: false,
        })
    }
}

impl Generator<'_> {
    /// Why the generation ended; `None` while it goes on.
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

    /// Lets another sampler choose from here on: one that goes on with the random numbers of an
    /// earlier generation.
    ///
    /// A grammar belongs to the sampler: that of [`GenerateOptions::grammar`] goes with the old one.
    pub fn set_sampler(&mut self, sampler: Sampler) {
        self.sampler = sampler.choosing_among(self.session.model().choices());
    }

    /// Lets the session read the byte chosen last, so that it holds the whole text and can go on.
    ///
    /// # Errors
    /// As [`Session::feed_ids`].
    pub fn finish(mut self) -> Result<()> {
        match self.unread.take() {
            Some(id) => self.session.feed_written(&[id]),
            None => Ok(()),
        }
    }

    /// [`Generator::finish`] of one that will go on at once, in another generator with the sampler of this
    /// one.
    #[cfg(feature = "capi")]
    pub(crate) fn finish_for_now(mut self) -> Result<()> {
        let unread = self.unread.take();
        let request = FeedRequest::new(self.session, unread.as_slice()).written();
        request.drafting(&self.sampler, self.draft).run()
    }

    /// Whether another byte must be chosen before one can be handed out or the end is known.
    fn needs_byte(&mut self) -> bool {
        let needs = self.ready == 0 && self.reason.is_none() && !self.failed;
        if needs && self.left == 0 {
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
        self.left -= 1;
        // Other special ids are read but have no byte.
        let Some(byte) = choices.byte(id) else { return };
        self.held.push_back(byte);
        match self.stops.push(byte) {
            Stop::Held(n) => self.ready = self.held.len() - n,
            Stop::Found { len, .. } => self.end(FinishReason::StopString, len),
        }
    }

    /// [`Generator::finish`] of all. The sessions read together.
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

    /// The next byte of each, as [`Iterator::next`]. The sessions read together.
    pub(crate) fn next_of_all(
        generators: &mut [&mut Generator<'_>],
    ) -> SmallVec<[Option<Result<u8>>; 1]> {
        let mut errors: SmallVec<[Option<Error>; 1]> = generators.iter().map(|_| None).collect();
        loop {
            let going = generators.iter_mut().zip(&mut *errors);
            let mut going: SmallVec<[_; 1]> = going
                .filter_map(|(g, e)| g.needs_byte().then_some((g, e)))
                .collect();
            if going.is_empty() {
                break;
            }
            let unread = going.iter_mut().map(|(g, _)| g.unread.take());
            let unread: SmallVec<[Option<Id>; 1]> = unread.collect();
            let requests = going.iter_mut().zip(&*unread);
            let mut requests: SmallVec<[FeedRequest<'_>; 1]> = requests
                .map(|((g, _), id)| {
                    let request = FeedRequest::new(g.session, id.as_slice()).written();
                    request.choosing(&mut g.sampler, g.draft, g.left)
                })
                .collect();
            run_together(&mut requests);
            let results: SmallVec<[Result<Option<Id>>; 1]> =
                requests.into_iter().map(FeedRequest::finish).collect();
            for ((generator, error), result) in going.into_iter().zip(results) {
                match result {
                    Ok(id) => generator.add(id.expect("there is a sampler")),
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
            generator.held.pop_front().map(Ok)
        };
        generators.iter_mut().zip(errors).map(next).collect()
    }

    /// Ends, dropping the last `n_dropped` bytes.
    fn end(&mut self, reason: FinishReason, n_dropped: usize) {
        self.held.truncate(self.held.len() - n_dropped);
        self.ready = self.held.len();
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
