//! Matrix times vectors, with f32, f16 or bfloat16 weights: one register tile for any number of inputs.
//!
//! ```text
//! for a block of rows that stays in the cache, for a group of INPUTS inputs, for a slice of k,
//! for a group of ROWS rows:
//!     acc[INPUTS][ROWS] = 0, or the lanes after the previous slice        16 lanes each
//!     for k in steps of 16:
//!         acc[i][r] += x[i][k..] * widen(w[r][k..])
//!     out[i][r] = tree sum of acc[i][r]
//! ```
//!
//! 1. The lanes are carried over from slice to slice unreduced, so a result does not depend on its tile or on the
//!    slices. The inputs of a slice are copied side by side and stay in the first-level cache. With 16 registers,
//!    or for one or two inputs, there is one slice and no copy.
//! 2. Four sums are reduced together: adding the lanes of four takes 13 instructions instead of 32.
//! 3. A block of rows is read once for every group of inputs, so weights are read from memory once.
//! 4. For one or two inputs `ROWS` is 1, unless rows are short. Memory is then read as one stream, which is
//!    prefetched 12 KiB ahead, past the caches. On Zen 5 this is faster than a plain loop over the bytes (1.03 to
//!    1.06 of its rate). Eight rows side by side, prefetched a group of rows ahead, reached 0.7.
//! 5. For more inputs, the first group of inputs prefetches rows one group ahead, into the second-level cache. For
//!    later groups a prefetch only costs time.

use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::Range;

use super::element::{Element, F32};
use super::simd::{CACHE_LINE, Prefetch, Simd};
use crate::scalar::LANES;
use crate::view::ViewMut;

/// WeightRows of a matrix, `stride` bytes apart.
pub(super) struct WeightRows {
    pub(super) start: *const u8,
    pub(super) stride: usize,
}

/// Inputs: element `k` of input `i` is at `i * stride + k * advance`, for each `k` that starts a vector. The elements
/// of a vector are contiguous.
pub(super) struct Inputs<X> {
    pub(super) start: *const X,
    pub(super) stride: usize,
    pub(super) advance: usize,
}

impl<X> Inputs<X> {
    /// The address of element `k` of input `i`.
    #[inline(always)]
    pub(super) fn address(&self, i: usize, k: usize) -> *const X {
        self.start.wrapping_add(i * self.stride + k * self.advance)
    }
}

/// The inner loop of a matrix times inputs, for one pair of weight and input types.
pub(super) trait Tile: Copy {
    /// The token for the floats of the sums.
    type S: Simd;
    /// The type of an input element.
    type X;
    /// Bytes of a weight.
    const BYTES: usize;
    /// Elements of an input vector.
    const VECTOR: usize;

    fn floats(self) -> Self::S;

    /// Adds the products of elements `k` of `ROWS` rows and `INPUTS` inputs to the sums, lane by lane.
    ///
    /// # Safety
    /// There are `ROWS` rows and `INPUTS` inputs with elements `k`, which start at a multiple of 32.
    unsafe fn add_products<const ROWS: usize, const INPUTS: usize>(
        self,
        w: WeightRows,
        x: Inputs<Self::X>,
        k: Range<usize>,
        prefetch: Prefetch,
        acc: &mut [[<Self::S as Simd>::V; ROWS]; INPUTS],
    );
}

/// Weights of type `E`, widened, times f32 inputs.
struct WidenedTile<S, E>(S, PhantomData<E>);

impl<S: Copy, E> Clone for WidenedTile<S, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Copy, E> Copy for WidenedTile<S, E> {}

impl<S: Simd, E: Element> Tile for WidenedTile<S, E> {
    type S = S;
    type X = f32;
    const BYTES: usize = E::BYTES;
    const VECTOR: usize = LANES;

    #[inline(always)]
    fn floats(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn add_products<const ROWS: usize, const INPUTS: usize>(
        self,
        w: WeightRows,
        x: Inputs<f32>,
        k: Range<usize>,
        prefetch: Prefetch,
        acc: &mut [[S::V; ROWS]; INPUTS],
    ) {
        // SAFETY: the caller guarantees rows and inputs.
        unsafe { tile::<S, E, ROWS, INPUTS>(self.0, w, x, k, prefetch, acc) }
    }
}

/// Adds the products of elements `k` of `ROWS` rows and `INPUTS` inputs to the sums, lane by lane.
///
/// # Safety
/// `w` has `ROWS` rows with elements `k` of type `E`, and `x` has `INPUTS` inputs with elements `k`.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, E: Element, const ROWS: usize, const INPUTS: usize>(
    s: S,
    w: WeightRows,
    x: Inputs<f32>,
    Range {
        start: mut k,
        end: cols,
    }: Range<usize>,
    prefetch: Prefetch,
    acc: &mut [[S::V; ROWS]; INPUTS],
) {
    // Two vectors per step: a cache line of 16-bit weights, prefetched once.
    while k + 2 * LANES <= cols {
        for r in 0..ROWS {
            let p = w.start.wrapping_add(r * w.stride + k * E::BYTES);
            prefetch.issue(s, p);
            if E::BYTES == 4 {
                prefetch.issue(s, p.wrapping_add(CACHE_LINE));
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
            // SAFETY: the row of `x` has `rest` more values.
            let x = unsafe { core::slice::from_raw_parts(x.address(i, k), rest) };
            let x = s.load_padded(x, 0.0);
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the row of `w` has `rest` more elements.
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
/// As for [`tile`], with at least `k + 16` columns.
#[inline(always)]
unsafe fn step<S: Simd, E: Element, const ROWS: usize, const INPUTS: usize>(
    s: S,
    w: &WeightRows,
    x: &Inputs<f32>,
    k: usize,
    acc: &mut [[S::V; ROWS]; INPUTS],
) {
    let mut weights = [s.splat(0.0); ROWS];
    for (r, weights) in weights.iter_mut().enumerate() {
        // SAFETY: each row has 16 elements from `k` on.
        *weights = unsafe { E::load(s, w.start.add(r * w.stride + k * E::BYTES)) };
    }
    for (i, acc) in acc.iter_mut().enumerate() {
        // SAFETY: as above.
        let x = unsafe { s.load(x.address(i, k)) };
        for (acc, w) in acc.iter_mut().zip(weights) {
            *acc = s.fma(w, x, *acc);
        }
    }
}

/// Bytes of weights in a block of rows. They stay in the second-level cache, beside the inputs, while every group of
/// inputs is multiplied with them.
pub(crate) const ROW_BLOCK_BYTES: usize = 512 * 1024;

/// WeightRows of fewer bytes are taken together for one or two inputs too: the reduction at the end of a row would take
/// longer than the row, and models with such rows fit in a cache.
const SHORT_ROW_BYTES: usize = 1024;

/// How far ahead rows that are read one by one are prefetched.
const PREFETCH_BYTES: usize = 12 * 1024;

/// The largest number of groups of rows in a block, which is the number of tiles whose sums are carried over from
/// slice to slice.
const MAX_BLOCK_GROUPS: usize = 64;

/// The approximate number of vectors of an input in a slice: those of six inputs take half of the first-level cache.
const SLICE_VECTORS: usize = 64;

/// The largest number of inputs in a group.
const MAX_INPUTS: usize = 6;

/// Slices start at multiples of this many elements.
const SLICE_MULTIPLE: usize = 32;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; CACHE_LINE]);

/// See [`crate::linear`]. `ROWS x INPUTS` is the register tile, and `SHORT_ROWS` the number of short rows that are taken
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
        multiply::<_, ROWS, INPUTS, SHORT_ROWS>(
            WidenedTile::<S, E>(s, PhantomData),
            w,
            cols,
            x,
            out,
        )
    }
}

/// A matrix (rows, cols) times one input for each row of `out`. The constants are those of [`linear`].
///
/// # Safety
/// `x` has that many inputs of `cols` elements.
#[inline(always)]
pub(super) unsafe fn multiply<
    P: Tile,
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
            (1, 0..SHORT_ROW_BYTES) => {
                return matvec::<P, SHORT_ROWS, 1>(p, w, cols, &x, 0, out, 0..rows);
            }
            (2, 0..SHORT_ROW_BYTES) => {
                return matvec::<P, SHORT_ROWS, 2>(p, w, cols, &x, 0, out, 0..rows);
            }
            (1, _) => return matvec::<P, 1, 1>(p, w, cols, &x, 0, out, 0..rows),
            (2, _) => return matvec::<P, 1, 2>(p, w, cols, &x, 0, out, 0..rows),
            _ => (),
        }
    }
    let groups = (ROW_BLOCK_BYTES / row_bytes.max(1)).div_ceil(ROWS);
    let block = groups.clamp(1, MAX_BLOCK_GROUPS) * ROWS;
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

/// The rows from `row` on.
#[inline(always)]
fn rows_from<P: Tile>(w: &[u8], cols: usize, row: usize) -> WeightRows {
    let stride = cols * P::BYTES;
    WeightRows {
        start: w.as_ptr().wrapping_add(row * stride),
        stride,
    }
}

/// WeightRows `rows` times `INPUTS` inputs from `input` on. Each row is read from end to end.
///
/// # Safety
/// `w` has the rows; `x` and `out` have the inputs.
#[inline(always)]
unsafe fn matvec<P: Tile, const ROWS: usize, const INPUTS: usize>(
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
        start: x.address(input, 0),
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
        let w = rows_from::<P>(w, cols, row);
        // SAFETY: there are `row + ROWS` rows, and the caller guarantees `INPUTS` inputs.
        unsafe { p.add_products::<ROWS, INPUTS>(w, x(), 0..cols, prefetch, &mut acc) };
        store_sums(s, acc, input, row, out);
        row += ROWS;
    }
    for row in row..rows.end {
        let mut acc = [[zero]; INPUTS];
        let w = rows_from::<P>(w, cols, row);
        // SAFETY: as above, with one row.
        unsafe { p.add_products::<1, INPUTS>(w, x(), 0..cols, prefetch, &mut acc) };
        store_sums(s, acc, input, row, out);
    }
}

/// Reduces the sums of `ROWS` rows from `row` on with `INPUTS` inputs from `input` on, and stores them.
#[inline(always)]
fn store_sums<S: Simd, const ROWS: usize, const INPUTS: usize>(
    s: S,
    acc: [[S::V; ROWS]; INPUTS],
    input: usize,
    row: usize,
    out: &mut ViewMut<'_, f32>,
) {
    for (i, acc) in acc.into_iter().enumerate() {
        let out = &mut out.row(input + i)[row..row + ROWS];
        let (groups, rest) = acc.as_chunks::<4>();
        let (out_groups, out_rest) = out.as_chunks_mut::<4>();
        for (out, group) in out_groups.iter_mut().zip(groups) {
            *out = s.sum4(*group);
        }
        for (out, acc) in out_rest.iter_mut().zip(rest) {
            *out = s.sum(*acc);
        }
    }
}

/// A block of rows times `INPUTS` inputs from `input` on, slice by slice.
///
/// # Safety
/// As for [`matvec`].
#[inline(always)]
unsafe fn matmul_block<P: Tile, const ROWS: usize, const INPUTS: usize>(
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
    let mut packed =
        [const { MaybeUninit::<CacheLine>::uninit() }; MAX_INPUTS * (SLICE_VECTORS + 2)];
    let mut carried =
        [const { MaybeUninit::<[[<P::S as Simd>::V; ROWS]; INPUTS]>::uninit() }; MAX_BLOCK_GROUPS];
    let n_slices = cols.div_ceil(SLICE_VECTORS * P::VECTOR).max(1);
    let end_of = |slice| match slice == n_slices {
        true => cols,
        false => cols / SLICE_MULTIPLE * slice / n_slices * SLICE_MULTIPLE,
    };
    for slice in 0..n_slices {
        let k = end_of(slice)..end_of(slice + 1);
        assert!(INPUTS * k.len().div_ceil(P::VECTOR) <= packed.len());
        let packed: *mut P::X = packed.as_mut_ptr().cast();
        // SAFETY: the buffer is large enough, and the inputs have the elements.
        unsafe { pack::<P::X, INPUTS>(x, input, k.clone(), P::VECTOR, packed) };
        let x = || Inputs {
            start: packed.wrapping_sub(k.start * INPUTS).cast_const(),
            stride: P::VECTOR,
            advance: INPUTS,
        };
        for (row, carried) in whole.clone().step_by(ROWS).zip(&mut carried) {
            let mut acc = match slice {
                0 => [[s.splat(0.0); ROWS]; INPUTS],
                // SAFETY: the previous slice wrote it.
                _ => unsafe { carried.assume_init_read() },
            };
            let w = rows_from::<P>(w, cols, row);
            // SAFETY: there are `row + ROWS` rows, and the inputs were packed.
            unsafe { p.add_products::<ROWS, INPUTS>(w, x(), k.clone(), prefetch, &mut acc) };
            match slice + 1 == n_slices {
                true => store_sums(s, acc, input, row, out),
                false => _ = carried.write(acc),
            }
        }
    }
    // SAFETY: the caller guarantees rows and inputs.
    unsafe { matvec::<P, 1, INPUTS>(p, w, cols, x, input, out, whole.end..rows.end) };
}

/// Copies elements `k` of `INPUTS` inputs from `input` on side by side, vector by vector, padded with zeros.
///
/// # Safety
/// The inputs have the elements, and `packed` has room for the vectors.
#[inline(always)]
unsafe fn pack<X, const INPUTS: usize>(
    x: &Inputs<X>,
    input: usize,
    k: Range<usize>,
    vector: usize,
    mut packed: *mut X,
) {
    let mut first = k.start;
    while first + vector <= k.end {
        for i in 0..INPUTS {
            // SAFETY: a vector is a cache line, and the caller guarantees both sides.
            unsafe {
                let line = x
                    .address(input + i, first)
                    .cast::<CacheLine>()
                    .read_unaligned();
                packed.cast::<CacheLine>().write(line);
                packed = packed.add(vector);
            }
        }
        first += vector;
    }
    let rest = k.end - first;
    for i in 0..if rest == 0 { 0 } else { INPUTS } {
        // SAFETY: as above; zero bits are the number 0.
        unsafe {
            packed.add(rest).write_bytes(0, vector - rest);
            packed.copy_from_nonoverlapping(x.address(input + i, first), rest);
            packed = packed.add(vector);
        }
    }
}

/// See [`crate::dot`].
#[inline(always)]
pub(crate) fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let w = WeightRows {
        start: a.as_ptr().cast(),
        stride: 0,
    };
    let x = Inputs {
        start: b.as_ptr(),
        stride: 0,
        advance: 1,
    };
    let mut acc = [[s.splat(0.0)]];
    // SAFETY: both have `a.len()` values.
    unsafe { tile::<S, F32, 1, 1>(s, w, x, 0..a.len(), Prefetch::None, &mut acc) };
    s.sum(acc[0][0])
}
