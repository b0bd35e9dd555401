//! Products of two matrices of activations, as training needs them, and what to do with the result.

use core::cell::Cell;

#[cfg(target_arch = "aarch64")]
use crate::aarch64;
use crate::isa::Isa;
use crate::view::{View, ViewMut};
#[cfg(target_arch = "x86_64")]
use crate::x86;
use crate::{portable, scalar};

/// How a product meets what the destination holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// Replaces it.
    Overwrite,
    /// Is added to it.
    Add,
}

/// What the factors of a product are rounded to; sums are kept in f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Nothing is rounded.
    #[default]
    F32,
    /// bfloat16, for CPUs with instructions for it: half the time.
    Bf16,
}

impl Precision {
    /// Whether [`product`] can do this on a path.
    pub fn is_available(self, isa: Isa) -> bool {
        match (self, isa) {
            (Precision::F32, _) => true,
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Isa::Avx512(token)) => token.has_bf16(),
            _ => false,
        }
    }
}

/// Operands in the order in which the kernel reads them; kept by each thread for its next product.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
}

thread_local! {
    static PACKED: Cell<Packed> = const { Cell::new(Packed { a: Vec::new(), b: Vec::new() }) };
}

/// `c = scale * a b`, or `c += scale * a b`.
///
/// With [`Precision::F32`], an element is the sum over blocks of up to 256 `k` of `scale` times the
/// block's dot product, and that is accumulated in increasing `k` by fused multiply-add, whatever the
/// place of the element in the matrix.
///
/// # Panics
/// If the shapes do not fit, or the precision is not available.
pub fn matmul(
    isa: Isa,
    precision: Precision,
    accumulate: Accumulate,
    mut c: ViewMut<'_, f32>,
    scale: f32,
    a: View<'_, f32>,
    b: View<'_, f32>,
) {
    let ((m, k), n) = (a.shape(), b.shape().1);
    assert_eq!((m, k, n), (c.shape().0, b.shape().0, c.shape().1), "shapes");
    assert!(
        precision.is_available(isa),
        "products in {precision:?} on {}",
        isa.name()
    );
    if k == 0 && accumulate == Accumulate::Overwrite {
        (0..m).for_each(|i| c.row(i).fill(0.0));
    }
    if k == 0 || n == 0 {
        return;
    }
    let mut packed = PACKED.take();
    let (p, c) = (&mut packed, &mut c);
    match (precision, isa) {
        #[cfg(target_arch = "x86_64")]
        (Precision::Bf16, Isa::Avx512(token)) => {
            let words = x86::avx512::bf16::Bf16::new(token).expect("checked above");
            // SAFETY: the tokens prove that the CPU has the features.
            unsafe {
                x86::avx512::matmul::matmul_bf16(token, words, accumulate, c, scale, a, b, p);
            }
        }
        _ => dispatch!(
            isa,
            scalar::matmul(accumulate, c, scale, a, b),
            matmul(accumulate, c, scale, a, b, p)
        ),
    }
    PACKED.set(packed);
}

/// Does nothing but the multiply-adds of [`product`], `rounds` times two dozen vectors or so, and returns
/// how many operations that was: what a core can do at most.
///
/// # Panics
/// If the precision is not available.
pub fn multiply_adds(isa: Isa, precision: Precision, rounds: usize) -> u64 {
    assert!(
        precision.is_available(isa),
        "products in {precision:?} on {}",
        isa.name()
    );
    let (n, sum) = match (precision, isa) {
        #[cfg(target_arch = "x86_64")]
        (Precision::Bf16, Isa::Avx512(token)) => {
            let words = x86::avx512::bf16::Bf16::new(token).expect("checked above");
            // SAFETY: the tokens prove that the CPU has the features.
            unsafe { x86::avx512::matmul::multiply_adds_bf16(token, words, rounds) }
        }
        _ => dispatch!(isa, multiply_adds(rounds)),
    };
    core::hint::black_box(sum);
    n
}

/// Runs `f` compiled for the instructions of a path. What `f` calls must be inlined into it to profit.
pub fn vectorized<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    dispatch!(isa, f(), run(f))
}
