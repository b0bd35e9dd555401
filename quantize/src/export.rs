//! Converts a checkpoint to a folder in Hugging Face layout: `config.json` and `model.safetensors`, every
//! tensor in the type it has.

use std::io::Write;
use std::path::{Path, PathBuf};

use blt::checkpoint::{Checkpoint, HfLayout, SafetensorsWriter, TensorSpec, hf_layout};
use blt::error::{Error, Result};
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
    let layout = hf_layout(checkpoint.config(), main)?;
    let specs = (layout.tensors.iter())
        .map(|tensor| {
            let mut dtype = None;
            for part in &tensor.parts {
                let found = to.unwrap_or(source(checkpoint, part)?.dtype().unpacked());
                if found.is_quantized() || dtype.is_some_and(|d| d != found) {
                    return Err(Error::tensor(
                        part,
                        format!("expected one of F32, F16 and BF16 for all of it, found {found}"),
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
    let folder = Unfinished::create(out)?;
    let config = folder.0.join("config.json");
    let mut file = std::fs::File::create_new(&config).map_err(|e| Error::io(&config, e))?;
    (file
        .write_all(layout.config.as_bytes())
        .and_then(|()| file.sync_all()))
    .map_err(|e| Error::io(&config, e))?;

    // As transformers itself marks its files.
    let metadata = [("format".to_string(), "pt".to_string())];
    let path = folder.0.join("model.safetensors");
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
    folder.rename_to(out)
}

fn source<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a blt::tensor::Tensor> {
    let found = checkpoint.tensors().find(|(n, _)| *n == name);
    found
        .map(|(_, t)| t)
        .ok_or_else(|| Error::tensor(name, "expected in the checkpoint, found nothing"))
}

/// A folder beside its final place, removed unless it gets there.
struct Unfinished(PathBuf);

impl Unfinished {
    fn create(out: &Path) -> Result<Unfinished> {
        if let Ok(mut entries) = std::fs::read_dir(out)
            && entries.next().is_some()
        {
            return Err(Error::format(
                out,
                "expected a new or empty folder, found files in it",
            ));
        }
        let name = out.file_name().ok_or_else(|| {
            Error::argument(
                "out",
                format!("expected the path of a folder, found {}", out.display()),
            )
        })?;
        let mut unfinished = std::ffi::OsString::from(".");
        unfinished.push(name);
        unfinished.push(format!(".{}.unfinished", std::process::id()));
        let path = out.with_file_name(unfinished);
        std::fs::create_dir(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Unfinished(path))
    }

    fn rename_to(self, out: &Path) -> Result<()> {
        // An empty folder in the way is replaced by the rename itself, on Unix; elsewhere it must go.
        let _ = std::fs::remove_dir(out);
        std::fs::rename(&self.0, out).map_err(|e| Error::io(out, e))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After the rename there is nothing of that name; before it, all of it is ours.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
