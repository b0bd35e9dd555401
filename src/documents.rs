//! Texts in files, cut into documents: what training reads and what `blt-score` scores.
//!
//! A document is the text between two separator lines (the whole file without one), or one text of a JSONL file. The
//! line ends around a separator belong to no document.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};
use crate::input;
use crate::tensor::MappedFile;

/// The line between documents.
pub const SEPARATOR: &str = "<|endoftext|>";
/// The key of the texts in JSONL files.
pub const TEXT_KEY: &str = "text";

/// Most files that are looked at in a folder.
const MAX_FILES: usize = 1_000_000;
/// Most bytes read from standard input or a pipe.
const MAX_STDIN: usize = 4 << 30;

/// How documents are told apart.
#[derive(Debug, Clone)]
pub struct Format {
    /// The line between documents; empty: a file is one document.
    pub separator: String,
    /// The key of the texts in `.jsonl` files.
    pub text_key: String,
}

impl Default for Format {
    fn default() -> Self {
        Format {
            separator: SEPARATOR.into(),
            text_key: TEXT_KEY.into(),
        }
    }
}

/// A file and the documents in it.
#[derive(Debug)]
pub struct TextFile {
    text: Text,
    documents: Vec<Range<usize>>,
}

#[derive(Debug)]
enum Text {
    Mapped(MappedFile),
    Memory(Vec<u8>),
}

impl TextFile {
    /// Reads the file or pipe at `path`: text, JSON lines if it ends in `.jsonl`, or standard input if it is `-`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] if it cannot be read, is compressed or no text data.
    pub fn open(path: &Path, format: &Format) -> Result<TextFile> {
        if path == Path::new("-") {
            let name = Path::new("standard input");
            let bytes = input::read_from(name, std::io::stdin().lock(), MAX_STDIN)?;
            check_kind(name, false, &bytes)?;
            return Ok(TextFile::from_bytes(bytes, &format.separator));
        }
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if is_pipe(&meta) {
            let bytes = input::read(path, MAX_STDIN)?;
            check_kind(path, false, &bytes)?;
            return Ok(TextFile::from_bytes(bytes, &format.separator));
        }
        if meta.is_file() && meta.len() == 0 {
            return Ok(TextFile::from_bytes(Vec::new(), ""));
        }
        let file = MappedFile::open(path)?;
        check_kind(path, true, file.bytes())?;
        if path.extension().is_some_and(|e| e == "jsonl") {
            let (text, documents) = texts_of_jsonl(path, file.bytes(), &format.text_key)?;
            return Ok(TextFile {
                text: Text::Memory(text),
                documents,
            });
        }
        let documents = cut(file.bytes(), &format.separator);
        Ok(TextFile {
            text: Text::Mapped(file),
            documents,
        })
    }

    /// The documents of a text in memory.
    pub fn from_bytes(text: Vec<u8>, separator: &str) -> TextFile {
        TextFile {
            documents: cut(&text, separator),
            text: Text::Memory(text),
        }
    }

    /// All bytes, of which the documents are ranges.
    pub fn bytes(&self) -> &[u8] {
        match &self.text {
            Text::Mapped(file) => file.bytes(),
            Text::Memory(bytes) => bytes,
        }
    }

    /// Where the documents are. None is empty.
    pub fn documents(&self) -> &[Range<usize>] {
        &self.documents
    }
}

/// The files at `paths`, with those of folders (searched through in order, hidden names and links left out); `-` stands
/// for standard input.
///
/// # Errors
/// [`Error::Io`] for a path that does not exist, [`Error::Format`] for one that is not text.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        find_files(path, true, &mut files)?;
    }
    Ok(files)
}

fn find_files(path: &Path, named: bool, files: &mut Vec<PathBuf>) -> Result<()> {
    if path == Path::new("-") {
        files.push(path.to_path_buf());
        return Ok(());
    }
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if meta.is_dir() {
        let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
        let mut inside = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(path, e))?;
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            // Links are not followed: they can lead in circles.
            let link = entry.file_type().is_ok_and(|t| t.is_symlink());
            if !hidden && !link {
                inside.push(entry.path());
            }
        }
        inside.sort();
        for path in inside {
            find_files(&path, false, files)?;
        }
    } else if meta.is_file() || (named && is_pipe(&meta)) {
        if files.len() >= MAX_FILES {
            return Err(Error::format(
                path,
                format!("expected at most {MAX_FILES} files"),
            ));
        }
        files.push(path.to_path_buf());
    } else if named {
        return Err(Error::format(path, "expected text, found a device"));
    }
    Ok(())
}

/// Whether it is a pipe, such as the shell's `<(COMMAND)`.
fn is_pipe(meta: &std::fs::Metadata) -> bool {
    #[cfg(unix)]
    return std::os::unix::fs::FileTypeExt::is_fifo(&meta.file_type());
    #[cfg(not(unix))]
    {
        let _ = meta;
        false
    }
}

/// Refuses files that are compressed or hold something else than text, by how they begin. Other bytes are text: a byte
/// model can learn any.
fn check_kind(path: &Path, is_file: bool, bytes: &[u8]) -> Result<()> {
    let refuse = |found: String| Err(Error::format(path, format!("expected text, found {found}")));
    if let Some(found) = input::foreign(is_file.then_some(path), bytes) {
        let is_table = found.ends_with("table");
        let advice = if is_table {
            "; write its texts as JSON lines first"
        } else {
            ""
        };
        return refuse(found + advice);
    }
    let is_header = |length: &[u8; 8]| u64::from_le_bytes(*length) < 1 << 30;
    if bytes.first_chunk().is_some_and(is_header) && bytes.get(8..10) == Some(b"{\"") {
        return refuse("a safetensors file".into());
    }
    let is_json = path.extension().is_some_and(|e| e == "json");
    if is_json && bytes.trim_ascii_start().starts_with(b"[") {
        return refuse(format!(
            "a JSON array; make JSON lines of it first: jq -c '.[]' {} > {}",
            input::quoted(path),
            input::quoted(&path.with_extension("jsonl"))
        ));
    }
    Ok(())
}

/// The texts of a JSONL file, one document each: the string under `key` of each line, or the line if it is a string.
fn texts_of_jsonl(path: &Path, bytes: &[u8], key: &str) -> Result<(Vec<u8>, Vec<Range<usize>>)> {
    let (mut texts, mut documents) = (Vec::new(), Vec::new());
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let fault = |what: String| Error::format(path, format!("line {}: {what}", i + 1));
        let mut json = serde_json::Deserializer::from_slice(line);
        let text = TextUnder(key)
            .deserialize(&mut json)
            .and_then(|text| json.end().map(|()| text))
            .map_err(|e| fault(format!("expected JSON, found a fault: {e}")))?
            .ok_or_else(|| {
                fault(format!(
                    "expected an object with a string {key:?}; --text-key names another"
                ))
            })?;
        let start = texts.len();
        texts.extend_from_slice(text.trim_end_matches('\n').as_bytes());
        if texts.len() > start {
            documents.push(start..texts.len());
        }
    }
    Ok((texts, documents))
}

/// Reads the string under a key and skips everything else.
struct TextUnder<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for TextUnder<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TextUnder<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with a string {:?}", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut text = None;
        while let Some(key) = map.next_key::<String>()? {
            match key == self.0 {
                true => text = Some(map.next_value()?),
                false => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(text)
    }
}

/// Where the documents are, without the line ends around the separators and at the end; without a separator, all bytes.
fn cut(bytes: &[u8], separator: &str) -> Vec<Range<usize>> {
    if separator.is_empty() {
        let whole = (!bytes.is_empty()).then_some(0..bytes.len());
        return whole.into_iter().collect();
    }
    let separator = separator.as_bytes();
    let (mut found, mut start, mut line_start) = (Vec::new(), 0, 0);
    let mut add = |start: usize, mut end: usize| {
        while end > start && bytes[end - 1] == b'\n' {
            end -= 1;
        }
        if start < end {
            found.push(start..end);
        }
    };
    while line_start < bytes.len() {
        let rest = &bytes[line_start..];
        let line = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
        let next = line_start + line + 1;
        if rest[..line].trim_ascii_end() == separator {
            add(start, line_start);
            start = next;
        }
        line_start = next;
    }
    add(start.min(bytes.len()), bytes.len());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_end_at_separator_lines() {
        let text = b"one\ntwo\n<|endoftext|>\nthree <|endoftext|> four\n\n<|endoftext|>\r\n\n<|endoftext|>";
        let found: Vec<&[u8]> = (cut(text, SEPARATOR).into_iter())
            .map(|d| &text[d])
            .collect();
        assert_eq!(found, [&b"one\ntwo"[..], b"three <|endoftext|> four"]);
        let cut_of = |bytes, separator| cut(bytes, separator).pop();
        assert_eq!(cut_of(b"a\n", SEPARATOR), Some(0..1));
        assert_eq!(cut_of(b"a\n", ""), Some(0..2));
        assert_eq!((cut_of(b"", SEPARATOR), cut_of(b"", "")), (None, None));
    }

    #[test]
    fn jsonl_and_its_faults() {
        let path = Path::new("x.jsonl");
        let good = b"{\"text\": \"a\\n<|endoftext|>\\n\"}\n\n{\"text\": \"\"}\n{\"text\": \"c\", \"n\": [{}]}";
        let (text, documents) = texts_of_jsonl(path, good, TEXT_KEY).unwrap();
        let found: Vec<&[u8]> = documents.into_iter().map(|d| &text[d]).collect();
        assert_eq!(found, [&b"a\n<|endoftext|>"[..], b"c"]);
        let windows = b"\xef\xbb\xbf{\"text\": \"a\"}\r\n\r\n{\"text\": \"b\"}\r\n";
        let (text, documents) = texts_of_jsonl(path, windows, TEXT_KEY).unwrap();
        assert_eq!((&text[..], documents.len()), (&b"ab"[..], 2));
        let (text, _) = texts_of_jsonl(path, b"{\"text\": 1, \"story\": \"b\"}", "story").unwrap();
        assert_eq!(text, b"b");
        for (bad, what) in [
            ("{\"text\": 1}", "string"),
            ("{\"story\": \"b\"}", "--text-key"),
            ("\"b\"", "an object with a string"),
            ("\n{", "line 2"),
            ("{\"text\": \"a\"} x", "line 1"),
        ] {
            let message = texts_of_jsonl(path, bad.as_bytes(), TEXT_KEY)
                .unwrap_err()
                .to_string();
            assert!(message.contains(what), "{message}");
        }
    }

    #[test]
    fn what_is_no_text_is_named_with_the_line_that_unpacks_it() {
        let tar = [&[b'a'; 257][..], b"ustar\0"].concat();
        let cases: [(&str, &[u8], &str); 9] = [
            ("a.gz", b"\x1f\x8b\x08", "gzip -dk a.gz"),
            ("a.txt", b"\x1f\x8b\x08", "gzip -dk a.txt"),
            ("a.xz", b"\xfd7zXZ\0", "xz -dk a.xz"),
            ("a.zst", b"\x28\xb5\x2f\xfd", "zstd -d a.zst"),
            ("a.zip", b"PK\x03\x04", "unzip a.zip"),
            ("a.parquet", b"PAR1", "as JSON lines"),
            ("a.tar", &tar, "tar xf a.tar"),
            ("a.json", b" [1]", "jq -c '.[]' a.json > a.jsonl"),
            (
                "m.safetensors",
                b"\x10\0\0\0\0\0\0\0{\"a\":1}",
                "a safetensors file",
            ),
        ];
        for (name, bytes, expected) in cases {
            let message = check_kind(Path::new(name), true, bytes)
                .unwrap_err()
                .to_string();
            assert!(message.contains(expected), "{message}");
        }
        let message = check_kind(Path::new("standard input"), false, b"\x1f\x8b").unwrap_err();
        assert!(message.to_string().ends_with("gzip data; unpack it first"));
        for (name, bytes) in [
            ("a.txt", &b" [1]"[..]),
            ("a.json", b"{}"),
            ("a", b""),
            ("a.bin", b"\0\x01\x02"),
        ] {
            assert!(check_kind(Path::new(name), true, bytes).is_ok(), "{name}");
        }
    }
}
