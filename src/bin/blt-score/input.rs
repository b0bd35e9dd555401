//! What is scored: the documents of files, folders or standard input, in pieces that are scored on their own, or a list of
//! ids.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use blt::documents::{self, Format, TextFile};
use blt::vocab::{Id, VOCAB_SIZE, byte_to_id};

use blt::cli::args::Failure;
use blt::cli::{input, interrupt};

/// Largest list of ids that is read: it must fit into the context.
const MAX_RAW_IDS: usize = 1 << 20;

/// The ids to score.
pub struct Input {
    source: Source,
    name: String,
    /// Bytes or ids to come in all, if known.
    pub total: Option<u64>,
    /// Documents begun.
    pub n_documents: usize,
}

enum Source {
    Files {
        format: Format,
        waiting: VecDeque<PathBuf>,
        open: Option<Open>,
    },
    Ids(Option<Rc<[Id]>>),
}

/// A file, and how far it has been read.
struct Open {
    file: Rc<TextFile>,
    document: usize,
    at: usize,
}

/// Where a document is cut, if that is known before it is read.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// Bytes of the first window.
    pub first: usize,
    /// New bytes of each further one.
    pub later: usize,
    /// Bytes before those, which it reads again.
    pub overlap: usize,
}

/// A document, or a window of one.
#[derive(Debug, Clone)]
pub struct Piece {
    text: Text,
    /// How many ids before the first are read again.
    pub n_again: usize,
    /// The ids that count.
    pub range: Range<usize>,
}

#[derive(Debug, Clone)]
enum Text {
    File(Rc<TextFile>),
    Ids(Rc<[Id]>),
}

impl Piece {
    /// A text without ids.
    pub fn empty() -> Piece {
        Piece {
            text: Text::Ids(Rc::new([])),
            n_again: 0,
            range: 0..0,
        }
    }

    /// The ids in a range.
    pub fn ids(&self, range: Range<usize>) -> Vec<Id> {
        match &self.text {
            Text::File(file) => (file.bytes()[range].iter())
                .copied()
                .map(byte_to_id)
                .collect(),
            Text::Ids(ids) => ids[range].to_vec(),
        }
    }
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
            source: Source::Ids(Some(ids.into())),
            name: path.display().to_string(),
            n_documents: 0,
        })
    }

    /// The next piece: a document, or its next window if `windows` says where those are.
    pub fn next_piece(&mut self, windows: Option<Windows>) -> Result<Option<Piece>, Failure> {
        let (format, waiting, open) = match &mut self.source {
            Source::Ids(ids) => {
                let piece = ids.take().map(|ids| Piece {
                    n_again: 0,
                    range: 0..ids.len(),
                    text: Text::Ids(ids),
                });
                self.n_documents += usize::from(piece.is_some());
                return Ok(piece);
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
                let rest = range.end - start;
                let (n, n_again) = match windows {
                    None => (rest, 0),
                    Some(windows) if *at == 0 => (rest.min(windows.first), 0),
                    Some(windows) => (rest.min(windows.later), windows.overlap),
                };
                self.n_documents += usize::from(*at == 0);
                *at += n;
                if n == rest {
                    (*document, *at) = (*document + 1, 0);
                }
                return Ok(Some(Piece {
                    text: Text::File(file.clone()),
                    n_again,
                    range: start..start + n,
                }));
            }
            let Some(path) = waiting.pop_front() else {
                return Ok(None);
            };
            let file = match path.as_os_str() == "-" {
                true => interrupt::while_idle(|| TextFile::open(&path, format)),
                false => TextFile::open(&path, format),
            };
            *open = Some(Open {
                file: file?.into(),
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
