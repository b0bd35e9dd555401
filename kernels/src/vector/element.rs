//! [`Element`]: the types that unquantised weights, keys and values are stored in.

use super::simd::Simd;
use crate::scalar::LANES;

/// A type of stored numbers, widened to f32 when loaded.
pub(crate) trait Element {
    const BYTES: usize;
    /// Loads 16 elements and widens them exactly.
    /// # Safety
    /// `p` is valid for reading `16 * BYTES` bytes.
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V;
    /// Loads up to 16 elements and pads them with zeros.
    #[inline(always)]
    fn load_padded<S: Simd>(s: S, bytes: &[u8]) -> S::V {
        let mut padded = [0u8; LANES * 4];
        padded[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: `padded` holds 16 elements of any type.
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
        // SAFETY: the caller guarantees 64 bytes; `load` takes any alignment.
        unsafe { s.load(p.cast()) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V {
        // SAFETY: the caller guarantees 32 bytes.
        unsafe { s.load_f16(p) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V {
        // SAFETY: the caller guarantees 32 bytes.
        unsafe { s.load_bf16(p) }
    }
}
