//! Matrix times vectors, and the dot products of attention: one register tile for all of them.
//!
//! ```text
//! for a block of rows that stays in the cache, for a group of INPUTS inputs, for a slice of k,
//! for a group of ROWS rows:
//!     acc[INPUTS][ROWS] = 0, or what was kept of the slice before        16 lanes each
//!     for k in steps of 16:
//!         acc[i][r] += x[i][k..] * widen(w[r][k..])
//!     out[i][r] = tree sum of acc[i][r]
//! ```
//!
//! 1. Lanes are kept as they are from slice to slice, so a result does not depend on the tile or the slices it
//!    was computed in. Inputs of a slice are copied side by side and stay in the first-level cache. With 16
//!    registers, or one or two inputs, there is one slice and nothing is copied.
//! 2. Four sums are reduced together: adding lanes costs 13 instructions for four in place of 32.
//! 3. A row block is walked once for every group of inputs, so weights come from memory once.
//! 4. For one or two inputs `ROWS` is 1, unless rows are short: memory is then one stream, asked for 12 KiB
//!    ahead, past the caches. On Zen 5 that reads faster than a plain loop (1.03 to 1.06 of its rate); 8 rows
//!    side by side, asked for a group of rows ahead, reached 0.7.
//! 5. For more inputs, the first group of them asks for rows one group ahead, into the second-level cache.
//!    For later inputs asking is in the way.

use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::Range;

use super::{Prefetch, Simd};
use crate::scalar::LANES;
use crate::{FloatSlice, StridedRows, View, ViewMut};

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

/// Inputs: element `k` of input `i` is at `i * stride + k * advance`, for `k` a multiple of the elements of
/// a vector; those of a vector follow each other.
pub(super) struct Inputs<X> {
    pub(super) start: *const X,
    pub(super) stride: usize,
    pub(super) advance: usize,
}

impl<X> Inputs<X> {
    /// Where element `k` of input `i` is.
    #[inline(always)]
    pub(super) fn at(&self, i: usize, k: usize) -> *const X {
        self.start.wrapping_add(i * self.stride + k * self.advance)
    }
}

/// A way of multiplying rows with inputs.
pub(super) trait Product: Copy {
    /// The floats of the sums.
    type S: Simd;
    /// An element of the inputs.
    type X;
    /// Bytes of a weight.
    const BYTES: usize;
    /// Elements of a vector of inputs.
    const VECTOR: usize;

    fn floats(self) -> Self::S;

    /// Adds to the sums, lane by lane, of `ROWS` rows with `INPUTS` inputs what elements `k` give.
    ///
    /// # Safety
    /// There are `ROWS` rows and `INPUTS` inputs with elements `k`, which begin at a multiple of 32.
    unsafe fn tile<const ROWS: usize, const INPUTS: usize>(
        self,
        w: Rows,
        x: Inputs<Self::X>,
        k: Range<usize>,
        prefetch: Prefetch,
        acc: &mut [[<Self::S as Simd>::V; ROWS]; INPUTS],
    );
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
    const VECTOR: usize = LANES;

    #[inline(always)]
    fn floats(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn tile<const ROWS: usize, const INPUTS: usize>(
        self,
        w: Rows,
        x: Inputs<f32>,
        k: Range<usize>,
        prefetch: Prefetch,
        acc: &mut [[S::V; ROWS]; INPUTS],
    ) {
        // SAFETY: the caller vouches for rows and inputs.
        unsafe { tile::<S, E, ROWS, INPUTS>(self.0, w, x, k, prefetch, acc) }
    }
}

/// Adds to the sums, lane by lane, of `ROWS` rows with `INPUTS` inputs what elements `k` give.
///
/// # Safety
/// `w` has `ROWS` rows with elements `k` of type `E`, `x` has as many values in each of `INPUTS` inputs.
#[inline(always)]
unsafe fn tile<S: Simd, E: Element, const ROWS: usize, const INPUTS: usize>(
    s: S,
    w: Rows,
    x: Inputs<f32>,
    Range {
        start: mut k,
        end: cols,
    }: Range<usize>,
    prefetch: Prefetch,
    acc: &mut [[S::V; ROWS]; INPUTS],
) {
    // Two vectors a step: a cache line of 16-bit weights, asked for once.
    while k + 2 * LANES <= cols {
        for r in 0..ROWS {
            let p = w.start.wrapping_add(r * w.stride + k * E::BYTES);
            prefetch.issue(s, p);
            if E::BYTES == 4 {
                prefetch.issue(s, p.wrapping_add(64));
            }
        }
        // SAFETY: `k + 32 <= cols`.
        unsafe {
            step::<S, E, ROWS, INPUTS>(s, &w, &x, k, acc);
            step::<S, E, ROWS, INPUTS>(s, &w, &x, k + LANES, acc);
        }
        k += 2 * LANES;
    }
    if k + LANES <= cols {
        // SAFETY: `k + 16 <= cols`.
        unsafe { step::<S, E, ROWS, INPUTS>(s, &w, &x, k, acc) };
        k += LANES;
    }
    if k < cols {
        let rest = cols - k;
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `rest` values are left in the row of `x`.
            let x = unsafe { core::slice::from_raw_parts(x.at(i, k), rest) };
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
}

/// Adds the products of elements `k..k + 16`.
///
/// # Safety
/// As for [`tile`], with `k + 16` columns at least.
#[inline(always)]
unsafe fn step<S: Simd, E: Element, const ROWS: usize, const INPUTS: usize>(
    s: S,
    w: &Rows,
    x: &Inputs<f32>,
    k: usize,
    acc: &mut [[S::V; ROWS]; INPUTS],
) {
    let mut weights = [s.splat(0.0); ROWS];
    for (r, weights) in weights.iter_mut().enumerate() {
        // SAFETY: every row has 16 elements from `k` on.
        *weights = unsafe { E::load(s, w.start.add(r * w.stride + k * E::BYTES)) };
    }
    for (i, acc) in acc.iter_mut().enumerate() {
        // SAFETY: as above.
        let x = unsafe { s.load(x.at(i, k)) };
        for (acc, w) in acc.iter_mut().zip(weights) {
            *acc = s.fma(w, x, *acc);
        }
    }
}

/// Adds up each of `ROWS` accumulators.
#[inline(always)]
fn sums<S: Simd, const ROWS: usize>(s: S, acc: [S::V; ROWS], mut put: impl FnMut(usize, f32)) {
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
const BLOCK_BYTES: usize = 512 * 1024;

/// Rows of fewer bytes are taken together for one or two inputs too: what a row adds at its end would take
/// longer than the row, and models with such rows fit into a cache.
const SHORT: usize = 1024;

/// Bytes ahead that rows read one by one are asked for.
const PREFETCH_BYTES: usize = 12 * 1024;

/// Groups of rows in a block at most: as many have their sums kept from slice to slice.
const BLOCK_GROUPS: usize = 64;

/// Vectors of an input in a slice, about: those of six inputs take half of the first-level cache.
const SLICE: usize = 64;

/// Inputs of a group at most.
const MOST: usize = 6;

/// What the elements of a slice are a multiple of, but for the last one's.
const UNIT: usize = 32;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// See [`crate::linear`]; `ROWS x INPUTS` is the register tile, `SHORT_ROWS` the short rows taken
/// together for one or two inputs.
#[inline(always)]
pub(crate) fn linear<
    S: Simd,
    E: Element,
    const ROWS: usize,
    const INPUTS: usize,
    const SHORT_ROWS: usize,
>(
    s: S,
    w: &[u8],
    cols: usize,
    x: &[f32],
    out: &mut ViewMut<'_, f32>,
) {
    assert!(x.len() == out.shape().0 * cols);
    let x = Inputs {
        start: x.as_ptr(),
        stride: cols,
        advance: 1,
    };
    // SAFETY: just checked.
    unsafe {
        multiply::<_, ROWS, INPUTS, SHORT_ROWS>(Wide::<S, E>(s, PhantomData), w, cols, x, out)
    }
}

/// A matrix (rows, cols) times as many inputs as there are outputs; constants as for [`linear`].
///
/// # Safety
/// `x` has as many inputs, of `cols` elements.
#[inline(always)]
pub(super) unsafe fn multiply<
    P: Product,
    const ROWS: usize,
    const INPUTS: usize,
    const SHORT_ROWS: usize,
>(
    p: P,
    w: &[u8],
    cols: usize,
    x: Inputs<P::X>,
    out: &mut ViewMut<'_, f32>,
) {
    let (n_inputs, rows) = out.shape();
    let row_bytes = cols * P::BYTES;
    assert!(w.len() == rows * row_bytes);
    // SAFETY: the matrix has `rows` rows, and `x` has the inputs.
    unsafe {
        match (n_inputs, row_bytes) {
            (0, _) => return,
            (1, 0..SHORT) => return matvec::<P, SHORT_ROWS, 1>(p, w, cols, &x, 0, out, 0..rows),
            (2, 0..SHORT) => return matvec::<P, SHORT_ROWS, 2>(p, w, cols, &x, 0, out, 0..rows),
            (1, _) => return matvec::<P, 1, 1>(p, w, cols, &x, 0, out, 0..rows),
            (2, _) => return matvec::<P, 1, 2>(p, w, cols, &x, 0, out, 0..rows),
            _ => (),
        }
    }
    let groups = (BLOCK_BYTES / row_bytes.max(1)).div_ceil(ROWS);
    let block = groups.clamp(1, BLOCK_GROUPS) * ROWS;
    for row in (0..rows).step_by(block) {
        let rows = row..rows.min(row + block);
        let mut input = 0;
        while input < n_inputs {
            let n = (n_inputs - input).min(if P::S::WIDE { INPUTS } else { INPUTS.min(3) });
            let rows = rows.clone();
            // SAFETY: as above; `x` still has `n` inputs for this group.
            unsafe {
                match (n, P::S::WIDE) {
                    (1, true) => matmul_block::<P, ROWS, 1>(p, w, cols, &x, input, out, rows),
                    (2, true) => matmul_block::<P, ROWS, 2>(p, w, cols, &x, input, out, rows),
                    (3, true) => matmul_block::<P, ROWS, 3>(p, w, cols, &x, input, out, rows),
                    (4, true) => matmul_block::<P, ROWS, 4>(p, w, cols, &x, input, out, rows),
                    (5, true) => matmul_block::<P, ROWS, 5>(p, w, cols, &x, input, out, rows),
                    (_, true) => matmul_block::<P, ROWS, 6>(p, w, cols, &x, input, out, rows),
                    (1, _) => matvec::<P, ROWS, 1>(p, w, cols, &x, input, out, rows),
                    (2, _) => matvec::<P, ROWS, 2>(p, w, cols, &x, input, out, rows),
                    _ => matvec::<P, ROWS, 3>(p, w, cols, &x, input, out, rows),
                }
            }
            input += n;
        }
    }
}

/// Some rows from `row` on.
#[inline(always)]
fn rows_at<P: Product>(w: &[u8], cols: usize, row: usize) -> Rows {
    let stride = cols * P::BYTES;
    Rows {
        start: w.as_ptr().wrapping_add(row * stride),
        stride,
    }
}

/// Some rows times `INPUTS` inputs from `input` on: each row is read from end to end.
///
/// # Safety
/// `w` has the rows, `x` and `out` the inputs.
#[inline(always)]
unsafe fn matvec<P: Product, const ROWS: usize, const INPUTS: usize>(
    p: P,
    w: &[u8],
    cols: usize,
    x: &Inputs<P::X>,
    input: usize,
    out: &mut ViewMut<'_, f32>,
    rows: Range<usize>,
) {
    let s = p.floats();
    let x = || Inputs {
        start: x.at(input, 0),
        ..*x
    };
    let zero = s.splat(0.0);
    let prefetch = match (ROWS, input) {
        (1, 0) => Prefetch::Streaming(PREFETCH_BYTES),
        (_, 0) => Prefetch::Temporal(ROWS * cols * P::BYTES),
        _ => Prefetch::None, // later inputs find the rows in a cache
    };
    let mut row = rows.start;
    while row + ROWS <= rows.end {
        let mut acc = [[zero; ROWS]; INPUTS];
        let w = rows_at::<P>(w, cols, row);
        // SAFETY: `row + ROWS` rows are there, and the caller vouches for `INPUTS` inputs.
        unsafe { p.tile::<ROWS, INPUTS>(w, x(), 0..cols, prefetch, &mut acc) };
        put(s, acc, input, row, out);
        row += ROWS;
    }
    for row in row..rows.end {
        let mut acc = [[zero]; INPUTS];
        let w = rows_at::<P>(w, cols, row);
        // SAFETY: as above, with one row.
        unsafe { p.tile::<1, INPUTS>(w, x(), 0..cols, prefetch, &mut acc) };
        put(s, acc, input, row, out);
    }
}

/// Stores the sums of rows from `row` on with inputs from `input` on.
#[inline(always)]
fn put<S: Simd, const ROWS: usize, const INPUTS: usize>(
    s: S,
    acc: [[S::V; ROWS]; INPUTS],
    input: usize,
    row: usize,
    out: &mut ViewMut<'_, f32>,
) {
    for (i, acc) in acc.into_iter().enumerate() {
        let out = &mut out.row(input + i)[row..row + ROWS];
        sums(s, acc, |r, sum| out[r] = sum);
    }
}

/// A block of rows times `INPUTS` inputs from `input` on, slice by slice.
///
/// # Safety
/// As for [`matvec`].
#[inline(always)]
unsafe fn matmul_block<P: Product, const ROWS: usize, const INPUTS: usize>(
    p: P,
    w: &[u8],
    cols: usize,
    x: &Inputs<P::X>,
    input: usize,
    out: &mut ViewMut<'_, f32>,
    rows: Range<usize>,
) {
    let s = p.floats();
    let prefetch = match input {
        0 => Prefetch::Temporal(ROWS * cols * P::BYTES),
        _ => Prefetch::None,
    };
    let whole = rows.start..rows.end - rows.len() % ROWS;
    let mut packed = [const { MaybeUninit::<Line>::uninit() }; MOST * (SLICE + 2)];
    let mut kept =
        [const { MaybeUninit::<[[<P::S as Simd>::V; ROWS]; INPUTS]>::uninit() }; BLOCK_GROUPS];
    let n_slices = cols.div_ceil(SLICE * P::VECTOR).max(1);
    let end_of = |slice| match slice == n_slices {
        true => cols,
        false => cols / UNIT * slice / n_slices * UNIT,
    };
    for slice in 0..n_slices {
        let k = end_of(slice)..end_of(slice + 1);
        assert!(INPUTS * k.len().div_ceil(P::VECTOR) <= packed.len());
        let to: *mut P::X = packed.as_mut_ptr().cast();
        // SAFETY: there is room, and the inputs have the elements.
        unsafe { pack::<P::X, INPUTS>(x, input, k.clone(), P::VECTOR, to) };
        let x = || Inputs {
            start: to.wrapping_sub(k.start * INPUTS).cast_const(),
            stride: P::VECTOR,
            advance: INPUTS,
        };
        for (row, kept) in whole.clone().step_by(ROWS).zip(&mut kept) {
            let mut acc = match slice {
                0 => [[s.splat(0.0); ROWS]; INPUTS],
                // SAFETY: written with the slice before.
                _ => unsafe { kept.assume_init_read() },
            };
            let w = rows_at::<P>(w, cols, row);
            // SAFETY: `row + ROWS` rows are there, and the inputs were packed.
            unsafe { p.tile::<ROWS, INPUTS>(w, x(), k.clone(), prefetch, &mut acc) };
            match slice + 1 == n_slices {
                true => put(s, acc, input, row, out),
                false => _ = kept.write(acc),
            }
        }
    }
    // SAFETY: the caller vouches for rows and inputs.
    unsafe { matvec::<P, 1, INPUTS>(p, w, cols, x, input, out, whole.end..rows.end) };
}

/// Copies elements `k` of `INPUTS` inputs from `input` on side by side, vector by vector, padded with zeros.
///
/// # Safety
/// The inputs have the elements, and there is room for as many vectors at `to`.
#[inline(always)]
unsafe fn pack<X, const INPUTS: usize>(
    x: &Inputs<X>,
    input: usize,
    k: Range<usize>,
    vector: usize,
    mut to: *mut X,
) {
    let mut first = k.start;
    while first + vector <= k.end {
        for i in 0..INPUTS {
            // SAFETY: a vector is a line, and the caller vouches for both sides.
            unsafe {
                let line = x.at(input + i, first).cast::<Line>().read_unaligned();
                to.cast::<Line>().write(line);
                to = to.add(vector);
            }
        }
        first += vector;
    }
    let rest = k.end - first;
    for i in 0..if rest == 0 { 0 } else { INPUTS } {
        // SAFETY: as above; zero bits are the number 0.
        unsafe {
            to.add(rest).write_bytes(0, vector - rest);
            to.copy_from_nonoverlapping(x.at(input + i, first), rest);
            to = to.add(vector);
        }
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
    let x = Inputs {
        start: b.as_ptr(),
        stride: 0,
        advance: 1,
    };
    let mut acc = [[s.splat(0.0)]];
    // SAFETY: both have as many values.
    unsafe { tile::<S, F32, 1, 1>(s, w, x, 0..a.len(), Prefetch::None, &mut acc) };
    s.sum(acc[0][0])
}

/// See [`crate::dot_rows`].
#[inline(always)]
pub(crate) fn dot_rows<S: Simd>(
    s: S,
    q: View<'_, f32>,
    rows: StridedRows<'_>,
    scale: f32,
    out: &mut ViewMut<'_, f32>,
) {
    match rows.values {
        FloatSlice::F32(_) => dot_rows_of::<S, F32>(s, q, rows, scale, out),
        FloatSlice::F16(_) => dot_rows_of::<S, F16>(s, q, rows, scale, out),
    }
}

#[inline(always)]
fn dot_rows_of<S: Simd, E: Element>(
    s: S,
    q: View<'_, f32>,
    mut rows: StridedRows<'_>,
    scale: f32,
    out: &mut ViewMut<'_, f32>,
) {
    let (m, d) = q.shape();
    match if rows.stride == d { d } else { 0 } {
        32 => return dot_whole_rows::<S, E, 2>(s, q, rows, scale, out),
        64 => return dot_whole_rows::<S, E, 4>(s, q, rows, scale, out),
        128 => return dot_whole_rows::<S, E, 8>(s, q, rows, scale, out),
        _ => (),
    }
    let mut i = 0;
    while i < m {
        i += match m - i {
            4.. => dot_rows_with::<S, E, 4>(s, q, i, rows, scale, out),
            2.. => dot_rows_with::<S, E, 2>(s, q, i, rows, scale, out),
            _ => dot_rows_with::<S, E, 1>(s, q, i, rows, scale, out),
        };
        rows.next = FloatSlice::F32(&[]);
    }
}

/// [`dot_rows`] for vectors of `16 * VECTORS` values, and rows without gaps.
#[inline(always)]
fn dot_whole_rows<S: Simd, E: Element, const VECTORS: usize>(
    s: S,
    q: View<'_, f32>,
    mut rows: StridedRows<'_>,
    scale: f32,
    out: &mut ViewMut<'_, f32>,
) {
    let m = q.shape().0;
    let mut i = 0;
    while i < m {
        // With 16 registers, sums side by side would not stay in them.
        i += match m - i {
            4.. if S::WIDE => dot_whole_rows_with::<S, E, VECTORS, 4>(s, q, i, rows, scale, out),
            2.. if S::WIDE => dot_whole_rows_with::<S, E, VECTORS, 2>(s, q, i, rows, scale, out),
            _ => dot_whole_rows_alone::<S, E, VECTORS>(s, q, i, rows, scale, out),
        };
        rows.next = FloatSlice::F32(&[]);
    }
}

/// [`dot_whole_rows`] for `INPUTS` vectors from `i` on, with four rows at a time. Returns `INPUTS`.
#[inline(always)]
fn dot_whole_rows_with<S: Simd, E: Element, const VECTORS: usize, const INPUTS: usize>(
    s: S,
    q: View<'_, f32>,
    i: usize,
    rows: StridedRows<'_>,
    scale: f32,
    out: &mut ViewMut<'_, f32>,
) -> usize {
    let (n, row_bytes) = (out.shape().1, VECTORS * LANES * E::BYTES);
    let x: [&[[f32; LANES]; VECTORS]; INPUTS] = core::array::from_fn(|k| whole_vector(q, i + k));
    let next = rows.next.bytes();
    let rows = &rows.values.bytes()[..n * row_bytes];
    let (fours, last) = (n / 4 * 4, n / 4 * 4..n);
    for j in (0..fours).step_by(4) {
        let four = &rows[j * row_bytes..][..4 * row_bytes];
        let prefetch = prefetch_address(rows, next, j * row_bytes);
        let mut acc = [[s.splat(0.0); 4]; INPUTS];
        for v in 0..VECTORS {
            for r in 0..4 {
                let at = r * row_bytes + v * LANES * E::BYTES;
                if at.is_multiple_of(64) {
                    s.prefetch(prefetch.wrapping_add(at));
                }
                // SAFETY: there are four rows of `VECTORS` vectors.
                let w = unsafe { E::load(s, four.as_ptr().add(at)) };
                for (acc, x) in acc.iter_mut().zip(x) {
                    acc[r] = s.fma(w, s.load_array(&x[v]), acc[r]);
                }
            }
        }
        for (k, acc) in acc.into_iter().enumerate() {
            let sums = s.sum4(acc).map(|sum| scale * sum);
            out.row(i + k)[j..j + 4].copy_from_slice(&sums);
        }
    }
    for j in last {
        let prefetch = prefetch_address(rows, next, j * row_bytes);
        for (k, x) in x.iter().enumerate() {
            let row = &rows[j * row_bytes..][..row_bytes];
            out.row(i + k)[j] = scale * s.sum(products::<S, E, VECTORS>(s, x, row, prefetch));
        }
    }
    INPUTS
}

/// Vector `i`, all of it.
#[inline(always)]
fn whole_vector<'q, const VECTORS: usize>(
    q: View<'q, f32>,
    i: usize,
) -> &'q [[f32; LANES]; VECTORS] {
    let (vectors, _) = q.row(i, 0, VECTORS * LANES).as_chunks();
    vectors.try_into().expect("`VECTORS` vectors")
}

/// [`dot_whole_rows`] for vector `i`. Returns 1.
///
/// Memory is what a single vector waits for, so it is read as one stream: each row from its first to its
/// last line, and with each line one of `next` is asked for, past the caches. The vector stays in
/// registers. A row of 64 half floats takes 1.5 ns in the caches.
#[inline(always)]
fn dot_whole_rows_alone<S: Simd, E: Element, const VECTORS: usize>(
    s: S,
    q: View<'_, f32>,
    i: usize,
    rows: StridedRows<'_>,
    scale: f32,
    out: &mut ViewMut<'_, f32>,
) -> usize {
    let row_bytes = VECTORS * LANES * E::BYTES;
    let x = whole_vector::<VECTORS>(q, i);
    let out = out.row(i);
    let next = rows.next.bytes();
    let rows = &rows.values.bytes()[..out.len() * row_bytes];
    let (fours, last) = out.as_chunks_mut::<4>();
    let mut at = 0;
    for out in fours {
        let mut acc = [s.splat(0.0); 4];
        for acc in &mut acc {
            let row = &rows[at..][..row_bytes];
            *acc = products::<S, E, VECTORS>(s, x, row, prefetch_address(rows, next, at));
            at += row_bytes;
        }
        *out = s.sum4(acc).map(|sum| scale * sum);
    }
    for out in last {
        let row = &rows[at..][..row_bytes];
        *out = scale
            * s.sum(products::<S, E, VECTORS>(
                s,
                x,
                row,
                prefetch_address(rows, next, at),
            ));
        at += row_bytes;
    }
    1
}

/// The products of a row with a vector, added lane by lane. With each cache line, one at `ahead` is asked
/// for.
#[inline(always)]
fn products<S: Simd, E: Element, const VECTORS: usize>(
    s: S,
    x: &[[f32; LANES]; VECTORS],
    row: &[u8],
    prefetch: *const u8,
) -> S::V {
    assert_eq!(row.len(), VECTORS * LANES * E::BYTES);
    let mut acc = s.splat(0.0);
    for (v, x) in x.iter().enumerate() {
        let at = v * LANES * E::BYTES;
        if at.is_multiple_of(64) {
            s.prefetch_streaming(prefetch.wrapping_add(at));
        }
        // SAFETY: a row has `VECTORS` vectors.
        let w = unsafe { E::load(s, row.as_ptr().add(at)) };
        acc = s.fma(w, s.load_array(x), acc);
    }
    acc
}

/// Where to ask for memory while the row `at` bytes into `rows` is read: as far into `next`, or in the rows
/// themselves, which costs next to nothing, if there is nothing.
#[inline(always)]
pub(super) fn prefetch_address(rows: &[u8], next: &[u8], at: usize) -> *const u8 {
    let bytes = if at < next.len() { next } else { rows };
    bytes.as_ptr().wrapping_add(at)
}

/// [`dot_rows`] for `INPUTS` vectors from `i` on. Returns `INPUTS`.
#[inline(always)]
fn dot_rows_with<S: Simd, E: Element, const INPUTS: usize>(
    s: S,
    q: View<'_, f32>,
    i: usize,
    rows: StridedRows<'_>,
    scale: f32,
    out: &mut ViewMut<'_, f32>,
) -> usize {
    let ((m, d), n) = (q.shape(), out.shape().1);
    assert!(i + INPUTS <= m);
    let (stride, next) = (rows.stride * E::BYTES, rows.next.bytes());
    let rows = rows.values.bytes();
    let x = || {
        let (start, stride) = q.row_start(i);
        Inputs {
            start,
            stride,
            advance: 1,
        }
    };
    let prefetch = Prefetch::Temporal(4 * stride);
    let mut j = 0;
    while j + 4 <= n {
        for row in j..j + 4 {
            prefetch_row(s, next, row * stride, d * E::BYTES);
        }
        let w = Rows {
            start: rows[j * stride..][..3 * stride + d * E::BYTES].as_ptr(),
            stride,
        };
        let mut acc = [[s.splat(0.0); 4]; INPUTS];
        // SAFETY: the slice above holds four rows of `d` values, and there are `INPUTS` vectors of `d`.
        unsafe { tile::<S, E, 4, INPUTS>(s, w, x(), 0..d, prefetch, &mut acc) };
        for (v, acc) in acc.into_iter().enumerate() {
            let sums = s.sum4(acc).map(|sum| scale * sum);
            out.row(i + v)[j..j + 4].copy_from_slice(&sums);
        }
        j += 4;
    }
    while j < n {
        prefetch_row(s, next, j * stride, d * E::BYTES);
        let w = Rows {
            start: rows[j * stride..][..d * E::BYTES].as_ptr(),
            stride,
        };
        let mut acc = [[s.splat(0.0)]; INPUTS];
        // SAFETY: the slice above holds a row of `d` values, and there are `INPUTS` vectors of `d`.
        unsafe { tile::<S, E, 1, INPUTS>(s, w, x(), 0..d, prefetch, &mut acc) };
        for (v, [acc]) in acc.into_iter().enumerate() {
            out.row(i + v)[j] = scale * s.sum(acc);
        }
        j += 1;
    }
    INPUTS
}

/// Asks for the cache lines of the row of `bytes` bytes at `at`, as far as there is one.
#[inline(always)]
pub(super) fn prefetch_row<S: Simd>(s: S, rows: &[u8], at: usize, bytes: usize) {
    if let Some(row) = rows.get(at..at + bytes) {
        for line in row.chunks(64) {
            s.prefetch(line.as_ptr());
        }
    }
}
