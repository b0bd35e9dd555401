//! bfloat16 weights times bfloat16 activations, written once over [`Bf16Dot`]. The arithmetic is that of
//! [`crate::bf16`].

use core::ops::Range;

use super::linear::{Inputs, Tile, WeightRows, multiply};
use super::simd::{Bf16Dot, Prefetch, Simd};
use crate::bf16::{Bf16Activations, VECTOR, round, stride};
use crate::view::ViewMut;

/// [`Bf16Dot`] without an instruction for it: the pairs are two vectors of f32, even and odd elements.
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
        // SAFETY: the caller guarantees 64 bytes.
        unsafe { self.0.load_pairs(p) }
    }

    #[inline(always)]
    fn dot(self, acc: S::V, w: Self::P, x: Self::P) -> S::V {
        let acc = self.0.fma(w[1], x[1], acc);
        self.0.fma(w[0], x[0], acc)
    }
}

/// bfloat16 weights times bfloat16 inputs.
#[derive(Clone, Copy)]
struct Bf16Tile<P>(P);

impl<P: Bf16Dot> Tile for Bf16Tile<P> {
    type S = P::S;
    type X = u16;
    const BYTES: usize = 2;
    const VECTOR: usize = VECTOR;

    #[inline(always)]
    fn floats(self) -> P::S {
        self.0.floats()
    }

    #[inline(always)]
    unsafe fn add_products<const ROWS: usize, const INPUTS: usize>(
        self,
        w: WeightRows,
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
                // SAFETY: the row has `rest` more bytes, and `padded` has room for them.
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

/// Loads elements `k..k + 32` of `ROWS` rows, with a prefetch.
///
/// With 16 registers the compiler does not inline the closure of `from_fn`, which is then compiled without the
/// instructions. With 32 registers the plain loop keeps the weights in memory.
///
/// # Safety
/// `w` has `ROWS` rows of at least `k + 32` elements.
#[inline(always)]
unsafe fn load_rows<P: Bf16Dot, const ROWS: usize>(
    p: P,
    w: &WeightRows,
    k: usize,
    prefetch: Prefetch,
) -> [P::P; ROWS] {
    let s = p.floats();
    if P::S::WIDE {
        return core::array::from_fn(|r| {
            let row = w.start.wrapping_add(r * w.stride + 2 * k);
            prefetch.issue(s, row);
            // SAFETY: the caller guarantees the elements.
            unsafe { p.load(row) }
        });
    }
    // SAFETY: as above.
    let mut rows = [unsafe { p.load(w.start.wrapping_add(2 * k)) }; ROWS];
    for (r, loaded) in rows.iter_mut().enumerate() {
        let row = w.start.wrapping_add(r * w.stride + 2 * k);
        prefetch.issue(s, row);
        // SAFETY: as above.
        *loaded = unsafe { p.load(row) };
    }
    rows
}

/// Adds the products of elements `k..k + 32`.
///
/// # Safety
/// `x` has `INPUTS` inputs of at least `k + 32` elements.
#[inline(always)]
unsafe fn step<P: Bf16Dot, const ROWS: usize, const INPUTS: usize>(
    p: P,
    weights: [P::P; ROWS],
    x: &Inputs<u16>,
    k: usize,
    acc: &mut [[<P::S as Simd>::V; ROWS]; INPUTS],
) {
    for (i, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller guarantees the elements.
        let x = unsafe { p.load(x.address(i, k).cast()) };
        for (acc, w) in acc.iter_mut().zip(weights) {
            *acc = p.dot(*acc, w, x);
        }
    }
}

/// See [`crate::linear_bf16_bf16`]. The constants are those of [`super::linear()`].
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
    // SAFETY: just checked; a stride is at least `cols`, padded to whole vectors.
    unsafe { multiply::<_, ROWS, INPUTS, SHORT_ROWS>(Bf16Tile(p), w, x.cols, inputs, out) }
}

/// [`linear_bf16_dot`] on CPUs without an instruction for it.
#[inline(always)]
pub(crate) fn linear_bf16_bf16<S: Simd>(
    s: S,
    w: &[u8],
    x: &Bf16Activations,
    out: &mut ViewMut<'_, f32>,
) {
    linear_bf16_dot::<_, 2, 2, 2>(EmulatedBf16Dot(s), w, x, out)
}

/// See [`crate::round_activations`]. These are integer operations, which the compiler vectorises.
#[inline(always)]
pub(crate) fn round_row<S: Simd>(_s: S, x: &[f32], out: &mut [u16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = round(*x);
    }
}
