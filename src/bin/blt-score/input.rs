//! What is scored: the documents of files, folders or standard input, block by block, or a list of ids.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use blt::documents::{self, Format, TextFile};
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
    /// Whether the last block began a document.
    pub begins_document: bool,
    /// Documents begun.
    pub n_documents: usize,
}

enum Source {
    Files {
        format: Format,
        waiting: VecDeque<PathBuf>,
        open: Option<Open>,
    },
    Ids(std::vec::IntoIter<Id>),
}

/// A file, and how far it has been read.
struct Open {
    file: TextFile,
    document: usize,
    at: usize,
}

impl Input {
    /// The documents of these files and of those in these folders; `-` is standard input.
    pub fn files(paths: &[PathBuf], format: Format) -> Result<Self, Failure> {
        let files = documents::files(paths)?;
        // The texts of other files are shorter than the files.
        let size = |path: &PathBuf| {
            let meta = std::fs::metadata(path).ok().filter(|meta| meta.is_file());
            let is_plain = path.extension().is_none_or(|e| e != "jsonl");
            meta.filter(|_| is_plain).map(|meta| meta.len())
        };
        let name = match &files[..] {
            [only] if only.as_os_str() == "-" => "standard input".into(),
            [only] => only.display().to_string(),
            files => format!("{} files", files.len()),
        };
        Ok(Input {
            total: files.iter().map(size).sum(),
            source: Source::Files {
                format,
                waiting: files.into(),
                open: None,
            },
            name,
            begins_document: false,
            n_documents: 0,
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
            begins_document: false,
            n_documents: 0,
        })
    }

    /// The next block, which is of one document; empty at the end.
    pub fn next_block(&mut self) -> Result<Vec<Id>, Failure> {
        let (format, waiting, open) = match &mut self.source {
            Source::Ids(ids) => {
                let block: Vec<Id> = ids.by_ref().take(BYTES_PER_PASS).collect();
                self.begins_document = self.n_documents == 0 && !block.is_empty();
                self.n_documents = 1;
                return Ok(block);
            }
            Source::Files {
                format,
                waiting,
                open,
            } => (format, waiting, open),
        };
        loop {
            if let Some(Open { file, document, at }) = open
                && let Some(range) = file.documents().get(*document)
            {
                let start = range.start + *at;
                let end = range.end.min(start + BYTES_PER_PASS);
                self.begins_document = *at == 0;
                self.n_documents += usize::from(self.begins_document);
                *at += end - start;
                if end == range.end {
                    (*document, *at) = (*document + 1, 0);
                }
                return Ok(file.bytes()[start..end]
                    .iter()
                    .copied()
                    .map(byte_to_id)
                    .collect());
            }
            let Some(path) = waiting.pop_front() else {
                return Ok(Vec::new());
            };
            let file = match path.as_os_str() == "-" {
                true => interrupt::while_idle(|| TextFile::open(&path, format)),
                false => TextFile::open(&path, format),
            };
            *open = Some(Open {
                file: file?,
                document: 0,
                at: 0,
            });
        }
    }

    /// For messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}
