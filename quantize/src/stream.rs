//! Converts one tensor from one type to another, piece by piece, on several threads.

use std::ops::Range;

use blt::error::{Error, Result};
use blt::tensor::{DType, Tensor, encode};

/// The error of a conversion.
#[derive(Debug, Clone, Copy, Default)]
pub struct Loss {
    /// Weights compared.
    pub n: u64,
    /// Sum of squared differences.
    pub squared_error: f64,
    /// Sum of squared weights.
    pub squares: f64,
}

impl Loss {
    /// Root of the mean squared difference, as a share of that of the weights.
    pub fn relative(&self) -> f64 {
        match self.squares > 0.0 {
            true => (self.squared_error / self.squares).sqrt(),
            false => 0.0,
        }
    }

    /// Adds what another conversion lost.
    pub fn add(&mut self, other: &Loss) {
        self.n += other.n;
        self.squared_error += other.squared_error;
        self.squares += other.squares;
    }
}

/// How a tensor is converted.
#[derive(Debug, Clone, Copy)]
pub struct Conversion<'a> {
    /// For messages.
    pub name: &'a str,
    /// The type wanted.
    pub dtype: DType,
    /// How much a squared error in each column weighs, (cols); all the same if `None`.
    pub importance: Option<&'a [f32]>,
    /// Threads to use.
    pub threads: usize,
}

impl Conversion<'_> {
    /// Converts all rows of `tensor` and hands the bytes to `put` in order, together with the bytes of
    /// the source that they came from; returns what was lost. `put` may stop it with an error.
    ///
    /// # Errors
    /// [`Error::Tensor`] for weights that are not finite or not in the type's range, and what `put`
    /// returns.
    pub fn run(&self, tensor: &Tensor, put: impl FnMut(&[u8], u64) -> Result<()>) -> Result<Loss> {
        let rows = tensor.rows();
        self.run_pieces(tensor, pieces(0..rows, self.step(tensor)), put)
    }

    /// What converting would lose, judged by at most `n_pieces` runs of rows spread over the tensor.
    ///
    /// # Errors
    /// Same as [`Conversion::run`].
    pub fn sample(
        &self,
        tensor: &Tensor,
        n_pieces: usize,
        go_on: impl Fn() -> Result<()>,
    ) -> Result<Loss> {
        let step = (self.step(tensor) / 32).max(1).next_multiple_of(16);
        let all = pieces(0..tensor.rows(), step);
        let every = all.len().div_ceil(n_pieces).max(1);
        let some = all.into_iter().step_by(every).collect();
        self.run_pieces(tensor, some, |_, _| go_on())
    }

    /// Rows converted at a time: whole tiles of both types.
    fn step(&self, tensor: &Tensor) -> usize {
        (Tensor::PIECE / tensor.cols().max(1))
            .max(1)
            .next_multiple_of(16)
    }

    fn run_pieces(
        &self,
        tensor: &Tensor,
        pieces: Vec<Range<usize>>,
        mut put: impl FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<Loss> {
        let whole = tensor.reshape(vec![tensor.rows(), tensor.cols()])?;
        let mut loss = Loss::default();
        for batch in pieces.chunks(self.threads.max(1)) {
            let parts = (batch.iter())
                .map(|rows| whole.slice_rows(rows.clone()))
                .collect::<Result<Vec<_>>>()?;
            let converted: Vec<Result<(Vec<u8>, Loss)>> = std::thread::scope(|scope| {
                let work: Vec<_> = (parts.iter())
                    .map(|part| scope.spawn(|| self.convert(part)))
                    .collect();
                work.into_iter()
                    .map(|thread| match thread.join() {
                        Ok(result) => result,
                        Err(panic) => std::panic::resume_unwind(panic),
                    })
                    .collect()
            });
            for ((part, converted), rows) in parts.iter().zip(converted).zip(batch) {
                let (bytes, lost) = converted.map_err(|e| at_row(e, rows.start))?;
                put(&bytes, part.bytes().len() as u64)?;
                loss.add(&lost);
                part.release();
            }
        }
        Ok(loss)
    }

    fn convert(&self, part: &Tensor) -> Result<(Vec<u8>, Loss)> {
        if part.dtype() == self.dtype {
            let loss = Loss {
                n: part.n_elements() as u64,
                ..Loss::default()
            };
            return Ok((part.bytes().to_vec(), loss));
        }
        let values = part.to_f32_vec();
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::tensor(
                self.name,
                format!(
                    "expected finite numbers, found {} in column {}",
                    values[at],
                    at % part.cols()
                ),
            ));
        }
        let mut bytes = Vec::new();
        encode(
            self.dtype,
            part.cols(),
            &values,
            self.importance,
            &mut bytes,
        );
        let back = Tensor::from_bytes(self.dtype, part.shape().to_vec(), bytes)?;
        let mut loss = Loss {
            n: values.len() as u64,
            ..Loss::default()
        };
        for (&x, y) in values.iter().zip(back.to_f32_vec()) {
            if !y.is_finite() {
                return Err(Error::tensor(
                    self.name,
                    format!("expected numbers in the range of {}, found {x}", self.dtype),
                ));
            }
            loss.squared_error += f64::from(x - y).powi(2);
            loss.squares += f64::from(x).powi(2);
        }
        Ok((back.bytes().to_vec(), loss))
    }
}

fn pieces(rows: Range<usize>, step: usize) -> Vec<Range<usize>> {
    let end = rows.end;
    rows.step_by(step)
        .map(|first| first..(first + step).min(end))
        .collect()
}

fn at_row(error: Error, first: usize) -> Error {
    match error {
        Error::Tensor { name, what } => Error::tensor(name, format!("{what}, after row {first}")),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blt_kernels::BlockFormat;

    fn values(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 2_654_435_761) as u32 as f32 / 2f32.powi(31)) - 1.0)
            .collect()
    }

    fn conversion(dtype: DType, threads: usize) -> Conversion<'static> {
        Conversion {
            name: "w",
            dtype,
            importance: None,
            threads,
        }
    }

    #[test]
    fn pieces_and_threads_do_not_show_in_the_bytes() {
        // More than one piece, and a last tile that is not full.
        let (rows, cols) = (2200, 1000);
        let source = Tensor::from_f32(vec![rows, cols], values(rows * cols)).unwrap();
        for dtype in [
            DType::Bf16,
            DType::Tiles(BlockFormat::Q8_0),
            DType::Table(BlockFormat::Q4_0),
        ] {
            let whole = Tensor::from_values(dtype, vec![rows, cols], &source.to_f32_vec()).unwrap();
            for threads in [1, 3] {
                let (mut bytes, mut read) = (Vec::new(), 0);
                let put = |b: &[u8], n: u64| {
                    bytes.extend_from_slice(b);
                    read += n;
                    Ok(())
                };
                let loss = conversion(dtype, threads).run(&source, put).unwrap();
                assert!(bytes == whole.bytes(), "{dtype:?}");
                assert_eq!((read, loss.n), (4 * 2_200_000, 2_200_000));
                assert!(
                    loss.relative() > 1e-4 && loss.relative() < 0.1,
                    "{}",
                    loss.relative()
                );
            }
        }
    }

    #[test]
    fn weights_that_do_not_fit_are_named() {
        let mut bad = values(64);
        bad[40] = f32::NAN;
        let source = Tensor::from_f32(vec![1, 64], bad.clone()).unwrap();
        let run = |source: &Tensor, dtype| {
            let result = conversion(dtype, 1).run(source, |_, _| Ok(()));
            result.unwrap_err().to_string()
        };
        let message = run(&source, DType::Tiles(BlockFormat::Q8_0));
        assert!(
            message.contains("\"w\"") && message.contains("NaN in column 40"),
            "{message}"
        );
        bad[40] = 1e6;
        let source = Tensor::from_f32(vec![1, 64], bad).unwrap();
        assert!(run(&source, DType::F16).contains("range of f16, found 1000000"));
    }

    #[test]
    fn put_can_stop_it() {
        let source = Tensor::from_f32(vec![1, 64], values(64)).unwrap();
        let stop = |_: &[u8], _| Err(Error::argument("stop", "now"));
        assert!(conversion(DType::Bf16, 1).run(&source, stop).is_err());
    }
}
