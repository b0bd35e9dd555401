//! What is scored: the bytes of a file or of standard input, block by block, or a list of ids.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::Path;

use blt::session::BYTES_PER_PASS;
use blt::vocab::{Id, VOCAB_SIZE, byte_to_id};

use blt::cli::args::Failure;
use blt::cli::{input, interrupt};

/// Largest list of ids that is read: it must fit into the context.
const MAX_RAW_IDS: usize = 1 << 20;

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
        if is_endless(&file, &meta) {
            return Err(Failure::failed(format!(
                "{}: expected a file or a pipe, found a device",
                path.display()
            )));
        }
        Ok(Input {
            source: Source::Bytes(Box::new(file)),
            name: path.display().to_string(),
            total: meta.is_file().then_some(meta.len()),
        })
    }

    /// The ids in the JSON list at `path`.
    pub fn raw_ids(path: &Path) -> Result<Self, Failure> {
        let wrong = |what: String| Failure::failed(format!("{}: {what}", path.display()));
        let text = input::read(path, MAX_RAW_IDS)?;
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

/// Whether it is a device, which may give bytes for ever, other than a terminal.
fn is_endless(file: &File, meta: &std::fs::Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = meta.file_type();
        (kind.is_char_device() && !file.is_terminal()) || kind.is_block_device()
    }
    #[cfg(not(unix))]
    {
        let _ = (file, meta);
        false
    }
}
