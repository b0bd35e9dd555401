//! How well the model predicts a text of any length: window after window of the context.
//!
//! A text longer than the context is cut: when a window is full, the next begins anew with BOS and
//! the last `overlap` bytes, which are read again but not counted. Each byte is counted once.

use blt::Session;
use blt::error::Error;
use blt::vocab::{BOS, Id};

/// What the model made of one id.
#[derive(Debug, Clone, Copy)]
pub struct ScoredId {
    /// The id.
    pub id: Id,
    /// Entropy in nats of the entropy model's prediction; NaN without an entropy model.
    pub entropy: f32,
    /// Surprisal in bits, -log2 p; `None` for an id with nothing before it.
    pub bits: Option<f64>,
    /// Whether it was the most probable of all.
    pub hit: bool,
    /// Whether it starts a patch.
    pub starts_patch: bool,
}

/// Sums over the ids counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Ids predicted.
    pub n: usize,
    /// Their surprisal in bits.
    pub bits: f64,
    /// How many were the most probable.
    pub hits: usize,
    /// Patches that start at an id counted or at a window's BOS.
    pub patches: usize,
    /// Ids in them: those counted, first ids and BOS included.
    pub patch_ids: usize,
    /// Windows begun.
    pub windows: usize,
}

impl Totals {
    /// Mean surprisal in bits; NaN if nothing was counted.
    pub fn bits_per_byte(&self) -> f64 {
        self.bits / self.n as f64
    }

    /// Mean number of ids in a patch; NaN if nothing was read.
    pub fn mean_patch_length(&self) -> f64 {
        self.patch_ids as f64 / self.patches as f64
    }

    /// Share of ids that were the most probable; NaN if nothing was counted.
    pub fn accuracy(&self) -> f64 {
        self.hits as f64 / self.n as f64
    }
}

/// What to do when the text outgrows the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// An error, for callers that need the results in one piece.
    Refuse,
    /// A new window with this many bytes of the old one.
    Restart {
        /// Bytes read again.
        overlap: usize,
    },
}

/// A session that is fed a text and asked for each id's probability before it.
#[derive(Debug)]
pub struct Scorer {
    session: Session,
    edge: Edge,
    totals: Totals,
    /// Logits after every id, (n, vocab), if asked for.
    logits: Option<Vec<f32>>,
}

impl Scorer {
    /// A scorer of what follows BOS, or of ids as they are if the session's options say `no_bos`.
    ///
    /// # Errors
    /// [`Error::Argument`] if the overlap leaves no room for anything else.
    pub fn new(session: Session, edge: Edge, keep_logits: bool) -> Result<Self, Error> {
        let mut scorer = Scorer {
            edge,
            totals: Totals::default(),
            logits: keep_logits.then(Vec::new),
            session,
        };
        let room = scorer.max_bytes_and_patches();
        if let Edge::Restart { overlap } = edge
            && overlap + 1 >= room
        {
            return Err(Error::argument(
                "overlap",
                format!("expected less than the context of {room} less BOS, found {overlap}"),
            ));
        }
        scorer.begin_window(&[])?;
        Ok(scorer)
    }

    /// The session; it holds the present window.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The sums so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Logits after every id of the session, (n, vocab); empty unless they were asked for.
    pub fn logits(&self) -> &[f32] {
        self.logits.as_deref().unwrap_or_default()
    }

    /// Reads the next ids and shows what the model made of each.
    pub fn push(&mut self, mut ids: &[Id], mut show: impl FnMut(ScoredId)) -> Result<(), Error> {
        while !ids.is_empty() {
            let room = self.room();
            if room == 0 {
                self.next_window()?;
                continue;
            }
            let (now, later) = ids.split_at(ids.len().min(room));
            self.read(now, &mut show)?;
            ids = later;
        }
        Ok(())
    }

    /// Reads ids that fit.
    fn read(&mut self, ids: &[Id], show: &mut impl FnMut(ScoredId)) -> Result<(), Error> {
        let Scorer {
            session,
            totals,
            logits: kept,
            ..
        } = self;
        let mut count = |scored: ScoredId| {
            if let Some(bits) = scored.bits {
                totals.n += 1;
                totals.bits += bits;
                totals.hits += usize::from(scored.hit);
            }
            totals.patches += usize::from(scored.starts_patch);
            totals.patch_ids += 1;
            show(scored);
        };
        let first = session.len();
        count(guess_at(
            ids[0],
            session.logits(),
            session.entropies().last().copied().unwrap_or(f32::NAN),
            session.patch_starts().last() == Some(&first),
        ));
        session.feed_ids_with(ids, |step| {
            if let Some(kept) = kept {
                kept.extend_from_slice(step.logits);
            }
            if let Some(&next) = ids.get(step.position - first + 1) {
                count(guess_at(
                    next,
                    step.logits,
                    step.entropy,
                    step.next_starts_patch,
                ));
            }
        })
    }

    /// How many ids surely fit into this window: an id closes at most one patch.
    fn room(&self) -> usize {
        let n_closed = self.session.patch_starts().len() - 1;
        let bytes = self.session.max_bytes().saturating_sub(self.session.len());
        bytes.min(self.max_patches().saturating_sub(n_closed))
    }

    fn max_patches(&self) -> usize {
        let of_model = self.session.model().config().max_patches;
        self.session.options().max_patches.unwrap_or(of_model)
    }

    fn max_bytes_and_patches(&self) -> usize {
        self.session.max_bytes().min(self.max_patches())
    }

    /// Begins another document: nothing that has been read counts as its context.
    ///
    /// # Errors
    /// [`Error::Argument`] if the results are wanted in one piece; those of reading BOS.
    pub fn next_document(&mut self) -> Result<(), Error> {
        if self.edge == Edge::Refuse {
            return Err(Error::argument(
                "documents",
                "expected one with --dump, found another; --separator \"\" reads a file as one document",
            ));
        }
        self.session.reset();
        self.begin_window(&[])
    }

    fn next_window(&mut self) -> Result<(), Error> {
        let Edge::Restart { overlap } = self.edge else {
            return Err(Error::ContextFull {
                unit: "bytes",
                limit: self.session.len(),
                needed: self.session.len() + 1,
            });
        };
        let ids = self.session.ids();
        let again = ids[ids.len().saturating_sub(overlap)..].to_vec();
        self.session.reset();
        self.begin_window(&again)
    }

    /// Reads BOS, unless the ids are taken as they are, and what is read again.
    fn begin_window(&mut self, again: &[Id]) -> Result<(), Error> {
        self.totals.windows += 1;
        if !self.session.options().no_bos {
            self.totals.patches += 1;
            self.totals.patch_ids += 1;
            let kept = &mut self.logits;
            self.session.feed_ids_with(&[BOS], |step| {
                if let Some(kept) = kept {
                    kept.extend_from_slice(step.logits);
                }
            })?;
        }
        match again.is_empty() {
            true => Ok(()),
            false => self.session.feed_ids(again),
        }
    }
}

/// What logits say about the id that came; in double precision, for sums over millions.
fn guess_at(id: Id, logits: &[f32], entropy: f32, starts_patch: bool) -> ScoredId {
    let at = usize::from(id);
    let (bits, hit) = match logits.get(at) {
        None => (None, false),
        Some(&own) => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
            let nats = f64::from(max) - f64::from(own) + sum.ln();
            let best = logits.iter().position(|&l| l == max);
            (Some(nats / std::f64::consts::LN_2), best == Some(at))
        }
    };
    ScoredId {
        id,
        entropy,
        bits,
        hit,
        starts_patch,
    }
}
