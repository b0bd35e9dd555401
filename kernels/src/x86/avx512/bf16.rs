//! AVX-512 on pairs of bfloat16 numbers: one instruction is the dot product.

use core::arch::x86_64::*;

use crate::bf16::Bf16Activations;
use crate::isa::Avx512;
use crate::vector::{self, Bf16Dot};
use crate::view::ViewMut;

/// Proof that the CPU has the dot product of bfloat16 numbers.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512);

impl Avx512Bf16 {
    pub(crate) fn new(token: Avx512) -> Option<Self> {
        token.has_bf16().then_some(Avx512Bf16(token))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(crate) fn linear_bf16_bf16(
    s: Avx512Bf16,
    w: &[u8],
    x: &Bf16Activations,
    out: &mut ViewMut<'_, f32>,
) {
    vector::linear_bf16_dot::<_, 4, 6, 8>(s, w, x, out)
}

impl Bf16Dot for Avx512Bf16 {
    type S = Avx512;
    type P = __m512bh;

    #[inline(always)]
    fn floats(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> __m512bh {
        // SAFETY: the caller guarantees 64 bytes; both types have 64 bytes of any content.
        unsafe { core::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(p.cast())) }
    }

    #[inline(always)]
    fn dot(self, acc: __m512, w: __m512bh, x: __m512bh) -> __m512 {
        // SAFETY: the token proves BF16.
        unsafe { _mm512_dpbf16_ps(acc, w, x) }
    }
}
