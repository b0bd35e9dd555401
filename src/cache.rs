//! Key/value storage of a stack of layers: append, read, truncate.
//!
//! A page holds [`PAGE`] positions of all layers, because large pieces of memory are read faster. If a window limits how
//! far back a query sees, the pages form a ring, and page `position / PAGE` is found by a modulus; otherwise it is found
//! directly. Forks share pages until one of them writes.

#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use blt_kernels::{FloatSlice, to_f16};
use half::f16;

use crate::error::{Error, Result};
use crate::ops::{Compute, Heads, KvTile, KvTiles};
use crate::tensor::{DType, Values};
use crate::wire::{ReadError, Reader, Writer};

/// Positions in a page.
const PAGE: usize = 64;

/// The type that keys and values are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Not rounded.
    #[default]
    F32,
    /// Rounded to half floats: half the memory, and half as much to read for every byte. A key or value beyond 65504
    /// becomes infinite, and the logits then give [`Error::NonFinite`].
    F16,
}

impl KvType {
    /// All types.
    pub const ALL: [KvType; 2] = [KvType::F32, KvType::F16];

    /// The default for the type of the global transformer's matrices: half floats if they are quantised, whose rounding is a
    /// hundred times coarser, and f32 otherwise.
    pub fn for_weights(matrices: DType) -> KvType {
        match matrices.is_quantized() {
            true => KvType::F16,
            false => KvType::F32,
        }
    }

    /// The name that is parsed and displayed.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
        }
    }

    /// Bytes of a value.
    pub fn n_bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::F16 => 2,
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        (KvType::ALL.into_iter().find(|t| t.name() == name))
            .ok_or_else(|| Error::argument("kv", format!("expected f32 or f16, found \"{name}\"")))
    }
}

/// [`PAGE`] positions of all layers: for each layer, K (n_kv_heads, PAGE, head_dim), then V of the same shape.
#[derive(Debug, Clone)]
enum Page {
    F32(Arc<Values<f32>>),
    F16(Arc<Values<f16>>),
}

impl Page {
    fn new(kv: KvType, n_values: usize) -> Self {
        match kv {
            KvType::F32 => Page::F32(Arc::new(Values::new(n_values))),
            KvType::F16 => Page::F16(Arc::new(Values::new(n_values))),
        }
    }

    fn values(&self) -> FloatSlice<'_> {
        match self {
            Page::F32(values) => FloatSlice::F32(values),
            Page::F16(values) => FloatSlice::F16(values),
        }
    }

    /// Writes the rows of k and v (n, n_kv_heads * head_dim) of a layer, from slot `first` on.
    fn write(
        &mut self,
        compute: &Compute,
        heads: Heads,
        layer: usize,
        first: usize,
        k: &[f32],
        v: &[f32],
    ) {
        let Heads {
            n_kv_heads,
            head_dim,
            ..
        } = heads;
        let rows = [k, v].into_iter().enumerate().flat_map(|(side, rows)| {
            rows.chunks_exact(head_dim)
                .enumerate()
                .map(move |(i, row)| {
                    let (slot, head) = (first + i / n_kv_heads, i % n_kv_heads);
                    let head = (2 * layer + side) * n_kv_heads + head;
                    let start = (head * PAGE + slot) * head_dim;
                    (start..start + head_dim, row)
                })
        });
        match self {
            Page::F32(page) => {
                let page = Arc::make_mut(page);
                rows.for_each(|(range, row)| page[range].copy_from_slice(row));
            }
            Page::F16(page) => {
                let page = Arc::make_mut(page);
                rows.for_each(|(range, row)| to_f16(compute.isa(), row, &mut page[range]));
            }
        }
    }

    fn n_bytes(&self) -> usize {
        match self {
            Page::F32(values) => size_of_val::<[f32]>(values),
            Page::F16(values) => size_of_val::<[f16]>(values),
        }
    }
}

/// Keys and values of all layers of one stack.
#[derive(Debug, Clone)]
pub struct KvCache {
    kv: KvType,
    heads: Heads,
    /// The number of pages in the ring; `None` if all positions are kept.
    ring: Option<usize>,
    /// One past the highest position written. Positions a ring length before it are overwritten.
    high: usize,
    n_layers: usize,
    /// `None` where nothing was written.
    pages: Vec<Option<Page>>,
}

impl KvCache {
    /// Creates an empty cache. With a `window`, it keeps at least the last `window + slack` positions.
    pub fn new(
        kv: KvType,
        n_layers: usize,
        heads: Heads,
        window: Option<usize>,
        slack: usize,
    ) -> Self {
        KvCache {
            kv,
            heads,
            ring: window.map(|w| (w + slack).div_ceil(PAGE)),
            high: 0,
            n_layers,
            pages: Vec::new(),
        }
    }

    /// The oldest position that has not been overwritten.
    pub fn oldest(&self) -> usize {
        self.ring
            .map_or(0, |pages| self.high.saturating_sub(pages * PAGE))
    }

    /// Removes the positions from `len` on and frees whole pages. Called when the sequence goes back to `len`.
    pub fn rewind(&mut self, len: usize) {
        if self.ring.is_none() {
            self.high = self.high.min(len);
            self.pages.truncate(len.div_ceil(PAGE));
        }
    }

    /// The memory in bytes, including pages shared with a fork.
    pub fn n_bytes(&self) -> usize {
        self.pages.iter().flatten().map(Page::n_bytes).sum()
    }

    /// Writes the rows of k and v (n, n_kv_heads * head_dim) at positions `first..`.
    pub fn append(&mut self, compute: &Compute, layer: usize, first: usize, k: &[f32], v: &[f32]) {
        let (kv, heads) = (self.kv, self.heads);
        let dim = heads.n_kv_heads * heads.head_dim;
        let page_values = self.n_layers * 2 * PAGE * dim;
        let n = k.len() / dim;
        let mut done = 0;
        while done < n {
            // Contiguous pages: all pages, except across the end of a ring.
            let (slot, skip) = (self.page_of(first + done), (first + done) % PAGE);
            let room = self.ring.map_or(n, |pages| (pages - slot) * PAGE - skip);
            let rows = done..n.min(done + room);
            done = rows.end;
            let slots = slot..slot + (skip + rows.len()).div_ceil(PAGE);
            if self.pages.len() < slots.end {
                self.pages.resize(slots.end, None);
            }
            // A new page is touched here for the first time, which takes longer than copying.
            compute.each(&mut self.pages[slots], 8 * PAGE * dim, |i, page| {
                let slots = (i * PAGE).max(skip)..((i + 1) * PAGE).min(skip + rows.len());
                let first_row = rows.start + slots.start - skip;
                let values = first_row * dim..(first_row + slots.len()) * dim;
                let page = page.get_or_insert_with(|| Page::new(kv, page_values));
                page.write(
                    compute,
                    heads,
                    layer,
                    slots.start % PAGE,
                    &k[values.clone()],
                    &v[values],
                );
            });
        }
        self.high = self.high.max(first + n);
    }

    /// The keys and values of a layer. Positions must have been written and not overwritten.
    pub fn layer(&self, layer: usize) -> Layer<'_> {
        Layer { cache: self, layer }
    }

    fn tile(&self, layer: usize, first: usize) -> KvTile<'_> {
        assert!(first >= self.oldest() && first < self.high);
        let Heads {
            n_kv_heads,
            head_dim,
            ..
        } = self.heads;
        let page = self.pages[self.page_of(first)].as_ref();
        let page = page.expect("the position was written").values();
        let (side, skip) = (n_kv_heads * PAGE * head_dim, first % PAGE * head_dim);
        let (k, v) = (2 * layer * side, (2 * layer + 1) * side);
        KvTile {
            first,
            n: self.high.min((first / PAGE + 1) * PAGE) - first,
            k: page.slice(k + skip..k + side),
            v: page.slice(v + skip..v + side),
            row_stride: head_dim,
            head_stride: PAGE * head_dim,
        }
    }

    /// Writes the stored positions below `len`.
    pub fn save(&self, len: usize, out: &mut Writer<impl Write>) -> io::Result<()> {
        let head_dim = self.heads.head_dim;
        // Without a ring, positions from `len` on have no effect.
        out.size(self.ring.map_or(len, |_| self.high))?;
        for layer in 0..self.n_layers {
            let mut first = self.oldest().min(len);
            while first < len {
                let tile = self.tile(layer, first);
                let n = tile.n.min(len - first);
                first += n;
                for side in [tile.k, tile.v] {
                    for head in 0..self.heads.n_kv_heads {
                        let start = head * tile.head_stride;
                        match side.slice(start..start + n * head_dim) {
                            FloatSlice::F32(rows) => out.f32s(rows)?,
                            FloatSlice::F16(rows) => out.f16s(rows)?,
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads the output of [`KvCache::save`] into this empty cache of the same shape. It must contain the positions that
    /// position `len` sees through `window`.
    pub fn load(
        &mut self,
        compute: &Compute,
        len: usize,
        window: Option<usize>,
        input: &mut Reader<'_>,
    ) -> Result<(), ReadError> {
        let high = input.size("cache length")?;
        let needed = (len + 1).saturating_sub(window.unwrap_or(len + 1));
        let oldest = self
            .ring
            .map_or(0, |pages| high.saturating_sub(pages * PAGE));
        if high < len || oldest > needed || (self.ring.is_none() && high != len) {
            return Err(format!(
                "cache length: expected positions {needed} to {len}, found {high}"
            ));
        }
        let Heads {
            n_kv_heads,
            head_dim,
            ..
        } = self.heads;
        let dim = n_kv_heads * head_dim;
        for layer in 0..self.n_layers {
            let mut first = oldest;
            while first < len {
                let n = len.min((first / PAGE + 1) * PAGE) - first;
                let mut side = |what| match self.kv {
                    KvType::F32 => input.f32s(what, n * dim),
                    KvType::F16 => input.f16s(what, n * dim),
                };
                let k = side("cached keys")?; // (n_kv_heads, n, head_dim)
                let v = side("cached values")?;
                for i in 0..n {
                    let row = |side: &[f32]| -> Vec<f32> {
                        let heads = side.chunks_exact(n * head_dim);
                        heads
                            .flat_map(|h| &h[i * head_dim..][..head_dim])
                            .copied()
                            .collect()
                    };
                    self.append(compute, layer, first + i, &row(&k), &row(&v));
                }
                first += n;
            }
        }
        self.high = high;
        Ok(())
    }

    fn page_of(&self, position: usize) -> usize {
        match self.ring {
            Some(pages) => position / PAGE % pages,
            None => position / PAGE,
        }
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub struct Layer<'a> {
    cache: &'a KvCache,
    layer: usize,
}

impl KvTiles for Layer<'_> {
    fn tile(&self, position: usize) -> KvTile<'_> {
        self.cache.tile(self.layer, position)
    }
}

/// Rows of a fixed width at consecutive positions. The oldest rows can be dropped.
#[derive(Debug, Clone)]
pub struct RowStore {
    dim: usize,
    /// Position of the first row.
    first: usize,
    /// Rows before `first` that are dropped but still in `data`.
    dropped: usize,
    data: Vec<f32>, // (dropped + stored, dim)
}

impl RowStore {
    /// Creates an empty store for rows of `dim` values.
    pub fn new(dim: usize) -> Self {
        RowStore {
            dim,
            first: 0,
            dropped: 0,
            data: Vec::new(),
        }
    }

    /// Position of the first row.
    pub fn first(&self) -> usize {
        self.first
    }

    /// One past the position of the last row.
    pub fn end(&self) -> usize {
        self.first + self.data.len() / self.dim - self.dropped
    }

    /// Appends rows (n, dim).
    pub fn push(&mut self, rows: &[f32]) {
        debug_assert_eq!(rows.len() % self.dim, 0);
        self.data.extend_from_slice(rows);
    }

    /// Appends one row that consists of these pieces.
    pub fn push_pieces(&mut self, pieces: &[&[f32]]) {
        debug_assert_eq!(
            pieces.iter().map(|piece| piece.len()).sum::<usize>(),
            self.dim
        );
        pieces
            .iter()
            .for_each(|piece| self.data.extend_from_slice(piece));
    }

    /// The rows at `positions`, which must be stored: (n, dim).
    pub fn rows(&self, positions: Range<usize>) -> &[f32] {
        let start = |position| (position - self.first + self.dropped) * self.dim;
        &self.data[start(positions.start)..start(positions.end)]
    }

    /// Drops the rows before `position`.
    pub fn evict(&mut self, position: usize) {
        let n = position.min(self.end()).saturating_sub(self.first);
        self.first += n;
        self.dropped += n;
        // Compacting once the stored rows are the smaller half costs one move per row on average.
        if self.dropped * self.dim * 2 > self.data.len() {
            self.data.drain(..self.dropped * self.dim);
            self.dropped = 0;
        }
    }

    /// Drops the rows from `position` on.
    pub fn rewind(&mut self, position: usize) {
        let n = position.saturating_sub(self.first);
        self.data.truncate((self.dropped + n) * self.dim);
    }

    /// Writes the stored rows before `end`.
    pub fn save(&self, end: usize, out: &mut Writer<impl Write>) -> io::Result<()> {
        out.size(self.first)?;
        out.f32s(self.rows(self.first..end))
    }

    /// Reads the output of [`RowStore::save`]: the rows before `end`, which must include those from `first` on.
    pub fn load(
        &mut self,
        first: usize,
        end: usize,
        input: &mut Reader<'_>,
    ) -> Result<(), ReadError> {
        let start = input.size("rows")?;
        if start > first || first > end {
            return Err(format!(
                "rows: expected a start of at most {first}, found {start}"
            ));
        }
        self.clear(start);
        self.data = input.f32s("rows", (end - start).saturating_mul(self.dim))?;
        Ok(())
    }

    /// Drops all rows. The next row pushed is at `position`.
    pub fn clear(&mut self, position: usize) {
        *self = RowStore {
            first: position,
            ..RowStore::new(self.dim)
        };
    }

    /// The memory in bytes.
    pub fn n_bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }
}
