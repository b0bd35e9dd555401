//! How well a model predicts a text: its surprise, in bits.

use super::Session;
use crate::error::Result;
use crate::vocab::{Id, byte_to_id};

/// What [`Session::score`] found about a text.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// Bytes that were predicted.
    pub n_bytes: usize,
    /// Sum of -log2 of their probabilities.
    pub bits: f64,
}

impl Score {
    /// Bits per byte: what an ideal compressor using this model would need; 0 if there are no bytes.
    pub fn bits_per_byte(&self) -> f64 {
        self.bits / self.n_bytes.max(1) as f64
    }
}

impl Session {
    /// Reads bytes and measures how well each was predicted from all before it. Where ids carry flags, the bytes count as
    /// written: [`FlagScorer`](super::FlagScorer) has the other measures. In a session without BOS that has read
    /// nothing, the first byte is not predicted and does not count.
    ///
    /// ```
    /// # use blt::{Model, Session, SessionOptions};
    /// # let model = Model::open("tests/data/hf-gqa/model")?;
    /// let mut session = Session::new(&model, SessionOptions::new())?;
    /// let score = session.score(b"It was a dark and stormy night.")?;
    /// println!("{:.3} bits per byte", score.bits_per_byte());
    /// # assert_eq!(score.n_bytes, 31);
    /// # Ok::<(), blt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Same as [`Session::feed_ids`].
    pub fn score(&mut self, bytes: &[u8]) -> Result<Score> {
        self.begin()?;
        if self.model().choices().has_flags() {
            return self.score_written(bytes);
        }
        let mut score = Score::default();
        let ids: Vec<Id> = bytes.iter().copied().map(byte_to_id).collect();
        let Some(&first) = ids.first() else {
            return Ok(score);
        };
        if !self.is_empty() {
            score.add(self.logits(), first);
        }
        let mut next = ids[1..].iter();
        self.feed_ids_with(&ids, |step| {
            if let Some(&id) = next.next() {
                score.add(step.logits, id);
            }
        })?;
        Ok(score)
    }
}

impl Score {
    /// Adds the surprise at `id`, given `logits` (vocab).
    fn add(&mut self, logits: &[f32], id: Id) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp = |&l: &f32| f64::from(l - max).exp();
        let nats =
            logits.iter().map(exp).sum::<f64>().ln() - f64::from(logits[usize::from(id)] - max);
        self.bits += nats / std::f64::consts::LN_2;
        self.n_bytes += 1;
    }
}
