//! Sequences and what is computed from their ids alone: patches, what each row sees, hash rows.
//!
//! A sequence of n + 1 ids is n positions that are read and n targets: position i predicts id
//! i + 1. Sequences of any lengths are packed one after the other, without padding; none sees
//! another.

use std::ops::Range;

use super::block::AttentionRows;
use super::float::Float;
use crate::config::arch::{self, segment_start};
use crate::config::{Config, TransformerConfig};
use crate::error::Result;
use crate::model::hash::NgramHasher;
use crate::vocab::{EOS, Id};

/// A text and its patches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// At least two ids.
    pub ids: Vec<Id>,
    /// Where patches start: 0, 1, and further positions up to that of the last id, ascending.
    pub starts: Vec<usize>,
}

impl Sequence {
    /// Positions that are read.
    pub fn n(&self) -> usize {
        self.ids.len() - 1
    }

    /// Patches closed once all positions have been read.
    pub fn n_patches(&self) -> usize {
        self.starts.len() - 1
    }

    /// From patch lengths, which count the last id or not; zeros are padding.
    pub fn with_lengths(ids: Vec<Id>, lengths: &[usize]) -> Self {
        let mut starts = vec![0, 1];
        let mut end = 0;
        for &length in lengths.iter().filter(|&&l| l > 0) {
            end += length;
            if end > 1 && end < ids.len() {
                starts.push(end);
            }
        }
        Sequence { ids, starts }
    }
}

/// The ids of a batch, for a byte model alone.
#[derive(Debug)]
pub struct ByteBatch<F> {
    /// Ids that are read, (n).
    pub inputs: Vec<Id>,
    /// Ids to be predicted, (n).
    pub targets: Vec<Id>,
    /// The rows as the byte model sees them.
    pub rows: AttentionRows<F>,
}

impl<F: Float> ByteBatch<F> {
    /// Lays the sequences out.
    pub fn new<'a>(
        config: &TransformerConfig,
        sequences: impl IntoIterator<Item = &'a [Id]> + Clone,
    ) -> Self {
        let lengths: Vec<usize> = (sequences.clone().into_iter())
            .map(|ids| ids.len() - 1)
            .collect();
        let (mut inputs, mut targets, mut eos) = (Vec::new(), Vec::new(), Vec::new());
        for ids in sequences {
            inputs.extend_from_slice(&ids[..ids.len() - 1]);
            targets.extend_from_slice(&ids[1..]);
            eos.push(eos_positions(config, ids));
        }
        ByteBatch {
            inputs,
            targets,
            rows: AttentionRows::new(config, &lengths, |s, i| segment_start(&eos[s], i)),
        }
    }
}

/// Positions of EOS ids, if they are to end segments.
fn eos_positions(config: &TransformerConfig, ids: &[Id]) -> Vec<usize> {
    match config.eos_segments {
        true => (0..ids.len()).filter(|&i| ids[i] == EOS).collect(),
        false => Vec::new(),
    }
}

/// Everything a pass of the whole model needs to know about its input.
#[derive(Debug)]
pub struct Batch<F> {
    /// Ids that are read, (n).
    pub inputs: Vec<Id>,
    /// Ids to be predicted, (n).
    pub targets: Vec<Id>,
    /// How many of the positions, from the first on, count in the loss: all, unless a test asks
    /// what a few depend on.
    pub n_counted: usize,
    /// Rows of the hash tables, (tables, n).
    pub hash_rows: Vec<Vec<usize>>,
    /// The bytes as the local encoder sees them.
    pub encoder_rows: AttentionRows<F>,
    /// The patches as the global transformer sees them.
    pub global_rows: AttentionRows<F>,
    /// The bytes as the local decoder sees them.
    pub decoder_rows: AttentionRows<F>,
    /// The bytes of each patch, (m).
    pub patch_bytes: Vec<Range<usize>>,
    /// The bytes each of a patch's k queries sees, (m * k).
    pub encoder_visible: Vec<Range<usize>>,
    /// The patch vectors each byte sees, (n): ranges of rows of (m * k).
    pub decoder_visible: Vec<Range<usize>>,
}

impl<F: Float> Batch<F> {
    /// Lays the sequences out.
    ///
    /// # Errors
    /// Same as [`NgramHasher::new`].
    pub fn new(config: &Config, sequences: &[&Sequence]) -> Result<Self> {
        let hasher = NgramHasher::new(&config.hash)?;
        let k = config.cross_attn_k;
        let lengths: Vec<usize> = sequences.iter().map(|s| s.n()).collect();
        let patches: Vec<usize> = sequences.iter().map(|s| s.n_patches()).collect();
        let n: usize = lengths.iter().sum();
        let byte_rows = |c: &TransformerConfig| {
            let eos: Vec<Vec<usize>> = (sequences.iter())
                .map(|s| eos_positions(c, &s.ids))
                .collect();
            AttentionRows::new(c, &lengths, |s, i| segment_start(&eos[s], i))
        };
        let eos_patches: Vec<Vec<usize>> = (sequences.iter())
            .map(|s| arch::eos_patches(&eos_positions(&config.global, &s.ids), &s.starts))
            .collect();
        let mut batch = Batch {
            inputs: Vec::with_capacity(n),
            targets: Vec::with_capacity(n),
            n_counted: n,
            hash_rows: vec![Vec::with_capacity(n); config.hash.n_tables()],
            encoder_rows: byte_rows(&config.encoder),
            global_rows: AttentionRows::new(&config.global, &patches, |s, p| {
                segment_start(&eos_patches[s], p)
            }),
            decoder_rows: byte_rows(&config.decoder),
            patch_bytes: Vec::new(),
            encoder_visible: Vec::new(),
            decoder_visible: Vec::with_capacity(n),
        };
        let mut table_rows = vec![0; config.hash.n_tables()];
        let (mut first, mut first_patch) = (0, 0); // of the sequence
        for s in sequences {
            let (n, starts) = (s.n(), &s.starts);
            batch.inputs.extend_from_slice(&s.ids[..n]);
            batch.targets.extend_from_slice(&s.ids[1..]);
            for i in 0..n {
                hasher.rows(&s.ids, i, &mut table_rows);
                for (rows, &row) in batch.hash_rows.iter_mut().zip(&table_rows) {
                    rows.push(row);
                }
                let seen = config
                    .decoder_cross
                    .patches_seen(arch::n_closed(starts, i + 1));
                let visible = (first_patch + seen.start) * k..(first_patch + seen.end) * k;
                batch.decoder_visible.push(visible);
            }
            for p in 0..s.n_patches() {
                let seen = config.encoder_cross.bytes_seen(starts, p);
                let visible = first + seen.start..first + seen.end;
                let bytes = first + starts[p]..first + starts[p + 1];
                batch.patch_bytes.push(bytes);
                (batch.encoder_visible).extend(std::iter::repeat_n(visible, k));
            }
            first += n;
            first_patch += s.n_patches();
        }
        Ok(batch)
    }

    /// Number of positions.
    pub fn n(&self) -> usize {
        self.inputs.len()
    }
}
