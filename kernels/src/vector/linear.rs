//! Matrix times vectors, and the dot products of attention: one register tile for all of them.
//!
//! ```text
//! for a block of rows that stays in the cache, for a group of N inputs, for a group of R rows:
//!     acc[N][R] = 0                        16 lanes each, in registers over the whole of k
//!     for k in steps of 16:
//!         acc[i][r] += x[i][k..] * widen(w[r][k..])
//!     out[i][r] = tree sum of acc[i][r]
//! ```
//!
//! 1. `k` is never split, so a result does not depend on the tile it was computed in.
//! 2. Four sums are reduced together: adding lanes costs 13 instructions for four in place of 32.
//! 3. A row block is walked once for every group of inputs, so weights come from memory once.
//! 4. Weights are asked for one group of rows ahead, into the second-level cache: on Zen 4 that made
//!    0.5 to 0.75 of the rate of a plain read into 0.95 and more, with 8 rows side by side; asking for
//!    the first level, or less far ahead, gained nothing.

use core::marker::PhantomData;

use super::Simd;
use crate::Vectors;
use crate::scalar::LANES;

/// How a weight is stored.
pub(crate) trait Element {
    const BYTES: usize;
    /// 16 weights, widened exactly.
    /// # Safety
    /// `p` is valid for reading `16 * BYTES` bytes.
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V;
    /// Up to 16 weights, padded with zeros.
    #[inline(always)]
    fn load_padded<S: Simd>(s: S, bytes: &[u8]) -> S::V {
        let mut padded = [0u8; LANES * 4];
        padded[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: `padded` holds 16 weights of any type.
        unsafe { Self::load(s, padded.as_ptr()) }
    }
}

/// 32-bit floats.
pub(crate) enum F32 {}
/// Half floats.
pub(crate) enum F16 {}
/// bfloat16.
pub(crate) enum Bf16 {}

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V {
        // SAFETY: the caller vouches for 64 bytes; `load` takes any alignment.
        unsafe { s.load(p.cast()) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V {
        // SAFETY: the caller vouches for 32 bytes.
        unsafe { s.load_f16(p) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V {
        // SAFETY: the caller vouches for 32 bytes.
        unsafe { s.load_bf16(p) }
    }
}

/// Rows of a matrix, `stride` bytes apart.
pub(super) struct Rows {
    pub(super) start: *const u8,
    pub(super) stride: usize,
}

/// Inputs, `stride` elements apart.
pub(super) struct Inputs<X> {
    pub(super) start: *const X,
    pub(super) stride: usize,
}

/// A way of multiplying rows with inputs.
pub(super) trait Product: Copy {
    /// The floats of the sums.
    type S: Simd;
    /// An element of the inputs.
    type X;
    /// Bytes of a weight.
    const BYTES: usize;

    fn floats(self) -> Self::S;

    /// The sums, lane by lane, of `R` rows with `N` inputs.
    ///
    /// # Safety
    /// There are `R` rows and `N` inputs of `cols` elements.
    unsafe fn tile<const R: usize, const N: usize>(
        self,
        w: Rows,
        x: Inputs<Self::X>,
        cols: usize,
    ) -> [[<Self::S as Simd>::V; R]; N];
}

/// Weights `E` widened, times f32.
struct Wide<S, E>(S, PhantomData<E>);

impl<S: Copy, E> Clone for Wide<S, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Copy, E> Copy for Wide<S, E> {}

impl<S: Simd, E: Element> Product for Wide<S, E> {
    type S = S;
    type X = f32;
    const BYTES: usize = E::BYTES;

    #[inline(always)]
    fn floats(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn tile<const R: usize, const N: usize>(
        self,
        w: Rows,
        x: Inputs<f32>,
        cols: usize,
    ) -> [[S::V; R]; N] {
        // SAFETY: the caller vouches for rows and inputs; inputs of `linear` lie side by side.
        unsafe { tile::<S, E, R, N>(self.0, w, x.start, cols) }
    }
}

/// The sums, lane by lane, of `R` rows with `N` inputs.
///
/// # Safety
/// `w` has `R` rows of `cols` elements `E`; `x` points to `N` rows of `cols` values, `cols` apart.
#[inline(always)]
unsafe fn tile<S: Simd, E: Element, const R: usize, const N: usize>(
    s: S,
    w: Rows,
    x: *const f32,
    cols: usize,
) -> [[S::V; R]; N] {
    let mut acc = [[s.splat(0.0); R]; N];
    let mut k = 0;
    // Two vectors a step: a cache line of 16-bit weights, asked for once.
    while k + 2 * LANES <= cols {
        for r in 0..R {
            // One group of rows ahead.
            let p = w.start.wrapping_add((R + r) * w.stride + k * E::BYTES);
            s.prefetch(p);
            if E::BYTES == 4 {
                s.prefetch(p.wrapping_add(64));
            }
        }
        // SAFETY: `k + 32 <= cols`.
        unsafe {
            step::<S, E, R, N>(s, &w, x, cols, k, &mut acc);
            step::<S, E, R, N>(s, &w, x, cols, k + LANES, &mut acc);
        }
        k += 2 * LANES;
    }
    if k + LANES <= cols {
        // SAFETY: `k + 16 <= cols`.
        unsafe { step::<S, E, R, N>(s, &w, x, cols, k, &mut acc) };
        k += LANES;
    }
    if k < cols {
        let rest = cols - k;
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `rest` values are left in the row of `x`.
            let x = unsafe { core::slice::from_raw_parts(x.add(i * cols + k), rest) };
            let x = s.load_padded(x, 0.0);
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `rest` elements are left in the row of `w`.
                let w = unsafe {
                    let p = w.start.add(r * w.stride + k * E::BYTES);
                    core::slice::from_raw_parts(p, rest * E::BYTES)
                };
                let w = E::load_padded(s, w);
                *acc = s.first(rest, s.fma(w, x, *acc), *acc);
            }
        }
    }
    acc
}

/// Adds the products of elements `k..k + 16`.
///
/// # Safety
/// As for [`tile`], and `k + 16 <= cols`.
#[inline(always)]
unsafe fn step<S: Simd, E: Element, const R: usize, const N: usize>(
    s: S,
    w: &Rows,
    x: *const f32,
    cols: usize,
    k: usize,
    acc: &mut [[S::V; R]; N],
) {
    let mut weights = [s.splat(0.0); R];
    for (r, weights) in weights.iter_mut().enumerate() {
        // SAFETY: every row has 16 elements from `k` on.
        *weights = unsafe { E::load(s, w.start.add(r * w.stride + k * E::BYTES)) };
    }
    for (i, acc) in acc.iter_mut().enumerate() {
        // SAFETY: as above.
        let x = unsafe { s.load(x.add(i * cols + k)) };
        for (acc, w) in acc.iter_mut().zip(weights) {
            *acc = s.fma(w, x, *acc);
        }
    }
}

/// Adds up each of `R` accumulators.
#[inline(always)]
fn sums<S: Simd, const R: usize>(s: S, acc: [S::V; R], mut put: impl FnMut(usize, f32)) {
    let (fours, rest) = acc.as_chunks::<4>();
    for (g, four) in fours.iter().enumerate() {
        for (r, sum) in s.sum4(*four).into_iter().enumerate() {
            put(g * 4 + r, sum);
        }
    }
    for (r, acc) in rest.iter().enumerate() {
        put(fours.len() * 4 + r, s.sum(*acc));
    }
}

/// Bytes of weights that a block of rows may take: they stay in the second-level cache beside the
/// inputs while group after group of inputs meets them.
const BLOCK_BYTES: usize = 256 * 1024;

/// See [`crate::linear`]; `R x N` is the register tile, `A` the rows taken together for one or
/// two inputs.
#[inline(always)]
pub(crate) fn linear<S: Simd, E: Element, const R: usize, const N: usize, const A: usize>(
    s: S,
    w: &[u8],
    cols: usize,
    x: &[f32],
    out: &mut [&mut [f32]],
) {
    assert!(x.len() == out.len() * cols);
    let x = Inputs {
        start: x.as_ptr(),
        stride: cols,
    };
    // SAFETY: just checked.
    unsafe { multiply::<_, R, N, A>(Wide::<S, E>(s, PhantomData), w, cols, x, out) }
}

/// A matrix (rows, cols) times as many inputs as there are outputs; constants as for [`linear`].
///
/// # Safety
/// `x` has as many inputs, of `cols` elements.
#[inline(always)]
pub(super) unsafe fn multiply<P: Product, const R: usize, const N: usize, const A: usize>(
    p: P,
    w: &[u8],
    cols: usize,
    mut x: Inputs<P::X>,
    out: &mut [&mut [f32]],
) {
    let rows = out.first().map_or(0, |out| out.len());
    let row_bytes = cols * P::BYTES;
    assert!(w.len() == rows * row_bytes);
    assert!(out.iter().all(|out| out.len() == rows));
    let block = (BLOCK_BYTES / row_bytes.max(1)).next_multiple_of(R);
    let first_input = x.start;
    let mut row = 0;
    while row < rows {
        let end = match out.len() {
            0..=2 => rows,
            _ => rows.min(row + block),
        };
        x.start = first_input;
        let mut rest = &mut out[..];
        while !rest.is_empty() {
            let n = rest.len().min(N);
            let (group, others) = rest.split_at_mut(n);
            // SAFETY: the matrix has `rows` rows, and `x` still has `n` inputs for this group.
            unsafe {
                match n {
                    1 => strip::<P, A, 1>(p, w, cols, &x, group, row, end),
                    2 => strip::<P, A, 2>(p, w, cols, &x, group, row, end),
                    3 => strip::<P, R, 3>(p, w, cols, &x, group, row, end),
                    4 => strip::<P, R, 4>(p, w, cols, &x, group, row, end),
                    5 => strip::<P, R, 5>(p, w, cols, &x, group, row, end),
                    _ => strip::<P, R, 6>(p, w, cols, &x, group, row, end),
                }
                x.start = x.start.add(n * x.stride);
            }
            rest = others;
        }
        row = end;
    }
}

/// Rows `row..end` times `N` inputs.
///
/// # Safety
/// `w` has `end` rows at least, as have the `N` outputs; `x` has `N` inputs.
#[inline(always)]
unsafe fn strip<P: Product, const R: usize, const N: usize>(
    p: P,
    w: &[u8],
    cols: usize,
    x: &Inputs<P::X>,
    out: &mut [&mut [f32]],
    mut row: usize,
    end: usize,
) {
    let s = p.floats();
    let stride = cols * P::BYTES;
    let at = |row: usize| Rows {
        start: w.as_ptr().wrapping_add(row * stride),
        stride,
    };
    let x = || Inputs { ..*x };
    while row + R <= end {
        // SAFETY: `row + R <= end`, and the caller vouches for `end` rows and `N` inputs.
        let acc = unsafe { p.tile::<R, N>(at(row), x(), cols) };
        for (acc, out) in acc.into_iter().zip(out.iter_mut()) {
            let out = &mut out[row..row + R];
            sums(s, acc, |r, sum| out[r] = sum);
        }
        row += R;
    }
    while row < end {
        // SAFETY: as above, with one row.
        let acc = unsafe { p.tile::<1, N>(at(row), x(), cols) };
        for (acc, out) in acc.into_iter().zip(out.iter_mut()) {
            out[row] = s.sum(acc[0]);
        }
        row += 1;
    }
}

/// See [`crate::dot`].
#[inline(always)]
pub(crate) fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let w = Rows {
        start: a.as_ptr().cast(),
        stride: 0,
    };
    // SAFETY: both have as many values.
    let [[acc]] = unsafe { tile::<S, F32, 1, 1>(s, w, b.as_ptr(), a.len()) };
    s.sum(acc)
}

/// See [`crate::dot_rows`].
#[inline(always)]
pub(crate) fn dot_rows<S: Simd>(
    s: S,
    q: &[f32],
    rows: Vectors,
    stride: usize,
    scale: f32,
    out: &mut [f32],
) {
    match rows {
        Vectors::F32(_) => dot_rows_of::<S, F32>(s, q, rows.bytes(), stride, scale, out),
        Vectors::F16(_) => dot_rows_of::<S, F16>(s, q, rows.bytes(), stride, scale, out),
    }
}

#[inline(always)]
fn dot_rows_of<S: Simd, E: Element>(
    s: S,
    q: &[f32],
    rows: &[u8],
    stride: usize,
    scale: f32,
    out: &mut [f32],
) {
    let d = q.len();
    let stride = stride * E::BYTES;
    let (fours, rest) = out.as_chunks_mut::<4>();
    let mut at = 0;
    for out in fours {
        let w = Rows {
            start: rows[at..at + 3 * stride + d * E::BYTES].as_ptr(),
            stride,
        };
        // SAFETY: the slice above holds four rows of `d` values, `stride` bytes apart.
        let [acc] = unsafe { tile::<S, E, 4, 1>(s, w, q.as_ptr(), d) };
        *out = s.sum4(acc).map(|sum| scale * sum);
        at += 4 * stride;
    }
    for out in rest {
        let w = Rows {
            start: rows[at..at + d * E::BYTES].as_ptr(),
            stride,
        };
        // SAFETY: the slice above holds a row of `d` values.
        let [[acc]] = unsafe { tile::<S, E, 1, 1>(s, w, q.as_ptr(), d) };
        *out = scale * s.sum(acc);
        at += stride;
    }
}
