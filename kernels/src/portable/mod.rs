//! 16 lanes with `wide`, for CPUs without a dedicated version.
//!
//! The lanes, trees and order of operations are those of the other paths, but `a * b + c` rounds twice. Results therefore
//! differ from the other paths by rounding, and are the same on every CPU that runs this path.
//!
//! A fused multiply-add without an instruction for it was tried: product and sum in f64, where the product is exact and the
//! sum, if it is not, is rounded to odd, then one rounding to f32. It equals `mul_add` for 40 million random and nearly tied
//! operands. A product with 4 million bf16 weights takes 13 times as long (8 ms and 100 to 118 ms on one core), whether ties
//! are looked for first or not, and as long as with the library's `fmaf` (126 ms). For the same bits as another machine's
//! that is too slow.

pub(crate) mod int8;

use half::f16;
use wide::f32x16;

use crate::bf12;
use crate::scalar::{self, LANES};
use crate::vector::{self, Simd};

/// A token that needs no check: every CPU runs this path.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

vector::entry_points!(Portable, {}, linear 2 x 2, short_rows 2, matmul 1);

/// Applies `f` lane by lane; the compiler vectorises the loop where it can.
#[inline(always)]
fn each(a: f32x16, b: f32x16, f: impl Fn(f32, f32) -> f32) -> f32x16 {
    let (a, b) = (a.to_array(), b.to_array());
    f32x16::new(core::array::from_fn(|i| f(a[i], b[i])))
}

impl Simd for Portable {
    type V = f32x16;

    #[inline(always)]
    fn splat(self, x: f32) -> f32x16 {
        f32x16::splat(x)
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> f32x16 {
        // SAFETY: the caller guarantees 16 values; the read takes any alignment.
        f32x16::new(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: f32x16) {
        // SAFETY: the caller guarantees 16 values; the write takes any alignment.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v.to_array()) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> f32x16 {
        // SAFETY: the caller guarantees 32 bytes; bytes need no alignment.
        let bytes = unsafe { p.cast::<[[u8; 2]; LANES]>().read() };
        f32x16::new(bytes.map(|b| f16::from_le_bytes(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> f32x16 {
        // SAFETY: the caller guarantees 32 bytes; bytes need no alignment.
        let bytes = unsafe { p.cast::<[[u8; 2]; LANES]>().read() };
        f32x16::new(bytes.map(|b| f32::from_bits((u16::from_le_bytes(b) as u32) << 16)))
    }
    #[inline(always)]
    unsafe fn unpack(self, group: *const u8, half: usize, base: u8) -> [f32x16; 4] {
        // SAFETY: the caller guarantees 192 bytes.
        let group = unsafe { &*group.cast::<[u8; bf12::GROUP_BYTES]>() };
        let mut values = [[0.0; LANES]; 4];
        for (i, eight) in values.as_flattened_mut().chunks_exact_mut(8).enumerate() {
            let index = bf12::byte_index(half * bf12::GROUP / 2 + i * 8);
            for (k, value) in eight.iter_mut().enumerate() {
                *value = bf12::weight(group, base, index + k);
            }
        }
        values.map(f32x16::new)
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u8) -> [f32x16; 2] {
        // SAFETY: the caller guarantees 64 bytes; bytes need no alignment.
        let pairs = unsafe { p.cast::<[[u8; 4]; LANES]>().read() }.map(u32::from_le_bytes);
        let even = pairs.map(|pair| f32::from_bits(pair << 16));
        let odd = pairs.map(|pair| f32::from_bits(pair & 0xffff_0000));
        [f32x16::new(even), f32x16::new(odd)]
    }
    #[inline(always)]
    fn store_f16(self, out: &mut [f16; LANES], v: f32x16) {
        *out = v.to_array().map(f16::from_f32);
    }
    #[inline(always)]
    fn add(self, a: f32x16, b: f32x16) -> f32x16 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32x16, b: f32x16) -> f32x16 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32x16, b: f32x16) -> f32x16 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32x16, b: f32x16) -> f32x16 {
        a / b
    }
    #[inline(always)]
    fn fma(self, a: f32x16, b: f32x16, c: f32x16) -> f32x16 {
        a * b + c
    }
    #[inline(always)]
    fn max(self, a: f32x16, b: f32x16) -> f32x16 {
        each(a, b, scalar::max)
    }
    #[inline(always)]
    fn min(self, a: f32x16, b: f32x16) -> f32x16 {
        each(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max_or_nan(self, a: f32x16, b: f32x16) -> f32x16 {
        each(a, b, |a, b| if a > b || a.is_nan() { a } else { b })
    }
    #[inline(always)]
    fn fma_alternating(self, a: f32x16, b: f32x16, c: f32x16) -> f32x16 {
        let signs: [f32; LANES] = core::array::from_fn(|i| if i % 2 == 0 { -1.0 } else { 1.0 });
        a * b + c * f32x16::new(signs)
    }
    #[inline(always)]
    fn swap_pairs(self, a: f32x16) -> f32x16 {
        let a = a.to_array();
        f32x16::new(core::array::from_fn(|i| a[i ^ 1]))
    }
    #[inline(always)]
    fn twice(self, x: &[f32; LANES / 2]) -> f32x16 {
        f32x16::new(core::array::from_fn(|i| x[i / 2]))
    }
    #[inline(always)]
    fn scale(self, p: f32x16, _n: f32x16, t: f32x16) -> f32x16 {
        each(p, t, scalar::exp::scale)
    }
    #[inline(always)]
    fn sum(self, v: f32x16) -> f32 {
        scalar::tree(v.to_array(), |a, b| a + b)
    }
}
