//! Weight matrices times vectors, and single rows of weight matrices.

use core::cell::Cell;

use crate::bf16::Bf16Activations;
use crate::block::{self, BlockFormat, QuantizedActivations, Terms};
use crate::isa::Isa;
use crate::scalar;
use crate::view::ViewMut;
use crate::weights::Weights;

use super::activations::quantize_activations;

/// Multiplies a matrix with `n` vectors: `out[i][r] = dot(row r of w, row i of x)`.
///
/// - `w`: (rows, cols); `cols`: the length of a row.
/// - `x`: (n, cols).
/// - `out`: (n, rows).
///
/// With a block format, this quantises `x` to one term, into memory it allocates. To share that work between
/// matrices, or to reuse the memory, call [`quantize_activations`] and [`linear_quantized`], which give the
/// same bits.
///
/// # Panics
/// If the lengths do not match.
pub fn linear(isa: Isa, w: Weights, cols: usize, x: &[f32], mut out: ViewMut<'_, f32>) {
    let (n, rows) = out.shape();
    assert_eq!(Some(x.len()), n.checked_mul(cols), "inputs");
    check_matrix(w, rows, cols);
    let y = &mut out;
    let scalar = scalar::linear;
    match w {
        Weights::F32(b) => dispatch!(isa, scalar(w, cols, x, y), linear_f32(b, cols, x, y)),
        Weights::F16(b) => dispatch!(isa, scalar(w, cols, x, y), linear_f16(b, cols, x, y)),
        Weights::Bf16(b) => dispatch!(isa, scalar(w, cols, x, y), linear_bf16(b, cols, x, y)),
        Weights::Bf12(_) if cols == 0 => linear(isa, Weights::F32(&[]), cols, x, out),
        Weights::Bf12(b) if n <= 2 && isa != Isa::Scalar => {
            dispatch!(
                isa,
                unreachable!("excluded above"),
                linear_bf12(b, cols, x, y)
            )
        }
        Weights::Bf12(b) => unpack_slabs(isa, b, (n, cols), |slab, first, rows| {
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

/// Multiplies a matrix of a block format with quantised vectors:
/// `out[i][r] = dot(row r of w, row i of x)`.
///
/// - `w`: (rows, cols), a block format.
/// - `x`: (n, cols).
/// - `out`: (n, rows).
///
/// # Panics
/// If the lengths do not match, or the weights are not quantised.
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

/// Multiplies a matrix of bfloat16 weights with bfloat16 activations, in the arithmetic of the fast profile
/// (see `bf16.rs`): `out[i][r] = dot(row r of w, row i of x)`.
///
/// This is fast where the CPU has an instruction for it ([`Avx512::has_bf16`](crate::Avx512::has_bf16)), and
/// slower than [`linear`] elsewhere.
///
/// - `w`: (rows, cols), [`Weights::Bf16`] or [`Weights::Bf12`].
/// - `x`: (n, cols).
/// - `out`: (n, rows).
///
/// # Panics
/// If the lengths do not match, or the weights have another type.
pub fn linear_bf16_bf16(isa: Isa, w: Weights, x: &Bf16Activations, mut out: ViewMut<'_, f32>) {
    let (n, rows) = out.shape();
    assert_eq!(x.n, n, "outputs");
    check_matrix(w, rows, x.cols);
    let bytes = match w {
        Weights::Bf16(bytes) => bytes,
        Weights::Bf12(_) if x.cols == 0 => &[],
        Weights::Bf12(bytes) => {
            return unpack_slabs(isa, bytes, (n, x.cols), |slab, first, rows| {
                let columns = out.columns(first, rows);
                linear_bf16_bf16(isa, Weights::Bf16(slab), x, columns);
            });
        }
        _ => panic!("the weights are not bfloat16"),
    };
    let out = &mut out;
    #[cfg(target_arch = "x86_64")]
    if let Isa::Avx512(token) = isa
        && let Some(token) = crate::x86::avx512::bf16::Avx512Bf16::new(token)
    {
        // SAFETY: the token proves that the CPU has the features.
        return unsafe { crate::x86::avx512::bf16::linear_bf16_bf16(token, bytes, x, out) };
    }
    dispatch!(isa, linear_bf16_bf16(bytes, x, out))
}

/// Bytes of rows that are unpacked at a time, for up to two inputs and for more. Up to two inputs are fastest
/// while the rows stay in the first-level cache; for more, a slab is as large as the block of rows that
/// [`linear`] keeps in the second-level cache.
const SLAB_BYTES: [usize; 2] = [16 << 10, crate::vector::ROW_BLOCK_BYTES];

/// Unpacks a [`Weights::Bf12`] matrix slab by slab, for inputs (n, cols). Calls `f` with each slab in
/// bfloat16, the number of its first row, and its number of rows.
fn unpack_slabs(
    isa: Isa,
    w: &[u8],
    (n, cols): (usize, usize),
    mut f: impl FnMut(&[u8], usize, usize),
) {
    thread_local! {
        static MEMORY: Cell<Vec<u16>> = const { Cell::new(Vec::new()) };
    }
    if cols == 0 {
        return;
    }
    let row_bytes = Weights::Bf12(w).row_bytes(cols);
    let slab_rows = (SLAB_BYTES[usize::from(n > 2)] / 2 / cols).max(1);
    let mut memory = MEMORY.take();
    for (i, rows) in w.chunks(row_bytes * slab_rows).enumerate() {
        let n_rows = rows.len() / row_bytes;
        memory.resize(memory.len().max(n_rows * cols), 0);
        let slab = &mut memory[..n_rows * cols];
        let unpacked = slab.chunks_exact_mut(cols);
        for (row, out) in rows.chunks_exact(row_bytes).zip(unpacked) {
            dispatch!(isa, crate::bf12::unpack_row(row, out), unpack_row(row, out));
        }
        // SAFETY: the bytes of an initialised slice, borrowed for as long as the slice.
        let bytes = unsafe { core::slice::from_raw_parts(slab.as_ptr().cast(), size_of_val(slab)) };
        f(bytes, i * slab_rows, n_rows);
    }
    MEMORY.set(memory);
}

/// Checks that `w` is a (rows, cols) matrix.
fn check_matrix(w: Weights, rows: usize, cols: usize) {
    let bytes = rows
        .checked_next_multiple_of(w.row_multiple())
        .and_then(|rows| rows.checked_mul(w.row_bytes(cols)));
    assert_eq!(Some(w.bytes().len()), bytes, "weights");
}

/// Checks that `row` is one row of `cols` weights whose bytes are contiguous.
fn check_row(row: Weights, cols: usize) {
    assert_eq!(
        row.row_multiple(),
        1,
        "a row of a block format is not contiguous"
    );
    assert_eq!(row.bytes().len(), row.row_bytes(cols), "weights");
}

/// Adds one row of a matrix, as an embedding lookup does: `acc += row`.
///
/// # Panics
/// If `row` is not one row of `acc.len()` weights, or has a block format.
pub fn add_row(isa: Isa, acc: &mut [f32], row: Weights) {
    check_row(row, acc.len());
    if let Weights::Bf12(bytes) = row {
        return unpack_slabs(isa, bytes, (1, acc.len()), |row, _, _| {
            add_row(isa, acc, Weights::Bf16(row))
        });
    }
    dispatch!(isa, add_row(acc, row))
}

/// Converts one row of a matrix to f32.
///
/// # Panics
/// If `row` is not one row of `out.len()` weights, or has a block format.
pub fn read_row(row: Weights, out: &mut [f32]) {
    check_row(row, out.len());
    match row {
        Weights::Bf12(bytes) => unpack_slabs(Isa::detect(), bytes, (1, out.len()), |row, _, _| {
            read_row(Weights::Bf16(row), out);
        }),
        _ => scalar::read_row(row, out),
    }
}

/// Converts row `index` of a matrix of any type, with `out.len()` columns, to f32.
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
