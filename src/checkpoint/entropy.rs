//! An entropy model in files of its own: beside its BLT, or in another repository.

use std::path::Path;

use serde_json::Value;

use super::json::{self, Object};
use super::kind::{Kind, NameTable};
use super::locate::find_config;
use super::weight_files::WeightFiles;
use super::{hf, meta, native};
use crate::config::TransformerConfig;
use crate::error::{Error, Result};
use crate::tensor::Load;

/// An entropy model: its configuration, not validated yet, and where its tensors are.
pub(super) struct EntropyModel {
    pub config: TransformerConfig,
    pub weights: WeightFiles,
    pub table: NameTable,
}

/// Opens the entropy model at `path`: a folder or a weights file with its configuration beside it.
/// A whole BLT that has an entropy model inside (HF or native layout) serves, too.
///
/// # Errors
/// Same as [`Checkpoint::open`](super::Checkpoint::open).
pub(super) fn open(path: &Path, load: Load) -> Result<EntropyModel> {
    let mut weights = WeightFiles::load(path, load)?;
    let (config, table) = if let Some(config) = native::read(&mut weights)? {
        (config.entropy, NameTable::Native)
    } else {
        let config_path = find_config(weights.folder()).ok_or_else(|| {
            Error::format(
                weights.path(),
                "expected the entropy model's config.json or params.json beside it, found neither",
            )
        })?;
        let value = json::read(&config_path)?;
        let in_file = |e: Error| e.in_file(&config_path);
        match Kind::of(&value) {
            Some(kind @ (Kind::Hf | Kind::HfPatcher)) => {
                let lost = ["model.patcher.", "model."];
                weights.recognise(&[hf::PATCHER_TENSOR], &lost);
                let config = match kind {
                    Kind::Hf => {
                        hf::config(&value, weights.has(hf::PATCHER_TENSOR))
                            .map_err(in_file)?
                            .entropy
                    }
                    _ => Some(hf::patcher_alone(&value).map_err(in_file)?),
                };
                (config, NameTable::Hf { tied: false })
            }
            _ => {
                weights.recognise(&["tok_embeddings.weight"], &[]);
                let (config, tied_entropy) = meta_config(&config_path, &value).map_err(in_file)?;
                (Some(config), NameTable::Meta { tied_entropy })
            }
        }
    };
    let config = config.ok_or_else(|| {
        Error::format(
            path,
            "expected an entropy model, found a checkpoint without one",
        )
    })?;
    Ok(EntropyModel {
        config,
        weights,
        table,
    })
}

/// The configuration, and whether input and output embeddings may be one tensor.
pub(super) fn meta_config(path: &Path, value: &Value) -> Result<(TransformerConfig, bool)> {
    let root = Object::root(value)?;
    let (config, args) = if let Some(args) = root.object("entropy_model")? {
        (meta::entropy_from_params(&args)?, args)
    } else if let Some(args) = root.object("args")?.filter(|a| !a.has("dim_global")) {
        (meta::entropy_from_hub(&args)?, args)
    } else {
        return Err(Error::format(
            path,
            "expected an entropy model's configuration (an object \"entropy_model\" or \"args\"), \
             found another",
        ));
    };
    Ok((config, args.flag("weight_tying")?.unwrap_or(false)))
}
