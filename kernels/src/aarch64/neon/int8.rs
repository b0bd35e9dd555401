//! NEON on 8-bit integers, with the 8-bit dot product and without it.

use core::arch::aarch64::*;
use core::arch::asm;

use super::Quad;
use crate::isa::Neon;
use crate::scalar::LANES;
use crate::vector::Int8;

/// 64 bytes: the 4 of rows 0..4, 4..8, 8..12 and 12..16.
type Bytes = [uint8x16_t; 4];
/// 16 lanes.
type Ints = [int32x4_t; 4];

/// 4 bytes, repeated 4 times.
#[inline(always)]
fn broadcast(_: Neon, x: [i8; 4]) -> int8x16_t {
    // SAFETY: the token proves NEON.
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(x.map(|x| x as u8)))) }
}

/// The common part of both implementations; `$dot` adds the signed products of four rows.
macro_rules! implement {
    ($name:ident, $dot:path) => {
        impl Int8 for $name {
            type S = Neon;
            type V = Quad;
            type B = Bytes;
            type I = Ints;

            #[inline(always)]
            fn floats(self) -> Neon {
                self.0
            }
            #[inline(always)]
            unsafe fn load(self, p: *const u8) -> Bytes {
                // SAFETY: the caller guarantees 64 bytes.
                core::array::from_fn(|i| unsafe { vld1q_u8(p.add(16 * i)) })
            }
            #[inline(always)]
            fn low4(self, b: Bytes) -> Bytes {
                // SAFETY: the token proves NEON, here and below.
                b.map(|b| unsafe { vandq_u8(b, vdupq_n_u8(15)) })
            }
            #[inline(always)]
            fn high4(self, b: Bytes) -> Bytes {
                // SAFETY: as in `low4`.
                b.map(|b| unsafe { vshrq_n_u8::<4>(b) })
            }
            #[inline(always)]
            fn upper2(self, b: Bytes, i: usize) -> Bytes {
                // SAFETY: as in `low4`.
                b.map(|b| unsafe {
                    let moved = match i {
                        0 => vshlq_n_u8::<4>(b),
                        1 => vshlq_n_u8::<2>(b),
                        2 => b,
                        _ => vshrq_n_u8::<2>(b),
                    };
                    vandq_u8(moved, vdupq_n_u8(0x30))
                })
            }
            #[inline(always)]
            fn or(self, a: Bytes, b: Bytes) -> Bytes {
                // SAFETY: as in `low4`.
                core::array::from_fn(|i| unsafe { vorrq_u8(a[i], b[i]) })
            }
            #[inline(always)]
            fn start<const SHIFT: u32>(self, x: i32) -> Ints {
                // SAFETY: as in `low4`.
                [unsafe { vdupq_n_s32(x << SHIFT) }; 4]
            }
            #[inline(always)]
            fn dot(self, acc: Ints, w: Bytes, x: [i8; 4]) -> Ints {
                let x = broadcast(self.0, x);
                // SAFETY: as in `low4`; the weights are below 128, so their sign does not matter.
                core::array::from_fn(|i| unsafe {
                    $dot(self, acc[i], vreinterpretq_s8_u8(w[i]), x)
                })
            }
            #[inline(always)]
            unsafe fn load_signed(self, p: *const u8) -> Bytes {
                // SAFETY: the caller guarantees 64 bytes; the token proves NEON.
                unsafe { self.load(p).map(|b| veorq_u8(b, vdupq_n_u8(128))) }
            }
            #[inline(always)]
            fn start_signed(self, _neg_sum: i32) -> Ints {
                self.start::<0>(0)
            }
            #[inline(always)]
            fn dot_signed(self, acc: Ints, w: Bytes, x: [i8; 4]) -> Ints {
                self.dot(acc, w, x)
            }
            #[inline(always)]
            fn to_f32(self, i: Ints) -> Quad {
                // SAFETY: as in `low4`.
                i.map(|i| unsafe { vcvtq_f32_s32(i) })
            }
            #[inline(always)]
            unsafe fn load_i8(self, p: *const u8) -> Quad {
                // SAFETY: the caller guarantees 16 bytes; bytes need no alignment.
                let bytes = unsafe { p.cast::<[i8; LANES]>().read() };
                self.0.load_lanes(bytes.map(f32::from))
            }
            #[inline(always)]
            unsafe fn load_sixes(self, p: *const u8) -> [Quad; 4] {
                // SAFETY: the caller guarantees 48 bytes; the token proves NEON.
                unsafe {
                    let (a, b, c) = (vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)));
                    let low = |v| vandq_u8(v, vdupq_n_u8(63));
                    let top = vorrq_u8(
                        vshrq_n_u8::<6>(a),
                        vorrq_u8(
                            vshlq_n_u8::<2>(vshrq_n_u8::<6>(b)),
                            vshlq_n_u8::<4>(vshrq_n_u8::<6>(c)),
                        ),
                    );
                    [low(a), low(b), low(c), top].map(|v| {
                        let mut bytes = [0; LANES];
                        vst1q_u8(bytes.as_mut_ptr(), v);
                        self.0.load_lanes(bytes.map(f32::from))
                    })
                }
            }
            #[inline(always)]
            fn store_i8(self, v: Quad, out: &mut [i8; LANES]) {
                // SAFETY: as in `low4`; the array has room for 16 bytes.
                unsafe {
                    let [a, b, c, d] = v.map(|v| vqmovn_s32(vcvtnq_s32_f32(v)));
                    let low = vqmovn_s16(vcombine_s16(a, b));
                    let high = vqmovn_s16(vcombine_s16(c, d));
                    vst1q_s8(out.as_mut_ptr(), vcombine_s8(low, high));
                }
            }
            #[inline(always)]
            fn largest_magnitude(self, x: [Quad; 2]) -> f32 {
                // SAFETY: as in `low4`.
                unsafe {
                    let bits = |x| vreinterpretq_u32_f32(vabsq_f32(x));
                    let mut m = vdupq_n_u32(0);
                    for x in x.as_flattened() {
                        m = vmaxq_u32(m, bits(*x));
                    }
                    f32::from_bits(vmaxvq_u32(m))
                }
            }
            #[inline(always)]
            fn half_sums(self, q: &[[i8; LANES]; 2]) -> [i32; 2] {
                // SAFETY: as in `low4`; each array has 16 bytes.
                q.map(|q| unsafe { vaddlvq_s8(vld1q_s8(q.as_ptr())) } as i32)
            }
        }
    };
}

/// With the dot product.
pub(crate) mod dot {
    use super::*;

    /// Proof that the CPU has the dot product.
    #[derive(Clone, Copy)]
    pub(crate) struct Dot(Neon);

    impl Dot {
        pub(crate) fn new(token: Neon) -> Option<Self> {
            token.has_dotprod().then_some(Dot(token))
        }
    }

    crate::vector::int8_entry_points!(
        Dot,
        { #[target_feature(enable = "neon,dotprod")] },
        tile 1 x 4
    );

    /// Adds sums of four products. The intrinsic is unstable.
    #[inline(always)]
    unsafe fn add_products(_: Dot, acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        let mut acc = acc;
        // SAFETY: the token proves the dot product.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
                acc = inout(vreg) acc,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        acc
    }

    implement!(Dot, add_products);
}

/// Without the dot product.
pub(crate) mod plain {
    use super::*;

    /// A token whose dot product, if the CPU has it, is not used.
    #[derive(Clone, Copy)]
    pub(crate) struct Plain(pub(crate) Neon);

    crate::vector::int8_entry_points!(
        Plain,
        { #[target_feature(enable = "neon")] },
        tile 1 x 4
    );

    /// Adds sums of four products: the products in 16 bits, their pairs in 32 bits.
    #[inline(always)]
    unsafe fn add_products(_: Plain, acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the token proves NEON.
        unsafe {
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
            let high = vpaddlq_s16(vmull_high_s8(w, x));
            vaddq_s32(acc, vpaddq_s32(low, high))
        }
    }

    implement!(Plain, add_products);
}
