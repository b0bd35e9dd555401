//! bfloat16 weights times activations in bfloat16, written once over [`Pairs`]. The arithmetic is that
//! of [`crate::rounded`].

use core::ops::Range;

use super::linear::{Inputs, Product, Rows, multiply};
use super::{Ahead, Simd};
use crate::ViewMut;
use crate::rounded::{RoundedActivations, VECTOR, round, stride};

/// 16 pairs of bfloat16 numbers. A value of the implementing type proves that the CPU has the
/// instructions.
pub(crate) trait Pairs: Copy {
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
pub(crate) struct Widened<S>(S);

impl<S: Simd> Pairs for Widened<S> {
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

/// [`Pairs`] as a way of multiplying.
#[derive(Clone, Copy)]
struct Rounded<P>(P);

impl<P: Pairs> Product for Rounded<P> {
    type S = P::S;
    type X = u16;
    const BYTES: usize = 2;
    const VECTOR: usize = VECTOR;

    #[inline(always)]
    fn floats(self) -> P::S {
        self.0.floats()
    }

    #[inline(always)]
    unsafe fn tile<const R: usize, const N: usize>(
        self,
        w: Rows,
        x: Inputs<u16>,
        Range {
            start: mut k,
            end: cols,
        }: Range<usize>,
        ahead: Ahead,
        acc: &mut [[<P::S as Simd>::V; R]; N],
    ) {
        let p = self.0;
        while k + VECTOR <= cols {
            // SAFETY: `k + 32 <= cols`.
            let weights = unsafe { load_rows::<P, R>(p, &w, k, ahead) };
            // SAFETY: as above.
            unsafe { step::<P, R, N>(p, weights, &x, k, acc) };
            k += VECTOR;
        }
        if k < cols {
            let rest = 2 * (cols - k);
            let weights: [P::P; R] = core::array::from_fn(|r| {
                let mut padded = [0u8; 2 * VECTOR];
                // SAFETY: `rest` bytes are left in the row, and `padded` has room for them.
                unsafe {
                    let row = w.start.add(r * w.stride + 2 * k);
                    padded.as_mut_ptr().copy_from_nonoverlapping(row, rest);
                    p.load(padded.as_ptr())
                }
            });
            // SAFETY: the inputs are padded to whole vectors.
            unsafe { step::<P, R, N>(p, weights, &x, k, acc) };
        }
    }
}

/// Elements `k..k + 32` of `R` rows, asking for what lies ahead of them.
///
/// With 16 registers the function in `from_fn` is called in place of becoming part of this one, without the
/// instructions; with 32 the loop keeps the weights in memory.
///
/// # Safety
/// `w` has `R` rows of `k + 32` elements at least.
#[inline(always)]
unsafe fn load_rows<P: Pairs, const R: usize>(p: P, w: &Rows, k: usize, ahead: Ahead) -> [P::P; R] {
    let s = p.floats();
    if P::S::WIDE {
        return core::array::from_fn(|r| {
            let row = w.start.wrapping_add(r * w.stride + 2 * k);
            ahead.ask(s, row);
            // SAFETY: the caller vouches for the elements.
            unsafe { p.load(row) }
        });
    }
    // SAFETY: as above.
    let mut rows = [unsafe { p.load(w.start.wrapping_add(2 * k)) }; R];
    for (r, to) in rows.iter_mut().enumerate() {
        let row = w.start.wrapping_add(r * w.stride + 2 * k);
        ahead.ask(s, row);
        // SAFETY: as above.
        *to = unsafe { p.load(row) };
    }
    rows
}

/// Adds the products of elements `k..k + 32`.
///
/// # Safety
/// `x` has `N` inputs of `k + 32` elements at least.
#[inline(always)]
unsafe fn step<P: Pairs, const R: usize, const N: usize>(
    p: P,
    weights: [P::P; R],
    x: &Inputs<u16>,
    k: usize,
    acc: &mut [[<P::S as Simd>::V; R]; N],
) {
    for (i, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller vouches for the elements.
        let x = unsafe { p.load(x.at(i, k).cast()) };
        for (acc, w) in acc.iter_mut().zip(weights) {
            *acc = p.dot(*acc, w, x);
        }
    }
}

/// See [`crate::linear_rounded`]; constants as for [`super::linear`].
#[inline(always)]
pub(crate) fn linear_pairs<P: Pairs, const R: usize, const N: usize, const A: usize>(
    p: P,
    w: &[u8],
    x: &RoundedActivations,
    out: &mut ViewMut<'_, f32>,
) {
    assert!(x.values.len() >= x.n * stride(x.cols) && x.n == out.shape().0);
    let inputs = Inputs {
        start: x.values.as_ptr(),
        stride: stride(x.cols),
        advance: 1,
    };
    // SAFETY: just checked; a stride is `cols` padded to whole vectors at least.
    unsafe { multiply::<_, R, N, A>(Rounded(p), w, x.cols, inputs, out) }
}

/// [`linear_pairs`] without an instruction for it.
#[inline(always)]
pub(crate) fn linear_rounded<S: Simd>(
    s: S,
    w: &[u8],
    x: &RoundedActivations,
    out: &mut ViewMut<'_, f32>,
) {
    linear_pairs::<_, 2, 2, 2>(Widened(s), w, x, out)
}

/// See [`crate::round_activations`]. Needs nothing but integers, which the compiler vectorises.
#[inline(always)]
pub(crate) fn round_row<S: Simd>(_s: S, x: &[f32], out: &mut [u16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = round(*x);
    }
}
