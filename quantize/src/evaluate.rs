//! Compares the predictions of a converted model on a text with those of the original.
//!
//! Both read the same bytes, window by window, each window after BOS; every byte of the text is
//! predicted once by each.

use blt::config::Config;
use blt::error::{Error, Result};
use blt::vocab::{self, VOCAB_SIZE};
use blt::{Model, Session, SessionOptions};

/// Sums over a text.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Comparison {
    /// Bytes predicted.
    pub n: usize,
    /// Surprisal of the original model, in bits.
    pub bits_before: f64,
    /// Surprisal of the converted model, in bits.
    pub bits_after: f64,
    /// Kullback-Leibler divergence of the converted model's next-byte distributions from the
    /// original's, in nats.
    pub divergence: f64,
    /// Positions at which both find the same byte the most probable.
    pub same_best: usize,
    /// Patch starts that both have.
    pub starts_shared: usize,
    /// Patch starts that one of them has at least.
    pub starts_any: usize,
}

impl Comparison {
    /// Bits per byte, before and after.
    pub fn bits_per_byte(&self) -> (f64, f64) {
        (
            self.bits_before / self.n as f64,
            self.bits_after / self.n as f64,
        )
    }

    /// Growth of the bits per byte, as a share.
    pub fn growth(&self) -> f64 {
        self.bits_after / self.bits_before - 1.0
    }

    /// Mean divergence in nats.
    pub fn mean_divergence(&self) -> f64 {
        self.divergence / self.n as f64
    }

    /// Share of the patch starts of either model that both have.
    pub fn boundary_agreement(&self) -> f64 {
        match self.starts_any {
            0 => 1.0,
            any => self.starts_shared as f64 / any as f64,
        }
    }

    /// Share of positions with the same most probable byte.
    pub fn greedy_agreement(&self) -> f64 {
        self.same_best as f64 / self.n as f64
    }
}

/// Whether a text can be read in such windows by a model of this configuration.
///
/// # Errors
/// [`Error::Argument`] for an empty text or a window that the context does not hold.
pub fn check(config: &Config, text: &[u8], window: usize) -> Result<()> {
    // A byte closes at most one patch, and BOS is read too.
    let most = config.max_bytes.min(config.max_patches).saturating_sub(1);
    match !text.is_empty() && (1..=most).contains(&window) {
        true => Ok(()),
        false => Err(Error::argument(
            "eval",
            format!(
                "expected a text and windows of 1 to {most} bytes, found {} bytes and {window}",
                text.len()
            ),
        )),
    }
}

/// Reads `text` with both models in windows of `window` bytes. `progress` is told how many bytes are
/// done, and may stop the work with an error.
///
/// # Errors
/// As running a model; [`Error::Argument`] for an empty text or a window that the context does not
/// hold.
pub fn compare(
    before: &Model,
    after: &Model,
    text: &[u8],
    window: usize,
    mut progress: impl FnMut(u64) -> Result<()>,
) -> Result<Comparison> {
    check(before.config(), text, window)?;
    check(after.config(), text, window)?;
    let mut sums = Comparison::default();
    for piece in text.chunks(window) {
        let (p, p_starts) = read(before, piece)?;
        let (q, q_starts) = read(after, piece)?;
        let n_logits = before.config().n_logits();
        let has_flags = before.choices().has_flags();
        let rows = p.chunks_exact(n_logits).zip(q.chunks_exact(n_logits));
        for ((p, q), &byte) in rows.zip(piece) {
            let (ln_p, ln_q) = (log_softmax(p), log_softmax(q));
            let id = usize::from(vocab::byte_to_id(byte));
            sums.n += 1;
            // A byte's two ids, without and with the flag that it ends a patch, count together.
            let ln = |ln: &[f64]| match has_flags {
                true => (ln[id].exp() + ln[id + VOCAB_SIZE].exp()).ln(),
                false => ln[id],
            };
            sums.bits_before -= ln(&ln_p) / std::f64::consts::LN_2;
            sums.bits_after -= ln(&ln_q) / std::f64::consts::LN_2;
            sums.divergence += (ln_p.iter().zip(&ln_q))
                .map(|(p, q)| p.exp() * (p - q))
                .sum::<f64>();
            sums.same_best += usize::from(best(p) == best(q));
        }
        let shared = p_starts
            .iter()
            .filter(|s| q_starts.binary_search(s).is_ok())
            .count();
        sums.starts_shared += shared;
        sums.starts_any += p_starts.len() + q_starts.len() - shared;
        progress(sums.n as u64)?;
    }
    Ok(sums)
}

/// Logits (bytes + 1, vocab) before each byte and after the last, and where patches start beyond the
/// first two positions, which are always starts.
fn read(model: &Model, bytes: &[u8]) -> Result<(Vec<f32>, Vec<usize>)> {
    let mut session = Session::new(model, SessionOptions::default())?;
    let mut logits = Vec::with_capacity((bytes.len() + 1) * model.config().n_logits());
    let ids = vocab::encode(bytes, true);
    session.feed_ids_with(&ids, |step| logits.extend_from_slice(step.logits))?;
    let starts = session.patch_starts().iter().copied().filter(|&s| s > 1);
    Ok((logits, starts.collect()))
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    logits
        .iter()
        .map(|&l| f64::from(l) - max - sum.ln())
        .collect()
}

fn best(logits: &[f32]) -> usize {
    let larger = |a: usize, b: usize| if logits[b] > logits[a] { b } else { a };
    (0..logits.len()).fold(0, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_means() {
        let c = Comparison {
            n: 4,
            bits_before: 8.0,
            bits_after: 8.8,
            divergence: 0.4,
            same_best: 3,
            starts_shared: 9,
            starts_any: 10,
        };
        assert_eq!(c.bits_per_byte(), (2.0, 2.2));
        assert!((c.growth() - 0.1).abs() < 1e-12);
        assert_eq!((c.mean_divergence(), c.boundary_agreement()), (0.1, 0.9));
        assert_eq!(c.greedy_agreement(), 0.75);
    }

    #[test]
    fn log_probabilities_add_up_to_one() {
        let ln = log_softmax(&[1000.0, 999.0, -1000.0]);
        assert!((ln.iter().map(|l| l.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((ln[0] - ln[1] - 1.0).abs() < 1e-9);
        assert_eq!(best(&[0.0, 2.0, 2.0]), 1);
    }
}
