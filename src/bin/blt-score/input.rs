//! What is scored: the bytes of a file or of standard input, block by block, or a list of ids.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use blt::session::BYTES_PER_PASS;
use blt::vocab::{Id, VOCAB_SIZE, byte_to_id};

use blt::cli::args::Failure;
use blt::cli::interrupt;

/// The ids to score, block by block.
pub struct Input {
    source: Source,
    name: String,
    /// Bytes or ids to come in all, if known.
    pub total: Option<u64>,
}

enum Source {
    Bytes(Box<dyn Read>),
    Ids(std::vec::IntoIter<Id>),
}

impl Input {
    /// The bytes of the file at `path`; `-` is standard input.
    pub fn file(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            return Ok(Input {
                source: Source::Bytes(Box::new(std::io::stdin())),
                name: "standard input".into(),
                total: None,
            });
        }
        let failed = |e| Failure::failed(format!("{}: {e}", path.display()));
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        Ok(Input {
            source: Source::Bytes(Box::new(file)),
            name: path.display().to_string(),
            total: meta.is_file().then_some(meta.len()),
        })
    }

    /// The ids in the JSON list at `path`.
    pub fn raw_ids(path: &Path) -> Result<Self, Failure> {
        let wrong = |what: String| Failure::failed(format!("{}: {what}", path.display()));
        let text = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|e| wrong(format!("expected JSON: {e}")))?;
        let list = (value.as_array().filter(|list| !list.is_empty()))
            .ok_or_else(|| wrong("expected a list of at least one id".into()))?;
        let id = |(i, value): (usize, &serde_json::Value)| {
            let id = value.as_u64().filter(|&id| id < VOCAB_SIZE as u64);
            id.map(|id| id as Id).ok_or_else(|| {
                wrong(format!(
                    "expected ids from 0 to {}, found {value} at {i}",
                    VOCAB_SIZE - 1
                ))
            })
        };
        let ids: Vec<Id> = list.iter().enumerate().map(id).collect::<Result<_, _>>()?;
        Ok(Input {
            total: Some(ids.len() as u64),
            source: Source::Ids(ids.into_iter()),
            name: path.display().to_string(),
        })
    }

    /// The next block; empty at the end.
    pub fn next_block(&mut self) -> Result<Vec<Id>, Failure> {
        match &mut self.source {
            Source::Ids(ids) => Ok(ids.by_ref().take(BYTES_PER_PASS).collect()),
            Source::Bytes(source) => {
                let mut bytes = Vec::with_capacity(BYTES_PER_PASS);
                let mut block = source.by_ref().take(BYTES_PER_PASS as u64);
                // A pipe may have nothing to read for hours.
                let read = match self.total {
                    Some(_) => block.read_to_end(&mut bytes),
                    None => interrupt::while_idle(|| block.read_to_end(&mut bytes)),
                };
                read.map_err(|e| Failure::failed(format!("{}: {e}", self.name)))?;
                Ok(bytes.into_iter().map(byte_to_id).collect())
            }
        }
    }

    /// For messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}
