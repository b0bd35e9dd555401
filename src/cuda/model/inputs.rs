//! What differs from pass to pass (positions, ranges, angles, ids, how to choose), as one table that is
//! uploaded before the launches.

use std::ops::Range;

use crate::cuda::{GpuRing, Row, splits};
use crate::model::block::Rows;
use crate::vocab::Id;

/// The numbers of a table, before they are uploaded. Parts are found by where they begin.
#[derive(Debug, Default)]
pub(super) struct PassInputs {
    pub units: Vec<u32>,
    /// Most positions that a row sees.
    longest: usize,
}

/// Where a table has the rows of a stack of layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct StackOffsets {
    pub n: usize,
    pub rows: usize,
    pub angles: usize,
    /// Whether all are of different sequences.
    pub single: bool,
}

/// Where a table has what the first half of a pass needs.
#[derive(Debug)]
pub(super) struct BytesOffsets {
    /// Ids and rows of the entropy model.
    pub entropy: Option<(usize, StackOffsets)>,
    pub encoder: StackOffsets,
    /// Ids up to each byte, or its embedding if the host has the tables.
    pub embeddings: Embeddings,
    pub states: usize,
    pub bytes: usize,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Embeddings {
    Ids(usize),
    Sums(usize),
}

impl PassInputs {
    pub fn put(&mut self, units: impl IntoIterator<Item = u32>) -> usize {
        // Structures begin at multiples of 16 bytes.
        self.units.resize(self.units.len().next_multiple_of(4), 0);
        let at = self.units.len();
        self.units.extend(units);
        at
    }

    pub fn rows(&mut self, rows: &[Row]) -> usize {
        let longest = rows.iter().map(|row| row.n_seen()).max();
        self.longest = self.longest.max(longest.unwrap_or(0));
        self.put(rows.iter().flat_map(|row| row.units()))
    }

    /// For its attentions: see [`splits`].
    pub fn splits(&self) -> usize {
        splits(self.longest)
    }

    pub fn stack(&mut self, list: &[Row], rows: &Rows<'_>) -> StackOffsets {
        let n = list.len();
        let (cos, sin) = rows.angles.cos_sin();
        let half = cos.len() / n.max(1);
        // Per row cosines, then sines.
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        let angles = angles.flat_map(|(cos, sin)| cos.iter().chain(sin).map(|x| x.to_bits()));
        StackOffsets {
            n,
            rows: self.rows(list),
            angles: self.put(angles),
            single: rows.runs.iter().all(|run| run.len() == 1),
        }
    }
}

/// Those of the last run.
pub(super) fn last_run<'a>(
    rows: &'a Rows<'_>,
    ring: &'a GpuRing,
) -> impl Iterator<Item = Row> + 'a {
    let run = rows.runs.last().expect("a run has been added");
    let visible = &rows.visible[rows.n() - run.len()..];
    let rows = run.clone().zip(visible);
    rows.map(|(position, seen)| ring.row(position, seen.clone()))
}

/// Rows that are only entered or fetched at `positions`.
pub(super) fn rows_at(positions: Range<usize>, ring: &GpuRing) -> impl Iterator<Item = Row> + '_ {
    positions.map(|p| ring.row(p, p..p + 1))
}

/// The `window` ids up to each of `positions`; 0 before the text and where an id is not known yet.
pub(super) fn windows(ids: &[Id], positions: Range<usize>, window: usize) -> Vec<u32> {
    let id = |i: Option<usize>| i.and_then(|i| ids.get(i)).map_or(0, |&id| u32::from(id));
    positions
        .flat_map(|p| (0..window).map(move |i| (p + 1 + i).checked_sub(window)))
        .map(id)
        .collect()
}

/// Rows of the second half whose logits are wanted: the first of them, and how many.
pub(super) type Spans = Vec<(usize, usize)>;

/// Where a table has what closed patches need.
#[derive(Debug)]
pub(super) struct CloseOffsets {
    pub stack: StackOffsets,
    pub pooled: usize,
    pub seen: usize,
    pub outputs: usize,
    pub traced: bool,
}

/// Where a table has what the decoder needs.
#[derive(Debug)]
pub(super) struct DecodeOffsets {
    pub stack: StackOffsets,
    pub states: usize,
    pub seen: usize,
    pub spans: Spans,
    /// How ids are chosen, and where they are read.
    pub ahead: Option<(usize, BytesOffsets)>,
}
