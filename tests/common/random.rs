//! The one random number generator of tests, fuzzing and benchmarks.

/// SplitMix64: the same numbers everywhere for a seed.
pub struct Random(pub u64);

#[allow(dead_code)] // each program uses its part
impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// A number in -1..1.
    pub fn uniform(&mut self) -> f32 {
        // 24 bits, all that a float holds.
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
