//! Matrix products in bfloat16: two values of k per word.

use core::arch::x86_64::*;
use core::mem::transmute;

use super::bf16::Avx512Bf16;
use crate::isa::Avx512;
use crate::matmul::{Accumulate, Packed};
use crate::vector::{self, Packing};
use crate::view::{View, ViewMut};

impl Packing<Avx512> for Avx512Bf16 {
    const K_PER_WORD: usize = 2;
    #[inline(always)]
    fn pack_k(self, _s: Avx512, first: __m512, second: __m512) -> __m512 {
        // SAFETY: the tokens prove AVX-512 F and BF16, here and below. Both types are 512 bits.
        unsafe { transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second, first)) }
    }
    #[inline(always)]
    fn pack_n(self, _s: Avx512, first: __m512, second: __m512) -> __m512 {
        // SAFETY: as in `pack_k`; the halves are 256 bits.
        unsafe {
            let first = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(first));
            let second = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(second));
            let second = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(second));
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(first), second))
        }
    }
    #[inline(always)]
    fn multiply_add(self, _s: Avx512, a: __m512, b: __m512, acc: __m512) -> __m512 {
        // SAFETY: as in `pack_k`.
        unsafe {
            let (a, b) = (
                transmute::<__m512, __m512bh>(a),
                transmute::<__m512, __m512bh>(b),
            );
            _mm512_dpbf16_ps(acc, a, b)
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn matmul_bf16(
    s: Avx512,
    packing: Avx512Bf16,
    accumulate: Accumulate,
    c: &mut ViewMut<'_, f32>,
    scale: f32,
    a: View<'_, f32>,
    b: View<'_, f32>,
    packed: &mut Packed,
) {
    vector::matmul::<_, _, 4>(s, packing, accumulate, c, scale, a, b, packed)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(crate) fn multiply_adds_bf16(s: Avx512, packing: Avx512Bf16, rounds: usize) -> (u64, f32) {
    vector::multiply_adds::<_, _, 4>(s, packing, rounds)
}
