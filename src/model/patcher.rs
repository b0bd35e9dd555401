//! Where patches start (paper section 2): an incremental state machine, and the same in batch.
//!
//! After each byte the patcher decides whether the next byte, still unknown, starts a patch. No decision looks
//! ahead, so none is ever revised. Positions 0 and 1 always start a patch, whatever the mode: the decoder reads
//! the last closed patch, so the first byte (usually BOS) must close one. For a start at position `s >= 2`, with
//! `E[i]` the entropy after byte `i`:
//!
//! | mode | `s` starts a patch if |
//! |---|---|
//! | entropy | `E[s-1] > threshold` |
//! | entropy, `threshold_add` | `s = 2`, or `s >= 4` and `E[s-1] - E[s-2] > threshold_add` and `E[s-1] > threshold` |
//! | entropy, `monotonicity` | `s = 2`, or `E[s-1] - E[s-2] > threshold` |
//! | space | id `s-1` is special, or it ends a word and id `s-2` does not |
//! | bpe | id `s-1` is the delimiter |
//! | byte | always |
//! | static | `s` is a multiple of `patch_size` |
//!
//! In addition every mode closes a patch that has `max_patch_length` bytes; in static mode these are
//! counted from the last multiple of `patch_size`. That position 3 never starts a patch under
//! `threshold_add` is a quirk of the original implementation, pinned by `tests/patcher_and_hash.rs`.

use std::sync::Arc;

use crate::config::{PatcherConfig, PatchingMode};
use crate::error::{Error, Result};
use crate::vocab::{BPE, BYTE_OFFSET, Id};

/// Decides, byte by byte, where patches start. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Patcher {
    rule: Rule,
    max_patch_length: usize, // usize::MAX: no limit
    n_ids: usize,
    patch_start: usize,
    last_id: Id,
    last_entropy: f32,
}

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Threshold(f32),
    ThresholdAdd {
        threshold: f32,
        add: f32,
    },
    Rise(f32),
    Space,
    /// A start at every multiple of `patch_size`, and every `max` bytes after each.
    Static {
        patch_size: usize,
        max: usize,
    },
    Byte,
    Bpe,
    /// Starts of all patches but the first, ascending.
    Given(Arc<[usize]>),
}

impl Patcher {
    /// A patcher before the first byte.
    ///
    /// # Errors
    /// [`Error::Config`] for thresholds that are NaN and lengths of zero.
    pub fn new(config: &PatcherConfig) -> Result<Self> {
        config.validate()?;
        let max = config.max_patch_length.unwrap_or(usize::MAX);
        let rule = match config.mode {
            PatchingMode::Entropy if config.monotonicity => Rule::Rise(config.threshold),
            PatchingMode::Entropy => match config.threshold_add {
                Some(add) => Rule::ThresholdAdd {
                    threshold: config.threshold,
                    add,
                },
                None => Rule::Threshold(config.threshold),
            },
            PatchingMode::Space => Rule::Space,
            PatchingMode::Static => Rule::Static {
                patch_size: config.patch_size,
                max,
            },
            PatchingMode::Byte => Rule::Byte,
            PatchingMode::Bpe => Rule::Bpe,
        };
        // In static mode `max` counts from multiples of `patch_size`: the rule has it.
        let max = match rule {
            Rule::Static { .. } => usize::MAX,
            _ => max,
        };
        Ok(Self::from_rule(rule, max))
    }

    /// A patcher that cuts patches of the given lengths, whatever the bytes; after the last of
    /// them every byte continues the last patch. Zeros at the end are padding. If the first length
    /// is not 1, that patch is split after its first byte.
    ///
    /// # Errors
    /// [`Error::Argument`] for a zero before the last patch, or lengths whose sum overflows.
    pub fn with_lengths(lengths: &[usize]) -> Result<Self> {
        let n_patches = lengths.iter().rposition(|&n| n != 0).map_or(0, |i| i + 1);
        let mut starts = Vec::with_capacity(n_patches);
        let mut end = 0usize;
        for (i, &length) in lengths[..n_patches].iter().enumerate() {
            if length == 0 {
                return Err(Error::argument(
                    "patch_lengths",
                    format!("expected at least 1 byte per patch, found 0 at index {i}"),
                ));
            }
            end = end.checked_add(length).ok_or_else(|| {
                Error::argument(
                    "patch_lengths",
                    format!("expected a sum below 2^64, found {length} at index {i}"),
                )
            })?;
            starts.push(end);
        }
        starts.pop();
        Ok(Self::from_rule(Rule::Given(starts.into()), usize::MAX))
    }

    fn from_rule(rule: Rule, max_patch_length: usize) -> Self {
        Self {
            rule,
            max_patch_length,
            n_ids: 0,
            patch_start: 0,
            last_id: 0,
            last_entropy: f32::NAN,
        }
    }

    /// Whether [`push`](Self::push) looks at the entropy.
    pub fn needs_entropy(&self) -> bool {
        matches!(
            self.rule,
            Rule::Threshold(_) | Rule::ThresholdAdd { .. } | Rule::Rise(_)
        )
    }

    /// Takes the next id and the entropy (nats) of the entropy model after it, and says whether
    /// the position after this id starts a patch.
    ///
    /// `entropy` may be anything if [`needs_entropy`](Self::needs_entropy) is false. NaN is above
    /// no threshold.
    pub fn push(&mut self, id: Id, entropy: f32) -> bool {
        let next = self.n_ids + 1;
        let starts = next == 1
            || self.rule_starts(next, id, entropy)
            || next - self.patch_start >= self.max_patch_length;
        self.n_ids = next;
        self.last_id = id;
        self.last_entropy = entropy;
        if starts {
            self.patch_start = next;
        }
        starts
    }

    /// Whether position `s >= 2` starts a patch by the rule alone; `id` and `entropy` are those of
    /// position `s - 1`, the state still that of position `s - 2`.
    fn rule_starts(&self, s: usize, id: Id, entropy: f32) -> bool {
        let rise = entropy - self.last_entropy;
        match &self.rule {
            Rule::Threshold(threshold) => entropy > *threshold,
            Rule::ThresholdAdd { threshold, add } => match s {
                2 => true,
                3 => false,
                _ => rise > *add && entropy > *threshold,
            },
            Rule::Rise(threshold) => s == 2 || rise > *threshold,
            Rule::Space => id < BYTE_OFFSET || ends_word(id) && !ends_word(self.last_id),
            Rule::Static { patch_size, max } => (s % patch_size).is_multiple_of(*max),
            Rule::Byte => true,
            Rule::Bpe => id == BPE,
            Rule::Given(starts) => starts.binary_search(&s).is_ok(),
        }
    }

    /// Number of ids taken so far: the position the next one will have.
    #[allow(clippy::len_without_is_empty)] // a patcher is not a container
    pub fn len(&self) -> usize {
        self.n_ids
    }

    /// Position at which the open patch starts; [`len`](Self::len) if it has no byte yet.
    pub fn patch_start(&self) -> usize {
        self.patch_start
    }

    /// Bytes that the open patch has so far; 0 if the next byte starts a patch.
    pub fn patch_len(&self) -> usize {
        self.n_ids - self.patch_start
    }

    /// Goes back to the state after `n` ids. Called when a sequence is rewound.
    ///
    /// `ids` and `entropies` are those taken before (the latter may be empty if
    /// [`needs_entropy`](Self::needs_entropy) is false); only the element before `n` is looked at.
    /// `patch_start` is the start of the open patch after `n` ids, which is `n` itself if
    /// position `n` starts a patch.
    ///
    /// # Panics
    /// If `ids`, or `entropies` when needed, has fewer than `n` elements, or `patch_start > n`.
    pub fn rewind(&mut self, n: usize, ids: &[Id], entropies: &[f32], patch_start: usize) {
        assert!(patch_start <= n, "patch starts at {patch_start} after {n}");
        self.n_ids = n;
        self.patch_start = patch_start;
        (self.last_id, self.last_entropy) = match n.checked_sub(1) {
            Some(last) if self.needs_entropy() => (ids[last], entropies[last]),
            Some(last) => (ids[last], f32::NAN),
            None => (0, f32::NAN),
        };
    }
}

/// Whether the id ends a word: ASCII except digits and letters, the first byte of a longer UTF-8
/// character, or a special id.
fn ends_word(id: Id) -> bool {
    match id.checked_sub(BYTE_OFFSET) {
        None => true,
        Some(byte @ 0..=0x7f) => !(byte as u8).is_ascii_alphanumeric(),
        Some(byte) => byte >= 0xc0,
    }
}

/// All positions in `0..=ids.len()` that start a patch, by pushing one id after the other. The
/// last one may be the position after the text.
///
/// `entropies` holds one value per id, in nats; it is not looked at if the mode needs none.
///
/// # Errors
/// [`Error::Config`] as [`Patcher::new`]; [`Error::Argument`] if entropies are needed and their
/// number differs from that of the ids.
pub fn patch_starts(config: &PatcherConfig, ids: &[Id], entropies: &[f32]) -> Result<Vec<usize>> {
    let mut patcher = Patcher::new(config)?;
    if patcher.needs_entropy() && entropies.len() != ids.len() {
        return Err(Error::argument(
            "entropies",
            format!(
                "expected one per id ({}), found {}",
                ids.len(),
                entropies.len()
            ),
        ));
    }
    let mut starts = vec![0];
    for (i, &id) in ids.iter().enumerate() {
        if patcher.push(id, entropies.get(i).copied().unwrap_or(f32::NAN)) {
            starts.push(i + 1);
        }
    }
    Ok(starts)
}

/// Lengths of the patches of a text, in one of the two published conventions: with the byte that
/// comes next (`with_next`; the sum is `ids.len() + 1`) or without it (`ids.len()`).
///
/// In static mode the original implementation does not cut after the first byte, and neither do these
/// lengths, although a model does: see [`patch_starts`]. In BPE mode the original implementation never lets the
/// byte that comes next start a patch, although with more text that position does start one if a delimiter is
/// before it. The lengths `with_next` follow it; [`Patcher::push`] and [`patch_starts`] keep the causal answer.
///
/// # Errors
/// As [`patch_starts`].
pub fn patch_lengths(
    config: &PatcherConfig,
    ids: &[Id],
    entropies: &[f32],
    with_next: bool,
) -> Result<Vec<usize>> {
    let n_ids = ids.len();
    let mut starts = patch_starts(config, ids, entropies)?;
    if config.mode == PatchingMode::Static
        && config.patch_size > 1
        && config.max_patch_length != Some(1)
    {
        starts.retain(|&s| s != 1);
    }
    if n_ids > 0 && starts.last() == Some(&n_ids) {
        starts.pop();
        let open = n_ids - starts.last().copied().unwrap_or(0);
        let full = config.max_patch_length.is_some_and(|max| open >= max);
        if with_next && (config.mode != PatchingMode::Bpe || n_ids == 1 || full) {
            starts.push(n_ids);
        }
    }
    Ok(starts_to_lengths(&starts, n_ids + usize::from(with_next)))
}

/// Lengths of the patches that start at `starts` (ascending from 0) and fill `n_positions`.
///
/// # Panics
/// If a start is above `n_positions` or the starts do not ascend.
pub fn starts_to_lengths(starts: &[usize], n_positions: usize) -> Vec<usize> {
    if n_positions == 0 {
        return Vec::new();
    }
    let ends = starts.iter().skip(1).chain([&n_positions]);
    starts.iter().zip(ends).map(|(s, e)| e - s).collect()
}

/// Patch starts of a whole text by rank: positions 0 and 1, and those after the
/// `entropies.len() / patch_size - 2` highest entropies (the first entropy is left out; of equal
/// entropies the earlier wins).
///
/// This is the original implementation's rule without a threshold. It ranks the whole text, so a
/// later byte can move an earlier boundary: it cannot run incrementally and no model here uses it.
/// It is a help in choosing a threshold for a patch size. NaN ranks lowest.
///
/// # Panics
/// If `patch_size` is 0.
pub fn top_k_starts(entropies: &[f32], patch_size: usize) -> Vec<usize> {
    let n_high = (entropies.len() / patch_size).saturating_sub(2);
    let key = |i: usize| {
        let e = entropies[i];
        if e.is_nan() { f32::NEG_INFINITY } else { e }
    };
    let mut order: Vec<usize> = (1..entropies.len()).collect();
    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
    let mut starts: Vec<usize> = order.iter().take(n_high).map(|i| i + 1).collect();
    starts.extend([0, 1]);
    starts.retain(|&s| s <= entropies.len());
    starts.sort_unstable();
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(mode: PatchingMode) -> PatcherConfig {
        PatcherConfig {
            mode,
            threshold: 1.0,
            threshold_add: None,
            monotonicity: false,
            max_patch_length: None,
            patch_size: 4,
        }
    }

    /// The recorded hashes and patches have no DEL; a recorded greedy continuation of the original
    /// (`meta-space`, prompt `repeat`) has, and follows only if DEL ends a word.
    #[test]
    fn del_ends_a_word_and_continuation_bytes_do_not() {
        assert!(ends_word(0x7f + BYTE_OFFSET));
        assert!(!ends_word(0x80 + BYTE_OFFSET) && !ends_word(0xbf + BYTE_OFFSET));
        assert!(ends_word(0xc0 + BYTE_OFFSET));
    }

    #[test]
    fn given_lengths_are_cut_and_the_last_patch_goes_on() {
        let mut patcher = Patcher::with_lengths(&[1, 3, 2, 0, 0]).unwrap();
        assert!(!patcher.needs_entropy());
        let starts: Vec<bool> = (0..9).map(|_| patcher.push(50, f32::NAN)).collect();
        let expected = [true, false, false, true, false, false, false, false, false];
        assert_eq!(starts, expected);
        assert_eq!(
            (patcher.len(), patcher.patch_start(), patcher.patch_len()),
            (9, 4, 5)
        );
    }

    #[test]
    fn rewinding_to_the_start_after_the_first_byte_changes_no_later_one() {
        let settings = PatcherConfig {
            max_patch_length: Some(3),
            patch_size: 5,
            ..config(PatchingMode::Static)
        };
        let ids = [50; 12];
        let starts = |mut patcher: Patcher| -> Vec<bool> {
            let rest = &ids[patcher.len()..];
            rest.iter().map(|&id| patcher.push(id, f32::NAN)).collect()
        };
        let straight = starts(Patcher::new(&settings).unwrap());
        for n in 1..3 {
            let mut patcher = Patcher::new(&settings).unwrap();
            patcher.rewind(n, &ids, &[], 1);
            assert_eq!(starts(patcher), straight[n..], "back to {n}");
        }
    }

    #[test]
    fn given_lengths_that_make_no_sense_are_refused() {
        for bad in [&[1, 0, 2][..], &[usize::MAX, 1]] {
            let message = Patcher::with_lengths(bad).unwrap_err().to_string();
            assert!(message.starts_with("patch_lengths: "), "{message}");
        }
        for empty in [&[][..], &[0, 0]] {
            let mut patcher = Patcher::with_lengths(empty).unwrap();
            assert!(patcher.push(4, 0.0), "the first byte closes its patch");
            assert!((0..5).all(|_| !patcher.push(4, 0.0)));
        }
    }

    #[test]
    fn an_empty_text_has_one_patch_that_waits_for_its_byte() {
        for mode in PatchingMode::ALL {
            let c = config(mode);
            assert_eq!(patch_starts(&c, &[], &[]).unwrap(), [0], "{mode}");
            assert_eq!(patch_lengths(&c, &[], &[], true).unwrap(), [1], "{mode}");
            assert!(patch_lengths(&c, &[], &[], false).unwrap().is_empty());
        }
    }

    #[test]
    fn damaged_settings_and_missing_entropies_are_errors() {
        let mut c = config(PatchingMode::Entropy);
        let missing = patch_starts(&c, &[1, 2], &[0.5]).unwrap_err().to_string();
        assert!(missing.contains("found 1"), "{missing}");
        c.threshold = f32::NAN;
        assert!(Patcher::new(&c).is_err());
        c = config(PatchingMode::Static);
        c.patch_size = 0;
        assert!(Patcher::new(&c).is_err());
        c = config(PatchingMode::Byte);
        c.max_patch_length = Some(0);
        assert!(Patcher::new(&c).is_err());
    }

    #[test]
    fn nan_entropy_starts_no_patch() {
        let mut c = config(PatchingMode::Entropy);
        for (monotonicity, add) in [(false, None), (true, None), (false, Some(0.1))] {
            (c.monotonicity, c.threshold_add) = (monotonicity, add);
            let starts = patch_starts(&c, &[9; 8], &[f32::NAN; 8]).unwrap();
            assert!(starts.iter().all(|&s| s <= 2), "{starts:?}");
        }
    }

    #[test]
    fn top_k_of_a_short_or_flat_text_is_defined() {
        assert_eq!(top_k_starts(&[], 3), [0]);
        assert_eq!(top_k_starts(&[5.0, 4.0], 3), [0, 1]);
        assert_eq!(top_k_starts(&[1.0; 12], 3), [0, 1, 2, 3]);
        assert_eq!(top_k_starts(&[f32::NAN; 12], 3), [0, 1, 2, 3]);
    }
}
