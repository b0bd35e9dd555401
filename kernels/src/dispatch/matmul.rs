//! Products of two matrices of activations, as training needs them.

use core::cell::Cell;

use crate::isa::Isa;
use crate::matmul::{Accumulate, Packed, Precision};
use crate::view::{View, ViewMut};

thread_local! {
    static PACKED: Cell<Packed> = const { Cell::new(Packed { a: Vec::new(), b: Vec::new() }) };
}

/// `c = scale * a b`, or `c += scale * a b`.
///
/// With [`Precision::F32`], an element is a sum over blocks of up to 256 `k`. Each block adds `scale` times its
/// dot product, which is accumulated in increasing `k` by fused multiply-add. The position of the element in
/// the matrix does not matter.
///
/// # Panics
/// If the shapes do not match, or the precision is not available.
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
    check_precision(isa, precision);
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
            let packing = crate::x86::avx512::bf16::Avx512Bf16::new(token).expect("checked above");
            // SAFETY: the tokens prove that the CPU has the features.
            unsafe {
                crate::x86::avx512::matmul::matmul_bf16(
                    token, packing, accumulate, c, scale, a, b, p,
                );
            }
        }
        _ => dispatch!(
            isa,
            crate::scalar::matmul(accumulate, c, scale, a, b),
            matmul(accumulate, c, scale, a, b, p)
        ),
    }
    PACKED.set(packed);
}

/// Runs only the multiply-adds of [`matmul`], `rounds` times those of one tile, in registers. Returns the number of
/// operations, from which a benchmark computes the peak rate of a core.
///
/// # Panics
/// If the precision is not available.
pub fn multiply_adds(isa: Isa, precision: Precision, rounds: usize) -> u64 {
    check_precision(isa, precision);
    let (n, sum) = match (precision, isa) {
        #[cfg(target_arch = "x86_64")]
        (Precision::Bf16, Isa::Avx512(token)) => {
            let packing = crate::x86::avx512::bf16::Avx512Bf16::new(token).expect("checked above");
            // SAFETY: the tokens prove that the CPU has the features.
            unsafe { crate::x86::avx512::matmul::multiply_adds_bf16(token, packing, rounds) }
        }
        _ => dispatch!(isa, multiply_adds(rounds)),
    };
    core::hint::black_box(sum);
    n
}

fn check_precision(isa: Isa, precision: Precision) {
    assert!(
        precision.is_available(isa),
        "matmul in {precision:?} on {}",
        isa.name()
    );
}

/// Runs `f` compiled for the instructions of a path. Only code that is inlined into `f` benefits.
pub fn vectorized<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    dispatch!(isa, f(), run(f))
}
