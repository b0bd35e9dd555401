//! 8-bit integers in plain arrays: the compiler vectorises the loops where it can.

use wide::f32x16;

use super::Portable;
use crate::block::activations::{largest_magnitude, round};
use crate::scalar::LANES;
use crate::vector::Int8;

crate::vector::int8_entry_points!(Portable, {}, tile 1 x 2);

impl Int8 for Portable {
    type S = Portable;
    type V = f32x16;
    type B = [u8; 64];
    type I = [i32; LANES];

    #[inline(always)]
    fn floats(self) -> Portable {
        self
    }
    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> [u8; 64] {
        // SAFETY: the caller guarantees 64 bytes; bytes need no alignment.
        unsafe { p.cast::<[u8; 64]>().read() }
    }
    #[inline(always)]
    fn low4(self, b: [u8; 64]) -> [u8; 64] {
        b.map(|b| b & 15)
    }
    #[inline(always)]
    fn high4(self, b: [u8; 64]) -> [u8; 64] {
        b.map(|b| b >> 4)
    }
    #[inline(always)]
    fn upper2(self, b: [u8; 64], i: usize) -> [u8; 64] {
        b.map(|b| (b >> (2 * i) & 3) << 4)
    }
    #[inline(always)]
    fn or(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        core::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn start<const SHIFT: u32>(self, x: i32) -> [i32; LANES] {
        [x << SHIFT; LANES]
    }
    #[inline(always)]
    fn dot(self, acc: [i32; LANES], w: [u8; 64], x: [i8; 4]) -> [i32; LANES] {
        let product = |r: usize, t: usize| w[4 * r + t] as i32 * x[t] as i32;
        core::array::from_fn(|r| {
            acc[r] + product(r, 0) + product(r, 1) + product(r, 2) + product(r, 3)
        })
    }
    #[inline(always)]
    unsafe fn load_signed(self, p: *const u8) -> [u8; 64] {
        // SAFETY: the caller guarantees 64 bytes.
        unsafe { self.load(p) }
    }
    #[inline(always)]
    fn start_signed(self, neg_sum: i32) -> [i32; LANES] {
        self.start::<7>(neg_sum)
    }
    #[inline(always)]
    fn dot_signed(self, acc: [i32; LANES], w: [u8; 64], x: [i8; 4]) -> [i32; LANES] {
        self.dot(acc, w, x)
    }
    #[inline(always)]
    fn to_f32(self, i: [i32; LANES]) -> f32x16 {
        f32x16::new(i.map(|i| i as f32))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> f32x16 {
        // SAFETY: the caller guarantees 16 bytes; bytes need no alignment.
        f32x16::new(unsafe { p.cast::<[i8; LANES]>().read() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn load_sixes(self, p: *const u8) -> [f32x16; 4] {
        // SAFETY: the caller guarantees 48 bytes; bytes need no alignment.
        let [a, b, c] = unsafe { p.cast::<[[u8; LANES]; 3]>().read() };
        let low = |v: [u8; LANES]| f32x16::new(v.map(|v| (v & 63) as f32));
        let top = |i: usize| (a[i] >> 6 | b[i] >> 6 << 2 | c[i] >> 6 << 4) as f32;
        [
            low(a),
            low(b),
            low(c),
            f32x16::new(core::array::from_fn(top)),
        ]
    }
    #[inline(always)]
    fn store_i8(self, v: f32x16, out: &mut [i8; LANES]) {
        *out = v.to_array().map(round);
    }
    #[inline(always)]
    fn largest_magnitude(self, x: [f32x16; 2]) -> f32 {
        largest_magnitude(x.map(|x| x.to_array()).as_flattened())
    }
    #[inline(always)]
    fn half_sums(self, q: &[[i8; LANES]; 2]) -> [i32; 2] {
        q.map(|q| q.iter().map(|&q| q as i32).sum())
    }
}
