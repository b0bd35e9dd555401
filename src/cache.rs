//! Key/value storage of a stack of layers and its arithmetic: append, look back, forget.
//!
//! Positions lie in pages of [`PAGE`]; page `position / PAGE` is found by a modulus when a window
//! bounds how far anybody looks back (a ring of pages), and directly otherwise. Pages are shared
//! between forks until one of them writes.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use crate::codec::{ReadError, Reader, Writer};
use crate::ops::{Heads, KvTile};

/// Positions in a page.
const PAGE: usize = 64;

/// Keys and values of every layer of one stack.
#[derive(Debug, Clone)]
pub struct KvCache {
    heads: Heads,
    /// Pages of a ring; `None`: all positions are kept.
    ring: Option<usize>,
    /// One past the last position ever written: what lies a ring's length before it is gone.
    high: usize,
    /// Per layer: pages, each K (n_kv_heads, PAGE, head_dim) then V of the same shape.
    layers: Vec<Vec<Arc<[f32]>>>,
}

impl KvCache {
    /// An empty cache. With a `window`, the last `window + slack` positions at least are kept.
    pub fn new(n_layers: usize, heads: Heads, window: Option<usize>, slack: usize) -> Self {
        KvCache {
            heads,
            ring: window.map(|w| (w + slack).div_ceil(PAGE)),
            high: 0,
            layers: vec![Vec::new(); n_layers],
        }
    }

    /// The oldest position that has not been overwritten.
    pub fn oldest(&self) -> usize {
        self.ring
            .map_or(0, |pages| self.high.saturating_sub(pages * PAGE))
    }

    /// Forgets the positions from `len` on, giving back the memory of whole pages.
    pub fn truncate(&mut self, len: usize) {
        if self.ring.is_none() {
            self.high = self.high.min(len);
            for pages in &mut self.layers {
                pages.truncate(len.div_ceil(PAGE));
            }
        }
    }

    /// Bytes held, pages shared with a fork included.
    pub fn n_bytes(&self) -> usize {
        let page = |p: &Arc<[f32]>| size_of_val::<[f32]>(p);
        self.layers.iter().flatten().map(page).sum()
    }

    /// Writes the rows of k and v (n, n_kv_heads * head_dim) at positions `first..`.
    pub fn append(&mut self, layer: usize, first: usize, k: &[f32], v: &[f32]) {
        let Heads {
            n_kv_heads,
            head_dim,
            ..
        } = self.heads;
        let dim = n_kv_heads * head_dim;
        let half = n_kv_heads * PAGE * head_dim;
        for (i, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
            let position = first + i;
            let page = self.page_of(position);
            let pages = &mut self.layers[layer];
            if page >= pages.len() {
                pages.resize_with(page + 1, || Arc::new([]));
            }
            if pages[page].is_empty() {
                pages[page] = vec![0.0; 2 * half].into();
            }
            let (keys, values) = Arc::make_mut(&mut pages[page]).split_at_mut(half);
            for head in 0..n_kv_heads {
                let to = (head * PAGE + position % PAGE) * head_dim;
                let from = head * head_dim;
                keys[to..to + head_dim].copy_from_slice(&k[from..from + head_dim]);
                values[to..to + head_dim].copy_from_slice(&v[from..from + head_dim]);
            }
        }
        self.high = self.high.max(first + k.len() / dim);
    }

    /// The tiles that cover `positions`, all of which must have been written and not overwritten.
    pub fn tiles(&self, layer: usize, positions: Range<usize>) -> Vec<KvTile<'_>> {
        assert!(positions.start >= self.oldest() && positions.end <= self.high);
        let head_dim = self.heads.head_dim;
        let mut tiles = Vec::with_capacity(positions.len() / PAGE + 2);
        let mut first = positions.start;
        while first < positions.end {
            let end = positions.end.min((first / PAGE + 1) * PAGE);
            let page = &self.layers[layer][self.page_of(first)];
            let (k, v) = page.split_at(page.len() / 2);
            let skip = first % PAGE * head_dim;
            tiles.push(KvTile {
                first,
                n: end - first,
                k: &k[skip..],
                v: &v[skip..],
                row_stride: head_dim,
                head_stride: PAGE * head_dim,
            });
            first = end;
        }
        tiles
    }

    /// Writes the positions held below `len`.
    pub fn save(&self, len: usize, out: &mut Writer<impl Write>) -> io::Result<()> {
        let head_dim = self.heads.head_dim;
        // Without a ring, what was written past `len` has no effect any more.
        out.size(self.ring.map_or(len, |_| self.high))?;
        for layer in 0..self.layers.len() {
            for tile in self.tiles(layer, self.oldest().min(len)..len) {
                for side in [tile.k, tile.v] {
                    for head in side.chunks(tile.head_stride).take(self.heads.n_kv_heads) {
                        out.f32s(&head[..tile.n * head_dim])?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads what [`KvCache::save`] wrote, into this empty cache of the same shape. What a position
    /// `len` will see through `window` must be there.
    pub fn load(
        &mut self,
        len: usize,
        window: Option<usize>,
        input: &mut Reader<'_>,
    ) -> Result<(), ReadError> {
        let high = input.size("cache length")?;
        let needed = (len + 1).saturating_sub(window.unwrap_or(len + 1));
        let held = self
            .ring
            .map_or(0, |pages| high.saturating_sub(pages * PAGE));
        if high < len || held > needed || (self.ring.is_none() && high != len) {
            return Err(format!(
                "cache length: expected positions {needed} to {len} to be held, found {high}"
            ));
        }
        let Heads {
            n_kv_heads,
            head_dim,
            ..
        } = self.heads;
        let dim = n_kv_heads * head_dim;
        for layer in 0..self.layers.len() {
            let mut first = held;
            while first < len {
                let n = len.min((first / PAGE + 1) * PAGE) - first;
                let k = input.f32s("cached keys", n * dim)?; // (n_kv_heads, n, head_dim)
                let v = input.f32s("cached values", n * dim)?;
                for i in 0..n {
                    let row = |side: &[f32]| -> Vec<f32> {
                        let heads = side.chunks_exact(n * head_dim);
                        heads
                            .flat_map(|h| &h[i * head_dim..][..head_dim])
                            .copied()
                            .collect()
                    };
                    self.append(layer, first + i, &row(&k), &row(&v));
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

/// Rows of a fixed width at consecutive positions, of which old ones can be dropped.
#[derive(Debug, Clone)]
pub struct RowStore {
    dim: usize,
    /// Position of the first row still held.
    first: usize,
    /// Rows before `first` that are dropped but not yet moved over.
    dropped: usize,
    data: Vec<f32>, // (dropped + held, dim)
}

impl RowStore {
    /// An empty store for rows of `dim`.
    pub fn new(dim: usize) -> Self {
        RowStore {
            dim,
            first: 0,
            dropped: 0,
            data: Vec::new(),
        }
    }

    /// Position of the first row held.
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

    /// The rows at `positions`, all of which must be held: (n, dim).
    pub fn rows(&self, positions: Range<usize>) -> &[f32] {
        let at = |p: usize| (p - self.first + self.dropped) * self.dim;
        &self.data[at(positions.start)..at(positions.end)]
    }

    /// Drops the rows before `position`.
    pub fn drop_before(&mut self, position: usize) {
        let n = position.min(self.end()).saturating_sub(self.first);
        self.first += n;
        self.dropped += n;
        // Moving the rest over once it is the smaller half costs each row one move on average.
        if self.dropped * self.dim * 2 > self.data.len() {
            self.data.drain(..self.dropped * self.dim);
            self.dropped = 0;
        }
    }

    /// Drops the rows from `position` on.
    pub fn truncate(&mut self, position: usize) {
        let held = position.saturating_sub(self.first);
        self.data.truncate((self.dropped + held) * self.dim);
    }

    /// Writes the rows held.
    pub fn save(&self, out: &mut Writer<impl Write>) -> io::Result<()> {
        out.size(self.first)?;
        out.f32s(self.rows(self.first..self.end()))
    }

    /// Reads what [`RowStore::save`] wrote: rows up to `end`, from `first` at the latest.
    pub fn load(
        &mut self,
        first: usize,
        end: usize,
        input: &mut Reader<'_>,
    ) -> Result<(), ReadError> {
        let from = input.size("rows")?;
        if from > first || first > end {
            return Err(format!("rows: expected them from {first}, found {from}"));
        }
        self.restart(from);
        self.data = input.f32s("rows", (end - from).saturating_mul(self.dim))?;
        Ok(())
    }

    /// Drops everything; the next row pushed is at `position`.
    pub fn restart(&mut self, position: usize) {
        *self = RowStore {
            first: position,
            ..RowStore::new(self.dim)
        };
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }
}
