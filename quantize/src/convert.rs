//! Converts a whole checkpoint to one native file.

use std::collections::HashMap;

use blt::checkpoint::{Checkpoint, ModelTensor, SafetensorsWriter, native_file};
use blt::error::{Error, Result};
use blt::output_file::OutputFile;
use blt::tensor::{DType, Tensor};

use crate::stream::{Conversion, Loss};

/// How much a squared error in each column of a matrix weighs, by the matrix's name.
pub type Importance = HashMap<String, Vec<f32>>;

/// What became of a tensor.
#[derive(Debug, Clone)]
pub struct Done {
    /// What was converted.
    pub tensor: ModelTensor,
    /// Type before.
    pub from: DType,
    /// Type after.
    pub to: DType,
    /// Number of weights.
    pub parameters: u64,
    /// Size before.
    pub bytes_before: u64,
    /// Size after.
    pub bytes_after: u64,
    /// What the conversion lost, or a sample of it.
    pub loss: Loss,
}

/// A conversion to make.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// What to convert.
    pub checkpoint: &'a Checkpoint,
    /// The type of every tensor.
    pub plan: &'a [(String, DType)],
    /// Weights of errors.
    pub importance: &'a Importance,
    /// Threads to use.
    pub threads: usize,
}

/// Runs of rows per tensor that a dry run looks at.
const SAMPLES: usize = 8;

impl Job<'_> {
    /// Writes the native file that `open` begins. `progress` is told how many bytes of the source are done, and
    /// may stop the work with an error; then there is no file.
    ///
    /// # Errors
    /// Those of the writer, of weights that are not finite, and of `progress`.
    pub fn write(
        &self,
        open: impl FnOnce() -> Result<OutputFile>,
        mut progress: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<Done>> {
        let list = (self.plan.iter()).map(|(name, dtype)| {
            let shape = self.source(name).map(|(of, _)| of.shape.clone());
            (name.clone(), *dtype, shape.unwrap_or_default())
        });
        let (metadata, specs) = native_file(self.checkpoint.config(), list)?;
        let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
        let mut writer = SafetensorsWriter::begin(open, &metadata, specs)?;
        let mut done = 0;
        let mut results = HashMap::new();
        for name in &names {
            let result = self.convert(name, |conversion, tensor| {
                conversion.run(tensor, |bytes, n| {
                    writer.write(name, bytes)?;
                    done += n;
                    progress(done)
                })
            })?;
            results.insert(name.as_str(), result);
        }
        writer.finish()?;
        Ok((self.plan.iter())
            .filter_map(|(name, _)| results.remove(name.as_str()))
            .collect())
    }

    /// Converts a sample of each tensor and writes nothing.
    ///
    /// # Errors
    /// Same as [`Job::write`].
    pub fn rehearse(&self, mut progress: impl FnMut(u64) -> Result<()>) -> Result<Vec<Done>> {
        let mut done = 0;
        let mut results = Vec::new();
        for (name, _) in self.plan {
            let result = self.convert(name, |conversion, tensor| {
                done += tensor.bytes().len() as u64;
                progress(done)?;
                conversion.sample(tensor, SAMPLES, || Ok(()))
            })?;
            results.push(result);
        }
        Ok(results)
    }

    /// Bytes of the source.
    pub fn total_bytes(&self) -> u64 {
        (self.checkpoint.tensors())
            .map(|(_, t)| t.bytes().len() as u64)
            .sum()
    }

    fn source(&self, name: &str) -> Option<(&ModelTensor, &Tensor)> {
        self.checkpoint
            .model_tensors()
            .find(|(of, _)| of.name == name)
    }

    fn convert(
        &self,
        name: &str,
        run: impl FnOnce(Conversion, &Tensor) -> Result<Loss>,
    ) -> Result<Done> {
        let missing = || Error::tensor(name, "expected in the checkpoint, found nothing");
        let (of, tensor) = self.source(name).ok_or_else(missing)?;
        let planned = self.plan.iter().find(|(n, _)| n == name);
        let (_, dtype) = planned.ok_or_else(missing)?;
        let importance = self.importance.get(name).map(Vec::as_slice);
        let conversion = Conversion {
            name,
            dtype: *dtype,
            importance: importance.filter(|i| i.len() == tensor.cols()),
            threads: self.threads,
        };
        let loss =
            run(conversion, tensor).map_err(|e| match (e, self.checkpoint.source(name)) {
                (Error::Tensor { what, .. }, Some((stored, file))) => {
                    Error::tensor(stored, format!("{what}, in {}", file.display()))
                }
                (e, _) => e,
            })?;
        Ok(Done {
            tensor: of.clone(),
            from: tensor.dtype(),
            to: *dtype,
            parameters: tensor.n_elements() as u64,
            bytes_before: tensor.bytes().len() as u64,
            bytes_after: dtype.size_of(tensor.shape()).unwrap_or(0) as u64,
            loss,
        })
    }
}
