//! Reading a whole file into memory, up to a limit: whatever a path leads to, it cannot fill the memory. And telling by its
//! first bytes what a file is that is neither text nor weights.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// The content of the file or pipe at `path`.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Format`] if it has more than `limit` bytes.
pub fn read(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    read_from(path, file, limit)
}

/// What a reader gives until its end; `name` is for messages.
///
/// # Errors
/// Same as [`read`].
pub fn read_from(name: impl AsRef<Path>, reader: impl Read, limit: usize) -> Result<Vec<u8>> {
    let name = name.as_ref();
    let mut bytes = Vec::new();
    (reader.take(limit as u64 + 1).read_to_end(&mut bytes)).map_err(|e| Error::io(name, e))?;
    match bytes.len() > limit {
        false => Ok(bytes),
        true => Err(Error::format(
            name,
            format!("expected at most {limit} bytes, found more"),
        )),
    }
}

/// Reads a text file of at most `limit` bytes.
///
/// # Errors
/// Same as [`read`]; [`Error::Format`] if it is not UTF-8.
pub fn read_text(path: &Path, limit: usize) -> Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::format(
            path,
            format!("expected text in UTF-8, found another byte at {at}"),
        )
    })
}

/// How files of a kind begin, the kind, and the command that unpacks them, if there is one.
const FOREIGN: [(&[u8], &str, &str); 12] = [
    (b"\x1f\x8b", "gzip data", "gzip -dk"),
    (b"\xfd7zXZ\0", "xz data", "xz -dk"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "zstd -d"),
    (b"BZh", "bzip2 data", "bzip2 -dk"),
    (b"\x04\x22\x4d\x18", "lz4 data", "lz4 -d"),
    (b"PK\x03\x04", "a zip archive", "unzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
    (b"PAR1", "a Parquet table", ""),
    (b"ARROW1", "an Arrow table", ""),
    (b"%PDF-", "a PDF document", "pdftotext"),
    (b"GGUF", "a GGUF file", ""),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", ""),
];

/// What these bytes are, if they are compressed or of a kind that holds neither text nor weights, with the command that
/// unpacks them if they are the file at `path`.
pub fn foreign(path: Option<&Path>, bytes: &[u8]) -> Option<String> {
    let (kind, unpack) = match bytes.get(257..262) == Some(b"ustar") {
        true => ("a tar archive", "tar xf"),
        false => (FOREIGN.iter())
            .find(|(start, ..)| bytes.starts_with(start))
            .map(|&(_, kind, unpack)| (kind, unpack))?,
    };
    Some(match (unpack, path) {
        ("", _) => kind.into(),
        (_, None) => format!("{kind}; unpack it first"),
        (unpack, Some(path)) => format!("{kind}; unpack it first: {unpack} {}", quoted(path)),
    })
}

/// A path as a shell takes it.
pub fn quoted(path: &Path) -> String {
    let name = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:=@%".contains(c);
    match name.chars().all(is_plain) {
        true => name,
        false => format!("'{}'", name.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_a_shell() {
        for (path, expected) in [
            ("a/b-1.gz", "a/b-1.gz"),
            ("my file.gz", "'my file.gz'"),
            ("it's", "'it'\\''s'"),
        ] {
            assert_eq!(quoted(Path::new(path)), expected);
        }
    }

    #[test]
    fn what_never_ends_is_an_error_and_a_file_at_the_limit_is_not() {
        let path = std::env::temp_dir().join(format!("blt-input-{}", std::process::id()));
        std::fs::write(&path, b"ab\xff").unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"ab\xff");
        let message = read(&path, 2).unwrap_err().to_string();
        assert!(message.contains("at most 2 bytes"), "{message}");
        let message = read_text(&path, 3).unwrap_err().to_string();
        assert!(message.contains("another byte at 2"), "{message}");
        let message = read_from("standard input", std::io::repeat(0), 1000).unwrap_err();
        assert!(message.to_string().starts_with("standard input: expected"));
        std::fs::remove_file(&path).unwrap();
    }
}
