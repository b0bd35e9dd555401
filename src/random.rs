//! Random numbers, the same on every machine for a seed.

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state, every seed is good. The field is the state.
#[derive(Debug, Clone)]
pub struct SplitMix64(pub u64);

/// The finaliser of SplitMix64: 64 bits to 64 well-mixed bits.
#[inline(always)]
pub fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl SplitMix64 {
    /// Numbers of a seed that is mixed first, so that seeds which differ by little start far apart.
    pub fn mixed(seed: u64) -> Self {
        SplitMix64(mix(seed ^ 0x5851_f42d_4c95_7f2d))
    }

    /// Numbers of a seed and a name, independent of those of other names.
    pub fn named(seed: u64, name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        SplitMix64::mixed(seed ^ mix(hash))
    }

    /// 64 random bits.
    #[allow(clippy::should_implement_trait)] // never ends, so no iterator
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A multiple of 2^-53 from 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in -1..1.
    pub fn signed(&mut self) -> f64 {
        2.0 * self.unit() - 1.0
    }

    /// Uniform in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// Normally distributed, mean 0, deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let u = 1.0 - self.unit();
        let v = self.unit();
        (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
    }

    /// Shuffles a list.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_are_splitmix64() {
        // From the published reference code with this seed.
        let mut random = SplitMix64(1_234_567);
        for expected in [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
        ] {
            assert_eq!(random.next(), expected);
        }
    }

    #[test]
    fn numbers_are_those_of_the_seed_and_well_spread() {
        let mut random = SplitMix64::named(1, "a");
        assert_eq!(random.next(), SplitMix64::named(1, "a").next());
        assert_ne!(random.next(), SplitMix64::named(1, "b").next());
        let n = 20_000;
        let values: Vec<f64> = (0..n).map(|_| random.normal()).collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let variance = values.iter().map(|v| v * v).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05);
        let mut order: Vec<usize> = (0..100).collect();
        random.shuffle(&mut order);
        assert!(order.iter().enumerate().any(|(i, &v)| i != v));
        order.sort_unstable();
        assert!(order.into_iter().eq(0..100));
    }
}
