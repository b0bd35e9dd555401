//! Reading a whole file into memory, up to a limit: whatever a path leads to, it cannot fill the memory.

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

/// The same for a text.
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

#[cfg(test)]
mod tests {
    use super::*;

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
