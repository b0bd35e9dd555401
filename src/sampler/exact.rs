//! The exponential, the same to the last bit on every platform.

/// e^x for x <= 0, within 2 units of the last place; 0 where the result would be subnormal.
///
/// The platform's `exp` differs between systems in the last bit, which would make a seed give
/// another text elsewhere. Here: x = k ln 2 + r with |r| <= ln 2 / 2, and the Taylor series of
/// e^r up to r^13, whose first omitted term is below 5e-18.
pub(super) fn exp(x: f64) -> f64 {
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8; // low 21 bits zero: k times it is exact
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    /// 1 / n!, highest n first.
    const COEFFICIENTS: [f64; 14] = {
        let mut c = [1.0; 14];
        let mut factorial = 1.0; // exact: 13! is below 2^53
        let mut n = 1;
        while n < 14 {
            factorial *= n as f64;
            c[13 - n] = 1.0 / factorial;
            n += 1;
        }
        c
    };
    /// Added to a small number, leaves its nearest integer in the lowest bits.
    const ROUND: f64 = (3u64 << 51) as f64;
    if x < -708.0 {
        return 0.0;
    }
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (x - k * LN_2_HIGH) - k * LN_2_LOW;
    let sum = COEFFICIENTS.iter().fold(0.0, |sum, c| sum * r + c);
    // 2^k, by its exponent bits; the higher bits of `shifted` are shifted out.
    sum * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    #[test]
    fn exp_is_that_of_the_platform_within_two_units() {
        let mut random = SplitMix64(3);
        let mut xs: Vec<f64> = (0..20_000).map(|_| -random.unit() * 708.0).collect();
        xs.extend((0..20_000).map(|_| -random.unit()));
        xs.extend([-0.0, -1e-300, -708.0, -0.5 * std::f64::consts::LN_2]);
        for x in xs {
            let relative = (exp(x) / x.exp() - 1.0).abs();
            assert!(relative <= 2.0 * f64::EPSILON, "{x}: {relative:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        for x in [-708.1, -1e9, f64::NEG_INFINITY] {
            assert_eq!(exp(x), 0.0);
        }
    }
}
