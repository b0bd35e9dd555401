//! The x86-64 instruction sets.

pub(crate) mod avx2;
pub(crate) mod avx512;

use core::arch::x86_64::*;

/// The trees of four times four lanes: `[sum a, sum b, sum c, sum d]`, each `(v0 + v2) + (v1 + v3)`.
#[inline(always)]
fn sum4_of_4(a: __m128, b: __m128, c: __m128, d: __m128) -> [f32; 4] {
    // SAFETY: every x86-64 has SSE2; the store has room for 16 bytes.
    unsafe {
        let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
        let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
        let even = _mm_shuffle_ps::<0b10_00_10_00>(ab, cd);
        let odd = _mm_shuffle_ps::<0b11_01_11_01>(ab, cd);
        let mut out = [0.0; 4];
        _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(even, odd));
        out
    }
}

/// The tree of four lanes: `(v0 + v2) + (v1 + v3)`.
#[inline(always)]
fn sum_of_4(v: __m128) -> f32 {
    // SAFETY: every x86-64 has SSE2.
    unsafe {
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
}

/// The sum of 16 signed bytes.
#[inline(always)]
fn sum_of_16_i8(x: &[i8; 16]) -> i32 {
    // SAFETY: every x86-64 has SSE2; the array has 16 bytes.
    unsafe {
        let x = _mm_loadu_si128(x.as_ptr().cast());
        // The instruction sums unsigned bytes, so each is 128 too large.
        let x = _mm_xor_si128(x, _mm_set1_epi8(-128));
        let sums = _mm_sad_epu8(x, _mm_setzero_si128());
        _mm_cvtsi128_si32(sums) + _mm_extract_epi16::<4>(sums) - 16 * 128
    }
}
