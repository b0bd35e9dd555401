//! bfloat16 weights times activations in bfloat16, written once over [`Bf16Dot`]. The arithmetic is that
//! of [`crate::rounded`].

use core::ops::Range;

use super::linear::{Inputs, Product, Rows, multiply};
use super::{Prefetch, Simd};
use crate::ViewMut;
use crate::bf16::{Bf16Activations, VECTOR, round, stride};

/// 16 pairs of bfloat16 numbers. A value of the implementing type proves that the CPU has the
/// instructions.
pub(crate) trait Bf16Dot: Copy {
    /// The floats.
    type S: Simd;
    /// 16 pairs.
    type P: Copy;

    fn floats(self) -> Self::S;

    /// # Safety
    /// `p` is valid for reading 64 bytes.
    unsafe fn load(self, p: *const u8) -> Self::P;

    /// Adds to each lane the product of the odd elements of its pair, then that of the even ones.
    fn dot(self, acc: <Self::S as Simd>::V, w: Self::P, x: Self::P) -> <Self::S as Simd>::V;
}

/// Pairs as two vectors of f32: even elements, odd elements.
#[derive(Clone, Copy)]
pub(crate) struct EmulatedBf16Dot<S>(S);

impl<S: Simd> Bf16Dot for EmulatedBf16Dot<S> {
    type S = S;
    type P = [S::V; 2];

    #[inline(always)]
    fn floats(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> Self::P {
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { self.0.load_pairs(p) }
    }

    #[inline(always)]
    fn dot(self, acc: S::V, w: Self::P, x: Self::P) -> S::V {
        let acc = self.0.fma(w[1], x[1], acc);
        self.0.fma(w[0], x[0], acc)
    }
}

/// [`Bf16Dot`] as a way of multiplying.
#[derive(Clone, Copy)]
struct Bf16Tile<P>(P);

impl<P: Bf16Dot> Product for Bf16Tile<P> {
    type S = P::S;
    type X = u16;
    const BYTES: usize = 2;
    const VECTOR: usize = VECTOR;

    #[inline(always)]
    fn floats(self) -> P::S {
        self.0.floats()
    }

    #[inline(always)]
    unsafe fn tile<const ROWS: usize, const INPUTS: usize>(
        self,
        w: Rows,
        x: Inputs<u16>,
        Range {
            start: mut k,
            end: cols,
        }: Range<usize>,
        prefetch: Prefetch,
        acc: &mut [[<P::S as Simd>::V; ROWS]; INPUTS],
    ) {
        let p = self.0;
        while k + VECTOR <= cols {
            // SAFETY: `k + 32 <= cols`.
            let weights = unsafe { load_rows::<P, ROWS>(p, &w, k, prefetch) };
            // SAFETY: as above.
            unsafe { step::<P, ROWS, INPUTS>(p, weights, &x, k, acc) };
            k += VECTOR;
        }
        if k < cols {
            let rest = 2 * (cols - k);
            let weights: [P::P; ROWS] = core::array::from_fn(|r| {
                let mut padded = [0u8; 2 * VECTOR];
                // SAFETY: `rest` bytes are left in the row, and `padded` has room for them.
                unsafe {
                    let row = w.start.add(r * w.stride + 2 * k);
                    padded.as_mut_ptr().copy_from_nonoverlapping(row, rest);
                    p.load(padded.as_ptr())
                }
            });
            // SAFETY: the inputs are padded to whole vectors.
            unsafe { step::<P, ROWS, INPUTS>(p, weights, &x, k, acc) };
        }
    }
}

/// Elements `k..k + 32` of `ROWS` rows, asking for what lies ahead of them.
///
/// With 16 registers the function in `from_fn` is called in place of becoming part of this one, without the
/// instructions; with 32 the loop keeps the weights in memory.
///
/// # Safety
/// `w` has `ROWS` rows of `k + 32` elements at least.
#[inline(always)]
unsafe fn load_rows<P: Bf16Dot, const ROWS: usize>(
    p: P,
    w: &Rows,
    k: usize,
    prefetch: Prefetch,
) -> [P::P; ROWS] {
    let s = p.floats();
    if P::S::WIDE {
        return core::array::from_fn(|r| {
            let row = w.start.wrapping_add(r * w.stride + 2 * k);
            prefetch.issue(s, row);
            // SAFETY: the caller vouches for the elements.
            unsafe { p.load(row) }
        });
    }
    // SAFETY: as above.
    let mut rows = [unsafe { p.load(w.start.wrapping_add(2 * k)) }; ROWS];
    for (r, to) in rows.iter_mut().enumerate() {
        let row = w.start.wrapping_add(r * w.stride + 2 * k);
        prefetch.issue(s, row);
        // SAFETY: as above.
        *to = unsafe { p.load(row) };
    }
    rows
}

/// Adds the products of elements `k..k + 32`.
///
/// # Safety
/// `x` has `INPUTS` inputs of `k + 32` elements at least.
#[inline(always)]
unsafe fn step<P: Bf16Dot, const ROWS: usize, const INPUTS: usize>(
    p: P,
    weights: [P::P; ROWS],
    x: &Inputs<u16>,
    k: usize,
    acc: &mut [[<P::S as Simd>::V; ROWS]; INPUTS],
) {
    for (i, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller vouches for the elements.
        let x = unsafe { p.load(x.at(i, k).cast()) };
        for (acc, w) in acc.iter_mut().zip(weights) {
            *acc = p.dot(*acc, w, x);
        }
    }
}

/// See [`crate::linear_bf16_bf16`]; constants as for [`super::linear`].
#[inline(always)]
pub(crate) fn linear_bf16_dot<
    P: Bf16Dot,
    const ROWS: usize,
    const INPUTS: usize,
    const SHORT_ROWS: usize,
>(
    p: P,
    w: &[u8],
    x: &Bf16Activations,
    out: &mut ViewMut<'_, f32>,
) {
    assert!(x.values.len() >= x.n * stride(x.cols) && x.n == out.shape().0);
    let inputs = Inputs {
        start: x.values.as_ptr(),
        stride: stride(x.cols),
        advance: 1,
    };
    // SAFETY: just checked; a stride is `cols` padded to whole vectors at least.
    unsafe { multiply::<_, ROWS, INPUTS, SHORT_ROWS>(Bf16Tile(p), w, x.cols, inputs, out) }
}

/// [`linear_bf16_dot`] without an instruction for it.
#[inline(always)]
pub(crate) fn linear_bf16_bf16<S: Simd>(
    s: S,
    w: &[u8],
    x: &Bf16Activations,
    out: &mut ViewMut<'_, f32>,
) {
    linear_bf16_dot::<_, 2, 2, 2>(EmulatedBf16Dot(s), w, x, out)
}

/// See [`crate::round_activations`]. Needs nothing but integers, which the compiler vectorises.
#[inline(always)]
pub(crate) fn round_row<S: Simd>(_s: S, x: &[f32], out: &mut [u16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = round(*x);
    }
}
