//! NEON: 16 lanes are four registers.

pub(crate) mod int8;

use core::arch::aarch64::*;
use core::arch::asm;

use half::f16;

use crate::isa::Neon;
use crate::scalar::{LANES, exp::MAGIC};
use crate::vector::{self, Simd};

vector::entry_points!(
    Neon,
    { #[target_feature(enable = "neon")] },
    linear 2 x 2, short_rows 4, matmul 1
);

/// Lanes 0..4, 4..8, 8..12 and 12..16.
type Quad = [float32x4_t; 4];

#[inline(always)]
fn zip(a: Quad, b: Quad, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Quad {
    core::array::from_fn(|i| f(a[i], b[i]))
}

impl Neon {
    /// Loads 16 lanes.
    #[inline(always)]
    fn load_lanes(self, lanes: [f32; LANES]) -> Quad {
        // SAFETY: an array of 16 values.
        unsafe { self.load(lanes.as_ptr()) }
    }

    /// The first two levels of the tree: 16 lanes to 4.
    #[inline(always)]
    fn four(self, v: Quad) -> float32x4_t {
        self.pair(self.pair(v[0], v[2]), self.pair(v[1], v[3]))
    }

    #[inline(always)]
    fn pair(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the token proves NEON.
        unsafe { vaddq_f32(a, b) }
    }

    /// The third level for two trees: `[a0 + a2, a1 + a3, b0 + b2, b1 + b3]`.
    #[inline(always)]
    fn two_and_two(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the token proves NEON.
        unsafe {
            let low = vcombine_f32(vget_low_f32(a), vget_low_f32(b));
            let high = vcombine_f32(vget_high_f32(a), vget_high_f32(b));
            vaddq_f32(low, high)
        }
    }
}

impl Simd for Neon {
    type V = Quad;

    #[inline(always)]
    fn splat(self, x: f32) -> Quad {
        // SAFETY: the token proves NEON, here and below.
        [unsafe { vdupq_n_f32(x) }; 4]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Quad {
        // SAFETY: the caller guarantees 16 values.
        core::array::from_fn(|i| unsafe { vld1q_f32(p.add(4 * i)) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Quad) {
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: the caller guarantees 16 values.
            unsafe { vst1q_f32(p.add(4 * i), v) }
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Quad {
        core::array::from_fn(|i| {
            // The intrinsic needs the unstable type `f16`, but the instruction is part of plain NEON.
            // SAFETY: the caller guarantees 32 bytes.
            unsafe {
                let h = vld1_u8(p.add(8 * i));
                let v: float32x4_t;
                asm!(
                    "fcvtl {v:v}.4s, {h:v}.4h",
                    v = lateout(vreg) v,
                    h = in(vreg) h,
                    options(pure, nomem, nostack, preserves_flags)
                );
                v
            }
        })
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> Quad {
        core::array::from_fn(|i| {
            // SAFETY: the caller guarantees 32 bytes.
            unsafe {
                let h = vreinterpret_u16_u8(vld1_u8(p.add(8 * i)));
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(h)))
            }
        })
    }
    #[inline(always)]
    unsafe fn unpack(self, group: *const u8, half: usize, base: u8) -> [Quad; 4] {
        // SAFETY: the caller guarantees 192 bytes.
        unsafe {
            let (sign, base) = (vdupq_n_u8(0x80), vdupq_n_u8(base));
            let mut out = [[vdupq_n_f32(0.0); 4]; 4];
            for quarter in 0..4 {
                let bytes = vld1q_u8(group.add(half * 64 + quarter * 16));
                let codes = vld1q_u8(group.add(128 + quarter * 16));
                let codes = match half {
                    0 => vandq_u8(codes, vdupq_n_u8(15)),
                    _ => vshrq_n_u8::<4>(codes),
                };
                let exponents = vandq_u8(vaddq_u8(codes, base), vtstq_u8(codes, codes));
                // The sign bit of one operand and the other bits of the other operand.
                let upper = vbslq_u8(sign, bytes, vshrq_n_u8::<1>(exponents));
                let lower = vbslq_u8(sign, vshlq_n_u8::<7>(exponents), bytes);
                let words = [vzip1q_u8(lower, upper), vzip2q_u8(lower, upper)];
                for (i, words) in words.into_iter().enumerate() {
                    let words = vreinterpretq_u16_u8(words);
                    let to = &mut out[i * 2 + quarter / 2][quarter % 2 * 2..];
                    to[0] = vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(words)));
                    to[1] = vreinterpretq_f32_u32(vshll_high_n_u16::<16>(words));
                }
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u8) -> [Quad; 2] {
        // SAFETY: the caller guarantees 64 bytes; the token proves NEON.
        unsafe {
            let pairs: [uint32x4_t; 4] =
                core::array::from_fn(|i| vreinterpretq_u32_u8(vld1q_u8(p.add(16 * i))));
            let upper = vdupq_n_u32(0xffff_0000);
            [
                pairs.map(|v| vreinterpretq_f32_u32(vshlq_n_u32::<16>(v))),
                pairs.map(|v| vreinterpretq_f32_u32(vandq_u32(v, upper))),
            ]
        }
    }
    #[inline(always)]
    fn store_f16(self, out: &mut [f16; LANES], v: Quad) {
        for (out, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(v) {
            // As in `load_f16`.
            // SAFETY: the array has room for 8 bytes.
            unsafe {
                let h: uint8x8_t;
                asm!(
                    "fcvtn {h:v}.4h, {v:v}.4s",
                    h = lateout(vreg) h,
                    v = in(vreg) v,
                    options(pure, nomem, nostack, preserves_flags)
                );
                vst1_u8(out.as_mut_ptr().cast(), h);
            }
        }
    }
    #[inline(always)]
    fn add(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: as in `splat`.
        zip(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    fn sub(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: as in `splat`.
        zip(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    fn mul(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: as in `splat`.
        zip(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    fn div(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: as in `splat`.
        zip(a, b, |a, b| unsafe { vdivq_f32(a, b) })
    }
    #[inline(always)]
    fn fma(self, a: Quad, b: Quad, c: Quad) -> Quad {
        // SAFETY: as in `splat`.
        core::array::from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    fn max(self, a: Quad, b: Quad) -> Quad {
        // `fmax` would order the zeros and propagate NaN, so compare and select as x86 does.
        // SAFETY: as in `splat`.
        zip(a, b, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }
    #[inline(always)]
    fn min(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: as in `splat`.
        zip(a, b, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }
    #[inline(always)]
    fn max_or_nan(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: as in `splat`.
        zip(a, b, |a, b| unsafe {
            let number = vceqq_f32(a, a);
            vbslq_f32(vorrq_u32(vcgtq_f32(a, b), vmvnq_u32(number)), a, b)
        })
    }
    #[inline(always)]
    fn fma_alternating(self, a: Quad, b: Quad, c: Quad) -> Quad {
        // SAFETY: as in `splat`; the array has four values.
        unsafe {
            let sign = vld1q_u32([1 << 31, 0, 1 << 31, 0].as_ptr());
            core::array::from_fn(|i| {
                let c = vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(c[i]), sign));
                vfmaq_f32(c, a[i], b[i])
            })
        }
    }
    #[inline(always)]
    fn swap_pairs(self, a: Quad) -> Quad {
        // SAFETY: as in `splat`.
        a.map(|a| unsafe { vrev64q_f32(a) })
    }
    #[inline(always)]
    fn twice(self, x: &[f32; LANES / 2]) -> Quad {
        // SAFETY: as in `splat`; the array has 8 values.
        unsafe {
            let (low, high) = (vld1q_f32(x.as_ptr()), vld1q_f32(x.as_ptr().add(4)));
            [
                vzip1q_f32(low, low),
                vzip2q_f32(low, low),
                vzip1q_f32(high, high),
                vzip2q_f32(high, high),
            ]
        }
    }
    #[inline(always)]
    fn scale(self, p: Quad, _n: Quad, t: Quad) -> Quad {
        // The steps of `scalar::exp::scale`.
        // SAFETY: as in `splat`.
        zip(p, t, |p, t| unsafe {
            let magic = vdupq_n_s32(MAGIC.to_bits() as i32);
            let n = vsubq_s32(vreinterpretq_s32_f32(t), magic);
            let half = vshrq_n_s32::<1>(n);
            let power = |n: int32x4_t| {
                let biased = vaddq_s32(n, vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
            };
            vmulq_f32(vmulq_f32(p, power(half)), power(vsubq_s32(n, half)))
        })
    }
    #[inline(always)]
    fn sum(self, v: Quad) -> f32 {
        let v = self.four(v);
        let v = self.two_and_two(v, v);
        // SAFETY: as in `splat`.
        unsafe { vgetq_lane_f32::<0>(vpaddq_f32(v, v)) }
    }
    #[inline(always)]
    fn sum4(self, v: [Quad; 4]) -> [f32; 4] {
        let [a, b, c, d] = v.map(|v| self.four(v));
        let (ab, cd) = (self.two_and_two(a, b), self.two_and_two(c, d));
        let mut out = [0.0; 4];
        // SAFETY: as in `splat`; the array has room for four values.
        unsafe { vst1q_f32(out.as_mut_ptr(), vpaddq_f32(ab, cd)) };
        out
    }
}
