//! How well a model whose bytes carry flags predicts a text: three numbers, two of which are code lengths.
//!
//! Where a text is read, the flag of a byte depends on the byte after it. The logits then depend on
//! the byte that they predict: sums of them over whole bytes (*folded*) can be too good. Flags coded with the bytes (*joint*)
//! and flags chosen as they are when writing (*causal*) give numbers that a compressor could reach.

use super::{Position, Session};
use crate::error::{Error, Result};
use crate::vocab::{Id, VOCAB_SIZE, byte_to_id};

/// Surprise at the bytes of a text, in bits: the result of [`FlagScorer`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FlagScore {
    /// Bytes that were predicted.
    pub n_bytes: usize,
    /// How many of them were the most probable, as [`FlagScore::causal_bits`] sees them.
    pub n_hits: usize,
    /// Bits with flags as when writing: the more likely one of each byte, by the logits before it. A code length.
    pub causal_bits: f64,
    /// Bits of bytes and flags together, flags as when reading. A code length of the bytes, too: an upper bound.
    pub joint_bits: f64,
    /// Bits of bytes with flags as when reading. **Not a code length**: each flag has seen the next byte.
    pub folded_bits: f64,
}

/// Scores a text in pieces.
///
/// ```no_run
/// # use blt::{Model, Session, SessionOptions, session::FlagScorer};
/// # let model = Model::open("bolmo-1b")?;
/// let mut scorer = FlagScorer::new(Session::new(&model, SessionOptions::new())?)?;
/// scorer.push(b"It was a dark and stormy night.")?;
/// let score = scorer.finish();
/// println!("{:.3} bits per byte", score.causal_bits / score.n_bytes as f64);
/// # Ok::<(), blt::Error>(())
/// ```
#[derive(Debug)]
pub struct FlagScorer {
    reader: Session,
    writer: Session,
    /// Logits before the reader's last byte, whose flag waits for the next byte; empty before the first byte.
    before_last: Vec<f32>,
    score: FlagScore,
}

impl FlagScorer {
    /// A scorer for the bytes that follow in a session.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model's bytes carry no flags; use [`Session::score`] instead. Errors of reading.
    pub fn new(mut session: Session) -> Result<Self> {
        if !session.model().choices().has_flags() {
            return Err(Error::Unsupported(
                "expected a model whose bytes carry flags, found another".into(),
            ));
        }
        session.begin()?;
        if session.len() != 1 {
            return Err(Error::argument(
                "session",
                format!(
                    "expected one that has read nothing, found one of {} ids",
                    session.len()
                ),
            ));
        }
        Ok(FlagScorer {
            before_last: Vec::new(),
            writer: session.clone(),
            score: FlagScore::default(),
            reader: session,
        })
    }

    /// The session that reads the text, with flags as when reading.
    pub fn session(&self) -> &Session {
        &self.reader
    }

    /// Reads the next bytes.
    ///
    /// # Errors
    /// As [`Session::feed_ids`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let ids: Vec<Id> = bytes.iter().copied().map(byte_to_id).collect();
        for &id in &ids {
            self.write(id)?;
        }
        let FlagScorer {
            reader,
            before_last,
            score,
            ..
        } = self;
        if reader.len() == 1 && !ids.is_empty() {
            // BOS ends a patch whatever follows, so the logits after it are known already.
            before_last.extend_from_slice(reader.logits());
        }
        reader.feed_ids_with(&ids, |at: Position<'_>| {
            // The last byte's flag is known now, and so are the logits after it.
            score.count_read(before_last, at.id, at.next_starts_patch);
            before_last.clear();
            before_last.extend_from_slice(at.logits);
        })
    }

    /// The scores of all bytes. The last one has no flag of its own: its two ids count together.
    pub fn finish(self) -> FlagScore {
        let mut score = self.score;
        if let (Some(&last), false) = (self.reader.ids().last(), self.before_last.is_empty()) {
            let bits = folded_bits(&self.before_last, last);
            score.joint_bits += bits;
            score.folded_bits += bits;
        }
        score
    }

    /// Counts a byte as the model would write it, and writes it with the flag it would choose.
    fn write(&mut self, id: Id) -> Result<()> {
        let logits = self.writer.logits();
        let [plain, fused] = pair(logits, id);
        let (_, best) = logits
            .iter()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, (i, &l)| match l > best.1 {
                true => (i, l),
                false => best,
            });
        self.score.n_bytes += 1;
        self.score.n_hits += usize::from(plain.max(fused) == best);
        self.score.causal_bits += folded_bits(logits, id);
        let flag = if fused > plain { VOCAB_SIZE as Id } else { 0 };
        self.writer.feed_written(&[id + flag])
    }
}

impl Session {
    /// Reads bytes as if the model had written them: each with the flag that it would choose.
    pub(super) fn score_written(&mut self, bytes: &[u8]) -> Result<super::Score> {
        let mut score = super::Score::default();
        for &byte in bytes {
            let id = byte_to_id(byte);
            let [plain, fused] = pair(self.logits(), id);
            score.n_bytes += 1;
            score.bits += folded_bits(self.logits(), id);
            let flag = if fused > plain { VOCAB_SIZE as Id } else { 0 };
            self.feed_written(&[id + flag])?;
        }
        Ok(score)
    }
}

impl FlagScore {
    /// Counts a byte whose flag was read, by the logits before it.
    fn count_read(&mut self, logits: &[f32], id: Id, flag: bool) {
        let own = pair(logits, id)[usize::from(flag)];
        self.joint_bits +=
            (log_sum(logits.iter().copied()) - f64::from(own)) / std::f64::consts::LN_2;
        self.folded_bits += folded_bits(logits, id);
    }
}

/// The two logits of an id: without and with its flag.
fn pair(logits: &[f32], id: Id) -> [f32; 2] {
    [
        logits[usize::from(id)],
        logits[usize::from(id) + VOCAB_SIZE],
    ]
}

/// Surprise at an id, whichever flag it has.
fn folded_bits(logits: &[f32], id: Id) -> f64 {
    (log_sum(logits.iter().copied()) - log_sum(pair(logits, id))) / std::f64::consts::LN_2
}

/// The logarithm of the sum of exponentials, in double precision.
fn log_sum(logits: impl IntoIterator<Item = f32> + Clone) -> f64 {
    let max = logits.clone().into_iter().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.into_iter().map(|l| f64::from(l - max).exp()).sum();
    f64::from(max) + sum.ln()
}
