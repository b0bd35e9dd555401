//! The safetensors container: a length, a JSON header, the tensors' bytes.
//!
//! The crate of that name validates offsets, sizes and shapes. This file adds a limit on the header,
//! checked before anything is parsed, and refuses duplicate names, which JSON parsers accept silently (two readers of the same file would see different weights).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, SafeTensors};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};
use crate::tensor::{DType, Storage, Tensor};

/// Largest header that is parsed. The header of a 7B checkpoint has some 60 KB.
pub const MAX_HEADER: usize = 16 << 20;

/// Most entries a header may have; a 7B checkpoint has some 500.
const MAX_TENSORS: usize = 1 << 17;

/// Bytes of the length in front of the header.
const LENGTH: usize = 8;

/// An open safetensors file.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    storage: Storage,
    header: Metadata,
    data_start: usize,
}

impl SafetensorsFile {
    /// Reads the header of the file whose bytes are in `storage`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Format`] if the header is too large, damaged, ambiguous or does not describe
    /// exactly the bytes that follow it.
    pub fn open(path: &Path, storage: Storage) -> Result<Self> {
        let bytes = storage.bytes();
        let err = |what: String| Error::format(path, what);
        let length = bytes.first_chunk::<LENGTH>().ok_or_else(|| {
            err(format!(
                "expected a safetensors file, found {} bytes",
                bytes.len()
            ))
        })?;
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER as u64 {
            return Err(err(format!(
                "expected a safetensors header of at most {MAX_HEADER} bytes, found {length}; \
                 is this a weights file?"
            )));
        }
        let data_start = LENGTH + length as usize;
        let text = bytes.get(LENGTH..data_start).ok_or_else(|| {
            err(format!(
                "expected a safetensors header of {length} bytes, found a file of {} bytes",
                bytes.len()
            ))
        })?;
        check_names(text).map_err(|e| err(format!("safetensors header: {e}")))?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| {
            err(format!(
                "safetensors header: {e} (the file holds {} bytes of tensors)",
                bytes.len() - data_start
            ))
        })?;
        Ok(SafetensorsFile {
            path: path.to_path_buf(),
            storage,
            header,
            data_start,
        })
    }

    /// Names of all tensors.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// The free-form metadata of the header.
    pub fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.header.metadata().as_ref()
    }

    /// Whether the file has a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// The bytes of that name, as `dtype` and `shape` say that they are to be read; the file itself
    /// must call them plain bytes.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there are no such bytes or not as many as that takes.
    pub fn view_as(&self, name: &str, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let err = |found: String| {
            let expected = match dtype.size_of(shape) {
                Some(n) => format!("{n} bytes (U8) for {dtype} {shape:?}"),
                None => format!("a shape that {dtype} can hold"),
            };
            let file = self.path.display();
            Error::tensor(
                name,
                format!("expected {expected}, found {found} in {file}"),
            )
        };
        let Some(info) = self.header.info(name) else {
            return Err(err("no such tensor".into()));
        };
        let found = info.dtype.to_string();
        match dtype.size_of(shape) {
            Some(n) if found == "U8" && info.shape == [n] => {}
            Some(_) => return Err(err(format!("{found} {:?}", info.shape))),
            None => return Err(err(format!("{shape:?}"))),
        }
        let start = self.data_start + info.data_offsets.0;
        Tensor::view(dtype, shape.to_vec(), self.storage.clone(), start)
    }

    /// The tensor of that name, if the file has it. Shares the file's bytes.
    ///
    /// # Errors
    /// [`Error::Tensor`] if its type is one this engine does not read.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(info) = self.header.info(name) else {
            return Ok(None);
        };
        let found = info.dtype.to_string();
        let dtype = DType::parse(&found).ok_or_else(|| {
            Error::tensor(
                name,
                format!(
                    "expected F32, F16 or BF16, found {found} in {}",
                    self.path.display()
                ),
            )
        })?;
        let start = self.data_start + info.data_offsets.0;
        Tensor::view(dtype, info.shape.clone(), self.storage.clone(), start).map(Some)
    }
}

/// Refuses an object that has a name twice, or very many.
pub fn check_names(text: &[u8]) -> serde_json::Result<()> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut seen = HashSet::new();
            while let Some(name) = map.next_key::<String>()? {
                map.next_value::<IgnoredAny>()?;
                if seen.contains(&name) {
                    return Err(serde::de::Error::custom(format!(
                        "expected each name once, found \"{name}\" twice"
                    )));
                }
                seen.insert(name);
                if seen.len() > MAX_TENSORS {
                    return Err(serde::de::Error::custom(format!(
                        "expected at most {MAX_TENSORS} tensors, found more"
                    )));
                }
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_slice(text);
    json.deserialize_map(Names)?;
    json.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes
    }

    fn open(bytes: Vec<u8>) -> Result<SafetensorsFile> {
        SafetensorsFile::open(Path::new("test.safetensors"), bytes.into())
    }

    #[test]
    fn tensors_are_found_by_name() {
        let header = r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}}"#;
        let f = open(file(header, 16)).unwrap();
        assert_eq!(f.metadata().unwrap()["k"], "v");
        assert_eq!(f.tensor("a").unwrap().unwrap().shape(), [2, 1]);
        assert!(f.tensor("c").unwrap().is_none());
        assert!(f.has("b") && !f.has("c"));
        let message = f.tensor("b").unwrap_err().to_string();
        assert!(
            message.contains("\"b\"") && message.contains("I64"),
            "{message}"
        );
    }

    #[test]
    fn damaged_and_hostile_headers_are_refused() {
        let a = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        let cases = [
            ("duplicate name", file(twice, 8), "\"a\" twice"),
            ("not JSON", file("garbage!", 8), "header"),
            ("not an object", file("[1, 2]", 8), "an object of tensors"),
            ("trailing text", file("{} {}", 0), "trailing"),
            ("too deep", file(&deep, 8), "header"),
            ("data missing", file(&a("F32", "[2]", "[0,8]"), 7), "header"),
            (
                "data left over",
                file(&a("F32", "[2]", "[0,8]"), 9),
                "header",
            ),
            (
                "offsets backwards",
                file(&a("F32", "[2]", "[8,0]"), 8),
                "header",
            ),
            (
                "offsets do not fit the shape",
                file(&a("F32", "[3]", "[0,8]"), 8),
                "header",
            ),
            (
                "offset overflows",
                file(&a("F32", "[2]", "[0,18446744073709551615]"), 8),
                "header",
            ),
            (
                "shape overflows",
                file(&a("F32", "[4294967296,4294967296,4294967296]", "[0,8]"), 8),
                "verflow",
            ),
            (
                "shape overflows to zero",
                file(&a("F32", "[9223372036854775808,2]", "[0,0]"), 0),
                "verflow",
            ),
            (
                "negative shape",
                file(&a("F32", "[-1]", "[0,4]"), 4),
                "header",
            ),
            ("unknown type", file(&a("F31", "[1]", "[0,4]"), 4), "header"),
            (
                "header longer than the file",
                1000u64.to_le_bytes().to_vec(),
                "a file of 8 bytes",
            ),
            (
                "giant header",
                u64::MAX.to_le_bytes().to_vec(),
                "at most 16777216",
            ),
            ("no length", vec![1, 2, 3], "found 3 bytes"),
        ];
        for (case, bytes, expected) in cases {
            let message = open(bytes).expect_err(case).to_string();
            assert!(message.contains(expected), "{case}: {message}");
            assert!(
                message.starts_with("test.safetensors: "),
                "{case}: {message}"
            );
        }
    }
}
