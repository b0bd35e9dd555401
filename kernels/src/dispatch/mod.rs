//! The public functions: each checks the lengths of its arguments once and calls the version for the
//! instruction set.
//!
//! A call such as `dispatch!(isa, dot(a, b))` reaches `scalar::dot`, or the `dot` that
//! [`entry_points!`](crate::vector::entry_points) compiles for that instruction set from `vector::dot`.

/// Calls `$name` in the module of `$isa`, with the token as the first argument. [`Isa::Scalar`] evaluates
/// `$scalar_call` instead, or calls `scalar::$name` if there is none.
///
/// [`Isa::Scalar`]: crate::Isa::Scalar
macro_rules! dispatch {
    ($isa:expr, $name:ident($($arg:expr),*)) => {
        dispatch!($isa, $crate::scalar::$name($($arg),*), $name($($arg),*))
    };
    ($isa:expr, $scalar_call:expr, $name:ident($($arg:expr),*)) => {
        match $isa {
            $crate::Isa::Scalar => $scalar_call,
            $crate::Isa::Portable => $crate::portable::$name($crate::portable::Portable, $($arg),*),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token proves that the CPU has the features.
            $crate::Isa::Avx2(token) => unsafe { $crate::x86::avx2::$name(token, $($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token proves that the CPU has the features.
            $crate::Isa::Avx512(token) => unsafe { $crate::x86::avx512::$name(token, $($arg),*) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: the token proves that the CPU has the features.
            $crate::Isa::Neon(token) => unsafe { $crate::aarch64::neon::$name(token, $($arg),*) },
            #[allow(unreachable_patterns)]
            _ => unreachable!("a token of another architecture"),
        }
    };
}

/// [`dispatch!`] for functions on 8-bit integers, which have further versions for optional extensions.
macro_rules! dispatch_int8 {
    ($isa:expr, $scalar_call:expr, $name:ident($($arg:expr),*)) => {
        match $isa {
            $crate::Isa::Scalar => $scalar_call,
            $crate::Isa::Portable => {
                $crate::portable::int8::$name($crate::portable::Portable, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token proves that the CPU has the features.
            $crate::Isa::Avx2(token) => unsafe { $crate::x86::avx2::int8::$name(token, $($arg),*) },
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512(token) => match $crate::x86::avx512::int8::vnni::Vnni::new(token) {
                // SAFETY: the token proves that the CPU has the features.
                Some(token) => unsafe { $crate::x86::avx512::int8::vnni::$name(token, $($arg),*) },
                None => {
                    let token = $crate::x86::avx512::int8::plain::Plain(token);
                    // SAFETY: the token proves that the CPU has the features.
                    unsafe { $crate::x86::avx512::int8::plain::$name(token, $($arg),*) }
                }
            },
            #[cfg(target_arch = "aarch64")]
            $crate::Isa::Neon(token) => match $crate::aarch64::neon::int8::dot::Dot::new(token) {
                // SAFETY: the token proves that the CPU has the features.
                Some(token) => unsafe { $crate::aarch64::neon::int8::dot::$name(token, $($arg),*) },
                None => {
                    let token = $crate::aarch64::neon::int8::plain::Plain(token);
                    // SAFETY: the token proves that the CPU has the features.
                    unsafe { $crate::aarch64::neon::int8::plain::$name(token, $($arg),*) }
                }
            },
            #[allow(unreachable_patterns)]
            _ => unreachable!("a token of another architecture"),
        }
    };
}

mod activations;
mod attention;
mod linear;
mod matmul;
mod mlstm;
mod rows;

pub use activations::{
    quantize_activations, quantize_activations_on, round_activations, round_activations_on,
};
pub use attention::{dot_rows, weighted_sum};
pub use linear::{add_row, decode_row, linear, linear_bf16_bf16, linear_quantized, read_row};
pub use matmul::{matmul, multiply_adds, vectorized};
pub use mlstm::{gated_norm, mlstm_step};
pub use rows::{
    add_assign, dot, double_add, log_softmax_entropy, max_assign, rms_norm, rope, rope_halves,
    softmax, swiglu, to_f16,
};
