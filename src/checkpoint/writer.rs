//! Writing safetensors: tensors declared first, then streamed, so that a checkpoint of any size is
//! written without being held in memory.
//!
//! The file is an [`OutputFile`]: it appears under its name only when it is complete.
//!
//! Alignment: the data begin at a multiple of 64 bytes, and the format allows no holes, so a tensor
//! begins at a multiple of 64 if the sizes of all before it are.
//! [`native_file`](super::native_file) orders tensors so that this holds for each whose own size is a
//! multiple of 64.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::checksums::{self, Sums};
use super::safetensors::MAX_HEADER;
use super::spec::{ALIGNMENT, TensorSpec};
use crate::error::{Error, Result};
use crate::output_file::OutputFile;

/// Writes a safetensors file.
#[derive(Debug)]
pub struct SafetensorsWriter {
    out: OutputFile,
    specs: Vec<TensorSpec>,
    /// The checksums, which follow the tensors of a native file.
    sums: Option<Sums>,
    current: usize, // in specs
    written: u64,   // bytes of the current tensor
}

impl SafetensorsWriter {
    /// Begins a file that will be at `path`, with these tensors in this order.
    ///
    /// # Errors
    /// [`Error::Argument`] if a name occurs twice, a type is unknown or a size does not fit its
    /// shape; those of [`OutputFile::create`].
    pub fn create(
        path: &Path,
        metadata: &[(String, String)],
        specs: Vec<TensorSpec>,
    ) -> Result<SafetensorsWriter> {
        SafetensorsWriter::begin(|| OutputFile::create(path), metadata, specs)
    }

    /// Begins the file that `open` returns, such as standard output, which is called once the tensors are checked.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::create`].
    pub fn begin(
        open: impl FnOnce() -> Result<OutputFile>,
        metadata: &[(String, String)],
        specs: Vec<TensorSpec>,
    ) -> Result<SafetensorsWriter> {
        let has_sums = checksums::are_written(metadata);
        let last = has_sums.then(|| checksums::spec(specs.len()));
        let header = header(metadata, specs.iter().chain(&last))?;
        let mut writer = SafetensorsWriter {
            out: open()?,
            specs,
            sums: has_sums.then(|| Sums::new(&header)),
            current: 0,
            written: 0,
        };
        writer.out.put(&(header.len() as u64).to_le_bytes())?;
        writer.out.put(&header)?;
        writer.pass_complete();
        Ok(writer)
    }

    /// Writes the next bytes of the tensor `name`: the one that is not complete yet, or if there is
    /// none, the next one declared. A tensor may come in any number of pieces.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is another tensor's turn or the tensor would become too long;
    /// [`Error::Io`] if the bytes cannot be written.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(spec) = self.specs.get(self.current) else {
            if bytes.is_empty() {
                return Ok(());
            }
            return Err(Error::argument(
                "name",
                format!("expected no more tensors, found {name:?}"),
            ));
        };
        if bytes.is_empty() {
            return Ok(());
        }
        if spec.name != name {
            return Err(Error::argument(
                "name",
                format!(
                    "expected tensor {:?} to be written, found {name:?}",
                    spec.name
                ),
            ));
        }
        let missing = spec.n_bytes - self.written;
        if bytes.len() as u64 > missing {
            return Err(Error::argument(
                "bytes",
                format!(
                    "expected at most {missing} more bytes of {name:?}, found {}",
                    bytes.len()
                ),
            ));
        }
        self.out.put(bytes)?;
        if let Some(sums) = &mut self.sums {
            sums.update(bytes);
        }
        self.written += bytes.len() as u64;
        self.pass_complete();
        Ok(())
    }

    /// Makes the file appear under its name, replacing what was there.
    ///
    /// # Errors
    /// [`Error::Argument`] if a tensor is missing or incomplete; [`Error::Io`] if the system fails.
    pub fn finish(mut self) -> Result<()> {
        if let Some(spec) = self.specs.get(self.current) {
            return Err(Error::argument(
                "tensors",
                format!(
                    "expected {} bytes of {:?}, found {}",
                    spec.n_bytes, spec.name, self.written
                ),
            ));
        }
        if let Some(sums) = self.sums.take() {
            self.out.put(&sums.into_bytes())?;
        }
        self.out.finish()
    }

    /// Moves on to the first tensor that still needs bytes.
    fn pass_complete(&mut self) {
        while let Some(spec) = self.specs.get(self.current)
            && spec.n_bytes == self.written
        {
            self.current += 1;
            self.written = 0;
            if let Some(sums) = &mut self.sums {
                sums.end_tensor();
            }
        }
    }
}

/// The JSON header, padded with spaces so that the data begin aligned.
fn header<'a>(
    metadata: &[(String, String)],
    specs: impl IntoIterator<Item = &'a TensorSpec>,
) -> Result<Vec<u8>> {
    let mut root = Map::new();
    if !metadata.is_empty() {
        let map: Map<String, Value> = metadata
            .iter()
            .map(|(k, v)| (k.clone(), Value::from(v.as_str())))
            .collect();
        root.insert("__metadata__".into(), map.into());
    }
    let mut names = HashSet::from(["__metadata__"]);
    let mut offset = 0u64;
    for spec in specs {
        if !names.insert(&spec.name) {
            return Err(Error::argument(
                "tensors",
                format!("expected each name once, found {:?} twice", spec.name),
            ));
        }
        check_size(spec)?;
        let end = offset
            .checked_add(spec.n_bytes)
            .ok_or_else(|| Error::argument("tensors", "their size in all overflows"))?;
        root.insert(
            spec.name.clone(),
            json!({"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut text = Value::from(root).to_string().into_bytes();
    let length = (8 + text.len()).next_multiple_of(ALIGNMENT) - 8;
    if length > MAX_HEADER {
        return Err(Error::argument(
            "tensors",
            format!("expected a header of at most {MAX_HEADER} bytes, found {length}"),
        ));
    }
    text.resize(length, b' ');
    Ok(text)
}

/// Readers refuse a tensor whose size does not follow from its type and shape.
fn check_size(spec: &TensorSpec) -> Result<()> {
    let dtype: safetensors::Dtype =
        serde_json::from_value(spec.dtype.as_str().into()).map_err(|_| {
            Error::argument(
                "dtype",
                format!(
                    "expected a safetensors type for {:?}, found {:?}",
                    spec.name, spec.dtype
                ),
            )
        })?;
    let bits = spec
        .shape
        .iter()
        .try_fold(dtype.bitsize() as u64, |n, &d| n.checked_mul(d as u64));
    if bits == spec.n_bytes.checked_mul(8) && bits.is_some() {
        return Ok(());
    }
    Err(Error::argument(
        "n_bytes",
        format!(
            "expected the size of {:?}, {} {:?}, found {}",
            spec.name, spec.dtype, spec.shape, spec.n_bytes
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::safetensors::SafetensorsFile;
    use super::*;
    use crate::test_folder::Folder;

    fn spec(name: &str, dtype: &str, shape: &[usize], n_bytes: u64) -> TensorSpec {
        TensorSpec {
            name: name.into(),
            dtype: dtype.into(),
            shape: shape.to_vec(),
            n_bytes,
        }
    }

    #[test]
    fn what_is_written_in_pieces_is_read_back() {
        let folder = Folder::new("pieces");
        let path = folder.0.join("x.safetensors");
        std::fs::write(&path, "old").unwrap();
        let specs = vec![
            spec("empty", "F32", &[0, 4], 0),
            spec("b", "F32", &[16], 64),
            spec("a", "U8", &[5], 5),
            spec("void", "BF16", &[0], 0),
        ];
        let metadata = [("k".to_string(), "v \"quoted\"".to_string())];
        let mut writer = SafetensorsWriter::create(&path, &metadata, specs).unwrap();
        writer.write("empty", &[]).unwrap();
        for piece in [[1; 30].as_slice(), &[2; 34]] {
            writer.write("b", piece).unwrap();
        }
        writer.write("a", &[3; 5]).unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            b"old",
            "not before it is complete"
        );
        writer.finish().unwrap();
        assert_eq!(folder.names(), ["x.safetensors"]);

        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((bytes.len() - 69) % ALIGNMENT, 0, "the data begin aligned");
        let file = SafetensorsFile::open(&path, bytes.into()).unwrap();
        assert_eq!(file.metadata().unwrap()["k"], "v \"quoted\"");
        let b = file.tensor("b").unwrap().unwrap();
        assert_eq!((b.shape(), &b.bytes()[29..31]), (&[16][..], &[1, 2][..]));
        assert!(file.has("a") && file.has("empty") && file.has("void"));
    }

    #[test]
    fn an_attempt_that_fails_leaves_nothing() {
        let folder = Folder::new("fails");
        let path = folder.0.join("x");
        std::fs::write(&path, "old").unwrap();
        let start = || {
            let specs = vec![spec("a", "U8", &[4], 4), spec("b", "U8", &[4], 4)];
            SafetensorsWriter::create(&path, &[], specs).unwrap()
        };
        let mut writer = start();
        assert!(writer.write("b", &[0]).is_err(), "not b's turn");
        assert!(writer.write("a", &[0; 5]).is_err(), "too long");
        writer.write("a", &[0; 4]).unwrap();
        assert!(writer.write("a", &[0]).is_err(), "a is complete");
        writer.write("b", &[0; 3]).unwrap();
        let message = writer.finish().unwrap_err().to_string();
        assert!(message.contains("4 bytes of \"b\", found 3"), "{message}");
        drop(start());
        assert_eq!(folder.names(), ["x"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn specs_no_reader_would_accept_are_refused() {
        let folder = Folder::new("specs");
        let path = folder.0.join("x");
        let cases = [
            (
                "twice",
                vec![spec("a", "U8", &[1], 1), spec("a", "U8", &[1], 1)],
            ),
            ("reserved", vec![spec("__metadata__", "U8", &[1], 1)]),
            ("type", vec![spec("a", "Q8", &[1], 1)]),
            ("size", vec![spec("a", "F32", &[2], 4)]),
            ("overflow", vec![spec("a", "F32", &[usize::MAX, 8], 32)]),
        ];
        for (case, specs) in cases {
            assert!(
                SafetensorsWriter::create(&path, &[], specs).is_err(),
                "{case}"
            );
        }
        assert!(SafetensorsWriter::create(&folder.0.join("no/x"), &[], vec![]).is_err());
        assert!(folder.names().is_empty());
    }
}
