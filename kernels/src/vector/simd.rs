//! The operations that an instruction set provides: [`Simd`] on f32, [`Int8`] on 8-bit integers,
//! [`Bf16Dot`] on pairs of bfloat16 numbers. A value of an implementing type is a token: it proves that the CPU
//! has the instructions.

use half::f16;

use crate::lanes::LANES;

/// 16 lanes of f32.
pub(crate) trait Simd: Copy {
    /// The 16 lanes.
    type V: Copy;
    /// Whether a vector is one register, of which there are 32.
    const WIDE: bool = false;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `p` is valid for reading 16 values, at any alignment.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `p` is valid for writing 16 values, at any alignment.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Loads 16 half floats and widens them.
    /// # Safety
    /// `p` is valid for reading 32 bytes.
    unsafe fn load_f16(self, p: *const u8) -> Self::V;
    /// Loads 16 bfloat16 values and widens them.
    /// # Safety
    /// `p` is valid for reading 32 bytes.
    unsafe fn load_bf16(self, p: *const u8) -> Self::V;
    /// Loads 16 pairs of bfloat16 values and widens them: the even elements, the odd elements.
    /// # Safety
    /// `p` is valid for reading 64 bytes.
    unsafe fn load_pairs(self, p: *const u8) -> [Self::V; 2];
    /// Unpacks half a group of bf12 weights, without the exceptions: see [`crate::bf12`].
    /// # Safety
    /// `group` is valid for reading 192 bytes, and `half` is 0 or 1.
    unsafe fn unpack(self, group: *const u8, half: usize, base: u8) -> [Self::V; 4];
    /// Rounds to half floats, to nearest, ties to even.
    fn store_f16(self, out: &mut [f16; LANES], v: Self::V);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once (but see [`crate::portable`]).
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`, so `b` if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`, so `b` if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a > b || a is NaN { a } else { b }`.
    fn max_or_nan(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b - c` in even lanes, `a * b + c` in odd lanes, rounded once.
    fn fma_alternating(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Swaps the lanes of each pair.
    fn swap_pairs(self, a: Self::V) -> Self::V;
    /// Repeats each of 8 values in two neighbouring lanes.
    fn twice(self, x: &[f32; LANES / 2]) -> Self::V;
    /// `p * 2^n` rounded once, where the low bits of `t = n + MAGIC` hold `n` too.
    fn scale(self, p: Self::V, n: Self::V, t: Self::V) -> Self::V;

    /// Adds the lanes as the fixed tree.
    fn sum(self, v: Self::V) -> f32;
    /// [`Simd::sum`] of four vectors.
    #[inline(always)]
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4] {
        v.map(|v| self.sum(v))
    }

    /// The first `n` lanes of `yes` and the other lanes of `no`.
    #[inline(always)]
    fn first(self, n: usize, yes: Self::V, no: Self::V) -> Self::V {
        let mut lanes = self.to_array(no);
        lanes[..n].copy_from_slice(&self.to_array(yes)[..n]);
        self.load_array(&lanes)
    }

    /// Lane `j` of vector `i` becomes lane `i` of vector `j`.
    #[inline(always)]
    fn transpose(self, v: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut rows = [[0.0; LANES]; LANES];
        for i in 0..LANES {
            for (j, x) in self.to_array(v[i]).into_iter().enumerate() {
                rows[j][i] = x;
            }
        }
        let mut out = v;
        for (out, row) in out.iter_mut().zip(&rows) {
            *out = self.load_array(row);
        }
        out
    }

    /// Prefetches the cache line at `p`, which may be any address, into the second-level cache.
    #[inline(always)]
    fn prefetch(self, _p: *const u8) {}

    /// Prefetches a cache line that will be read once, without displacing others from the caches.
    #[inline(always)]
    fn prefetch_streaming(self, p: *const u8) {
        self.prefetch(p);
    }

    #[inline(always)]
    fn load_array(self, x: &[f32; LANES]) -> Self::V {
        // SAFETY: an array of 16 values.
        unsafe { self.load(x.as_ptr()) }
    }

    #[inline(always)]
    fn to_array(self, v: Self::V) -> [f32; LANES] {
        let mut x = [0.0; LANES];
        // SAFETY: an array of 16 values.
        unsafe { self.store(x.as_mut_ptr(), v) };
        x
    }

    /// Loads up to 16 values and pads them with `fill`.
    #[inline(always)]
    fn load_padded(self, x: &[f32], fill: f32) -> Self::V {
        let mut lanes = [fill; LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load_array(&lanes)
    }

    /// Stores the first `x.len()` lanes of `v`.
    #[inline(always)]
    fn store_first(self, x: &mut [f32], v: Self::V) {
        x.copy_from_slice(&self.to_array(v)[..x.len()]);
    }
}

/// 64 bytes of weights, 16 lanes of i32, and the floats that the sums end in.
pub(crate) trait Int8: Copy {
    /// The token for the floats.
    type S: Simd<V = Self::V>;
    /// 16 lanes of f32.
    type V: Copy;
    /// 64 bytes: 4 for each of 16 rows.
    type B: Copy;
    /// 16 lanes of i32.
    type I: Copy;

    fn floats(self) -> Self::S;

    /// # Safety
    /// `p` is valid for reading 64 bytes.
    unsafe fn load(self, p: *const u8) -> Self::B;
    /// [`Int8::load`] with a prefetch.
    /// # Safety
    /// `p` is valid for reading 64 bytes.
    #[inline(always)]
    unsafe fn load_and_prefetch(self, p: *const u8, prefetch: Prefetch) -> Self::B {
        prefetch.issue(self.floats(), p);
        // SAFETY: the caller guarantees 64 bytes.
        unsafe { self.load(p) }
    }
    /// [`Int8::load_signed`] with a prefetch.
    /// # Safety
    /// `p` is valid for reading 64 bytes.
    #[inline(always)]
    unsafe fn load_signed_and_prefetch(self, p: *const u8, prefetch: Prefetch) -> Self::B {
        prefetch.issue(self.floats(), p);
        // SAFETY: the caller guarantees 64 bytes.
        unsafe { self.load_signed(p) }
    }
    /// The lower 4 bits of each byte.
    fn low4(self, b: Self::B) -> Self::B;
    /// The upper 4 bits of each byte, shifted down.
    fn high4(self, b: Self::B) -> Self::B;
    /// Bits `2 * i` and `2 * i + 1` of each byte, moved to bits 4 and 5.
    fn upper2(self, b: Self::B, i: usize) -> Self::B;
    fn or(self, a: Self::B, b: Self::B) -> Self::B;

    /// `x << SHIFT` in every lane.
    fn start<const SHIFT: u32>(self, x: i32) -> Self::I;
    /// Adds the products of each row's 4 bytes (0..=127) with `x`.
    fn dot(self, acc: Self::I, w: Self::B, x: [i8; 4]) -> Self::I;

    /// [`Int8::load`] for bytes that store a value plus 128.
    /// # Safety
    /// `p` is valid for reading 64 bytes.
    unsafe fn load_signed(self, p: *const u8) -> Self::B;
    /// The initial sums for [`Int8::dot_signed`], where `neg_sum` is minus the sum of all its `x`.
    fn start_signed(self, neg_sum: i32) -> Self::I;
    /// Adds the products of each row's 4 bytes minus 128 with `x`.
    fn dot_signed(self, acc: Self::I, w: Self::B, x: [i8; 4]) -> Self::I;

    fn to_f32(self, i: Self::I) -> Self::V;
    /// Loads 16 signed bytes.
    /// # Safety
    /// `p` is valid for reading 16 bytes.
    unsafe fn load_i8(self, p: *const u8) -> Self::V;
    /// Unpacks four times 16 6-bit numbers from 48 bytes: see `block::q4_k`.
    /// # Safety
    /// `p` is valid for reading 48 bytes.
    unsafe fn load_sixes(self, p: *const u8) -> [Self::V; 4];
    /// Rounds to integers, ties to even, and stores them as bytes. A result is only used if its value is within
    /// -127.5..127.5.
    fn store_i8(self, v: Self::V, out: &mut [i8; LANES]);
    /// The largest magnitude of 32 values; NaN if any is NaN.
    fn largest_magnitude(self, x: [Self::V; 2]) -> f32;
    /// The sum of the first 16 values and the sum of the last 16.
    fn half_sums(self, q: &[[i8; LANES]; 2]) -> [i32; 2];
}

/// 16 pairs of bfloat16 numbers.
pub(crate) trait Bf16Dot: Copy {
    /// The token for the floats.
    type S: Simd;
    /// 16 pairs.
    type P: Copy;

    fn floats(self) -> Self::S;

    /// # Safety
    /// `p` is valid for reading 64 bytes.
    unsafe fn load(self, p: *const u8) -> Self::P;

    /// Adds to each lane the product of the odd elements of its pair, then the product of the even elements.
    fn dot(self, acc: <Self::S as Simd>::V, w: Self::P, x: Self::P) -> <Self::S as Simd>::V;
}

/// Whether to prefetch memory ahead of a load, and how many bytes ahead.
#[derive(Clone, Copy)]
pub(crate) enum Prefetch {
    /// No prefetch.
    None,
    /// Memory that will be read several times.
    Temporal(usize),
    /// Memory that will be read once, one cache line after the other.
    Streaming(usize),
}

impl Prefetch {
    /// Prefetches the cache line that is that many bytes ahead of `p`.
    #[inline(always)]
    pub(crate) fn issue<S: Simd>(self, s: S, p: *const u8) {
        match self {
            Prefetch::None => (),
            Prefetch::Temporal(bytes) => s.prefetch(p.wrapping_add(bytes)),
            Prefetch::Streaming(bytes) => s.prefetch_streaming(p.wrapping_add(bytes)),
        }
    }
}

/// Prefetches the row of `bytes` bytes at `start`, if `rows` has one there.
#[inline(always)]
pub(super) fn prefetch_row<S: Simd>(s: S, rows: &[u8], start: usize, bytes: usize) {
    if let Some(row) = rows.get(start..start + bytes) {
        for line in row.chunks(CACHE_LINE) {
            s.prefetch(line.as_ptr());
        }
    }
}

/// Bytes of a cache line.
pub(super) const CACHE_LINE: usize = 64;
