//! AVX-512: 16 lanes are one register.

pub(crate) mod bf16;
pub(crate) mod int8;
pub(crate) mod matmul;

use core::arch::x86_64::*;

use half::f16;

use crate::isa::Avx512;
use crate::scalar::LANES;
use crate::vector::{self, Simd};

vector::entry_points!(
    Avx512,
    { #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")] },
    linear 4 x 6, short_rows 8, matmul 4
);

/// 32 bfloat16 values, widened.
///
/// # Safety
/// The CPU has AVX-512 F and BW.
#[inline(always)]
unsafe fn widen_words(words: __m512i) -> [__m512; 2] {
    // SAFETY: the caller guarantees the instructions.
    unsafe {
        // As in `load_bf16`.
        const UPPER: u32 = 0xaaaa_aaaa;
        let first = _mm512_slli_epi32::<16>(_mm512_setr_epi32(
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
        ));
        let last = _mm512_add_epi32(first, _mm512_set1_epi32(16 << 16));
        [first, last]
            .map(|places| _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(UPPER, places, words)))
    }
}

impl Simd for Avx512 {
    type V = __m512;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: the token proves AVX-512 F, here and below.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller guarantees 16 values.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: the caller guarantees 16 values.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> __m512 {
        // SAFETY: the caller guarantees 32 bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> __m512 {
        // SAFETY: the caller guarantees 32 bytes.
        unsafe {
            // One instruction moves a value to the upper half of its lane and clears the lower half; widening and
            // shifting would be two.
            const UPPER: u32 = 0xaaaa_aaaa;
            let places = _mm512_slli_epi32::<16>(_mm512_setr_epi32(
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
            ));
            let values = _mm512_castsi256_si512(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(UPPER, places, values))
        }
    }
    #[inline(always)]
    unsafe fn unpack(self, group: *const u8, half: usize, base: u8) -> [__m512; 4] {
        // SAFETY: the caller guarantees 192 bytes.
        unsafe {
            let bytes = _mm512_loadu_si512(group.add(half * 64).cast());
            let codes = _mm512_loadu_si512(group.add(128).cast());
            let codes = match half {
                0 => codes,
                _ => _mm512_srli_epi16::<4>(codes),
            };
            let codes = _mm512_and_si512(codes, _mm512_set1_epi8(15));
            let is_normal = _mm512_test_epi8_mask(codes, codes);
            let base = _mm512_set1_epi8(base as i8);
            let exponents = _mm512_maskz_add_epi8(is_normal, codes, base);
            // The sign bit of one operand and the other bits of the other operand.
            const SELECT: i32 = 0xca;
            let sign = _mm512_set1_epi8(-128);
            let to_upper = _mm512_srli_epi16::<1>(exponents);
            let to_lower = _mm512_slli_epi16::<7>(exponents);
            let upper = _mm512_ternarylogic_epi32::<SELECT>(sign, bytes, to_upper);
            let lower = _mm512_ternarylogic_epi32::<SELECT>(sign, to_lower, bytes);
            let [a, b] = widen_words(_mm512_unpacklo_epi8(lower, upper));
            let [c, d] = widen_words(_mm512_unpackhi_epi8(lower, upper));
            [a, b, c, d]
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u8) -> [__m512; 2] {
        // SAFETY: the caller guarantees 64 bytes.
        unsafe {
            let pairs = _mm512_loadu_si512(p.cast());
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
            [_mm512_slli_epi32::<16>(pairs), odd].map(|v| _mm512_castsi512_ps(v))
        }
    }
    #[inline(always)]
    fn store_f16(self, out: &mut [f16; LANES], v: __m512) {
        // SAFETY: as in `splat`; the array has room for 32 bytes.
        unsafe {
            let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), half);
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max_or_nan(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe {
            let larger = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            _mm512_mask_blend_ps(larger | nan, b, a)
        }
    }
    #[inline(always)]
    fn fma_alternating(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_fmaddsub_ps(a, b, c) }
    }
    #[inline(always)]
    fn swap_pairs(self, a: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_permute_ps::<0b10_11_00_01>(a) }
    }
    #[inline(always)]
    fn twice(self, x: &[f32; LANES / 2]) -> __m512 {
        // SAFETY: as in `splat`; the array has 8 values.
        unsafe {
            let x = _mm512_castps256_ps512(_mm256_loadu_ps(x.as_ptr()));
            let index = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            _mm512_permutexvar_ps(index, x)
        }
    }
    #[inline(always)]
    fn scale(self, p: __m512, n: __m512, _t: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_scalef_ps(p, n) }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: as in `splat`; the token proves DQ too.
        unsafe {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            crate::x86::avx2::sum_of_8(v)
        }
    }
    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // SAFETY: as in `splat`.
        unsafe {
            // 16 lanes to 8: [a, b] and [c, d]; 8 to 4: [a, b, c, d].
            let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
            let ab = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b));
            let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d);
            let cd = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d));
            let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
            let v = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd));
            // 4 to 2 to 1, inside each quarter.
            let v = _mm512_add_ps(v, _mm512_permute_ps::<0b01_00_11_10>(v));
            let v = _mm512_add_ps(v, _mm512_permute_ps::<0b10_11_00_01>(v));
            let index = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut out = [0.0; 4];
            let v = _mm512_castps512_ps128(_mm512_permutexvar_ps(index, v));
            _mm_storeu_ps(out.as_mut_ptr(), v);
            out
        }
    }
    #[inline(always)]
    fn first(self, n: usize, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_mask_blend_ps(((1u32 << n) - 1) as u16, no, yes) }
    }
    #[inline(always)]
    fn transpose(self, mut v: [__m512; LANES]) -> [__m512; LANES] {
        // SAFETY: as in `splat`.
        unsafe {
            // Pairs of rows, then fours: quarter q of vector 4 i + j then holds column 4 q + j of rows
            // 4 i to 4 i + 3.
            for i in 0..8 {
                let (a, b) = (v[2 * i], v[2 * i + 1]);
                v[2 * i] = _mm512_unpacklo_ps(a, b);
                v[2 * i + 1] = _mm512_unpackhi_ps(a, b);
            }
            for i in 0..4 {
                let (a, b) = (_mm512_castps_pd(v[4 * i]), _mm512_castps_pd(v[4 * i + 1]));
                let (c, d) = (
                    _mm512_castps_pd(v[4 * i + 2]),
                    _mm512_castps_pd(v[4 * i + 3]),
                );
                v[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                v[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                v[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                v[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
            }
            // The same with quarters instead of elements.
            for j in 0..4 {
                let [a, b, c, d] = [v[j], v[4 + j], v[8 + j], v[12 + j]];
                let ab_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b); // quarters 0, 2
                let ab_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b); // quarters 1, 3
                let cd_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
                let cd_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
                v[j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_even, cd_even);
                v[8 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_even, cd_even);
                v[4 + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_odd, cd_odd);
                v[12 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_odd, cd_odd);
            }
            v
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
