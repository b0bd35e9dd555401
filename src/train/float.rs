//! The number types of training, and loops over them that use the machine's widest instructions.
//!
//! The arithmetic is written once for both types: f32 for training, f64 for the gradient checks against
//! finite differences.

use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};
use std::sync::Mutex;

use blt_kernels::{Accumulate, Isa, Precision, View, ViewMut};

/// f32 or f64.
pub trait Float:
    Copy
    + Debug
    + Default
    + Display
    + PartialOrd
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + SubAssign
    + Mul<Output = Self>
    + MulAssign
    + Div<Output = Self>
    + Neg<Output = Self>
    + Sum
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Below every finite number.
    const NEG_INFINITY: Self;

    /// The nearest value.
    fn of(x: f64) -> Self;
    /// This number in f64.
    fn f64(self) -> f64;
    /// e^self, without branches, so that a loop over it becomes vector instructions. Within 2 ULP
    /// for f32 from -87 to 88; beyond, it stays at the end of that range.
    fn exp(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Whether it is neither infinite nor NaN.
    fn is_finite(self) -> bool;
    /// `c = scale * a b`, or `c += scale * a b`, on one thread.
    fn matmul(
        precision: Precision,
        accumulate: Accumulate,
        c: ViewMut<'_, Self>,
        scale: Self,
        a: View<'_, Self>,
        b: View<'_, Self>,
    );
    /// The memory kept for [`PooledVec`](super::pooled_vec::PooledVec).
    fn kept() -> &'static Mutex<Vec<Vec<Self>>>;
    /// The larger of two numbers.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

impl Float for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;

    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }

    #[inline(always)]
    fn f64(self) -> f64 {
        self.into()
    }

    #[inline(always)]
    fn exp(self) -> f32 {
        // e^x = 2^n e^r with n = round(x / ln 2). Adding 1.5 * 2^23 rounds to a whole number, which
        // then stands in the low bits and can be shifted into the exponent.
        const ROUND: f32 = 12_582_912.0;
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let x = if self < -87.0 { -87.0 } else { self };
        let x = if x > 88.0 { 88.0 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = x - n * LN2_HIGH - n * LN2_LOW;
        let p = 1.0 / 5040.0;
        let p = p * r + 1.0 / 720.0;
        let p = p * r + 1.0 / 120.0;
        let p = p * r + 1.0 / 24.0;
        let p = p * r + 1.0 / 6.0;
        let p = p * r + 0.5;
        let p = p * r + 1.0;
        let p = p * r + 1.0;
        f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
    }

    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }

    fn kept() -> &'static Mutex<Vec<Vec<f32>>> {
        static KEPT: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
        &KEPT
    }

    fn matmul(
        precision: Precision,
        accumulate: Accumulate,
        c: ViewMut<'_, f32>,
        scale: f32,
        a: View<'_, f32>,
        b: View<'_, f32>,
    ) {
        blt_kernels::matmul(Isa::detect(), precision, accumulate, c, scale, a, b);
    }
}

impl Float for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;

    fn of(x: f64) -> f64 {
        x
    }

    fn f64(self) -> f64 {
        self
    }

    fn exp(self) -> f64 {
        f64::exp(self)
    }

    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }

    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }

    fn kept() -> &'static Mutex<Vec<Vec<f64>>> {
        static KEPT: Mutex<Vec<Vec<f64>>> = Mutex::new(Vec::new());
        &KEPT
    }

    fn matmul(
        _: Precision,
        accumulate: Accumulate,
        mut c: ViewMut<'_, f64>,
        scale: f64,
        a: View<'_, f64>,
        b: View<'_, f64>,
    ) {
        for i in 0..c.shape().0 {
            for (j, c) in c.row(i).iter_mut().enumerate() {
                let dot: f64 = (0..a.shape().1).map(|k| a.get(i, k) * b.get(k, j)).sum();
                *c = scale * dot
                    + if accumulate == Accumulate::Add {
                        *c
                    } else {
                        0.0
                    };
            }
        }
    }
}

/// Runs `f` compiled for the best instruction set of this machine. What `f` calls must be inlined
/// into it to profit.
#[inline]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    blt_kernels::vectorized(Isa::detect(), f)
}

/// Partial sums kept side by side in [`sum_of`].
const LANES: usize = 32;

/// `f(0) + f(1) + ... + f(n - 1)`, in an order that is fixed by `n` alone and suits vectors.
#[inline(always)]
pub fn sum_of<F: Float>(n: usize, f: impl Fn(usize) -> F) -> F {
    let mut lanes = [F::ZERO; LANES];
    let whole = n - n % LANES;
    let mut i = 0;
    while i < whole {
        for (j, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + j);
        }
        i += LANES;
    }
    for (j, lane) in lanes.iter_mut().enumerate().take(n - whole) {
        *lane += f(whole + j);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            let other = lanes[j + width];
            lanes[j] += other;
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest of some numbers, NaN passed over; negative infinity of none.
#[inline(always)]
pub fn max_of<F: Float>(x: &[F]) -> F {
    let mut lanes = [F::NEG_INFINITY; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for (lane, &x) in lanes.iter_mut().zip(x) {
            *lane = x.larger(*lane);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = x.larger(*lane);
    }
    lanes.iter().fold(F::NEG_INFINITY, |max, &x| x.larger(max))
}

/// The dot product of two vectors of equal length.
#[inline(always)]
pub fn dot<F: Float>(a: &[F], b: &[F]) -> F {
    let b = &b[..a.len()];
    sum_of(a.len(), |i| a[i] * b[i])
}

/// `y += s * x`.
#[inline(always)]
pub fn axpy<F: Float>(s: F, x: &[F], y: &mut [F]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += s * x;
    }
}

/// `y += x`.
pub fn add_assign<F: Float>(y: &mut [F], x: &[F]) {
    assert_eq!(y.len(), x.len());
    vectorized(
        #[inline(always)]
        || {
            for (y, &x) in y.iter_mut().zip(x) {
                *y += x;
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_exponential_is_within_2_ulp() {
        let mut worst = 0.0f64;
        for i in -8700..=8800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(Float::exp(x)) - exact).abs() / exact;
            worst = worst.max(error);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert!(Float::exp(-1e30f32) < 1e-37);
        assert!(Float::exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_of_all_lengths_are_right() {
        for n in 0..70 {
            let mut x: Vec<f32> = (0..n).map(|i| (i * 29 % 70) as f32).collect();
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max_of(&x), max);
            x.insert(n / 2, f32::NAN);
            assert_eq!(max_of(&x), max);
            assert_eq!(
                sum_of(n, |i| i as f64),
                (n * n.saturating_sub(1) / 2) as f64
            );
        }
    }
}
