//! The search for the scale with the smallest error, shared by the encoders.
//!
//! Sums have 8 lanes, and rounding is an addition, so that the compiler vectorises the loops. This is ten times as fast as
//! a scalar loop that calls a library function to round.

use crate::scalar::exp::MAGIC;

/// Lanes of the sums, a divisor of the length of every block.
const SUM_LANES: usize = 8;

/// The integer nearest to `x`, between `low` and `high`.
pub(super) fn nearest(x: f32, low: i32, high: i32) -> i32 {
    // 0 / 0, for a zero scale, is NaN, which the cast turns into 0.
    round(x.clamp(low as f32, high as f32)) as i32
}

/// The nearest integer, for magnitudes below 2^22.
#[inline(always)]
fn round(x: f32) -> f32 {
    (x + MAGIC) - MAGIC
}

/// The sum of `f(i)` for `i` in `0..n`.
#[inline(always)]
fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; SUM_LANES];
    for i in (0..n).step_by(SUM_LANES) {
        for (j, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + j);
        }
    }
    lanes.iter().sum()
}

/// The scale `d` that minimises the weighted squared error of `d * q` for the `LEN` values `x`, where `q` are integers
/// from `-limit` to `limit - 1`. 0 for zeros.
///
/// The search tries scales slightly above and below the one that maps the largest magnitude to the end of the range. For
/// each, it rounds the integers and computes the best scale for them.
pub(super) fn symmetric_scale<const LEN: usize>(x: &[f32], weights: &[f32], limit: i32) -> f32 {
    let (x, w): (&[f32; LEN], &[f32; LEN]) = (x.try_into().unwrap(), weights.try_into().unwrap());
    let extreme = x
        .iter()
        .fold(0.0f32, |a, &x| if x.abs() > a.abs() { x } else { a });
    if extreme == 0.0 || !extreme.is_finite() {
        return 0.0;
    }
    // In units of the largest magnitude, so that squares stay in the range of f32.
    let x = x.map(|x| x / extreme);
    let wx: [f32; LEN] = core::array::from_fn(|i| w[i] * x[i]);
    let mut best = (f32::NEG_INFINITY, 0.0);
    for step in -9..=9 {
        // The range has one more step below zero: the extreme value goes there, whatever its sign.
        let inverse = -(limit as f32 + 0.1 * step as f32);
        let (low, high) = (-limit as f32, (limit - 1) as f32);
        let q = x.map(|x| round((x * inverse).max(low).min(high)));
        let xq = sum(LEN, |i| wx[i] * q[i]);
        let qq = sum(LEN, |i| w[i] * q[i] * q[i]);
        // The error with the best scale xq / qq is sum w x^2 - xq^2 / qq.
        let gain = xq * xq / qq;
        if gain > best.0 {
            best = (gain, xq / qq);
        }
    }
    best.1 * extreme
}

/// The scale `d >= 0` and minimum `m >= 0` that minimise the weighted squared error of `d * q - m` for the `LEN` values
/// `x`, where `q` are integers from 0 to `limit`.
pub(super) fn scale_and_minimum<const LEN: usize>(
    x: &[f32],
    weights: &[f32],
    limit: i32,
) -> (f32, f32) {
    let (x, w): (&[f32; LEN], &[f32; LEN]) = (x.try_into().unwrap(), weights.try_into().unwrap());
    let low = x.iter().fold(0.0f32, |a, &x| a.min(x));
    let high = x.iter().fold(f32::NEG_INFINITY, |a, &x| a.max(x));
    let range = high - low;
    if range.is_nan() || range <= 0.0 || range.is_infinite() {
        return (0.0, -low);
    }
    // In units of the range of values, so that squares stay in the range of f32.
    let (x, low) = (x.map(|x| x / range), low / range);
    let wx: [f32; LEN] = core::array::from_fn(|i| w[i] * x[i]);
    let (w1, x1) = (sum(LEN, |i| w[i]), sum(LEN, |i| wx[i]));
    let mut best = (f32::INFINITY, 0.0, 0.0);
    for step in -10..=10 {
        let inverse = limit as f32 + 0.1 * step as f32;
        let q = x.map(|x| round(((x - low) * inverse).max(0.0).min(limit as f32)));
        // Weighted least squares for x = d * q - m.
        let q1 = sum(LEN, |i| w[i] * q[i]);
        let q2 = sum(LEN, |i| w[i] * q[i] * q[i]);
        let xq = sum(LEN, |i| wx[i] * q[i]);
        let determinant = w1 * q2 - q1 * q1;
        let (mut d, mut m) = (0.0, 0.0);
        if determinant > 0.0 {
            d = (w1 * xq - x1 * q1) / determinant;
            m = (q1 * xq - q2 * x1) / determinant;
        }
        if m <= 0.0 {
            // The minimum cannot be above zero: fit a line through zero instead.
            (d, m) = (if q2 > 0.0 { xq / q2 } else { 0.0 }, 0.0);
        }
        let error = sum(LEN, |i| {
            let error = d * q[i] - m - x[i];
            w[i] * error * error
        });
        if error < best.0 && d >= 0.0 {
            best = (error, d, m);
        }
    }
    (best.1 * range, best.2 * range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_blocks_are_found() {
        let x: [f32; 32] = core::array::from_fn(|i| ((i * 5) % 16) as f32 - 8.0);
        let d = symmetric_scale::<32>(&x.map(|x| x * 0.5), &[1.0; 32], 8);
        assert!((d - 0.5).abs() < 1e-6, "{d}");
        let (d, m) = scale_and_minimum::<32>(&x.map(|x| x * 0.5), &[1.0; 32], 15);
        assert!((d - 0.5).abs() < 1e-5 && (m - 4.0).abs() < 1e-4, "{d} {m}");
    }

    #[test]
    fn a_minimum_above_zero_is_zero() {
        let x: [f32; 32] = core::array::from_fn(|i| 5.0 + (i % 4) as f32);
        let (d, m) = scale_and_minimum::<32>(&x, &[1.0; 32], 15);
        assert_eq!(m, 0.0);
        assert!(d > 0.4 && d < 0.7, "{d}");
    }

    #[test]
    fn nearest_stays_in_range() {
        assert_eq!(nearest(1e30, -8, 7), 7);
        assert_eq!(nearest(f32::NEG_INFINITY, -8, 7), -8);
        assert_eq!(nearest(f32::NAN, -8, 7), 0);
        assert_eq!(nearest(2.5, -8, 7), 2);
    }
}
