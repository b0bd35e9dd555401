//! One conversation with a model: feed bytes, read logits, go back, fork.
//!
//! Whatever way a text was fed (at once, in chunks, byte by byte, after going back, in a fork), its
//! logits and entropies are the same bits.

#![forbid(unsafe_code)]

mod cancel;
mod feed;
mod flag_score;
pub(crate) mod memory;
mod options;
mod score;
mod speculate;
mod state_file;
mod write;

use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::model::patcher::{Patcher, starts_to_lengths};
use crate::model::{MAX_BATCH, Model, Patching, SequenceState, Trace};
use crate::vocab::{self, BOS, Id};

pub use cancel::Canceller;
pub(crate) use feed::{FeedRequest, run_together};
pub use flag_score::{FlagScore, FlagScorer};
pub use options::{Overflow, SessionOptions};
pub use score::Score;
#[cfg(feature = "capi")]
pub(crate) use speculate::read as read_ids;
pub use speculate::{DraftCounts, MAX_DRAFT};
pub(crate) use speculate::{DraftPolicy, GenerationStep, next_ids};

use cancel::CancelFlag;
use speculate::Lookahead;

/// Most bytes that a session reads in one pass. Between passes it looks at its [`Canceller`].
pub const BYTES_PER_PASS: usize = MAX_BATCH;

/// One sequence and its caches. `Clone` is a fork that shares what both have in common.
#[derive(Debug, Clone)]
pub struct Session {
    model: Model,
    options: SessionOptions,
    max_bytes: usize,
    max_patches: usize,
    empty: SequenceState,
    /// The text read, and the ids of `lookahead` that have not been.
    state: SequenceState,
    lookahead: Lookahead,
    /// Logits after the last id; empty before the first.
    logits: Vec<f32>,
    n_slides: usize,
    cancel: CancelFlag,
}

/// What [`Session::feed_ids_with`] shows of one byte position.
#[derive(Debug)]
pub struct Position<'a> {
    /// Position of the id, counted from the start of the session.
    pub position: usize,
    /// The id.
    pub id: Id,
    /// Entropy of the id after it, in nats; NaN if the entropy model does not run.
    pub entropy: f32,
    /// Whether the position after it starts a patch.
    pub next_starts_patch: bool,
    /// Logits of the id after it, (vocab).
    pub logits: &'a [f32],
}

impl Session {
    /// An empty session.
    ///
    /// # Errors
    /// [`Error::Config`] for patcher settings out of range, or entropy patching without an entropy
    /// model; [`Error::Argument`] for a limit or reset of 0.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Self> {
        let config = model.config();
        options.check(model)?;
        let patcher_config = options.patcher.as_ref().unwrap_or(&config.patcher);
        let patcher = match &options.patch_lengths {
            Some(lengths) => Patcher::with_lengths(lengths)?,
            None => Patcher::new(patcher_config)?,
        };
        if (patcher.needs_entropy() || options.entropies) && !model.has_entropy_model() {
            return Err(Error::config(
                "patching_mode",
                "entropy patching needs an entropy model and this checkpoint has none; name one \
                 (--entropy-model PATH) or choose another mode (--patching space, static or byte)",
            ));
        }
        for (name, limit) in [
            ("entropy_reset", options.entropy_reset),
            ("max_bytes", options.max_bytes),
            ("max_patches", options.max_patches),
        ] {
            if limit == Some(0) {
                return Err(Error::argument(name, "expected at least 1, found 0"));
            }
        }
        let entropies = patcher.needs_entropy() || options.entropies;
        let kv = options.kv.unwrap_or(model.default_kv());
        let patching = Patching {
            patcher,
            lengths: options.patch_lengths.clone(),
            entropies,
            entropy_reset: options.entropy_reset,
        };
        let empty = SequenceState::new(model, patching, kv);
        Ok(Session {
            model: model.clone(),
            max_bytes: options.max_bytes.unwrap_or(config.max_bytes),
            max_patches: options.max_patches.unwrap_or(config.max_patches),
            options: SessionOptions {
                kv: Some(kv),
                ..options
            },
            state: empty.clone(),
            empty,
            lookahead: Lookahead::default(),
            logits: Vec::new(),
            n_slides: 0,
            cancel: CancelFlag::default(),
        })
    }

    /// A handle with which another thread can stop this session's calls.
    pub fn canceller(&self) -> Canceller {
        self.cancel.canceller()
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The settings.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Number of ids read, BOS included.
    pub fn len(&self) -> usize {
        self.state.ids().len() - self.lookahead.n_unread()
    }

    /// Whether nothing has been read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids read, BOS included.
    pub fn ids(&self) -> &[Id] {
        &self.state.ids()[..self.len()]
    }

    /// Entropy in nats of the id after each id read. NaN if the entropy model does not run.
    pub fn entropies(&self) -> &[f32] {
        &self.state.entropies()[..self.len()]
    }

    /// Where patches start, ascending; ends with [`Session::len`] if the next byte starts one.
    pub fn patch_starts(&self) -> &[usize] {
        let starts = self.state.patch_starts();
        match self.lookahead.n_unread() {
            0 => starts,
            _ => &starts[..starts.partition_point(|&s| s <= self.len())],
        }
    }

    /// Lengths of the patches in the convention of the spec's section 4: the byte that comes next
    /// is counted, so they sum to `len() + 1`.
    pub fn patch_lengths(&self) -> Vec<usize> {
        starts_to_lengths(self.patch_starts(), self.len() + 1)
    }

    /// Logits (vocab) of the id after the last one read; empty if nothing has been read.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// How self-speculation went in this session: [`GenerateOptions::draft`](crate::GenerateOptions::draft).
    pub fn draft_counts(&self) -> DraftCounts {
        self.lookahead.counts()
    }

    /// Most byte positions, BOS included.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// How often the context slid ([`Overflow::Slide`]).
    pub fn n_slides(&self) -> usize {
        self.n_slides
    }

    /// Bytes of memory that the caches take; forks count what they share.
    pub fn cache_bytes(&self) -> usize {
        self.state.n_bytes()
    }

    /// Reads BOS, unless something has been read already or the options say not to.
    ///
    /// # Errors
    /// As [`Session::feed_ids`].
    pub fn begin(&mut self) -> Result<()> {
        match self.is_empty() && !self.options.no_bos {
            true => self.feed_ids(&[BOS]),
            false => Ok(()),
        }
    }

    /// Reads bytes, after BOS if they are the first.
    ///
    /// # Errors
    /// As [`Session::feed_ids`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        let bos = self.is_empty() && !self.options.no_bos;
        let n_ids = bytes.len().saturating_add(bos.into());
        // Before a copy is made of more than can be read.
        if matches!(self.options.overflow, Overflow::Error) {
            self.check_bytes(self.len().saturating_add(n_ids))?;
        }
        let mut ids: SmallVec<[Id; 1]> = SmallVec::new();
        let needed = n_ids.saturating_mul(size_of::<Id>());
        (ids.try_reserve(n_ids)).map_err(|_| Error::Memory { needed })?;
        ids.extend(bos.then_some(BOS));
        ids.extend(bytes.iter().map(|&byte| vocab::byte_to_id(byte)));
        self.feed_ids(&ids)
    }

    /// Reads ids as they are.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if they do not fit, [`Error::Argument`] for an invalid id,
    /// [`Error::NonFinite`] if the weights are damaged, [`Error::Cancelled`] if a [`Canceller`]
    /// asked for it. The session is then as it was before, unless the context had slid.
    pub fn feed_ids(&mut self, ids: &[Id]) -> Result<()> {
        FeedRequest::new(self, ids).run()
    }

    /// Reads ids as they are and shows what each position gave.
    ///
    /// # Errors
    /// As [`Session::feed_ids`]; positions may have been shown before an error.
    pub fn feed_ids_with(&mut self, ids: &[Id], mut show: impl FnMut(Position<'_>)) -> Result<()> {
        FeedRequest::new(self, ids).showing(&mut show).run()
    }

    /// Reads ids as they are and records the intermediate tensors.
    ///
    /// # Errors
    /// As [`Session::feed_ids`].
    pub fn feed_ids_traced(&mut self, ids: &[Id], trace: &mut Trace) -> Result<()> {
        FeedRequest::new(self, ids).traced(trace).run()
    }

    /// Goes back to the first `len` ids. Within the last few hundred bytes this costs one byte of
    /// work; further back, the `len` ids are read again.
    ///
    /// # Errors
    /// [`Error::Argument`] if fewer than `len` ids have been read.
    pub fn rewind(&mut self, len: usize) -> Result<()> {
        if len > self.len() {
            return Err(Error::argument(
                "rewind",
                format!("expected at most the {} ids read, found {len}", self.len()),
            ));
        }
        if len == self.len() {
            return Ok(());
        }
        if len == 0 {
            self.reset();
            return Ok(());
        }
        let ids = self.ids()[..len].to_vec();
        self.lookahead.clear();
        if self.state.keeps_logits() && self.state.rewind(&self.model, len) {
            return self.refresh_logits();
        }
        // The last byte is read again: its logits were not kept.
        if self.state.rewind(&self.model, len - 1) {
            return FeedRequest::again(self, &ids[len - 1..]).run();
        }
        self.reset();
        FeedRequest::again(self, &ids).run()
    }

    /// Number of closed patches.
    fn n_closed(&self) -> usize {
        self.patch_starts().len() - 1
    }

    /// Drops what has been computed beyond the text read, because another id follows.
    fn drop_lookahead(&mut self) {
        let n_ids = self.len();
        if self.lookahead.n_unread() > 0 {
            let rewound = self.state.rewind(&self.model, n_ids);
            assert!(rewound, "a rewind takes back more than a draft");
        }
        self.lookahead.clear();
    }

    /// Reads ids that the model chose, each with the flag it was chosen with if the model's ids carry flags: what
    /// [`Session::generate`] does with the bytes it hands out.
    ///
    /// # Errors
    /// As [`Session::feed_ids`].
    pub fn feed_written(&mut self, ids: &[Id]) -> Result<()> {
        FeedRequest::new(self, ids).written().run()
    }

    /// Reads all of the session's ids again as one text. Bytes that a model of the Bolmo family has written keep the
    /// flags they were written with until then; this gives the state of the whole text fed at once. That of a BLT is the
    /// same before and after.
    ///
    /// # Errors
    /// As [`Session::feed_ids`].
    pub fn reread(&mut self) -> Result<()> {
        let ids = self.ids().to_vec();
        self.reset();
        match ids.is_empty() {
            true => Ok(()),
            false => FeedRequest::again(self, &ids).run(),
        }
    }

    /// Forgets everything read.
    pub fn reset(&mut self) {
        self.state = self.empty.clone();
        self.lookahead.clear();
        self.logits.clear();
    }
}
