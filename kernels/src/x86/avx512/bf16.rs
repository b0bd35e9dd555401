//! AVX-512 on pairs of bfloat16 numbers.

use core::arch::x86_64::*;

use crate::bf16::Bf16Activations;
use crate::isa::Avx512;
use crate::vector::{self, Bf16Dot};
use crate::view::ViewMut;

/// A token that was checked for the dot product of bfloat16 numbers.
#[derive(Clone, Copy)]
pub(crate) struct Bf16(Avx512);

impl Bf16 {
    pub(crate) fn new(token: Avx512) -> Option<Self> {
        token.has_bf16().then_some(Bf16(token))
    }
}

/// Whether the instruction does what [`crate::rounded`] says: the odd element first, rounding after
/// each. Any other order gives one more in the last place here.
///
/// # Safety
/// The CPU has AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) unsafe fn adds_odd_first() -> bool {
    const ONE: i32 = 0x3f80_3f80;
    const HALF_STEP_AND_STEP: i32 = 0x3380_3400; // 2^-24 odd, 2^-23 even
    let pair = |x| core::hint::black_box(_mm512_set1_epi32(x));
    // SAFETY: both types are 64 bytes of any content.
    let pair = |x| unsafe { core::mem::transmute::<__m512i, __m512bh>(pair(x)) };
    let sum = _mm512_dpbf16_ps(_mm512_set1_ps(1.0), pair(HALF_STEP_AND_STEP), pair(ONE));
    _mm512_cvtss_f32(sum) == 1.0 + f32::EPSILON
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(crate) fn linear_bf16_bf16(s: Bf16, w: &[u8], x: &Bf16Activations, out: &mut ViewMut<'_, f32>) {
    vector::linear_bf16_dot::<_, 4, 6, 8>(s, w, x, out)
}

impl Bf16Dot for Bf16 {
    type S = Avx512;
    type P = __m512bh;

    #[inline(always)]
    fn floats(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> __m512bh {
        // SAFETY: the caller vouches for 64 bytes; both types have as many, of any content.
        unsafe { core::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(p.cast())) }
    }

    #[inline(always)]
    fn dot(self, acc: __m512, w: __m512bh, x: __m512bh) -> __m512 {
        // SAFETY: the token proves BF16.
        unsafe { _mm512_dpbf16_ps(acc, w, x) }
    }
}
