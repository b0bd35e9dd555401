//! Sums of rows of tables: embedding.cu.

use std::sync::Arc;

use blt_kernels::BlockFormat;

use super::driver::{Arg, Buffer, Gpu};
use super::ops::{Ops, ROW_THREADS, Slice, u32_arg};
use crate::error::Result;
use crate::ops::Matrix;
use crate::tensor::DType;

/// Most tables of an embedding.
pub const MAX_TABLES: usize = 256;

/// Tables of one width, of whose rows an embedding is the sum.
#[derive(Debug)]
pub struct Tables {
    /// (n_tables), as `Table` in embedding.cu.
    list: Buffer,
    n: usize,
    /// Ids that a lookup reads, the own one included.
    window: usize,
    cols: usize,
    _memory: Vec<Buffer>,
}

/// Number of an element type in embedding.cu.
fn table_type(dtype: DType) -> u32 {
    let format = |format| match format {
        BlockFormat::Q8_0 => 0,
        BlockFormat::Q4_0 => 1,
        BlockFormat::Q4K => 2,
        BlockFormat::Q6K => 3,
        other => unreachable!("no tables of {other:?}"),
    };
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Bf16 => 2,
        DType::Bf12 => unreachable!("unpacked"),
        DType::Table(f) => 3 + format(f),
        DType::Tiles(f) => 7 + format(f),
    }
}

impl Tables {
    /// Copies tables to the device: one whose row is the id, then those of n-grams, each with the powers
    /// that its ids are multiplied with, oldest id first.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the memory does not suffice.
    pub fn new(gpu: &Arc<Gpu>, ids: &Matrix, ngrams: &[(&Matrix, &[i64])]) -> Result<Tables> {
        let (mut list, mut memory) = (Vec::new(), Vec::new());
        let all = [(ids, &[][..])];
        let all = all.iter().chain(ngrams);
        for (matrix, powers) in all {
            let rows = gpu.upload(&matrix.tensor().unpacked_bytes())?;
            let bytes: Vec<u8> = powers.iter().flat_map(|p| p.to_le_bytes()).collect();
            let powers_at = gpu.upload(&bytes)?;
            let n = |n: usize| u32::try_from(n).expect("lengths of n-grams fit 32 bits");
            list.extend(rows.address().to_le_bytes());
            list.extend(powers_at.address().to_le_bytes());
            list.extend(table_type(matrix.tensor().dtype().unpacked()).to_le_bytes());
            list.extend(n(powers.len()).to_le_bytes());
            list.extend((matrix.rows() as u64).to_le_bytes());
            memory.extend([rows, powers_at]);
        }
        let n = 1 + ngrams.len();
        assert!(n <= MAX_TABLES, "tables of an embedding");
        Ok(Tables {
            list: gpu.upload(&list)?,
            n,
            window: (ngrams.iter())
                .map(|(_, p)| p.len())
                .max()
                .unwrap_or(1)
                .max(1),
            cols: ids.cols(),
            _memory: memory,
        })
    }

    /// Ids that a lookup reads, the own one included.
    pub fn window(&self) -> usize {
        self.window
    }
}

impl Ops {
    /// Embeddings x (n, width of the tables). `ids`: (n, window), those up to each row's own, 0 before the
    /// text. With `chosen` (n) the last id of each row is taken from there.
    pub fn embed(
        &self,
        n: usize,
        tables: &Tables,
        ids: Slice<'_>,
        chosen: Option<Slice<'_>>,
        x: &Buffer,
    ) -> Result<()> {
        let args = [
            tables.list.holding_bytes(tables.n * 32),
            ids.0.after(ids.1, n * tables.window),
            chosen.map_or(Arg::Pointer(0), |c| c.0.after(c.1, n)),
            x.holding(n * tables.cols),
            u32_arg(tables.n),
            u32_arg(tables.window),
            u32_arg(tables.cols),
        ];
        // SAFETY: the arguments of `embed` in embedding.cu, sizes checked; rows of n-gram tables are taken
        // modulo their lengths, and single ids are below that of the first table.
        unsafe { x.gpu().launch(self.embed, [n, 1], ROW_THREADS, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::ops::testing::{assert_near, device, noise};
    use crate::tensor::Tensor;

    /// Sums of rows of tables of every type: the id's own, and those of the n-grams that end there.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn embeddings_are_sums_of_rows_of_tables() {
        let gpu = device();
        let ops = Ops::new(&gpu).unwrap();
        let types = (DType::FLOATS.into_iter())
            .chain(BlockFormat::ALL.map(DType::Table))
            .chain(BlockFormat::ALL.map(DType::Tiles));
        let (n, n_ids, n_rows) = (4, 50, 37);
        for (cols, dtype) in [40, 300]
            .into_iter()
            .flat_map(|c| types.clone().map(move |t| (c, t)))
        {
            let table = |dtype, rows, seed| {
                let values = noise(rows * cols, seed);
                let tensor = Tensor::from_values(dtype, vec![rows, cols], &values).unwrap();
                (tensor.to_f32_vec(), Matrix::new("table", tensor).unwrap())
            };
            let (own, ids_matrix) = table(DType::F32, n_ids, 61);
            let (ngram, matrix) = table(dtype, n_rows, 67);
            let powers = [1_000_003, -7_046_029_254_386_353_131, i64::MAX];
            let tables = Tables::new(&gpu, &ids_matrix, &[(&matrix, &powers)]).unwrap();
            let ids: Vec<u32> = (0..n as u32 * 3).map(|i| i * 17 % n_ids as u32).collect();
            let on_device = gpu.alloc(ids.len() * 4).unwrap();
            gpu.write_u32s(&on_device, &ids).unwrap();
            let out = gpu.alloc(n * cols * 4).unwrap();
            ops.embed(n, &tables, (&on_device, 0), None, &out).unwrap();
            let found = gpu.read_f32s(&out, n * cols).unwrap();
            for (ids, found) in ids.chunks(3).zip(found.chunks(cols)) {
                let terms = ids.iter().zip(powers);
                let hash = terms.fold(0i64, |sum, (&id, power)| {
                    sum.wrapping_add(i64::from(id).wrapping_mul(power))
                });
                let row = hash.rem_euclid(n_rows as i64) as usize;
                for (i, &found) in found.iter().enumerate() {
                    let expected = own[ids[2] as usize * cols + i] + ngram[row * cols + i];
                    assert_near(&format!("{dtype}, column {i}"), found, expected.into());
                }
            }
        }
    }
}
