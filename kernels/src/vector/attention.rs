//! The two products of attention over the rows of one head's keys or values, stored as f32 or f16.
//!
//! ```text
//! dot_rows:      out[i][j]  = scale * tree sum of the lanes of q[i] * key[j]
//! weighted_sum:  acc[i]    += p[i][j] * value[j]        j in increasing order
//! ```
//!
//! 1. Head widths of 32, 64 and 128 without gaps have tiles of their own: a query, or four, times four keys, with
//!    every loop unrolled. Other widths use the register tile of `linear`.
//! 2. A single query waits for memory, so its keys and values are read as one stream: each row from its first to
//!    its last cache line. With each line, one line of the rows that are read next is prefetched, past the
//!    caches. A row of 64 half floats takes 1.5 ns in the caches.
//! 3. A weighted sum keeps its columns in registers over all rows.

use super::element::Element;
use super::linear::{Inputs, WeightRows, tile};
use super::simd::{CACHE_LINE, Prefetch, Simd, prefetch_row};
use crate::scalar::LANES;
use crate::strided_rows::{FloatSlice, StridedRows};
use crate::view::{View, ViewMut};

/// Keys in a tile.
const KEYS: usize = 4;

/// See [`crate::dot_rows`].
#[inline(always)]
pub(crate) fn dot_rows<S: Simd, E: Element>(
    s: S,
    q: View<'_, f32>,
    mut rows: StridedRows<'_>,
    scale: f32,
    out: &mut ViewMut<'_, f32>,
) {
    let (n_queries, dim) = q.shape();
    let dense_dim = if rows.stride == dim { dim } else { 0 };
    let mut i = 0;
    while i < n_queries {
        // With 16 registers, the sums of several queries would not stay in registers.
        i += match (dense_dim, n_queries - i) {
            (32, 4..) if S::WIDE => dot_tile::<S, E, 4, 2>(s, q, i, rows, scale, out),
            (32, 2..) if S::WIDE => dot_tile::<S, E, 2, 2>(s, q, i, rows, scale, out),
            (32, _) => dot_stream::<S, E, 2>(s, q, i, rows, scale, out, 0),
            (64, 4..) if S::WIDE => dot_tile::<S, E, 4, 4>(s, q, i, rows, scale, out),
            (64, 2..) if S::WIDE => dot_tile::<S, E, 2, 4>(s, q, i, rows, scale, out),
            (64, _) => dot_stream::<S, E, 4>(s, q, i, rows, scale, out, 0),
            (128, 4..) if S::WIDE => dot_tile::<S, E, 4, 8>(s, q, i, rows, scale, out),
            (128, 2..) if S::WIDE => dot_tile::<S, E, 2, 8>(s, q, i, rows, scale, out),
            (128, _) => dot_stream::<S, E, 8>(s, q, i, rows, scale, out, 0),
            (_, 4..) => dot_any_width::<S, E, 4>(s, q, i, rows, scale, out),
            (_, 2..) => dot_any_width::<S, E, 2>(s, q, i, rows, scale, out),
            _ => dot_any_width::<S, E, 1>(s, q, i, rows, scale, out),
        };
        rows.next = FloatSlice::F32(&[]);
    }
}

/// [`dot_rows`] for `INPUTS` queries from `i` on, of `16 * VECTORS` values. Returns `INPUTS`.
#[inline(always)]
fn dot_tile<S: Simd, E: Element, const INPUTS: usize, const VECTORS: usize>(
    s: S,
    q: View<'_, f32>,
    i: usize,
    rows: StridedRows<'_>,
    scale: f32,
    out: &mut ViewMut<'_, f32>,
) -> usize {
    let (n, row_bytes) = (out.shape().1, VECTORS * LANES * E::BYTES);
    let x: [&[[f32; LANES]; VECTORS]; INPUTS] = core::array::from_fn(|k| query(q, i + k));
    let next = rows.next.bytes();
    let keys = &rows.values.bytes()[..n * row_bytes];
    let whole = n - n % KEYS;
    for j in (0..whole).step_by(KEYS) {
        let group = &keys[j * row_bytes..][..KEYS * row_bytes];
        let ahead = prefetch_address(keys, next, j * row_bytes);
        let mut acc = [[s.splat(0.0); KEYS]; INPUTS];
        for v in 0..VECTORS {
            for r in 0..KEYS {
                let offset = r * row_bytes + v * LANES * E::BYTES;
                if offset.is_multiple_of(CACHE_LINE) {
                    s.prefetch(ahead.wrapping_add(offset));
                }
                // SAFETY: the group holds four rows of `VECTORS` vectors.
                let key = unsafe { E::load(s, group.as_ptr().add(offset)) };
                for (acc, x) in acc.iter_mut().zip(x) {
                    acc[r] = s.fma(key, s.load_array(&x[v]), acc[r]);
                }
            }
        }
        for (k, acc) in acc.into_iter().enumerate() {
            let sums = s.sum4(acc).map(|sum| scale * sum);
            out.row(i + k)[j..j + KEYS].copy_from_slice(&sums);
        }
    }
    if whole < n {
        for k in 0..INPUTS {
            dot_stream::<S, E, VECTORS>(s, q, i + k, rows, scale, out, whole);
        }
    }
    INPUTS
}

/// Query `i`, all of it.
#[inline(always)]
fn query<'q, const VECTORS: usize>(q: View<'q, f32>, i: usize) -> &'q [[f32; LANES]; VECTORS] {
    let (vectors, _) = q.row(i, 0, VECTORS * LANES).as_chunks();
    vectors.try_into().expect("`VECTORS` vectors")
}

/// [`dot_rows`] for query `i`, of `16 * VECTORS` values, and the keys from `first` on. The query stays in
/// registers. Returns 1.
#[inline(always)]
fn dot_stream<S: Simd, E: Element, const VECTORS: usize>(
    s: S,
    q: View<'_, f32>,
    i: usize,
    rows: StridedRows<'_>,
    scale: f32,
    out: &mut ViewMut<'_, f32>,
    first: usize,
) -> usize {
    let row_bytes = VECTORS * LANES * E::BYTES;
    let x = query::<VECTORS>(q, i);
    let out = out.row(i);
    let next = rows.next.bytes();
    let keys = &rows.values.bytes()[..out.len() * row_bytes];
    let mut offset = first * row_bytes;
    // A macro, because a closure might not be inlined.
    macro_rules! next_row {
        () => {{
            let row = &keys[offset..][..row_bytes];
            let ahead = prefetch_address(keys, next, offset);
            offset += row_bytes;
            let mut acc = s.splat(0.0);
            for (v, x) in x.iter().enumerate() {
                let column = v * LANES * E::BYTES;
                if column.is_multiple_of(CACHE_LINE) {
                    s.prefetch_streaming(ahead.wrapping_add(column));
                }
                // SAFETY: a row holds `VECTORS` vectors.
                let key = unsafe { E::load(s, row.as_ptr().add(column)) };
                acc = s.fma(key, s.load_array(x), acc);
            }
            acc
        }};
    }
    let (groups, rest) = out[first..].as_chunks_mut::<KEYS>();
    for out in groups {
        let mut acc = [s.splat(0.0); KEYS];
        for acc in &mut acc {
            *acc = next_row!();
        }
        *out = s.sum4(acc).map(|sum| scale * sum);
    }
    for out in rest {
        *out = scale * s.sum(next_row!());
    }
    1
}

/// [`dot_rows`] for `INPUTS` queries from `i` on, of any width and with any stride. Returns `INPUTS`.
#[inline(always)]
fn dot_any_width<S: Simd, E: Element, const INPUTS: usize>(
    s: S,
    q: View<'_, f32>,
    i: usize,
    rows: StridedRows<'_>,
    scale: f32,
    out: &mut ViewMut<'_, f32>,
) -> usize {
    let ((n_queries, dim), n) = (q.shape(), out.shape().1);
    assert!(i + INPUTS <= n_queries);
    let (stride, next) = (rows.stride * E::BYTES, rows.next.bytes());
    let row_bytes = dim * E::BYTES;
    let keys = rows.values.bytes();
    let x = || {
        let (start, stride) = q.row_start(i);
        Inputs {
            start,
            stride,
            advance: 1,
        }
    };
    let prefetch = Prefetch::Temporal(KEYS * stride);
    let mut j = 0;
    while j + KEYS <= n {
        for row in j..j + KEYS {
            prefetch_row(s, next, row * stride, row_bytes);
        }
        let w = WeightRows {
            start: keys[j * stride..][..(KEYS - 1) * stride + row_bytes].as_ptr(),
            stride,
        };
        let mut acc = [[s.splat(0.0); KEYS]; INPUTS];
        // SAFETY: the slice above holds four rows of `dim` values, and there are `INPUTS` queries of `dim`.
        unsafe { tile::<S, E, KEYS, INPUTS>(s, w, x(), 0..dim, prefetch, &mut acc) };
        for (k, acc) in acc.into_iter().enumerate() {
            let sums = s.sum4(acc).map(|sum| scale * sum);
            out.row(i + k)[j..j + KEYS].copy_from_slice(&sums);
        }
        j += KEYS;
    }
    while j < n {
        prefetch_row(s, next, j * stride, row_bytes);
        let w = WeightRows {
            start: keys[j * stride..][..row_bytes].as_ptr(),
            stride,
        };
        let mut acc = [[s.splat(0.0)]; INPUTS];
        // SAFETY: the slice above holds a row of `dim` values, and there are `INPUTS` queries of `dim`.
        unsafe { tile::<S, E, 1, INPUTS>(s, w, x(), 0..dim, prefetch, &mut acc) };
        for (k, [acc]) in acc.into_iter().enumerate() {
            out.row(i + k)[j] = scale * s.sum(acc);
        }
        j += 1;
    }
    INPUTS
}

/// The address to prefetch while the row `offset` bytes into `rows` is read: the same offset in `next`. Beyond the
/// end of `next` it is the row itself, whose prefetch costs next to nothing.
#[inline(always)]
fn prefetch_address(rows: &[u8], next: &[u8], offset: usize) -> *const u8 {
    let bytes = if offset < next.len() { next } else { rows };
    bytes.as_ptr().wrapping_add(offset)
}

/// See [`crate::weighted_sum`].
#[inline(always)]
pub(crate) fn weighted_sum<S: Simd, E: Element>(
    s: S,
    p: View<'_, f32>,
    mut rows: StridedRows<'_>,
    acc: &mut ViewMut<'_, f32>,
) {
    let ((n_sums, n), dim) = (p.shape(), acc.shape().1);
    if n == 0 {
        return;
    }
    let stride = rows.stride * E::BYTES;
    let whole = dim - dim % LANES;
    let mut column = 0;
    while column < whole {
        let vectors = match (whole - column) / LANES {
            8.. if S::WIDE && n_sums == 1 => 8,
            4.. if S::WIDE || n_sums == 1 => 4,
            2.. => 2,
            _ => 1,
        };
        let mut i = 0;
        while i < n_sums {
            i += match (vectors, n_sums - i) {
                (8, _) => weighted_columns::<S, E, 1, 8>(s, p, i, rows, acc, column),
                (4, 4..) if S::WIDE => weighted_columns::<S, E, 4, 4>(s, p, i, rows, acc, column),
                (4, _) => weighted_columns::<S, E, 1, 4>(s, p, i, rows, acc, column),
                (2, 2..) if !S::WIDE => weighted_columns::<S, E, 2, 2>(s, p, i, rows, acc, column),
                (2, _) => weighted_columns::<S, E, 1, 2>(s, p, i, rows, acc, column),
                _ => weighted_columns::<S, E, 1, 1>(s, p, i, rows, acc, column),
            };
            rows.next = FloatSlice::F32(&[]);
        }
        column += vectors * LANES;
    }
    if whole == dim {
        return;
    }
    let tail_bytes = (dim - whole) * E::BYTES;
    let values = rows.values.bytes();
    for i in 0..n_sums {
        let tail = &mut acc.row(i)[whole..];
        let mut sum = s.load_padded(tail, 0.0);
        for (j, &p) in p.row(i, 0, n).iter().enumerate() {
            let row = &values[j * stride + whole * E::BYTES..][..tail_bytes];
            sum = s.fma(s.splat(p), E::load_padded(s, row), sum);
        }
        s.store_first(tail, sum);
    }
}

/// `VECTORS` vectors from column `column` on of `INPUTS` weighted sums from `i` on. The sums stay in registers over
/// all rows. Returns `INPUTS`.
#[inline(always)]
fn weighted_columns<S: Simd, E: Element, const INPUTS: usize, const VECTORS: usize>(
    s: S,
    p: View<'_, f32>,
    i: usize,
    rows: StridedRows<'_>,
    acc: &mut ViewMut<'_, f32>,
    column: usize,
) -> usize {
    let n = p.shape().1;
    let (stride, next) = (rows.stride * E::BYTES, rows.next.bytes());
    let values = &rows.values.bytes()[column * E::BYTES..];
    let width = VECTORS * LANES;
    let mut sums = [[s.splat(0.0); VECTORS]; INPUTS];
    for (k, sums) in sums.iter_mut().enumerate() {
        let (acc, _) = acc.row(i + k)[column..column + width].as_chunks::<LANES>();
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum = s.load_array(acc);
        }
    }
    let weights: [&[f32]; INPUTS] = core::array::from_fn(|k| p.row(i + k, 0, n));
    assert!(weights.iter().all(|w| w.len() == n));
    // A single sum reads whole rows without gaps as one stream, as `dot_stream` does.
    let is_stream = INPUTS == 1 && stride == width * E::BYTES;
    for j in 0..n {
        let row = &values[j * stride..][..width * E::BYTES];
        match is_stream {
            true => {
                let ahead = prefetch_address(values, next, j * stride);
                for line in (0..width * E::BYTES).step_by(CACHE_LINE) {
                    s.prefetch_streaming(ahead.wrapping_add(line));
                }
            }
            false => prefetch_row(s, next, j * stride, acc.shape().1 * E::BYTES),
        }
        let mut p = [s.splat(0.0); INPUTS];
        for (p, weights) in p.iter_mut().zip(weights) {
            *p = s.splat(weights[j]);
        }
        for v in 0..VECTORS {
            // SAFETY: the slice above holds `VECTORS` vectors.
            let value = unsafe { E::load(s, row.as_ptr().add(v * LANES * E::BYTES)) };
            for (sums, p) in sums.iter_mut().zip(p) {
                sums[v] = s.fma(p, value, sums[v]);
            }
        }
    }
    for (k, sums) in sums.into_iter().enumerate() {
        let (acc, _) = acc.row(i + k)[column..column + width].as_chunks_mut::<LANES>();
        for (acc, sum) in acc.iter_mut().zip(sums) {
            *acc = s.to_array(sum);
        }
    }
    INPUTS
}
