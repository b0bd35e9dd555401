//! AVX2 with FMA: 16 lanes are two registers.

pub(crate) mod int8;

use core::arch::x86_64::*;

use half::f16;

use crate::isa::Avx2;
use crate::scalar::{LANES, exp::MAGIC};
use crate::vector::{self, Simd};

vector::entry_points!(
    Avx2,
    { #[target_feature(enable = "avx2,fma,f16c")] },
    linear 2 x 3, short_rows 4, matmul 1
);

/// The tree of eight lanes.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(in crate::x86) unsafe fn sum_of_8(v: __m256) -> f32 {
    // SAFETY: the caller guarantees AVX.
    crate::x86::sum_of_4(unsafe { four(v) })
}

/// Eight lanes to four.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
unsafe fn four(v: __m256) -> __m128 {
    // SAFETY: the caller guarantees AVX.
    unsafe { _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v)) }
}

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Pair(__m256, __m256);

/// [`Simd::max_or_nan`] for half of the lanes.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
unsafe fn max_or_nan(a: __m256, b: __m256) -> __m256 {
    // SAFETY: the caller guarantees AVX.
    unsafe {
        let larger = _mm256_cmp_ps::<_CMP_GT_OQ>(a, b);
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a);
        _mm256_blendv_ps(b, a, _mm256_or_ps(larger, nan))
    }
}

/// 2^n.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn power(n: __m256i) -> __m256 {
    // SAFETY: the caller guarantees AVX2.
    unsafe {
        let biased = _mm256_add_epi32(n, _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

/// [`Simd::scale`] for half of the lanes, with the steps of `scalar::exp::scale`.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn scale(p: __m256, t: __m256) -> __m256 {
    // SAFETY: the caller guarantees AVX2.
    unsafe {
        let magic = _mm256_set1_epi32(MAGIC.to_bits() as i32);
        let n = _mm256_sub_epi32(_mm256_castps_si256(t), magic);
        let half = _mm256_srai_epi32::<1>(n);
        let p = _mm256_mul_ps(p, power(half));
        _mm256_mul_ps(p, power(_mm256_sub_epi32(n, half)))
    }
}

/// Loads 8 bfloat16 values and widens them.
///
/// # Safety
/// `p` is valid for reading 16 bytes; the CPU has AVX2.
#[inline(always)]
unsafe fn widen_bf16(p: *const u8) -> __m256 {
    // SAFETY: the caller guarantees both.
    unsafe {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }
}

/// Widens 16 bfloat16 values.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn widen_words(words: __m256i) -> Pair {
    // SAFETY: the caller guarantees the instructions.
    unsafe {
        let widen =
            |words| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(words)));
        let upper = _mm256_extracti128_si256::<1>(words);
        Pair(widen(_mm256_castsi256_si128(words)), widen(upper))
    }
}

impl Simd for Avx2 {
    type V = Pair;

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        // SAFETY: the token proves AVX2, FMA and F16C, here and below.
        let v = unsafe { _mm256_set1_ps(x) };
        Pair(v, v)
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Pair {
        // SAFETY: the caller guarantees 16 values.
        unsafe { Pair(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Pair) {
        // SAFETY: the caller guarantees 16 values.
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Pair {
        // SAFETY: the caller guarantees 32 bytes.
        unsafe {
            Pair(
                _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast())),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> Pair {
        // SAFETY: the caller guarantees 32 bytes.
        unsafe { Pair(widen_bf16(p), widen_bf16(p.add(16))) }
    }
    #[inline(always)]
    unsafe fn unpack(self, group: *const u8, half: usize, base: u8) -> [Pair; 4] {
        // SAFETY: the caller guarantees 192 bytes.
        unsafe {
            let (sign, base) = (_mm256_set1_epi8(-128), _mm256_set1_epi8(base as i8));
            let mut words = [[_mm256_setzero_si256(); 2]; 2];
            for (quarter, words) in words.iter_mut().enumerate() {
                let bytes = _mm256_loadu_si256(group.add(half * 64 + quarter * 32).cast());
                let codes = _mm256_loadu_si256(group.add(128 + quarter * 32).cast());
                let codes = match half {
                    0 => codes,
                    _ => _mm256_srli_epi16::<4>(codes),
                };
                let codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
                let is_zero = _mm256_cmpeq_epi8(codes, _mm256_setzero_si256());
                let exponents = _mm256_andnot_si256(is_zero, _mm256_add_epi8(codes, base));
                // The sign bit of one operand and the other bits of the other operand.
                let to_upper = _mm256_andnot_si256(sign, _mm256_srli_epi16::<1>(exponents));
                let to_lower = _mm256_and_si256(sign, _mm256_slli_epi16::<7>(exponents));
                let upper = _mm256_or_si256(_mm256_and_si256(sign, bytes), to_upper);
                let lower = _mm256_or_si256(_mm256_andnot_si256(sign, bytes), to_lower);
                words[0] = _mm256_unpacklo_epi8(lower, upper);
                words[1] = _mm256_unpackhi_epi8(lower, upper);
            }
            let [[a, c], [b, d]] = words;
            [
                widen_words(a),
                widen_words(b),
                widen_words(c),
                widen_words(d),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u8) -> [Pair; 2] {
        // SAFETY: the caller guarantees 64 bytes; the token proves AVX2.
        unsafe {
            let [low, high] = [p, p.add(32)].map(|p| _mm256_loadu_si256(p.cast()));
            let even = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
            let upper = _mm256_set1_epi32(0xffff_0000u32 as i32);
            let odd = |v| _mm256_castsi256_ps(_mm256_and_si256(v, upper));
            [Pair(even(low), even(high)), Pair(odd(low), odd(high))]
        }
    }
    #[inline(always)]
    fn store_f16(self, out: &mut [f16; LANES], v: Pair) {
        // SAFETY: as in `splat`; the array has room for 32 bytes.
        unsafe {
            let half = |v| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm_storeu_si128(out.as_mut_ptr().cast(), half(v.0));
            _mm_storeu_si128(out.as_mut_ptr().add(8).cast(), half(v.1));
        }
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: as in `splat`.
        unsafe { Pair(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: as in `splat`.
        unsafe { Pair(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: as in `splat`.
        unsafe { Pair(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: as in `splat`.
        unsafe { Pair(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: as in `splat`.
        unsafe { Pair(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: as in `splat`.
        unsafe { Pair(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: as in `splat`.
        unsafe {
            Pair(
                _mm256_fmadd_ps(a.0, b.0, c.0),
                _mm256_fmadd_ps(a.1, b.1, c.1),
            )
        }
    }
    #[inline(always)]
    fn max_or_nan(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: as in `splat`.
        unsafe { Pair(max_or_nan(a.0, b.0), max_or_nan(a.1, b.1)) }
    }
    #[inline(always)]
    fn fma_alternating(self, a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: as in `splat`.
        unsafe {
            Pair(
                _mm256_fmaddsub_ps(a.0, b.0, c.0),
                _mm256_fmaddsub_ps(a.1, b.1, c.1),
            )
        }
    }
    #[inline(always)]
    fn swap_pairs(self, a: Pair) -> Pair {
        // SAFETY: as in `splat`.
        unsafe {
            Pair(
                _mm256_permute_ps::<0b10_11_00_01>(a.0),
                _mm256_permute_ps::<0b10_11_00_01>(a.1),
            )
        }
    }
    #[inline(always)]
    fn twice(self, x: &[f32; LANES / 2]) -> Pair {
        // SAFETY: as in `splat`; the array has 8 values.
        unsafe {
            let x = _mm256_loadu_ps(x.as_ptr());
            Pair(
                _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
                _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7)),
            )
        }
    }
    #[inline(always)]
    fn scale(self, p: Pair, _n: Pair, t: Pair) -> Pair {
        // SAFETY: as in `splat`.
        unsafe { Pair(scale(p.0, t.0), scale(p.1, t.1)) }
    }
    #[inline(always)]
    fn sum(self, v: Pair) -> f32 {
        // SAFETY: as in `splat`.
        unsafe { sum_of_8(_mm256_add_ps(v.0, v.1)) }
    }
    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [Pair; 4]) -> [f32; 4] {
        // SAFETY: as in `splat`.
        unsafe {
            crate::x86::sum4_of_4(
                four(_mm256_add_ps(a.0, a.1)),
                four(_mm256_add_ps(b.0, b.1)),
                four(_mm256_add_ps(c.0, c.1)),
                four(_mm256_add_ps(d.0, d.1)),
            )
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch takes any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_streaming(self, p: *const u8) {
        // SAFETY: as in `prefetch`.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(p.cast()) }
    }
}
