//! Which layout a configuration file belongs to, and the name table of each layout.

use serde_json::Value;

use super::source::Source;
use super::{bolmo, hf, meta, native};
use crate::config::Config;

/// The name table of a set of weights.
pub(super) enum NameTable {
    Native,
    Hf { tied: bool },
    Bolmo { tied: bool },
    Meta { tied_entropy: bool },
}

impl NameTable {
    /// Where the files have the tensor that we call `name`.
    pub fn source(&self, name: &str, config: &Config) -> Source {
        match self {
            NameTable::Native => native::source(name),
            NameTable::Hf { tied } => hf::source(name, config, *tied),
            NameTable::Bolmo { tied } => bolmo::source(name, config, *tied),
            NameTable::Meta { tied_entropy } => meta::source(name, *tied_entropy),
        }
    }
}

/// What a configuration file turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bolmo,
    Hf,
    HfPatcher,
    MetaHub,
    MetaParams,
}

impl Kind {
    /// What a file with this content is.
    pub fn of(value: &Value) -> Option<Kind> {
        if value["model_type"] == "bolmo" {
            Some(Kind::Bolmo)
        } else if value["model_type"] == "blt_patcher" {
            Some(Kind::HfPatcher)
        } else if value["model_type"] == "blt" || value["encoder_config"].is_object() {
            Some(Kind::Hf)
        } else if value["args"].is_object() {
            Some(Kind::MetaHub)
        } else if value["model"].is_object() {
            Some(Kind::MetaParams)
        } else {
            None
        }
    }
}
