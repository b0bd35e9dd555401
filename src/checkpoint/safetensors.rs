//! The safetensors container: a length, a JSON header, the tensors' bytes.
//!
//! The crate of that name validates offsets, sizes and shapes. This file adds a limit on the header, checked before
//! anything is parsed, and refuses duplicate names, which JSON parsers accept silently (two readers of the same
//! file would see different weights).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, SafeTensors};
use serde::de::{
    Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};

use super::checksums::{self, Sums};
use crate::error::{Error, Result};
use crate::tensor::{DType, Storage, Tensor};

/// Largest header that is parsed. The header of a 7B checkpoint has some 60 KB.
pub const MAX_HEADER: usize = 16 << 20;

/// Most tensors a header may have; a 7B checkpoint has some 500.
const MAX_TENSORS: usize = 1 << 15;
/// Longest name of a tensor, in bytes; a training framework's wrappers add some 30 to the 60 of transformers.
const MAX_NAME: usize = 1024;
/// Most axes of a tensor; a model's have two.
const MAX_AXES: usize = 8;
/// Most entries of the metadata, of any length; a native file has five.
const MAX_METADATA: usize = 1024;

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
        if length == 0 {
            return Err(err(
                "expected a safetensors header, found one of 0 bytes; is the download complete?"
                    .into(),
            ));
        }
        let data_start = LENGTH + length as usize;
        let text = bytes.get(LENGTH..data_start).ok_or_else(|| {
            err(format!(
                "expected a safetensors header of {length} bytes, found a file of {} bytes",
                bytes.len()
            ))
        })?;
        let mut entries = HeaderEntries::default();
        check_names(text, &mut entries).map_err(|e| err(format!("safetensors header: {e}")))?;
        let expected = (data_start as u64).saturating_add(entries.end);
        if expected > bytes.len() as u64 {
            return Err(err(format!(
                "safetensors header: expected a file of {expected} bytes, found {}; it is cut short",
                bytes.len()
            )));
        }
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

    /// Names of all tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.retain(|name| name != checksums::NAME);
        names
    }

    /// Compares the file with its checksums, if it has them, and returns the number of tensors compared. `progress` is told
    /// how many bytes are done and may end the work with an error.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming the first tensor that is damaged, [`Error::Format`] if the header is.
    pub fn verify(&self, mut progress: impl FnMut(u64) -> Result<()>) -> Result<usize> {
        const PIECE: usize = 8 << 20;
        let Some(info) = self.header.info(checksums::NAME) else {
            return Ok(0);
        };
        let bytes = self.storage.bytes();
        let range = |(start, end): (usize, usize)| self.data_start + start..self.data_start + end;
        let names = self.names();
        let sums: Vec<u64> = (bytes[range(info.data_offsets)].chunks_exact(checksums::LENGTH))
            .map(|sum| u64::from_le_bytes(sum.try_into().expect("chunks of this length")))
            .collect();
        let file = self.path.display();
        if sums.len() != names.len() + 1 {
            let what = format!(
                "expected {} checksums, found {}",
                names.len() + 1,
                sums.len()
            );
            return Err(Error::format(&self.path, what));
        }
        if checksums::of(&bytes[LENGTH..self.data_start]) != sums[0] {
            let what = "expected a header of the checksum stored with it, found another: the file is damaged";
            return Err(Error::format(&self.path, what));
        }
        let mut done = 0;
        for (name, expected) in names.iter().zip(&sums[1..]) {
            let info = self.header.info(name).expect("one of its names");
            let mut sum = Sums::default();
            let tensor = range(info.data_offsets);
            for start in tensor.clone().step_by(PIECE) {
                let piece = start..tensor.end.min(start + PIECE);
                done += piece.len() as u64;
                sum.update(&bytes[piece.clone()]);
                self.storage.release(piece);
                progress(done)?;
            }
            if sum.of_tensor() != *expected {
                let what = format!(
                    "expected bytes of the checksum stored with them, found others: {file} is damaged"
                );
                return Err(Error::tensor(name, what));
            }
        }
        Ok(names.len())
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
                    "expected f32, f16 or bf16, found {found} in {}",
                    self.path.display()
                ),
            )
        })?;
        let start = self.data_start + info.data_offsets.0;
        Tensor::view(dtype, info.shape.clone(), self.storage.clone(), start).map(Some)
    }
}

/// Checks an object whose names must differ: no name twice, none very long, not very many. A clone of
/// `entry` gets the name and reads the value.
///
/// # Errors
/// What was expected and what was found.
pub fn check_names<E: NamedEntry>(text: &[u8], entry: &mut E) -> serde_json::Result<()> {
    struct Names<'a, E>(&'a mut E);
    impl<'de, E: NamedEntry> Visitor<'de> for Names<'_, E> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut seen = HashSet::new();
            while let Some(name) = map.next_key::<String>()? {
                if name.len() > MAX_NAME {
                    return Err(A::Error::custom(format!(
                        "expected names of at most {MAX_NAME} bytes, found {}",
                        name.len()
                    )));
                }
                self.0.read(&name, &mut map)?;
                if seen.contains(&name) {
                    return Err(A::Error::custom(format!(
                        "expected each name once, found {name:?} twice"
                    )));
                }
                seen.insert(name);
                if seen.len() > MAX_TENSORS {
                    return Err(A::Error::custom(format!(
                        "expected at most {MAX_TENSORS} tensors, found more"
                    )));
                }
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_slice(text);
    json.deserialize_map(Names(entry))?;
    json.end()
}

/// Reads the value of a name.
pub trait NamedEntry {
    /// Takes the value that comes next in `map`.
    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

/// Skips the value.
pub struct Skipped;

impl NamedEntry for Skipped {
    fn read<'de, A: MapAccess<'de>>(&mut self, _: &str, map: &mut A) -> Result<(), A::Error> {
        map.next_value::<IgnoredAny>().map(|_| ())
    }
}

/// Checks the entries of a header before the crate builds them, for which it takes far more memory than their text: a
/// tensor has a type, few axes and two offsets, and the metadata are few texts.
#[derive(Default)]
struct HeaderEntries {
    /// Where the last tensor ends.
    end: u64,
}

impl NamedEntry for HeaderEntries {
    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "__metadata__" => map.next_value::<Texts>().map(|_| ()),
            _ => {
                let Offsets(end) = map.next_value()?;
                self.end = self.end.max(end);
                Ok(())
            }
        }
    }
}

/// The metadata.
struct Texts;

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;
        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of texts as metadata")
            }

            fn visit_unit<E>(self) -> Result<Texts, E> {
                Ok(Texts)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts, A::Error> {
                let mut n = 0;
                while let Some((_, _)) = map.next_entry::<IgnoredAny, String>()? {
                    n += 1;
                    if n > MAX_METADATA {
                        return Err(A::Error::custom(format!(
                            "expected at most {MAX_METADATA} entries of metadata, found more"
                        )));
                    }
                }
                Ok(Texts)
            }
        }
        deserializer.deserialize_any(TextsVisitor)
    }
}

/// Where a tensor ends, of its entry.
struct Offsets(u64);

impl<'de> Deserialize<'de> for Offsets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor;
        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = Offsets;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object with \"dtype\", \"shape\" and \"data_offsets\"")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Offsets, A::Error> {
                let mut end = 0;
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "dtype" => drop(map.next_value::<String>()?),
                        "shape" => drop(map.next_value::<Numbers>()?),
                        "data_offsets" => {
                            let Numbers(offsets) = map.next_value()?;
                            end = offsets.last().copied().unwrap_or(0);
                        }
                        _ => return Err(A::Error::invalid_value(Unexpected::Str(&key), &self)),
                    }
                }
                Ok(Offsets(end))
            }
        }
        deserializer.deserialize_map(EntryVisitor)
    }
}

/// A short list of whole numbers.
struct Numbers(Vec<u64>);

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumbersVisitor;
        impl<'de> Visitor<'de> for NumbersVisitor {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a list of at most {MAX_AXES} whole numbers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Numbers, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = list.next_element()? {
                    numbers.push(number);
                    if numbers.len() > MAX_AXES {
                        return Err(A::Error::invalid_length(numbers.len(), &self));
                    }
                }
                Ok(Numbers(numbers))
            }
        }
        deserializer.deserialize_seq(NumbersVisitor)
    }
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
            (
                "data missing",
                file(&a("F32", "[2]", "[0,8]"), 7),
                "expected a file of 70 bytes, found 69",
            ),
            (
                "many axes",
                file(&a("F32", &format!("{:?}", [1; 9]), "[0,4]"), 4),
                "at most 8 whole",
            ),
            (
                "a nested type",
                file(&a("F32", "[1]", "[0,4]").replace("\"F32\"", "[[]]"), 4),
                "a string",
            ),
            (
                "another key",
                file(&a("F32", "[1]", "[0,4],\"x\":[]"), 4),
                "\"dtype\", \"shape\"",
            ),
            (
                "long name",
                file(&format!("{{\"{}\":0}}", "n".repeat(1025)), 0),
                "at most 1024 bytes, found 1025",
            ),
            (
                "many texts",
                file(
                    &format!(
                        "{{\"__metadata__\":{{{}\"a\":\"\"}}}}",
                        "\"b\":\"\",".repeat(1024)
                    ),
                    0,
                ),
                "at most 1024 entries",
            ),
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
