//! The inner loops of the blt engine: vector and matrix kernels on slices. This crate knows no model.
//!
//! # The contract
//!
//! Every result has the same bits whatever the number of rows given in one call, however a caller splits
//! output rows over threads, whatever the alignment, and on every path of [`Isa`] but
//! [`Isa::Portable`] (which lacks the fused multiply-add; it keeps the other invariances, and differs
//! from the rest by rounding only). A byte generated one at a time therefore meets exactly the numbers
//! that a whole prompt met.
//!
//! What makes it so is one order of sums. A dot product over `k` has 16 lanes; lane `j` starts at +0 and
//! takes the products with `k % 16 == j` in increasing `k`, each by fused multiply-add; then the lanes
//! are added as a fixed tree: 16 to 8 (`l[i] + l[i + 8]`), to 4, to 2, to 1. Plain sums use the same
//! lanes and tree. The `scalar` module is that definition written down.
//!
//! Two more arithmetics have definitions of their own, with the same promise: block formats times 8-bit
//! activations (`block`), and bfloat16 weights times bfloat16 activations (`rounded`).
//!
//! NaN results are NaN on every path, but their payload bits are not part of the contract.
//!
//! # Errors
//!
//! The functions check lengths once and panic when they do not fit: shapes are proved by the caller,
//! so a misfit is a bug.
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
mod isa;
mod portable;
mod scalar;
mod thread_pool;
mod vector;
mod vectors;
mod view;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

/// The CUDA kernels of `cuda/`, compiled ahead for several architectures: see `cuda/build`.
#[cfg(feature = "cuda")]
pub static CUDA_FATBIN: &[u8] = {
    // The driver reads its header as whole words.
    #[repr(C, align(16))]
    struct Aligned<T>(T);
    const FATBIN: &Aligned<[u8; include_bytes!("../cuda/blt.fatbin").len()]> =
        &Aligned(*include_bytes!("../cuda/blt.fatbin"));
    &FATBIN.0
};

pub use bf12::Bf12;
pub use bf16::Bf16Activations;
pub use block::{BlockFormat, QuantizedActivations, Terms};
pub use isa::{Avx2, Avx512, Isa, Neon};
pub use matmul::{Accumulate, Precision, matmul, multiply_adds, vectorized};
pub use mlstm::{MlstmGates, MlstmHead, gated_norm, mlstm_step};
pub use thread_pool::ThreadPool;
pub use vectors::{FloatSlice, StridedRows};
pub use view::{View, ViewMut};
pub use weights::Weights;

use block::activations::ActivationBlock;
use core::cell::Cell;
use half::f16;

/// Calls a function of the module that `$isa` stands for: `scalar_call` for plain loops, else the
/// function `$name`, which takes a token first.
macro_rules! dispatch {
    ($isa:expr, $name:ident($($arg:expr),*)) => {
        dispatch!($isa, scalar::$name($($arg),*), $name($($arg),*))
    };
    ($isa:expr, $scalar_call:expr, $name:ident($($arg:expr),*)) => {
        match $isa {
            Isa::Scalar => $scalar_call,
            Isa::Portable => portable::$name(portable::Portable, $($arg),*),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token proves that the CPU has the features.
            Isa::Avx2(token) => unsafe { x86::avx2::$name(token, $($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token proves that the CPU has the features.
            Isa::Avx512(token) => unsafe { x86::avx512::$name(token, $($arg),*) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: the token proves that the CPU has the features.
            Isa::Neon(token) => unsafe { aarch64::neon::$name(token, $($arg),*) },
            // Tokens of other architectures are never made.
            #[allow(unreachable_patterns)]
            _ => unreachable!("a token of another architecture"),
        }
    };
}

mod matmul;
mod mlstm;

/// [`dispatch!`] for functions on 8-bit integers, which have paths for optional extras.
macro_rules! dispatch_int8 {
    ($isa:expr, $scalar_call:expr, $name:ident($($arg:expr),*)) => {
        match $isa {
            Isa::Scalar => $scalar_call,
            Isa::Portable => portable::int8::$name(portable::Portable, $($arg),*),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token proves that the CPU has the features.
            Isa::Avx2(token) => unsafe { x86::avx2::int8::$name(token, $($arg),*) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(token) => match x86::avx512::int8::vnni::Vnni::new(token) {
                // SAFETY: the token proves that the CPU has the features.
                Some(token) => unsafe { x86::avx512::int8::vnni::$name(token, $($arg),*) },
                None => {
                    let token = x86::avx512::int8::plain::Plain(token);
                    // SAFETY: the token proves that the CPU has the features.
                    unsafe { x86::avx512::int8::plain::$name(token, $($arg),*) }
                }
            },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(token) => match aarch64::neon::int8::dot::Dot::new(token) {
                // SAFETY: the token proves that the CPU has the features.
                Some(token) => unsafe { aarch64::neon::int8::dot::$name(token, $($arg),*) },
                None => {
                    let token = aarch64::neon::int8::plain::Plain(token);
                    // SAFETY: the token proves that the CPU has the features.
                    unsafe { aarch64::neon::int8::plain::$name(token, $($arg),*) }
                }
            },
            // Tokens of other architectures are never made.
            #[allow(unreachable_patterns)]
            _ => unreachable!("a token of another architecture"),
        }
    };
}

/// Multiplies a matrix with `n` vectors: `out[i][r] = dot(row r of w, row i of x)`.
///
/// - `w`: (rows, cols); `cols`: the length of a row.
/// - `x`: (n, cols).
/// - `out`: (n, rows).
///
/// With a block format this quantises `x` first, in one step, into memory of its own; to share that work
/// between several matrices, and the memory between calls, use [`quantize_activations`] and
/// [`linear_quantized`], which give the same bits.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn linear(isa: Isa, w: Weights, cols: usize, x: &[f32], mut out: ViewMut<'_, f32>) {
    let (n, rows) = out.shape();
    assert_eq!(Some(x.len()), n.checked_mul(cols), "inputs");
    check_matrix(w, rows, cols);
    let to = &mut out;
    let scalar = scalar::linear;
    match w {
        Weights::F32(b) => dispatch!(isa, scalar(w, cols, x, to), linear_f32(b, cols, x, to)),
        Weights::F16(b) => dispatch!(isa, scalar(w, cols, x, to), linear_f16(b, cols, x, to)),
        Weights::Bf16(b) => dispatch!(isa, scalar(w, cols, x, to), linear_bf16(b, cols, x, to)),
        Weights::Bf12(_) if cols == 0 => linear(isa, Weights::F32(&[]), cols, x, out),
        Weights::Bf12(b) if n <= 2 && isa != Isa::Scalar => {
            dispatch!(
                isa,
                unreachable!("excluded above"),
                linear_bf12(b, cols, x, to)
            )
        }
        Weights::Bf12(b) => unpacked(isa, b, (n, cols), |slab, first, rows| {
            let columns = out.columns(first, rows);
            linear(isa, Weights::Bf16(slab), cols, x, columns);
        }),
        Weights::Blocks(..) => {
            let mut quantized = QuantizedActivations::new();
            quantize_activations(isa, Terms::One, x, cols, &mut quantized);
            linear_quantized(isa, w, &quantized, out);
        }
    }
}

/// Bytes of unpacked rows that meet their inputs at a time: one or two do best while the rows are in the
/// first-level cache; for more, it is what [`linear`] keeps in the second-level one.
const SLABS: [usize; 2] = [16 << 10, 512 << 10];

/// Unpacks rows of a [`Weights::Bf12`] matrix for inputs (n, cols), and calls `f` with some in bfloat16, the
/// number of the first, and how many there are.
fn unpacked(isa: Isa, w: &[u8], (n, cols): (usize, usize), mut f: impl FnMut(&[u8], usize, usize)) {
    thread_local! {
        static MEMORY: Cell<Vec<u16>> = const { Cell::new(Vec::new()) };
    }
    if cols == 0 {
        return;
    }
    let row_bytes = Weights::Bf12(w).row_bytes(cols);
    let rows_of_slab = (SLABS[usize::from(n > 2)] / 2 / cols).max(1);
    let mut memory = MEMORY.take();
    for (i, rows) in w.chunks(row_bytes * rows_of_slab).enumerate() {
        let n_rows = rows.len() / row_bytes;
        memory.resize(memory.len().max(n_rows * cols), 0);
        let slab = &mut memory[..n_rows * cols];
        let outs = slab.chunks_exact_mut(cols);
        for (row, out) in rows.chunks_exact(row_bytes).zip(outs) {
            dispatch!(isa, bf12::unpack_row(row, out), unpack_row(row, out));
        }
        // SAFETY: the bytes of a slice of numbers, borrowed as long.
        let bytes = unsafe { core::slice::from_raw_parts(slab.as_ptr().cast(), size_of_val(slab)) };
        f(bytes, i * rows_of_slab, n_rows);
    }
    MEMORY.set(memory);
}

/// Proves that `w` is a (rows, cols) matrix.
fn check_matrix(w: Weights, rows: usize, cols: usize) {
    let bytes = rows
        .checked_next_multiple_of(w.row_multiple())
        .and_then(|rows| rows.checked_mul(w.row_bytes(cols)));
    assert_eq!(Some(w.bytes().len()), bytes, "weights");
}

/// Quantises rows of activations to 8 bits, or twice 8 bits, in blocks of 32 with a scale each, for
/// [`linear_quantized`].
///
/// A block with a NaN or an infinity makes every result it enters NaN.
///
/// - `x`: (n, cols).
///
/// # Panics
/// If `x` is not a whole number of rows.
pub fn quantize_activations(
    isa: Isa,
    terms: Terms,
    x: &[f32],
    cols: usize,
    out: &mut QuantizedActivations,
) {
    let mut blocks = out.resize(terms, x, cols);
    quantize_rows(isa, terms, x, cols, &mut blocks);
}

/// [`quantize_activations`] on the threads of a pool, each taking `run` rows at a time.
///
/// # Panics
/// If `x` is not a whole number of rows, or `run` is 0.
pub fn quantize_activations_on(
    pool: &ThreadPool,
    run: usize,
    isa: Isa,
    terms: Terms,
    x: &[f32],
    cols: usize,
    out: &mut QuantizedActivations,
) {
    let blocks = out.resize(terms, x, cols);
    let size = (run, blocks.shape().1);
    pool.parts(&mut [blocks], size, |_, row, _, mut part| {
        quantize_rows(isa, terms, &x[row * cols..], cols, &mut part);
    });
}

/// Quantises as many rows of `x` as `blocks` has.
fn quantize_rows(
    isa: Isa,
    terms: Terms,
    x: &[f32],
    cols: usize,
    blocks: &mut ViewMut<'_, ActivationBlock>,
) {
    for i in 0..blocks.shape().0 {
        let (x, blocks) = (&x[i * cols..][..cols], blocks.row(i));
        dispatch_int8!(
            isa,
            scalar::quantize_row(terms, x, blocks),
            quantize_row(terms, x, blocks)
        );
    }
}

/// Multiplies a matrix of a block format with quantised vectors:
/// `out[i][r] = dot(row r of w, row i of x)`.
///
/// - `w`: (rows, cols), a block format.
/// - `x`: (n, cols).
/// - `out`: (n, rows).
///
/// # Panics
/// If the lengths do not fit each other, or the weights are not quantised.
pub fn linear_quantized(isa: Isa, w: Weights, x: &QuantizedActivations, mut out: ViewMut<'_, f32>) {
    let Weights::Blocks(format, bytes) = w else {
        panic!("the weights are not quantised");
    };
    let (n, rows) = out.shape();
    assert_eq!(x.n, n, "outputs");
    check_matrix(w, rows, x.cols);
    let out = &mut out;
    macro_rules! run {
        ($format:ty, $name:ident) => {{
            let scalar = scalar::linear_quantized::<$format>;
            dispatch_int8!(isa, scalar(bytes, x, out), $name(bytes, x, out))
        }};
    }
    match format {
        BlockFormat::Q8_0 => run!(block::q8_0::Q8_0, linear_q8_0),
        BlockFormat::Q4_0 => run!(block::q4_0::Q4_0, linear_q4_0),
        BlockFormat::Q4K => run!(block::q4_k::Q4K, linear_q4_k),
        BlockFormat::Q6K => run!(block::q6_k::Q6K, linear_q6_k),
    }
}

/// Rounds rows of activations to bfloat16, for [`linear_bf16_bf16`].
///
/// - `x`: (n, cols).
///
/// # Panics
/// If `x` is not a whole number of rows.
pub fn round_activations(isa: Isa, x: &[f32], cols: usize, out: &mut Bf16Activations) {
    let mut values = out.resize(x, cols);
    round_rows(isa, x, cols, &mut values);
}

/// [`round_activations`] on the threads of a pool, each taking `run` rows at a time.
///
/// # Panics
/// If `x` is not a whole number of rows, or `run` is 0.
pub fn round_activations_on(
    pool: &ThreadPool,
    run: usize,
    isa: Isa,
    x: &[f32],
    cols: usize,
    out: &mut Bf16Activations,
) {
    let values = out.resize(x, cols);
    let size = (run, values.shape().1);
    pool.parts(&mut [values], size, |_, row, _, mut part| {
        round_rows(isa, &x[row * cols..], cols, &mut part);
    });
}

/// Rounds as many rows of `x` as `out` has.
fn round_rows(isa: Isa, x: &[f32], cols: usize, out: &mut ViewMut<'_, u16>) {
    for i in 0..out.shape().0 {
        let (values, padding) = out.row(i).split_at_mut(cols);
        let x = &x[i * cols..][..cols];
        dispatch!(isa, round_row(x, values));
        padding.fill(0);
    }
}

/// Multiplies a matrix of bfloat16 weights with activations in bfloat16, in the fast profile's
/// arithmetic (see `rounded.rs`): `out[i][r] = dot(row r of w, row i of x)`.
///
/// Fast where the CPU has an instruction for it ([`Avx512::has_bf16`]); elsewhere slower than
/// [`linear`].
///
/// - `w`: (rows, cols), bfloat16, packed or not.
/// - `x`: (n, cols).
/// - `out`: (n, rows).
///
/// # Panics
/// If the lengths do not fit each other, or the weights are of another type.
pub fn linear_bf16_bf16(isa: Isa, w: Weights, x: &Bf16Activations, mut out: ViewMut<'_, f32>) {
    let (n, rows) = out.shape();
    assert_eq!(x.n, n, "outputs");
    check_matrix(w, rows, x.cols);
    let bytes = match w {
        Weights::Bf16(bytes) => bytes,
        Weights::Bf12(_) if x.cols == 0 => &[],
        Weights::Bf12(bytes) => {
            return unpacked(isa, bytes, (n, x.cols), |slab, first, rows| {
                let columns = out.columns(first, rows);
                linear_bf16_bf16(isa, Weights::Bf16(slab), x, columns);
            });
        }
        _ => panic!("the weights are not bfloat16"),
    };
    let out = &mut out;
    #[cfg(target_arch = "x86_64")]
    if let Isa::Avx512(token) = isa
        && let Some(token) = x86::avx512::bf16::Bf16::new(token)
    {
        // SAFETY: the token proves that the CPU has the features.
        return unsafe { x86::avx512::bf16::linear_bf16_bf16(token, bytes, x, out) };
    }
    dispatch!(isa, linear_bf16_bf16(bytes, x, out))
}

/// The dot product of two vectors of equal length.
///
/// # Panics
/// If the lengths differ.
pub fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    dispatch!(isa, dot(a, b))
}

/// Dot products of vectors with many rows: `out[i][j] = scale * dot(q[i], rows[j])`, as attention scores
/// need them.
///
/// - `q`: (m, d); `rows`: n of d values; `out`: (m, n).
///
/// # Panics
/// If `rows` does not hold `n` rows, or there are not as many outputs as inputs.
pub fn dot_rows(
    isa: Isa,
    q: View<'_, f32>,
    rows: StridedRows<'_>,
    scale: f32,
    mut out: ViewMut<'_, f32>,
) {
    let ((m, d), n) = (q.shape(), out.shape().1);
    assert!(q.has_dense_rows() && out.shape().0 == m, "rows");
    check_rows(rows, n, d);
    let out = &mut out;
    dispatch!(isa, dot_rows(q, rows, scale, out))
}

/// Adds weighted rows: `acc[i][c] = fma(p[i][j], rows[j][c], acc[i][c])` for `j` in increasing order.
///
/// Strictly sequential in `j`, so two calls over consecutive spans of rows give the bits of one.
///
/// - `p`: (m, n); `rows`: n of d values; `acc`: (m, d).
///
/// # Panics
/// If `rows` does not hold `n` rows, or there are not as many sums as rows of weights.
pub fn weighted_sum(isa: Isa, p: View<'_, f32>, rows: StridedRows<'_>, mut acc: ViewMut<'_, f32>) {
    let ((m, n), d) = (p.shape(), acc.shape().1);
    assert!(p.has_dense_rows() && acc.shape().0 == m, "rows");
    check_rows(rows, n, d);
    let acc = &mut acc;
    dispatch!(isa, weighted_sum(p, rows, acc))
}

/// Proves that `rows` holds `n` rows of `d` values.
fn check_rows(rows: StridedRows<'_>, n: usize, d: usize) {
    let StridedRows { values, stride, .. } = rows;
    let needed = match n {
        0 => Some(0),
        _ => (n - 1).checked_mul(stride).and_then(|s| s.checked_add(d)),
    };
    assert!(
        needed.is_some_and(|needed| needed <= values.len()),
        "{n} rows of {d} values, {stride} apart, do not fit into {} values",
        values.len()
    );
}

/// Rounds to half floats, to the nearest, ties to even; too large a value becomes infinite.
///
/// # Panics
/// If the lengths differ.
pub fn to_f16(isa: Isa, x: &[f32], out: &mut [f16]) {
    assert_eq!(x.len(), out.len());
    dispatch!(isa, to_f16(x, out))
}

/// Turns scores into probabilities in place: `exp(x - max) / sum exp(x - max)`.
///
/// An empty slice stays empty. NaN or +infinity anywhere makes all of them NaN, as do scores that are
/// all minus infinity.
pub fn softmax(isa: Isa, x: &mut [f32]) {
    dispatch!(isa, softmax(x))
}

/// The entropy, in nats, of the distribution softmax(`logits`): `-sum p ln p`.
///
/// Accurate to 2e-6 for a few hundred logits. Logits of minus infinity count as probability 0; NaN,
/// +infinity or an empty slice gives NaN.
pub fn log_softmax_entropy(isa: Isa, logits: &[f32]) -> f32 {
    dispatch!(isa, log_softmax_entropy(logits))
}

/// Root-mean-square norm of one row: `out = x * (1 / sqrt(mean(x^2) + eps)) * weight`.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), weight.len());
    assert_eq!(x.len(), out.len());
    dispatch!(isa, rms_norm(x, weight, eps, out))
}

/// The gate of a feed-forward layer: `gate = silu(gate) * up` with `silu(z) = z / (1 + exp(-z))`.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    dispatch!(isa, swiglu(gate, up))
}

/// Rotates interleaved pairs of one head in place: `y0 = x0 * c - x1 * s`, `y1 = x1 * c + x0 * s`.
///
/// - `x`: (d); `cos`, `sin`: (d / 2) each.
///
/// # Panics
/// If the lengths do not fit.
pub fn rope(isa: Isa, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!(Some(x.len()), cos.len().checked_mul(2));
    assert_eq!(cos.len(), sin.len());
    dispatch!(isa, rope(x, cos, sin))
}

/// Rotates the pairs of one head in place as [`rope`] does, where a pair is an element of the first half and the one of
/// the second half with the same index.
///
/// - `x`: (d); `cos`, `sin`: (d / 2) each.
///
/// # Panics
/// If the lengths do not fit.
pub fn rope_halves(isa: Isa, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!(Some(x.len()), cos.len().checked_mul(2));
    assert_eq!(cos.len(), sin.len());
    dispatch!(isa, rope_halves(x, cos, sin))
}

/// `x += y`.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign(isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    dispatch!(isa, add_assign(x, y))
}

/// `x = (x + x) + y`.
///
/// # Panics
/// If the lengths differ.
pub fn double_add(isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    dispatch!(isa, double_add(x, y))
}

/// Elementwise maximum: `acc = row` where `row` is larger or NaN. A NaN on either side stays NaN; of
/// two zeros of different sign, that of `acc` stays.
///
/// # Panics
/// If the lengths differ.
pub fn max_assign(isa: Isa, acc: &mut [f32], row: &[f32]) {
    assert_eq!(acc.len(), row.len());
    dispatch!(isa, max_assign(acc, row))
}

/// Adds one row of a matrix, as gathering embeddings needs it: `acc += row`.
///
/// # Panics
/// If `row` is not exactly one row of `acc.len()` weights, or of a block format.
pub fn add_row(isa: Isa, acc: &mut [f32], row: Weights) {
    assert_eq!(
        row.row_multiple(),
        1,
        "a row of a block format is not contiguous"
    );
    assert_eq!(row.bytes().len(), row.row_bytes(acc.len()));
    if let Weights::Bf12(bytes) = row {
        return unpacked(isa, bytes, (1, acc.len()), |row, _, _| {
            add_row(isa, acc, Weights::Bf16(row))
        });
    }
    dispatch!(isa, add_row(acc, row))
}

/// Widens one row of a matrix.
///
/// # Panics
/// If `row` is not exactly one row of `out.len()` weights, or of a block format.
pub fn read_row(row: Weights, out: &mut [f32]) {
    assert_eq!(
        row.row_multiple(),
        1,
        "a row of a block format is not contiguous"
    );
    assert_eq!(row.bytes().len(), row.row_bytes(out.len()));
    match row {
        Weights::Bf12(bytes) => unpacked(Isa::detect(), bytes, (1, out.len()), |row, _, _| {
            read_row(Weights::Bf16(row), out);
        }),
        _ => scalar::read_row(row, out),
    }
}

/// Widens or decodes row `index` of a matrix of any type, with `out.len()` columns.
///
/// # Panics
/// If the matrix does not have that row.
pub fn decode_row(w: Weights, index: usize, out: &mut [f32]) {
    let cols = out.len();
    match w {
        Weights::Blocks(format, _) => {
            let tile = index / BlockFormat::TILE_ROWS * BlockFormat::TILE_ROWS;
            let tile_rows = tile..tile + BlockFormat::TILE_ROWS;
            let bytes = w.slice_rows(tile_rows, cols).bytes();
            format.decode_row(bytes, index - tile, out);
        }
        _ => read_row(w.slice_rows(index..index + 1, cols), out),
    }
}
