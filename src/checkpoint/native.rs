//! Our own single file: safetensors under our names, the whole configuration in its metadata.
//!
//! `__metadata__` holds `blt.format_version` and `blt.config`, the JSON of `config_json.rs`.
//!
//! | version | |
//! |---|---|
//! | 1 | every tensor is F32, F16 or BF16 |
//! | 2 | some are quantised: see `quantized.rs` for how they are declared |
//!
//! Files are written in the lowest version that can hold them, and all versions are read. After the tensors come their
//! checksums: see `checksums.rs`.

use std::collections::HashMap;
use std::path::Path;

use super::config_json::{CONFIG_KEY, config_from_json, config_to_json};
use super::names::expected_tensors;
use super::quantized::{self, BLOCK_LAYOUT_KEY, TENSORS_KEY};
use super::source::Source;
use super::spec::{ALIGNMENT, Metadata, NativeTensor, TensorSpec, VERSION_KEY};
use super::weight_files::WeightFiles;
use super::writer::SafetensorsWriter;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The version of files without quantised tensors.
const VERSION: &str = "1";
/// The version of files with them.
const QUANTIZED_VERSION: &str = "2";

/// The configuration of a native file; `None` if the weights are of another layout. Quantised
/// tensors are served as such from now on.
pub(super) fn read(weights: &mut WeightFiles) -> Result<Option<Config>> {
    let Some(metadata) = weights.metadata() else {
        return Ok(None);
    };
    let Some(version) = metadata.get(VERSION_KEY) else {
        return Ok(None);
    };
    let err = |what: String| Error::format(weights.path(), what);
    let quantized = version == QUANTIZED_VERSION;
    if version != VERSION && !quantized {
        return Err(err(format!(
            "expected {VERSION_KEY} {VERSION} or {QUANTIZED_VERSION}, found {version:?}; a newer \
             program wrote this file"
        )));
    }
    let text = metadata.get(CONFIG_KEY).ok_or_else(|| {
        err(format!(
            "expected {CONFIG_KEY} in the metadata, found nothing"
        ))
    })?;
    let config = config_from_json(text).map_err(|e| e.in_file(weights.path()))?;
    if quantized {
        let declared = quantized::read(metadata).map_err(err)?;
        weights.declare(declared)?;
    }
    Ok(Some(config))
}

/// The name table: our own names.
pub(super) fn source(name: &str) -> Source {
    Source::named(name)
}

/// The metadata of a native file with this configuration and no quantised tensors, for
/// [`SafetensorsWriter`](super::SafetensorsWriter).
pub fn native_metadata(config: &Config) -> Metadata {
    vec![
        (VERSION_KEY.into(), VERSION.into()),
        (CONFIG_KEY.into(), config_to_json(config)),
    ]
}

/// What a [`SafetensorsWriter`](super::SafetensorsWriter) needs for a native file with these
/// tensors: its metadata, and the tensors in the order in which they are to be written.
///
/// Tensors whose size is a multiple of 64 bytes come first, in canonical order, so that each of them
/// begins at a multiple of 64; the size of every quantised tensor is one.
///
/// # Errors
/// [`Error::Config`] if the configuration is not valid, [`Error::Tensor`] if a tensor is missing,
/// superfluous, given twice or misshapen, or if its type cannot hold it.
pub fn native_file(
    config: &Config,
    tensors: impl IntoIterator<Item = NativeTensor>,
) -> Result<(Metadata, Vec<TensorSpec>)> {
    config.validate()?;
    let mut given = HashMap::new();
    for (name, dtype, shape) in tensors {
        if given.insert(name.clone(), (dtype, shape)).is_some() {
            return Err(Error::tensor(name, "expected once, found twice"));
        }
    }
    let mut list = Vec::new();
    for tensor in expected_tensors(config) {
        let (name, expected) = (tensor.name, tensor.shape);
        let found = match given.remove(&name) {
            Some((dtype, shape)) if shape == expected => {
                list.push((name, dtype, shape));
                continue;
            }
            Some((_, shape)) => format!("{shape:?}"),
            None => "nothing".into(),
        };
        return Err(Error::tensor(
            name,
            format!("expected shape {expected:?}, found {found}"),
        ));
    }
    if let Some(name) = given.into_keys().min() {
        return Err(Error::tensor(
            name,
            "expected no such tensor in a model of this configuration",
        ));
    }
    let mut metadata = native_metadata(config);
    if list.iter().any(|(_, dtype, _)| !dtype.is_plain()) {
        metadata[0].1 = QUANTIZED_VERSION.into();
        metadata.push((BLOCK_LAYOUT_KEY.into(), quantized::BLOCK_LAYOUT.to_string()));
        metadata.push((TENSORS_KEY.into(), quantized::to_json(&list)));
    }
    let mut specs = Vec::new();
    for (name, dtype, shape) in list {
        specs.push(TensorSpec::typed(name, dtype, &shape)?);
    }
    // Stable: canonical order among those that keep the alignment, and among the others.
    specs.sort_by_key(|spec| !spec.n_bytes.is_multiple_of(ALIGNMENT as u64));
    Ok((metadata, specs))
}

/// Writes a native file: the configuration and every tensor it calls for, under our names, in any
/// order. Tensors come as they are stored; no conversion.
///
/// # Errors
/// [`Error::Config`] if the configuration is not valid, [`Error::Tensor`] if a tensor is missing,
/// superfluous or misshapen, [`Error::Io`] if the file cannot be written. Then there is no file.
pub fn write_native(
    path: &Path,
    config: &Config,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
) -> Result<()> {
    let tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
    let list = (tensors.iter()).map(|(n, t)| (n.clone(), t.dtype(), t.shape().to_vec()));
    let (metadata, specs) = native_file(config, list)?;
    let tensors: HashMap<String, Tensor> = tensors.into_iter().collect();
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let mut writer = SafetensorsWriter::create(path, &metadata, specs)?;
    for name in &names {
        writer.write(name, tensors[name].bytes())?;
    }
    writer.finish()
}
