//! Converts a checkpoint to a folder in Hugging Face layout: `config.json` and `model.safetensors`, every
//! tensor in the type it has.

use std::path::Path;

use blt::checkpoint::{Checkpoint, HfLayout, SafetensorsWriter, TensorSpec, hf_layout};
use blt::error::{Error, Result};
use blt::output_file::{self, OutputFolder};
use blt::tensor::DType;

use crate::stream::Conversion;

/// What an HF-layout copy of the checkpoint will be.
///
/// # Errors
/// [`Error::Unsupported`] if transformers has no such model, [`Error::Tensor`] if a tensor is
/// quantised or tables that become one tensor differ in type.
pub fn plan(checkpoint: &Checkpoint, to: Option<DType>) -> Result<(HfLayout, Vec<TensorSpec>)> {
    let main = checkpoint.tensors().max_by_key(|(_, t)| t.n_elements());
    let main = to.or(main.map(|(_, t)| t.dtype().unpacked()));
    let main = main.unwrap_or(DType::Bf16);
    let layout = hf_layout(checkpoint.config(), main, is_tied(checkpoint)?)?;
    let specs = (layout.tensors.iter())
        .map(|tensor| {
            let mut dtype = None;
            for part in &tensor.parts {
                let found = to.unwrap_or(source(checkpoint, part)?.dtype().unpacked());
                if found.is_quantized() || dtype.is_some_and(|d| d != found) {
                    return Err(Error::tensor(
                        part,
                        format!("expected one of f32, f16 and bf16 for all of it, found {found}"),
                    ));
                }
                dtype = Some(found);
            }
            TensorSpec::typed(&tensor.name, dtype.unwrap_or(main), &tensor.shape)
        })
        .collect::<Result<_>>()?;
    Ok((layout, specs))
}

/// Writes the folder `out`, which must not exist yet or be empty, with all tensors in type `to` or as
/// they are. `progress` is told how many bytes of the source are done, and may stop the work with an
/// error; then there is no folder.
///
/// # Errors
/// Same as [`plan`], and whatever keeps the folder from being written.
pub fn write(
    checkpoint: &Checkpoint,
    to: Option<DType>,
    out: &Path,
    threads: usize,
    mut progress: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let (layout, specs) = plan(checkpoint, to)?;
    let folder = OutputFolder::create(out)?;
    for (name, text) in [
        ("generation_config.json", &layout.generation_config),
        ("config.json", &layout.config),
    ] {
        output_file::write(&folder.join(name), text.as_bytes())?;
    }

    // As transformers itself marks its files.
    let metadata = [("format".to_string(), "pt".to_string())];
    let path = folder.join("model.safetensors");
    let mut writer = SafetensorsWriter::create(&path, &metadata, specs)?;
    let mut done = 0;
    for tensor in &layout.tensors {
        for part in &tensor.parts {
            let source = source(checkpoint, part)?;
            let conversion = Conversion {
                name: part,
                dtype: to.unwrap_or(source.dtype().unpacked()),
                importance: None,
                threads,
            };
            conversion.run(source, |bytes, n| {
                writer.write(&tensor.name, bytes)?;
                done += n;
                progress(done)
            })?;
        }
    }
    writer.finish()?;
    folder.finish()
}

/// Whether byte embedding and output are one tensor, or two of the same bytes.
fn is_tied(checkpoint: &Checkpoint) -> Result<bool> {
    let input = source(checkpoint, "encoder.tok_embeddings")?;
    let output = source(checkpoint, "decoder.output")?;
    Ok(input.dtype() == output.dtype() && input.bytes() == output.bytes())
}

fn source<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a blt::tensor::Tensor> {
    let found = checkpoint.tensors().find(|(n, _)| *n == name);
    found
        .map(|(_, t)| t)
        .ok_or_else(|| Error::tensor(name, "expected in the checkpoint, found nothing"))
}
