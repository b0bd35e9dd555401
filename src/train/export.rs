//! Trained weights as files that inference opens.

use std::collections::HashMap;
use std::path::Path;

use super::params::{Params, Value};
use crate::checkpoint::{
    Checkpoint, HfLayout, ModelTensor, OpenOptions, Role, SafetensorsWriter, TensorSpec,
    expected_tensors, hf_layout, native_file,
};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::output_file::{self, OutputFolder};
use crate::tensor::{DType, Tensor};

/// One tensor of a model as it is saved, adapters merged, from the first of `sources` that has it: as
/// it lies in its checkpoint if nothing has changed it.
///
/// # Errors
/// [`Error::Tensor`] if none has it.
pub fn saved(
    name: &str,
    shape: &[usize],
    sources: &[&Params<f32>],
    dtype: DType,
) -> Result<Tensor> {
    let unchanged = sources.iter().find_map(|p| p.unchanged(name));
    if let Some(unchanged) = unchanged.filter(|t| t.dtype() == dtype) {
        return Ok(unchanged.clone());
    }
    let values = sources.iter().find_map(|p| p.saved_values(name));
    let missing = || Error::tensor(name, "expected it among the trained tensors");
    Tensor::from_values(dtype, shape.to_vec(), &values.ok_or_else(missing)?)
}

/// The type that a tensor of this role is saved in: vectors stay f32.
fn saved_dtype(role: Role, dtype: DType) -> DType {
    match role.is_vector() {
        true => DType::F32,
        false => dtype,
    }
}

/// Gives the weights the values they have once they are saved in this type.
pub fn round_as_saved(params: &mut Params<f32>, dtype: DType) {
    for param in params.list_mut() {
        let dtype = saved_dtype(param.role, dtype);
        if let Value::Owned(values) = &mut param.value
            && dtype != DType::F32
        {
            let saved = Tensor::from_values(dtype, vec![values.len()], values);
            *values = saved.expect("a plain type holds any shape").to_f32_vec();
        }
    }
}

/// Writes the native file, tensor by tensor; norms stay f32.
///
/// # Errors
/// Same as [`native_file`], [`saved`] and [`SafetensorsWriter`].
pub fn native(path: &Path, config: &Config, sources: &[&Params<f32>], dtype: DType) -> Result<()> {
    let typed =
        |tensor: ModelTensor| (tensor.name, (saved_dtype(tensor.role, dtype), tensor.shape));
    let types: HashMap<_, _> = expected_tensors(config).into_iter().map(typed).collect();
    let list = types
        .iter()
        .map(|(name, (t, shape))| (name.clone(), *t, shape.clone()));
    let (metadata, specs) = native_file(config, list)?;
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let mut writer = SafetensorsWriter::create(path, &metadata, specs)?;
    for name in &names {
        let (dtype, shape) = &types[name];
        writer.write(name, saved(name, shape, sources, *dtype)?.bytes())?;
    }
    writer.finish()
}

/// The layout of transformers for a model; what transformers cannot express is refused rather than
/// dropped.
///
/// # Errors
/// [`Error::Unsupported`] naming it.
pub fn hf_layout_of(config: &Config, dtype: DType) -> Result<HfLayout> {
    let layout = hf_layout(config, dtype, false)?;
    match layout.lost.is_empty() {
        true => Ok(layout),
        false => Err(Error::Unsupported(format!(
            "the HF layout cannot say what the configuration has for {}; the native file can",
            layout.lost.join(", ")
        ))),
    }
}

/// Writes the folder that `BltForCausalLM.from_pretrained` loads, with the weights of the native file in the types they
/// have there.
///
/// # Errors
/// Same as [`hf_layout_of`] and [`native`].
pub fn hf(folder: &Path, config: &Config, sources: &[&Params<f32>], dtype: DType) -> Result<()> {
    hf_with(folder, config, dtype, |name, shape, dtype| {
        saved(name, shape, sources, dtype)
    })
}

/// Writes the folder of [`hf`] from a native file.
///
/// # Errors
/// Same as [`hf`] and [`Checkpoint::open`].
pub fn hf_of_native(folder: &Path, native: &Path, dtype: DType) -> Result<()> {
    let checkpoint = Checkpoint::open(native, &OpenOptions::default())?;
    hf_with(folder, checkpoint.config(), dtype, |name, shape, dtype| {
        let tensor = checkpoint.tensor(name, shape)?;
        match tensor.dtype() == dtype {
            true => Ok(tensor),
            false => Tensor::from_values(dtype, shape.to_vec(), &tensor.to_f32_vec()),
        }
    })
}

fn hf_with(
    folder: &Path,
    config: &Config,
    dtype: DType,
    tensor_of: impl Fn(&str, &[usize], DType) -> Result<Tensor>,
) -> Result<()> {
    hf_layout_of(config, dtype)?;
    let expected: HashMap<String, ModelTensor> = (expected_tensors(config).into_iter())
        .map(|tensor| (tensor.name.clone(), tensor))
        .collect();
    let dtype_of = |name: &str| saved_dtype(expected[name].role, dtype);
    let tensor_of = |name: &str| tensor_of(name, &expected[name].shape, dtype_of(name));
    let tied = tensor_of("encoder.tok_embeddings")?.bytes() == tensor_of("decoder.output")?.bytes();
    let layout = hf_layout(config, dtype, tied)?;
    let folder = OutputFolder::create(folder)?;
    let specs = (layout.tensors.iter())
        .map(|tensor| TensorSpec::typed(&tensor.name, dtype_of(&tensor.parts[0]), &tensor.shape))
        .collect::<Result<_>>()?;
    let metadata = [("format".to_string(), "pt".to_string())];
    let path = folder.join("model.safetensors");
    let mut writer = SafetensorsWriter::create(&path, &metadata, specs)?;
    for tensor in &layout.tensors {
        for part in &tensor.parts {
            writer.write(&tensor.name, tensor_of(part)?.bytes())?;
        }
    }
    writer.finish()?;
    for (name, text) in [
        ("generation_config.json", &layout.generation_config),
        ("config.json", &layout.config),
    ] {
        output_file::write(&folder.join(name), text.as_bytes())?;
    }
    folder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounded_weights_are_those_of_the_file() {
        let mut config = preset("toy").unwrap();
        config.patcher.mode = PatchingMode::Entropy;
        let mut params = random(&config, |_| true, 1).unwrap();
        let path = std::env::temp_dir().join(format!("blt-rounded-{}", std::process::id()));
        native(&path, &config, &[&params], DType::Bf16).unwrap();
        let found = Checkpoint::open(&path, &OpenOptions::default()).unwrap();
        let values = |params: &Params<f32>, name: &str| params.saved_values(name).unwrap().to_vec();
        let wq = "entropy.layers.0.wq";
        let before = values(&params, wq);
        round_as_saved(&mut params, DType::Bf16);
        assert!(values(&params, wq) != before);
        for (name, tensor) in found.tensors() {
            assert!(tensor.to_f32_vec() == values(&params, name), "{name}");
        }
        std::fs::remove_file(&path).unwrap();
    }
    use crate::config::{DifferentialConfig, PatchingMode};
    use crate::train::init::random;
    use crate::train::presets::preset;

    #[test]
    fn the_folder_opens_as_the_same_model() {
        for n_functions in [1, 2] {
            let mut config = preset("toy").unwrap();
            config.patcher.mode = PatchingMode::Entropy;
            config.hash.n_functions = n_functions;
            let params = random(&config, |_| true, 1).unwrap();
            let folder = std::env::temp_dir().join(format!("blt-hf-{}", std::process::id()));
            hf(&folder, &config, &[&params], DType::F32).unwrap();
            let found = Checkpoint::open(&folder, &OpenOptions::default()).unwrap();
            assert_eq!(*found.config(), config);
            for (name, tensor) in found.tensors() {
                let want = params.saved_values(name).unwrap();
                assert_eq!(tensor.to_f32_vec(), *want, "{name}");
            }
            std::fs::remove_dir_all(&folder).unwrap();
        }
        // In bf16 the vectors stay f32, as in the native file, and what is tied stays one tensor.
        let mut config = preset("toy").unwrap();
        config.patcher.mode = PatchingMode::Entropy;
        let mut params = random(&config, |_| true, 1).unwrap();
        params.tie_embeddings();
        let base = std::env::temp_dir().join(format!("blt-tied-{}", std::process::id()));
        let (native_path, folder) = (base.with_extension("native"), base.with_extension("hf"));
        native(&native_path, &config, &[&params], DType::Bf16).unwrap();
        hf(&folder, &config, &[&params], DType::Bf16).unwrap();
        let open = |path: &Path| Checkpoint::open(path, &OpenOptions::default()).unwrap();
        let (a, b) = (open(&native_path), open(&folder));
        for ((name, a), (_, b)) in a.tensors().zip(b.tensors()) {
            assert_eq!(a.dtype(), b.dtype(), "{name}");
            assert!(a.bytes() == b.bytes(), "{name}");
        }
        let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(text("config.json").contains("\"tie_word_embeddings\": true"));
        assert!(text("generation_config.json").contains("eos_token_id"));
        assert_eq!(
            b.source("encoder.tok_embeddings").unwrap().0,
            "lm_head.weight"
        );
        std::fs::remove_file(&native_path).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let mut config = preset("toy").unwrap();
        let refusal = |config: &Config| hf_layout_of(config, DType::Bf16).unwrap_err().to_string();
        config.patcher.mode = PatchingMode::Space;
        assert!(refusal(&config).contains("patcher.mode"));
        config.patcher.mode = PatchingMode::Entropy;
        config.decoder.differential = Some(DifferentialConfig { head_norm: true });
        let message = refusal(&config);
        assert!(message.contains("no differential attention"), "{message}");
    }
}
