//! The exponential function, as a fixed sequence of f32 operations that is the same on every path.
//!
//! ```text
//! t = x * log2(e) + MAGIC          n = t - MAGIC: x / ln 2, rounded to an integer
//! r = x - n * ln 2                 |r| <= ln 2 / 2; ln 2 in two parts
//! p = 1 + r + r^2 * q(r)           q of degree 4, fitted at Chebyshev nodes, error 1.1e-8
//! exp x = p * 2^(n/2) * 2^(n-n/2)  two factors, so that each stays in the range of f32
//! ```

/// Above this the result is infinite.
pub(crate) const HIGHEST: f32 = 89.0;
/// Below this the result is 0.
pub(crate) const LOWEST: f32 = -104.0;
pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// 1.5 * 2^23: adding it rounds to an integer and leaves that integer in the low bits.
pub(crate) const MAGIC: f32 = 12_582_912.0;
/// The upper 15 bits of ln 2; their product with an integer below 256 is exact.
pub(crate) const LN2_HIGH: f32 = 0.693_145_75;
/// The rest of ln 2.
pub(crate) const LN2_LOW: f32 = 1.428_606_8e-6;
/// Coefficients of `1 + r + r^2 * q(r)`, highest power first.
pub(crate) const POLY: [f32; 7] = [
    f32::from_bits(0x3ab6_8887),
    f32::from_bits(0x3c09_05b9),
    f32::from_bits(0x3d2a_aa8d),
    f32::from_bits(0x3e2a_aa6e),
    0.5,
    1.0,
    1.0,
];

/// e^x, within 2 units in the last place. NaN gives NaN.
pub(crate) fn exp(x: f32) -> f32 {
    // Written so that NaN propagates.
    let x = if HIGHEST < x { HIGHEST } else { x };
    let x = if LOWEST > x { LOWEST } else { x };
    let t = x.mul_add(LOG2_E, MAGIC);
    let n = t - MAGIC;
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let p = POLY.into_iter().reduce(|p, c| p.mul_add(r, c)).unwrap();
    scale(p, t)
}

/// `p * 2^n`, where `n` is in the low bits of `t`.
#[inline(always)]
pub(crate) fn scale(p: f32, t: f32) -> f32 {
    let n = t.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    p * power(half) * power(n.wrapping_sub(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error in units in the last place of the true value.
    fn ulps(x: f32) -> f64 {
        let truth = (x as f64).exp();
        let exponent = truth.log2().floor().max(-126.0);
        (exp(x) as f64 - truth).abs() / (exponent - 23.0).exp2()
    }

    #[test]
    fn stays_within_two_ulps() {
        let mut worst = (0.0, 0.0);
        let mut x = -104.5f32;
        while x < 88.72 {
            let error = ulps(x);
            if error > worst.0 {
                worst = (error, x);
            }
            x += 0.000_37;
        }
        assert!(worst.0 < 1.1, "{} ulps at {}", worst.0, worst.1);
    }

    #[test]
    fn edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(-1e30).to_bits(), 0);
        assert_eq!(exp(-104.0).to_bits(), 0);
        assert_eq!(exp(88.8), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
