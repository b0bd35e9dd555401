//! The vector algorithms, written once over [`Simd`]: 16 lanes of f32, in whatever registers a token provides.
//!
//! Each instruction set implements the traits in [`simd`], about one instruction per method, and compiles the
//! algorithms with [`entry_points!`] inside functions that enable its features. All methods and algorithms are
//! `inline(always)`: only then are the instructions compiled inside those functions.
//!
//! Lanes beyond the end of a slice never enter a sum: tails use a padded copy, and [`Simd::first`] keeps the
//! other lanes unchanged.

mod attention;
mod bf12;
mod bf16;
mod element;
mod int8;
mod linear;
mod matmul;
mod mlstm;
mod rows;
mod simd;

pub(crate) use attention::{dot_rows, weighted_sum};
pub(crate) use bf12::{linear_bf12, unpack_row};
#[cfg(target_arch = "x86_64")]
pub(crate) use bf16::linear_bf16_dot;
pub(crate) use bf16::{linear_bf16_bf16, round_row};
pub(crate) use element::{Bf16, F16, F32};
pub(crate) use int8::{int8_entry_points, linear_quantized, quantize_row};
pub(crate) use linear::{ROW_BLOCK_BYTES, dot, linear};
#[cfg(target_arch = "x86_64")]
pub(crate) use matmul::Packing;
pub(crate) use matmul::{F32Packing, matmul, multiply_adds};
pub(crate) use mlstm::{gated_norm, mlstm_cell};
pub(crate) use rows::*;
#[cfg(target_arch = "x86_64")]
pub(crate) use simd::Bf16Dot;
pub(crate) use simd::{Int8, Prefetch, Simd};

/// Compiles the algorithms for one token type: `entry_points!(Token, attributes, tile shapes)`.
///
/// - `linear ROWS x INPUTS`: the register tile of a matrix times three or more vectors, in rows and inputs.
/// - `short_rows`: the number of short rows that are taken together for one or two vectors.
/// - `matmul NR`: the width of the tile of a matrix product, in vectors of 16 lanes.
macro_rules! entry_points {
    (
        $token:ty, { $(#[$attr:meta])* },
        linear $rows:literal x $inputs:literal, short_rows $short_rows:literal, matmul $nr:literal
    ) => {
        $(#[$attr])*
        pub(crate) fn run<R>(_: $token, f: impl FnOnce() -> R) -> R {
            f()
        }
        $(#[$attr])*
        pub(crate) fn matmul(
            s: $token,
            accumulate: $crate::Accumulate,
            c: &mut $crate::ViewMut<'_, f32>,
            scale: f32,
            a: $crate::View<'_, f32>,
            b: $crate::View<'_, f32>,
            packed: &mut $crate::matmul::Packed,
        ) {
            vector::matmul::<_, _, $nr>(s, vector::F32Packing, accumulate, c, scale, a, b, packed)
        }
        $(#[$attr])*
        pub(crate) fn multiply_adds(s: $token, rounds: usize) -> (u64, f32) {
            vector::multiply_adds::<_, _, $nr>(s, vector::F32Packing, rounds)
        }
        $(#[$attr])*
        pub(crate) fn linear_f32(s: $token, w: &[u8], cols: usize, x: &[f32], out: &mut $crate::ViewMut<'_, f32>) {
            vector::linear::<_, vector::F32, $rows, $inputs, $short_rows>(s, w, cols, x, out)
        }
        $(#[$attr])*
        pub(crate) fn linear_f16(s: $token, w: &[u8], cols: usize, x: &[f32], out: &mut $crate::ViewMut<'_, f32>) {
            vector::linear::<_, vector::F16, $rows, $inputs, $short_rows>(s, w, cols, x, out)
        }
        $(#[$attr])*
        pub(crate) fn linear_bf16(s: $token, w: &[u8], cols: usize, x: &[f32], out: &mut $crate::ViewMut<'_, f32>) {
            vector::linear::<_, vector::Bf16, $rows, $inputs, $short_rows>(s, w, cols, x, out)
        }
        $(#[$attr])*
        pub(crate) fn linear_bf12(s: $token, w: &[u8], cols: usize, x: &[f32], out: &mut $crate::ViewMut<'_, f32>) {
            vector::linear_bf12(s, w, cols, x, out)
        }
        $(#[$attr])*
        pub(crate) fn dot_rows_f32(s: $token, q: $crate::View<'_, f32>, rows: $crate::StridedRows<'_>, scale: f32, out: &mut $crate::ViewMut<'_, f32>) {
            vector::dot_rows::<_, vector::F32>(s, q, rows, scale, out)
        }
        $(#[$attr])*
        pub(crate) fn dot_rows_f16(s: $token, q: $crate::View<'_, f32>, rows: $crate::StridedRows<'_>, scale: f32, out: &mut $crate::ViewMut<'_, f32>) {
            vector::dot_rows::<_, vector::F16>(s, q, rows, scale, out)
        }
        $(#[$attr])*
        pub(crate) fn weighted_sum_f32(s: $token, p: $crate::View<'_, f32>, rows: $crate::StridedRows<'_>, acc: &mut $crate::ViewMut<'_, f32>) {
            vector::weighted_sum::<_, vector::F32>(s, p, rows, acc)
        }
        $(#[$attr])*
        pub(crate) fn weighted_sum_f16(s: $token, p: $crate::View<'_, f32>, rows: $crate::StridedRows<'_>, acc: &mut $crate::ViewMut<'_, f32>) {
            vector::weighted_sum::<_, vector::F16>(s, p, rows, acc)
        }
        $crate::vector::entry_points! { $token, { $(#[$attr])* },
            fn unpack_row(row: &[u8], out: &mut [u16]) -> ();
            fn dot(a: &[f32], b: &[f32]) -> f32;
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
