//! The difference of two subword models, added to a byte model that was made from the first.
//!
//! A Bolmo model's global layers and its last norm began as those of a subword model and have the same names and
//! shapes. So what instruction tuning did to the subword model can be added to the byte model: for each of these tensors
//! `W += alpha * (W_instruct - W_base)`. Local networks and embeddings stay as they are.

use blt::checkpoint::{
    Checkpoint, Component, ModelTensor, Role, SafetensorsWriter, WeightFiles, bolmo_tensor_name,
    native_file,
};
use blt::error::{Error, Result};
use blt::output_file::OutputFile;
use blt::tensor::{Tensor, encode};

/// A byte model and the two subword models.
#[derive(Debug)]
pub struct Merge<'a> {
    /// The byte model.
    pub checkpoint: &'a Checkpoint,
    /// The subword model it was made from.
    pub base: &'a WeightFiles,
    /// That subword model after instruction tuning.
    pub instruct: &'a WeightFiles,
    /// How much of the difference is added.
    pub alpha: f32,
}

/// What came of a merge.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Merged {
    /// Tensors that a difference was added to.
    pub n_changed: usize,
    /// Tensors left as they were.
    pub n_kept: usize,
    /// The root of the mean squared difference that was added, over that of the weights it was added to.
    pub relative_change: f64,
}

impl Merge<'_> {
    /// Writes the merged model as the native file that `open` begins. `progress` gets the number of bytes of the byte
    /// model that are done and may stop the work with an error; then there is no file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the byte model is not of the Bolmo family or quantised, [`Error::Tensor`] if a tensor of
    /// its global layers is missing from one of the others or has another shape there; those of the writer.
    pub fn write(
        &self,
        open: impl FnOnce() -> Result<OutputFile>,
        mut progress: impl FnMut(u64) -> Result<()>,
    ) -> Result<Merged> {
        let config = self.checkpoint.config();
        if config.bolmo.is_none() {
            return Err(Error::Unsupported(
                "expected a byte model of the Bolmo family, whose global layers are those of a subword model, found \
                 another"
                    .into(),
            ));
        }
        // All of them before anything is written.
        for (of, tensor) in self.checkpoint.model_tensors() {
            if tensor.dtype().is_quantized() {
                return Err(Error::Unsupported(format!(
                    "expected unquantised weights, found {} in {}; merge first, then quantise",
                    tensor.dtype(),
                    of.name
                )));
            }
            if is_shared(of) {
                self.sources(of)?;
            }
        }
        let list = (self.checkpoint.model_tensors())
            .map(|(of, t)| (of.name.clone(), t.dtype(), of.shape.clone()));
        let (metadata, specs) = native_file(config, list)?;
        let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
        let mut writer = SafetensorsWriter::begin(open, &metadata, specs)?;
        let (mut merged, mut done) = (Merged::default(), 0);
        let mut sums = Sums::default();
        for name in &names {
            let found = self
                .checkpoint
                .model_tensors()
                .find(|(of, _)| of.name == *name);
            let (of, tensor) = found.expect("a tensor of this checkpoint");
            let sources = is_shared(of).then(|| self.sources(of)).transpose()?;
            match &sources {
                Some(_) => merged.n_changed += 1,
                None => merged.n_kept += 1,
            }
            let step = (Tensor::PIECE / tensor.cols().max(1)).max(1);
            let whole = tensor.reshape(vec![tensor.rows(), tensor.cols()])?;
            for first in (0..tensor.rows()).step_by(step) {
                let rows = first..tensor.rows().min(first + step);
                let piece = whole.slice_rows(rows.clone())?;
                match &sources {
                    None => writer.write(name, piece.bytes())?,
                    Some(sources) => {
                        let [base, instruct] = sources.each_ref().map(|t| {
                            let whole = t.reshape(vec![t.rows(), t.cols()])?;
                            Ok(whole.slice_rows(rows.clone())?.to_f32_vec())
                        });
                        let mut values = piece.to_f32_vec();
                        sums.add(name, &mut values, &base?, &instruct?, self.alpha)?;
                        let mut bytes = Vec::new();
                        encode(piece.dtype(), piece.cols(), &values, None, &mut bytes);
                        writer.write(name, &bytes)?;
                    }
                }
                done += piece.bytes().len() as u64;
                progress(done)?;
                piece.release();
            }
        }
        writer.finish()?;
        merged.relative_change = match sums.weights > 0.0 {
            true => (sums.changes / sums.weights).sqrt(),
            false => 0.0,
        };
        Ok(merged)
    }

    /// A tensor of the byte model in the two others: base, instruct.
    fn sources(&self, of: &ModelTensor) -> Result<[Tensor; 2]> {
        let name = bolmo_tensor_name(&of.name, self.checkpoint.config());
        let find = |files: &WeightFiles| {
            let path = files.path_of(&name).display();
            let tensor = files.tensor(&name)?.ok_or_else(|| {
                Error::tensor(
                    &name,
                    format!(
                        "expected shape {:?}, found no such tensor in {path}",
                        of.shape
                    ),
                )
            })?;
            match tensor.shape() == of.shape {
                true => Ok(tensor),
                false => Err(Error::tensor(
                    &name,
                    format!(
                        "expected shape {:?}, found {:?} in {path}; is it the model that the byte model was made from?",
                        of.shape,
                        tensor.shape()
                    ),
                )),
            }
        };
        Ok([find(self.base)?, find(self.instruct)?])
    }
}

/// Whether the subword model has the tensor too.
fn is_shared(of: &ModelTensor) -> bool {
    of.component == Component::Global
        || (of.component == Component::Decoder && of.role == Role::Norm && of.leaf() == "norm")
}

/// Sums of squares.
#[derive(Default)]
struct Sums {
    changes: f64,
    weights: f64,
}

impl Sums {
    /// Adds the difference to `values`.
    fn add(
        &mut self,
        name: &str,
        values: &mut [f32],
        base: &[f32],
        instruct: &[f32],
        alpha: f32,
    ) -> Result<()> {
        for ((value, base), instruct) in values.iter_mut().zip(base).zip(instruct) {
            let change = alpha * (instruct - base);
            self.changes += f64::from(change).powi(2);
            self.weights += f64::from(*value).powi(2);
            *value += change;
            if !value.is_finite() {
                return Err(Error::tensor(
                    name,
                    format!("expected finite sums, found {value}"),
                ));
            }
        }
        Ok(())
    }
}
