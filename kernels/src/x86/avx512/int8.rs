//! AVX-512 on 8-bit integers, with the 8-bit dot product (VNNI) and without it.

use core::arch::x86_64::*;

use crate::isa::Avx512;
use crate::scalar::LANES;
use crate::vector::Int8;

/// The common part of both implementations; `$differs` has `dot`, `load_signed`, `start_signed` and `dot_signed`.
macro_rules! implement {
    ($name:ident, { $($differs:tt)* }) => {
        impl Int8 for $name {
            type S = Avx512;
            type V = __m512;
            type B = __m512i;
            type I = __m512i;

            #[inline(always)]
            fn floats(self) -> Avx512 {
                self.0
            }
            #[inline(always)]
            unsafe fn load(self, p: *const u8) -> __m512i {
                // SAFETY: the caller guarantees 64 bytes.
                unsafe { _mm512_loadu_si512(p.cast()) }
            }
            #[inline(always)]
            fn low4(self, b: __m512i) -> __m512i {
                // SAFETY: the token proves AVX-512 F and BW, here and below.
                unsafe { _mm512_and_si512(b, _mm512_set1_epi8(15)) }
            }
            #[inline(always)]
            fn high4(self, b: __m512i) -> __m512i {
                // SAFETY: as in `low4`.
                self.low4(unsafe { _mm512_srli_epi16::<4>(b) })
            }
            #[inline(always)]
            fn upper2(self, b: __m512i, i: usize) -> __m512i {
                // SAFETY: as in `low4`.
                unsafe {
                    let moved = match i {
                        0 => _mm512_slli_epi16::<4>(b),
                        1 => _mm512_slli_epi16::<2>(b),
                        2 => b,
                        _ => _mm512_srli_epi16::<2>(b),
                    };
                    _mm512_and_si512(moved, _mm512_set1_epi8(0x30))
                }
            }
            #[inline(always)]
            fn or(self, a: __m512i, b: __m512i) -> __m512i {
                // SAFETY: as in `low4`.
                unsafe { _mm512_or_si512(a, b) }
            }
            #[inline(always)]
            fn start<const SHIFT: u32>(self, x: i32) -> __m512i {
                // SAFETY: as in `low4`.
                unsafe { _mm512_slli_epi32::<SHIFT>(_mm512_set1_epi32(x)) }
            }
            #[inline(always)]
            fn to_f32(self, i: __m512i) -> __m512 {
                // SAFETY: as in `low4`.
                unsafe { _mm512_cvtepi32_ps(i) }
            }
            #[inline(always)]
            unsafe fn load_i8(self, p: *const u8) -> __m512 {
                // SAFETY: the caller guarantees 16 bytes.
                unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
            }
            #[inline(always)]
            unsafe fn load_sixes(self, p: *const u8) -> [__m512; 4] {
                // SAFETY: the caller guarantees 48 bytes; the token proves AVX-512 F.
                unsafe {
                    let low = _mm512_set1_epi32(63);
                    let a = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
                    let b = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.add(16).cast()));
                    let c = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.add(32).cast()));
                    let bc = _mm512_or_si512(
                        _mm512_slli_epi32::<2>(_mm512_srli_epi32::<6>(b)),
                        _mm512_slli_epi32::<4>(_mm512_srli_epi32::<6>(c)),
                    );
                    [
                        _mm512_cvtepi32_ps(_mm512_and_si512(a, low)),
                        _mm512_cvtepi32_ps(_mm512_and_si512(b, low)),
                        _mm512_cvtepi32_ps(_mm512_and_si512(c, low)),
                        _mm512_cvtepi32_ps(_mm512_or_si512(_mm512_srli_epi32::<6>(a), bc)),
                    ]
                }
            }
            #[inline(always)]
            fn store_i8(self, v: __m512, out: &mut [i8; LANES]) {
                // SAFETY: as in `low4`; the array has room for 16 bytes.
                unsafe {
                    let bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v));
                    _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
                }
            }
            #[inline(always)]
            fn largest_magnitude(self, [a, b]: [__m512; 2]) -> f32 {
                // SAFETY: as in `low4`; the token proves DQ too.
                unsafe {
                    let a = _mm512_castps_si512(_mm512_abs_ps(a));
                    let b = _mm512_castps_si512(_mm512_abs_ps(b));
                    let m = _mm512_max_epi32(a, b);
                    f32::from_bits(_mm512_reduce_max_epi32(m) as u32)
                }
            }
            #[inline(always)]
            fn half_sums(self, q: &[[i8; LANES]; 2]) -> [i32; 2] {
                [crate::x86::sum_of_16_i8(&q[0]), crate::x86::sum_of_16_i8(&q[1])]
            }
            $($differs)*
        }
    };
}

/// 4 bytes as the word to broadcast.
#[inline(always)]
fn broadcast(x: [i8; 4]) -> i32 {
    i32::from_le_bytes(x.map(|x| x as u8))
}

/// With VNNI.
pub(crate) mod vnni {
    use super::*;

    /// Proof that the CPU has VNNI.
    #[derive(Clone, Copy)]
    pub(crate) struct Vnni(Avx512);

    impl Vnni {
        pub(crate) fn new(token: Avx512) -> Option<Self> {
            token.has_vnni().then_some(Vnni(token))
        }
    }

    crate::vector::int8_entry_points!(
        Vnni,
        { #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")] },
        tile 2 x 6
    );

    implement!(Vnni, {
        #[inline(always)]
        fn dot(self, acc: __m512i, w: __m512i, x: [i8; 4]) -> __m512i {
            // SAFETY: the token proves VNNI.
            unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(broadcast(x))) }
        }
        #[inline(always)]
        unsafe fn load_signed(self, p: *const u8) -> __m512i {
            // SAFETY: the caller guarantees 64 bytes.
            unsafe { self.load(p) }
        }
        #[inline(always)]
        fn start_signed(self, neg_sum: i32) -> __m512i {
            // The bytes are used as stored, 128 too large.
            self.start::<7>(neg_sum)
        }
        #[inline(always)]
        fn dot_signed(self, acc: __m512i, w: __m512i, x: [i8; 4]) -> __m512i {
            self.dot(acc, w, x)
        }
    });
}

/// Without VNNI.
pub(crate) mod plain {
    use super::*;

    /// A token whose VNNI, if the CPU has it, is not used.
    #[derive(Clone, Copy)]
    pub(crate) struct Plain(pub(crate) Avx512);

    crate::vector::int8_entry_points!(
        Plain,
        { #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")] },
        tile 2 x 6
    );

    /// Adds sums of four products. Pairs are summed in 16 bits first, which must not overflow.
    #[inline(always)]
    fn add_products(acc: __m512i, unsigned: __m512i, signed: __m512i) -> __m512i {
        // SAFETY: only called with a token, which proves AVX-512 BW.
        unsafe {
            let pairs = _mm512_maddubs_epi16(unsigned, signed);
            _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }

    implement!(Plain, {
        #[inline(always)]
        fn dot(self, acc: __m512i, w: __m512i, x: [i8; 4]) -> __m512i {
            // At most 2 * 127 * 127.
            // SAFETY: as in `low4`.
            add_products(acc, w, unsafe { _mm512_set1_epi32(broadcast(x)) })
        }
        #[inline(always)]
        unsafe fn load_signed(self, p: *const u8) -> __m512i {
            // SAFETY: the caller guarantees 64 bytes.
            unsafe { _mm512_xor_si512(self.load(p), _mm512_set1_epi8(-128)) }
        }
        #[inline(always)]
        fn start_signed(self, _neg_sum: i32) -> __m512i {
            self.start::<0>(0)
        }
        #[inline(always)]
        fn dot_signed(self, acc: __m512i, w: __m512i, x: [i8; 4]) -> __m512i {
            // |w| times x with the sign of w: at most 2 * 128 * 127.
            // SAFETY: as in `low4`.
            unsafe {
                let x = _mm512_set1_epi32(broadcast(x));
                let negative = _mm512_movepi8_mask(w);
                let x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
                add_products(acc, _mm512_abs_epi8(w), x)
            }
        }
    });
}
