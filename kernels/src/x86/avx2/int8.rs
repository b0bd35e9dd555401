//! AVX2 on 8-bit integers.

use core::arch::x86_64::*;

use super::Pair;
use crate::isa::Avx2;
use crate::scalar::LANES;
use crate::vector::Int8;

crate::vector::int8_entry_points!(
    Avx2,
    { #[target_feature(enable = "avx2,fma,f16c")] },
    tile 1 x 4
);

/// 64 bytes, or 16 lanes of i32.
type Ints = [__m256i; 2];

/// 4 bytes, repeated 8 times.
#[inline(always)]
fn broadcast(_: Avx2, x: [i8; 4]) -> __m256i {
    // SAFETY: the token proves AVX2.
    unsafe { _mm256_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8))) }
}

/// Adds sums of four products. Pairs are summed in 16 bits first, which must not overflow.
#[inline(always)]
fn add_products(_: Avx2, acc: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    // SAFETY: the token proves AVX2.
    unsafe {
        let pairs = _mm256_maddubs_epi16(unsigned, signed);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// [`Int8::upper2`] for half of the bytes.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn upper2(b: __m256i, i: usize) -> __m256i {
    // SAFETY: the caller guarantees AVX2.
    unsafe {
        let moved = match i {
            0 => _mm256_slli_epi16::<4>(b),
            1 => _mm256_slli_epi16::<2>(b),
            2 => b,
            _ => _mm256_srli_epi16::<2>(b),
        };
        _mm256_and_si256(moved, _mm256_set1_epi8(0x30))
    }
}

/// [`Int8::dot_signed`] for half of the rows: |w| times x with the sign of w, at most 2 * 128 * 127.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn dot_signed(avx2: Avx2, acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: the caller guarantees AVX2.
    let (magnitude, x) = unsafe { (_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) };
    add_products(avx2, acc, magnitude, x)
}

/// [`Int8::load_sixes`] for half of the rows.
///
/// # Safety
/// `p` is valid for reading 40 bytes; the CPU has AVX2.
#[inline(always)]
unsafe fn sixes(p: *const u8) -> [__m256i; 4] {
    // SAFETY: the caller guarantees both.
    unsafe {
        let low = _mm256_set1_epi32(63);
        let a = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
        let b = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(16).cast()));
        let c = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(32).cast()));
        let bc = _mm256_or_si256(
            _mm256_slli_epi32::<2>(_mm256_srli_epi32::<6>(b)),
            _mm256_slli_epi32::<4>(_mm256_srli_epi32::<6>(c)),
        );
        [
            _mm256_and_si256(a, low),
            _mm256_and_si256(b, low),
            _mm256_and_si256(c, low),
            _mm256_or_si256(_mm256_srli_epi32::<6>(a), bc),
        ]
    }
}

impl Int8 for Avx2 {
    type S = Avx2;
    type V = Pair;
    type B = Ints;
    type I = Ints;

    #[inline(always)]
    fn floats(self) -> Avx2 {
        self
    }
    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> Ints {
        // SAFETY: the caller guarantees 64 bytes.
        unsafe {
            [
                _mm256_loadu_si256(p.cast()),
                _mm256_loadu_si256(p.add(32).cast()),
            ]
        }
    }
    #[inline(always)]
    fn low4(self, b: Ints) -> Ints {
        // SAFETY: the token proves AVX2, here and below.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(b[0], mask), _mm256_and_si256(b[1], mask)]
        }
    }
    #[inline(always)]
    fn high4(self, b: Ints) -> Ints {
        // SAFETY: as in `low4`.
        self.low4(unsafe { [_mm256_srli_epi16::<4>(b[0]), _mm256_srli_epi16::<4>(b[1])] })
    }
    #[inline(always)]
    fn upper2(self, b: Ints, i: usize) -> Ints {
        // SAFETY: as in `low4`.
        unsafe { [upper2(b[0], i), upper2(b[1], i)] }
    }
    #[inline(always)]
    fn or(self, a: Ints, b: Ints) -> Ints {
        // SAFETY: as in `low4`.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn start<const SHIFT: u32>(self, x: i32) -> Ints {
        // SAFETY: as in `low4`.
        [unsafe { _mm256_set1_epi32(x << SHIFT) }; 2]
    }
    #[inline(always)]
    fn dot(self, acc: Ints, w: Ints, x: [i8; 4]) -> Ints {
        // At most 2 * 127 * 127.
        let x = broadcast(self, x);
        [
            add_products(self, acc[0], w[0], x),
            add_products(self, acc[1], w[1], x),
        ]
    }
    #[inline(always)]
    unsafe fn load_signed(self, p: *const u8) -> Ints {
        // SAFETY: the caller guarantees 64 bytes; the token proves AVX2.
        unsafe {
            let (b, sign) = (self.load(p), _mm256_set1_epi8(-128));
            [_mm256_xor_si256(b[0], sign), _mm256_xor_si256(b[1], sign)]
        }
    }
    #[inline(always)]
    fn start_signed(self, _neg_sum: i32) -> Ints {
        self.start::<0>(0)
    }
    #[inline(always)]
    fn dot_signed(self, acc: Ints, w: Ints, x: [i8; 4]) -> Ints {
        let x = broadcast(self, x);
        // SAFETY: as in `low4`.
        unsafe {
            [
                dot_signed(self, acc[0], w[0], x),
                dot_signed(self, acc[1], w[1], x),
            ]
        }
    }
    #[inline(always)]
    fn to_f32(self, i: Ints) -> Pair {
        // SAFETY: as in `low4`.
        unsafe { Pair(_mm256_cvtepi32_ps(i[0]), _mm256_cvtepi32_ps(i[1])) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> Pair {
        // SAFETY: the caller guarantees 16 bytes.
        unsafe {
            self.to_f32([
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast())),
            ])
        }
    }
    #[inline(always)]
    unsafe fn load_sixes(self, p: *const u8) -> [Pair; 4] {
        // SAFETY: the caller guarantees 48 bytes; the token proves AVX2.
        let (first, second) = unsafe { (sixes(p), sixes(p.add(8))) };
        [
            self.to_f32([first[0], second[0]]),
            self.to_f32([first[1], second[1]]),
            self.to_f32([first[2], second[2]]),
            self.to_f32([first[3], second[3]]),
        ]
    }
    #[inline(always)]
    fn store_i8(self, v: Pair, out: &mut [i8; LANES]) {
        // SAFETY: as in `low4`; the array has room for 16 bytes.
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.0), _mm256_cvtps_epi32(v.1));
            // Packing works within 128-bit halves, so reorder the quarters.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn largest_magnitude(self, [a, b]: [Pair; 2]) -> f32 {
        // SAFETY: as in `low4`.
        unsafe {
            let mask = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
            let a0 = _mm256_castps_si256(_mm256_and_ps(a.0, mask));
            let a1 = _mm256_castps_si256(_mm256_and_ps(a.1, mask));
            let b0 = _mm256_castps_si256(_mm256_and_ps(b.0, mask));
            let b1 = _mm256_castps_si256(_mm256_and_ps(b.1, mask));
            let m = _mm256_max_epi32(_mm256_max_epi32(a0, a1), _mm256_max_epi32(b0, b1));
            let m = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256::<1>(m));
            let m = _mm_max_epi32(m, _mm_shuffle_epi32::<0b01_00_11_10>(m));
            let m = _mm_max_epi32(m, _mm_shuffle_epi32::<0b10_11_00_01>(m));
            f32::from_bits(_mm_cvtsi128_si32(m) as u32)
        }
    }
    #[inline(always)]
    fn half_sums(self, q: &[[i8; LANES]; 2]) -> [i32; 2] {
        [
            crate::x86::sum_of_16_i8(&q[0]),
            crate::x86::sum_of_16_i8(&q[1]),
        ]
    }
}
