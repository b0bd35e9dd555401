//! Arguments as bytes: a path, a prompt or a stop string need not be UTF-8, but the parser takes text.
//!
//! Bytes that are not UTF-8 become characters of a private range on their way through the parser, and bytes again where an
//! argument is used. Characters of that range are passed in the same way, so that nothing is ambiguous.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

/// The character of byte 0.
const FIRST: u32 = 0x0010_ff00;

/// The byte that a character stands for, if it stands for one.
fn byte_of(c: char) -> Option<u8> {
    u32::from(c).checked_sub(FIRST).map(|byte| byte as u8)
}

/// An argument as text, from which [`Bytes`] and [`path`] make the same bytes again.
pub fn encode(argument: OsString) -> String {
    #[cfg(unix)]
    let bytes = std::os::unix::ffi::OsStringExt::into_vec(argument);
    #[cfg(not(unix))]
    let bytes = argument.to_string_lossy().into_owned().into_bytes();
    let char_of = |byte: u8| char::from_u32(FIRST + u32::from(byte));
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match byte_of(c) {
                None => text.push(c),
                Some(_) => text.extend(c.encode_utf8(&mut [0; 4]).bytes().filter_map(char_of)),
            }
        }
        text.extend(chunk.invalid().iter().copied().filter_map(char_of));
    }
    text
}

/// Whether an argument was not UTF-8.
pub fn is_binary(argument: &str) -> bool {
    argument.contains(|c| byte_of(c).is_some())
}

/// The bytes of an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl FromStr for Bytes {
    type Err = Infallible;

    fn from_str(argument: &str) -> Result<Bytes, Infallible> {
        let mut bytes = Vec::with_capacity(argument.len());
        for c in argument.chars() {
            match byte_of(c) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        Ok(Bytes(bytes))
    }
}

/// An argument as a path.
pub fn path(argument: &str) -> Result<PathBuf, String> {
    let Ok(Bytes(bytes)) = argument.parse();
    #[cfg(unix)]
    {
        let path: OsString = std::os::unix::ffi::OsStringExt::from_vec(bytes);
        Ok(path.into())
    }
    #[cfg(not(unix))]
    {
        let text = String::from_utf8(bytes).map_err(|e| e.to_string())?;
        Ok(text.into())
    }
}

/// An argument as text.
///
/// # Errors
/// If it is not UTF-8.
pub fn text(argument: &str) -> Result<String, String> {
    match is_binary(argument) {
        false => Ok(argument.into()),
        true => Err("expected UTF-8".into()),
    }
}

/// Replaces escapes by the bytes they stand for: `\n`, `\r`, `\t`, `\e`, `\0`, `\\` and `\xHH`.
///
/// # Errors
/// The escape that is not one of these.
pub fn unescape(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut found = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            found.push(byte);
            continue;
        }
        let (byte, length) = match rest {
            [b'n', ..] => (b'\n', 1),
            [b'r', ..] => (b'\r', 1),
            [b't', ..] => (b'\t', 1),
            [b'e', ..] => (0x1b, 1),
            [b'0', ..] => (0, 1),
            [b'\\', ..] => (b'\\', 1),
            [b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |c: u8| char::from(c).to_digit(16).unwrap_or(0) as u8;
                (16 * digit(*high) + digit(*low), 3)
            }
            _ => {
                let escape = String::from_utf8_lossy(&rest[..rest.len().min(1)]);
                return Err(format!(
                    "expected one of \\n \\r \\t \\e \\0 \\\\ \\xHH, found \\{escape}"
                ));
            }
        };
        found.push(byte);
        rest = &rest[length..];
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn any_bytes_pass_through_text() {
        use std::os::unix::ffi::{OsStrExt, OsStringExt};
        let private = "a\u{10ff00}\u{10ffff}\u{10feff}é".as_bytes();
        for bytes in [
            &b"plain"[..],
            b"\xff\x00\x80a\xc3",
            private,
            &[0xf4, 0x8f, 0xbc],
            b"",
        ] {
            let text = encode(OsString::from_vec(bytes.to_vec()));
            assert_eq!(text.parse::<Bytes>().unwrap().0, bytes);
            assert_eq!(path(&text).unwrap().as_os_str().as_bytes(), bytes);
            let is_plain = bytes == b"plain" || bytes.is_empty();
            assert_eq!(is_binary(&text), !is_plain, "{bytes:?}");
        }
    }

    #[test]
    fn escapes_stand_for_bytes() {
        let found = unescape(b"a\\n\\t\\r\\0\\e\\\\n\\xfF\xfe").unwrap();
        assert_eq!(found, b"a\n\t\r\0\x1b\\n\xff\xfe");
        for bad in [&b"\\"[..], b"\\q", b"\\x1", b"\\xg0"] {
            let message = unescape(bad).unwrap_err();
            assert!(message.contains("\\xHH, found \\"), "{message}");
        }
    }
}
