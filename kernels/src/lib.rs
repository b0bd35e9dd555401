//! The inner loops of the blt engine: vector and matrix kernels on slices. This crate knows no model.
//!
//! # The contract
//!
//! Every result has the same bits for any number of rows in a call, for any split of the output rows over
//! threads, for any alignment, and on every path of [`Isa`] except [`Isa::Portable`]. That path lacks the
//! fused multiply-add: it keeps the other invariances, and differs from the rest by rounding only. A byte
//! that is generated alone therefore sees exactly the numbers that the same byte sees inside a prompt.
//!
//! The reason is one order of sums. A dot product over `k` has 16 lanes. Lane `j` starts at +0 and adds the
//! products with `k % 16 == j` in increasing `k`, each with a fused multiply-add. Then a fixed tree adds the
//! lanes: 16 to 8 (`l[i] + l[i + 8]`), to 4, to 2, to 1. Plain sums use the same lanes and tree. The `scalar`
//! module is this definition as code.
//!
//! Two other arithmetics have their own definitions and make the same promise: block formats times 8-bit
//! activations (module `block`), and bfloat16 weights times bfloat16 activations (module `bf16`).
//!
//! A NaN result is NaN on every path; its payload bits are not part of the contract.
//!
//! # Layout
//!
//! | module | content |
//! |---|---|
//! | `dispatch` | the public functions: check the lengths, choose the path |
//! | `scalar` | plain loops: the definition of every result |
//! | `vector` | the algorithms, written once over the operations in `vector::simd` |
//! | `portable`, `x86`, `aarch64` | those operations, one file per instruction set |
//! | `block`, `bf12`, `bf16` | weight and activation formats |
//!
//! # Panics
//!
//! The functions check lengths once and panic if they do not match. The caller has validated the shapes, so
//! a mismatch is a bug.
//!
//! ```
//! use blt_kernels::{Isa, ViewMut, Weights, linear};
//!
//! // A (2, 3) matrix times one vector.
//! let w: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
//! let mut y = [0.0; 2];
//! linear(Isa::detect(), Weights::F32(&w), 3, &[1.0, 0.0, -1.0], ViewMut::dense(&mut y, 2));
//! assert_eq!(y, [-2.0, -2.0]);
//! ```

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod bf12;
mod bf16;
mod block;
#[cfg(feature = "cuda")]
mod cuda;
mod dispatch;
mod isa;
mod lanes;
mod matmul;
mod mlstm;
mod portable;
mod scalar;
mod strided_rows;
mod thread_pool;
mod vector;
mod view;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use bf12::Bf12;
pub use bf16::Bf16Activations;
pub use block::{BlockFormat, QuantizedActivations, Terms};
#[cfg(feature = "cuda")]
pub use cuda::CUDA_FATBIN;
pub use dispatch::{
    add_assign, add_row, decode_row, dot, dot_rows, double_add, gated_norm, linear,
    linear_bf16_bf16, linear_quantized, log_softmax_entropy, matmul, max_assign, mlstm_step,
    multiply_adds, quantize_activations, quantize_activations_on, read_row, rms_norm, rope,
    rope_halves, round_activations, round_activations_on, softmax, swiglu, to_f16, vectorized,
    weighted_sum,
};
pub use isa::{Avx2, Avx512, Isa, Neon};
pub use matmul::{Accumulate, Precision};
pub use mlstm::{MlstmGates, MlstmHead};
pub use strided_rows::{FloatSlice, StridedRows};
pub use thread_pool::ThreadPool;
pub use view::{View, ViewMut};
pub use weights::Weights;
