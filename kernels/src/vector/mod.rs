//! The vector algorithms, written once over [`Simd`]: 16 lanes of f32 on whatever registers a token
//! stands for.
//!
//! Each instruction set implements the trait (one instruction a method, more or less) and instantiates
//! the algorithms with [`entry_points!`], inside functions that enable its features. All methods and
//! algorithms are `inline(always)`: only then do the instructions land inside those functions.
//!
//! Lanes beyond the end of a slice are never computed into a sum: tails go through a padded copy, and
//! [`Simd::first`] keeps the untouched lanes as they were.

mod bf12;
mod bf16;
mod int8;
mod linear;
mod math;
mod matmul;
mod mlstm;

pub(crate) use bf12::{linear_bf12, unpack_row};
#[cfg(target_arch = "x86_64")]
pub(crate) use bf16::{Bf16Dot, linear_bf16_dot};
pub(crate) use bf16::{linear_bf16_bf16, round_row};
pub(crate) use int8::{Int8, int8_entry_points, linear_quantized, quantize_row};
pub(crate) use linear::{Bf16, F16, F32, dot, dot_rows, linear};
pub(crate) use math::*;
#[cfg(target_arch = "x86_64")]
pub(crate) use matmul::Packing;
pub(crate) use matmul::{F32Packing, KC, matmul, multiply_adds};
pub(crate) use mlstm::{gated_norm, mlstm_cell};

use half::f16;

use crate::scalar::LANES;

/// 16 lanes of f32. A value of the implementing type proves that the CPU has the instructions.
pub(crate) trait Simd: Copy {
    /// The 16 lanes.
    type V: Copy;
    /// Whether they are one register of 32.
    const WIDE: bool = false;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `p` is valid for reading 16 values, at any alignment.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `p` is valid for writing 16 values, at any alignment.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// 16 half floats, widened.
    /// # Safety
    /// `p` is valid for reading 32 bytes.
    unsafe fn load_f16(self, p: *const u8) -> Self::V;
    /// 16 bfloat16 values, widened.
    /// # Safety
    /// `p` is valid for reading 32 bytes.
    unsafe fn load_bf16(self, p: *const u8) -> Self::V;
    /// 16 pairs of bfloat16 values, widened: the even ones, the odd ones.
    /// # Safety
    /// `p` is valid for reading 64 bytes.
    unsafe fn load_pairs(self, p: *const u8) -> [Self::V; 2];
    /// The weights of half a group, widened: see [`crate::bf12`], exceptions apart.
    /// # Safety
    /// `group` is valid for reading 192 bytes, and `half` is 0 or 1.
    unsafe fn unpack(self, group: *const u8, half: usize, base: u8) -> [Self::V; 4];
    /// Rounds to half floats, to the nearest, ties to even.
    fn store_f16(self, out: &mut [f16; LANES], v: Self::V);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once (but see [`crate::portable`]).
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`, so `b` if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`, so `b` if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a > b || a is NaN { a } else { b }`.
    fn max_or_nan(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b - c` in even lanes, `a * b + c` in odd ones, rounded once.
    fn fma_alternating(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Each pair of lanes swapped.
    fn swap_pairs(self, a: Self::V) -> Self::V;
    /// 8 values, each in two neighbouring lanes.
    fn twice(self, x: &[f32; LANES / 2]) -> Self::V;
    /// `p * 2^n` rounded once, where `n` also stands in the low bits of `t = n + MAGIC`.
    fn scale(self, p: Self::V, n: Self::V, t: Self::V) -> Self::V;

    /// The lanes added as the fixed tree.
    fn sum(self, v: Self::V) -> f32;
    /// [`Simd::sum`] of four.
    #[inline(always)]
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4] {
        v.map(|v| self.sum(v))
    }

    /// The first `n` lanes of `yes`, the others of `no`.
    #[inline(always)]
    fn first(self, n: usize, yes: Self::V, no: Self::V) -> Self::V {
        let mut lanes = self.to_array(no);
        lanes[..n].copy_from_slice(&self.to_array(yes)[..n]);
        self.load_array(&lanes)
    }

    /// Lane `j` of vector `i` becomes lane `i` of vector `j`.
    #[inline(always)]
    fn transpose(self, v: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut rows = [[0.0; LANES]; LANES];
        for i in 0..LANES {
            for (j, x) in self.to_array(v[i]).into_iter().enumerate() {
                rows[j][i] = x;
            }
        }
        let mut out = v;
        for (out, row) in out.iter_mut().zip(&rows) {
            *out = self.load_array(row);
        }
        out
    }

    /// Asks for the cache line at `p`, which may be any address, into the second-level cache.
    #[inline(always)]
    fn prefetch(self, _p: *const u8) {}

    /// [`Simd::prefetch`] of what is read once, past the caches that it would push others out of.
    #[inline(always)]
    fn prefetch_streaming(self, p: *const u8) {
        self.prefetch(p);
    }

    #[inline(always)]
    fn load_array(self, x: &[f32; LANES]) -> Self::V {
        // SAFETY: an array of 16 values.
        unsafe { self.load(x.as_ptr()) }
    }

    #[inline(always)]
    fn to_array(self, v: Self::V) -> [f32; LANES] {
        let mut x = [0.0; LANES];
        // SAFETY: an array of 16 values.
        unsafe { self.store(x.as_mut_ptr(), v) };
        x
    }

    /// Up to 16 values, padded with `fill`.
    #[inline(always)]
    fn load_padded(self, x: &[f32], fill: f32) -> Self::V {
        let mut lanes = [fill; LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load_array(&lanes)
    }

    /// The first `x.len()` lanes of `v`.
    #[inline(always)]
    fn store_first(self, x: &mut [f32], v: Self::V) {
        x.copy_from_slice(&self.to_array(v)[..x.len()]);
    }
}

/// Whether to prefetch memory ahead of a load, and how many bytes ahead.
#[derive(Clone, Copy)]
pub(crate) enum Prefetch {
    /// No prefetch.
    None,
    /// Memory that will be read several times.
    Temporal(usize),
    /// Memory that will be read once, one cache line after the other.
    Streaming(usize),
}

impl Prefetch {
    /// Prefetches the cache line that is that many bytes ahead of `p`.
    #[inline(always)]
    pub(crate) fn issue<S: Simd>(self, s: S, p: *const u8) {
        match self {
            Prefetch::None => (),
            Prefetch::Temporal(bytes) => s.prefetch(p.wrapping_add(bytes)),
            Prefetch::Streaming(bytes) => s.prefetch_streaming(p.wrapping_add(bytes)),
        }
    }
}

/// Replaces each vector `$v` of the slice `$x` by `$body`, which may also name the vector `$w` of the
/// slice `$y`. Lanes past the end see zeros.
///
/// A macro, as a closure would not be sure to be inlined, and then every instruction is a call.
macro_rules! for_vectors {
    ($s:ident, |$v:ident in $x:ident $(, $w:ident in $y:ident)?| $body:expr) => {{
        let (x, x_tail) = $x.as_chunks_mut::<LANES>();
        $(let (y, y_tail) = $y.as_chunks::<LANES>();)?
        #[allow(clippy::needless_range_loop)]
        for i in 0..x.len() {
            let $v = $s.load_array(&x[i]);
            $(let $w = $s.load_array(&y[i]);)?
            let v = $body;
            // SAFETY: an array of 16 values.
            unsafe { $s.store(x[i].as_mut_ptr(), v) };
        }
        if !x_tail.is_empty() {
            let $v = $s.load_padded(x_tail, 0.0);
            $(let $w = $s.load_padded(y_tail, 0.0);)?
            let v = $body;
            $s.store_first(x_tail, v);
        }
    }};
}
pub(crate) use for_vectors;

/// Folds the vectors `$v` of the slice `$x` into `$acc` by `$body`; lanes without an element in the last
/// vector stay as they are.
macro_rules! fold_vectors {
    ($s:ident, $start:expr, |$acc:ident, $v:ident in $x:ident| $body:expr) => {{
        let (x, tail) = $x.as_chunks::<LANES>();
        let mut $acc = $start;
        for x in x {
            let $v = $s.load_array(x);
            $acc = $body;
        }
        if !tail.is_empty() {
            let $v = $s.load_padded(tail, 0.0);
            $acc = $s.first(tail.len(), $body, $acc);
        }
        $acc
    }};
}
pub(crate) use fold_vectors;

/// Instantiates the algorithms for one token type: `entry_points!(Token, attributes, tile sizes)`.
///
/// `rows x inputs` is the register tile of a matrix times many vectors, `alone` the number of short
/// rows taken together when there are one or two vectors, `wide` the vectors side by side in the tile of a
/// product of matrices.
macro_rules! entry_points {
    (
        $token:ty, { $(#[$attr:meta])* },
        tile $rows:literal x $inputs:literal, alone $alone:literal, wide $wide:literal
    ) => {
        $(#[$attr])*
        pub(crate) fn run<R>(_: $token, f: impl FnOnce() -> R) -> R {
            f()
        }
        $(#[$attr])*
        pub(crate) fn matmul(
            s: $token,
            accumulate: $crate::matmul::Accumulate,
            c: &mut $crate::ViewMut<'_, f32>,
            scale: f32,
            a: $crate::View<'_, f32>,
            b: $crate::View<'_, f32>,
            packed: &mut $crate::matmul::Packed,
        ) {
            vector::matmul::<_, _, $wide>(s, vector::F32Packing, accumulate, c, scale, a, b, packed)
        }
        $(#[$attr])*
        pub(crate) fn multiply_adds(s: $token, rounds: usize) -> (u64, f32) {
            vector::multiply_adds::<_, _, $wide>(s, vector::F32Packing, rounds)
        }
        $(#[$attr])*
        pub(crate) fn linear_f32(s: $token, w: &[u8], cols: usize, x: &[f32], out: &mut $crate::ViewMut<'_, f32>) {
            vector::linear::<_, vector::F32, $rows, $inputs, $alone>(s, w, cols, x, out)
        }
        $(#[$attr])*
        pub(crate) fn linear_f16(s: $token, w: &[u8], cols: usize, x: &[f32], out: &mut $crate::ViewMut<'_, f32>) {
            vector::linear::<_, vector::F16, $rows, $inputs, $alone>(s, w, cols, x, out)
        }
        $(#[$attr])*
        pub(crate) fn linear_bf16(s: $token, w: &[u8], cols: usize, x: &[f32], out: &mut $crate::ViewMut<'_, f32>) {
            vector::linear::<_, vector::Bf16, $rows, $inputs, $alone>(s, w, cols, x, out)
        }
        $(#[$attr])*
        pub(crate) fn linear_bf12(s: $token, w: &[u8], cols: usize, x: &[f32], out: &mut $crate::ViewMut<'_, f32>) {
            vector::linear_bf12(s, w, cols, x, out)
        }
        $crate::vector::entry_points! { $token, { $(#[$attr])* },
            fn unpack_row(row: &[u8], out: &mut [u16]) -> ();
            fn dot(a: &[f32], b: &[f32]) -> f32;
            fn dot_rows(
                q: $crate::View<'_, f32>,
                rows: $crate::StridedRows<'_>,
                scale: f32,
                out: &mut $crate::ViewMut<'_, f32>
            ) -> ();
            fn weighted_sum(
                p: $crate::View<'_, f32>,
                rows: $crate::StridedRows<'_>,
                acc: &mut $crate::ViewMut<'_, f32>
            ) -> ();
            fn round_row(x: &[f32], out: &mut [u16]) -> ();
            fn linear_bf16_bf16(w: &[u8], x: &$crate::Bf16Activations, out: &mut $crate::ViewMut<'_, f32>) -> ();
            fn to_f16(x: &[f32], out: &mut [half::f16]) -> ();
            fn softmax(x: &mut [f32]) -> ();
            fn log_softmax_entropy(logits: &[f32]) -> f32;
            fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> ();
            fn swiglu(gate: &mut [f32], up: &[f32]) -> ();
            fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) -> ();
            fn rope_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) -> ();
            fn mlstm_cell(
                step: $crate::mlstm::Step,
                q: &[f32],
                k: &[f32],
                v: &[f32],
                memory: &mut [f32],
                normalizer: &mut [f32],
                out: &mut [f32]
            ) -> ();
            fn gated_norm(x: &mut [f32], weight: &[f32], gate: &[f32], eps: f32) -> ();
            fn add_assign(x: &mut [f32], y: &[f32]) -> ();
            fn double_add(x: &mut [f32], y: &[f32]) -> ();
            fn max_assign(acc: &mut [f32], row: &[f32]) -> ();
            fn add_row(acc: &mut [f32], row: $crate::Weights) -> ();
        }
    };
    ($token:ty, $attrs:tt, $(fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
        $($crate::vector::entry_points! { @one $token, $attrs, $name, ($($arg: $ty),*), $ret })*
    };
    (@one $token:ty, { $(#[$attr:meta])* }, $name:ident, ($($arg:ident: $ty:ty),*), $ret:ty) => {
        $(#[$attr])*
        #[allow(clippy::too_many_arguments)]
        pub(crate) fn $name(s: $token, $($arg: $ty),*) -> $ret {
            vector::$name(s, $($arg),*)
        }
    };
}
pub(crate) use entry_points;
