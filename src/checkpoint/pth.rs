//! The container of `torch.save`: a zip archive with a pickle that describes the tensors and one
//! entry of raw elements per storage.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::pickle::{self, TensorRef};
use super::zip::Archive;
use crate::error::{Error, Result};
use crate::tensor::{Storage, Tensor};

/// An open `.pth` file.
#[derive(Debug)]
pub struct PthFile {
    path: PathBuf,
    storage: Storage,
    archive: Archive,
    prefix: String, // the folder in the archive that holds everything
    tensors: HashMap<String, TensorRef>,
}

impl PthFile {
    /// Whether a file that begins like this may be one.
    pub fn sniff(bytes: &[u8]) -> bool {
        Archive::sniff(bytes)
    }

    /// Reads the directory and the pickle of the file whose bytes are in `storage`; `path` is for
    /// messages.
    ///
    /// # Errors
    /// [`Error::Format`] if the archive is damaged or the pickle does more than describe tensors.
    pub fn open(path: &Path, storage: Storage) -> Result<Self> {
        let err = |what: String| Error::format(path, what);
        let bytes = storage.bytes();
        let archive = Archive::open(bytes).map_err(err)?;
        let pickle = only_pickle(&archive).ok_or_else(|| {
            err("expected one entry data.pkl, as torch.save writes, found none or several".into())
        })?;
        let prefix = pickle.trim_end_matches("data.pkl").to_string();
        let entry = |name: &str| archive.find(bytes, name).map_err(err);
        let pickle = entry(&pickle)?.expect("a name of the archive's own");
        if let Some(order) = entry(&format!("{prefix}byteorder"))?
            && &bytes[order.clone()] != b"little"
        {
            return Err(err(format!(
                "expected little-endian tensors, found byte order \"{}\"",
                bytes[order]
                    .iter()
                    .take(16)
                    .copied()
                    .collect::<Vec<_>>()
                    .escape_ascii()
            )));
        }
        let tensors = pickle::state_dict(&bytes[pickle]).map_err(err)?;
        Ok(PthFile {
            path: path.to_path_buf(),
            storage,
            archive,
            prefix,
            tensors,
        })
    }

    /// Names of all tensors.
    pub fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// Whether the state dict has a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of that name, if the file has it. Shares the file's bytes.
    ///
    /// # Errors
    /// [`Error::Tensor`] if its type is one this engine does not read, it does not lie row by row
    /// in its storage, or the storage does not hold it.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(described) = self.tensors.get(name) else {
            return Ok(None);
        };
        let err = |what: String| Error::tensor(name, format!("{what} in {}", self.path.display()));
        let dtype = described.storage.dtype.ok_or_else(|| {
            err(format!(
                "expected FloatStorage, HalfStorage or BFloat16Storage, found {}",
                described.storage.name
            ))
        })?;
        let layout = layout(described).map_err(err)?;
        let entry = format!("{}data/{}", self.prefix, described.key);
        let stored = self
            .archive
            .find(self.storage.bytes(), &entry)
            .map_err(err)?
            .ok_or_else(|| err(format!("expected a zip entry {entry:?}, found none")))?;
        let expected = usize::try_from(described.storage_len)
            .ok()
            .and_then(|n| dtype.size_of_row(n));
        if expected != Some(stored.len()) {
            return Err(err(format!(
                "expected zip entry {entry:?} to hold {} elements, found {} bytes",
                described.storage_len,
                stored.len()
            )));
        }
        let skip = dtype
            .size_of_row(layout.elements.start)
            .expect("less than the whole storage");
        let tensor = Tensor::view(
            dtype,
            layout.shape,
            self.storage.clone(),
            stored.start + skip,
        )?;
        Ok(Some(tensor))
    }
}

/// The name of the one entry that is the pickle.
fn only_pickle(archive: &Archive) -> Option<String> {
    let mut pickles = archive
        .names()
        .filter(|n| *n == "data.pkl" || n.ends_with("/data.pkl"));
    let first = pickles.next()?;
    pickles.next().is_none().then(|| first.to_string())
}

struct Layout {
    shape: Vec<usize>,
    elements: Range<usize>, // of the storage
}

/// Checks that the tensor lies row by row within the storage.
fn layout(t: &TensorRef) -> Result<Layout, String> {
    if t.shape.len() != t.stride.len() {
        return Err(format!(
            "expected a stride for each axis of {:?}, found {:?}",
            t.shape, t.stride
        ));
    }
    let too_large = || format!("a tensor of shape {:?} is too large", t.shape);
    let mut n_elements = 1u64;
    let mut contiguous = true;
    for (&length, &stride) in t.shape.iter().zip(&t.stride).rev() {
        // The stride of an axis of one element means nothing.
        contiguous &= length == 1 || stride == n_elements;
        n_elements = n_elements.checked_mul(length).ok_or_else(too_large)?;
    }
    if !contiguous && n_elements != 0 {
        return Err(format!(
            "expected a contiguous tensor {:?}, found strides {:?} (call .contiguous() before \
             torch.save)",
            t.shape, t.stride
        ));
    }
    let end = t.offset.checked_add(n_elements);
    if end.is_none_or(|end| end > t.storage_len) {
        return Err(format!(
            "expected {n_elements} elements at {}, found a storage of {}",
            t.offset, t.storage_len
        ));
    }
    let size = |n: u64| usize::try_from(n).map_err(|_| too_large());
    Ok(Layout {
        shape: t.shape.iter().map(|&n| size(n)).collect::<Result<_, _>>()?,
        elements: size(t.offset)?..size(t.offset + n_elements)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::pickle::testing::Pickle;
    use super::super::zip::testing::archive;
    use super::*;

    /// A file with storages "0" (six floats 0..6) and "1" (whole numbers), and what `fill` puts
    /// into the dict.
    fn file(fill: impl Fn(Pickle) -> Pickle) -> Vec<u8> {
        let pickle = fill(Pickle::new().op(b"}(")).op(b"u.").0;
        let floats: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        archive(
            &[
                ("m/data.pkl", &pickle),
                ("m/byteorder", b"little"),
                ("m/data/0", &floats),
                ("m/data/1", &[0; 8]),
            ],
            false,
        )
    }

    fn open(bytes: Vec<u8>) -> Result<PthFile> {
        PthFile::open(Path::new("test.pth"), bytes.into())
    }

    fn floats(p: Pickle) -> Pickle {
        p.storage("FloatStorage", "0", 6)
    }

    #[test]
    fn tensors_share_the_bytes_of_their_storage() {
        let f = open(file(|p| {
            p.text("all")
                .tensor(floats, 0, &[2, 3], &[3, 1])
                .text("tail")
                .tensor(floats, 4, &[1, 2], &[99, 1])
                .text("none")
                .tensor(floats, 6, &[0, 3], &[1, 7])
                .text("one")
                .tensor(floats, 2, &[], &[])
                .text("steps")
                .tensor(|p| p.storage("LongStorage", "1", 1), 0, &[1], &[1])
        }))
        .unwrap();
        let get = |name| f.tensor(name).unwrap().unwrap();
        assert_eq!(get("all").to_f32_vec(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(get("tail").to_f32_vec(), [4.0, 5.0]);
        assert_eq!(
            get("tail").bytes().as_ptr(),
            get("all").bytes()[16..].as_ptr()
        );
        assert_eq!(get("none").shape(), [0, 3]);
        assert_eq!(get("one").to_f32_vec(), [2.0]);
        assert!(f.tensor("missing").unwrap().is_none());
        // A type we do not read matters only to who asks for it.
        let message = f.tensor("steps").unwrap_err().to_string();
        assert!(
            message.contains("LongStorage") && message.contains("test.pth"),
            "{message}"
        );
    }

    #[test]
    fn tensors_their_storage_does_not_hold_are_refused() {
        type Storage = fn(Pickle) -> Pickle;
        type Case<'a> = (&'a str, Storage, i32, &'a [i32], &'a [i32], &'a str);
        let longer: Storage = |p| p.storage("FloatStorage", "0", 7);
        let other: Storage = |p| p.storage("HalfStorage", "0", 6);
        let missing: Storage = |p| p.storage("FloatStorage", "9", 6);
        let outside: Storage = |p| p.storage("FloatStorage", "../../etc/passwd", 6);
        let huge = i32::MAX;
        let cases: [Case; 11] = [
            ("beyond the end", floats, 0, &[7], &[1], "a storage of 6"),
            (
                "offset beyond the end",
                floats,
                5,
                &[2],
                &[1],
                "a storage of 6",
            ),
            (
                "offset far beyond",
                floats,
                huge,
                &[1],
                &[1],
                "a storage of 6",
            ),
            ("transposed", floats, 0, &[2, 3], &[1, 2], "contiguous"),
            ("expanded", floats, 0, &[huge, 3], &[0, 1], "contiguous"),
            (
                "missing stride",
                floats,
                0,
                &[2, 3],
                &[1],
                "a stride for each axis",
            ),
            (
                "overflow",
                floats,
                0,
                &[huge, huge, huge],
                &[1, 1, 1],
                "too large",
            ),
            (
                "longer than its entry",
                longer,
                0,
                &[7],
                &[1],
                "found 24 bytes",
            ),
            ("another type", other, 0, &[6], &[1], "found 24 bytes"),
            ("no entry", missing, 0, &[6], &[1], "found none"),
            ("entry outside", outside, 0, &[6], &[1], "found none"),
        ];
        for (case, storage, offset, shape, stride, expected) in cases {
            let f = open(file(|p| p.text("w").tensor(storage, offset, shape, stride))).unwrap();
            let message = f.tensor("w").expect_err(case).to_string();
            assert!(message.contains(expected), "{case}: {message}");
            assert!(message.starts_with("tensor \"w\": "), "{case}: {message}");
        }
    }

    #[test]
    fn archives_of_other_things_are_refused() {
        let pickle = Pickle::new().op(b"}.").0;
        type Case<'a> = (&'a str, Vec<(&'a str, &'a [u8])>, &'a str);
        let cases: [Case; 5] = [
            ("no pickle", vec![("m/data/0", b"")], "found none or"),
            (
                "two pickles",
                vec![("a/data.pkl", &pickle), ("b/data.pkl", &pickle)],
                "several",
            ),
            (
                "big-endian",
                vec![("m/data.pkl", &pickle), ("m/byteorder", b"big")],
                "byte order \"big\"",
            ),
            ("empty pickle", vec![("data.pkl", b"")], "found its end"),
            (
                "malicious",
                vec![("data.pkl", b"\x80\x02cos\nsystem\n")],
                "global os.system is not",
            ),
        ];
        for (case, entries, expected) in cases {
            let message = open(archive(&entries, false)).expect_err(case).to_string();
            assert!(message.contains(expected), "{case}: {message}");
        }
        assert!(open(archive(&[("data.pkl", &pickle)], false)).is_ok());
    }

    #[test]
    fn a_damaged_byte_anywhere_never_panics() {
        let good = file(|p| p.text("w").tensor(floats, 0, &[2, 3], &[3, 1]));
        for at in 0..good.len() {
            for value in [0x00, 0x01, 0x7f, 0x80, 0xff, good[at] ^ 1, good[at] ^ 0x20] {
                let mut bytes = good.clone();
                bytes[at] = value;
                if let Ok(f) = open(bytes)
                    && let Ok(Some(tensor)) = f.tensor("w")
                {
                    assert!(tensor.bytes().len() <= 24, "byte {at} = {value}");
                }
            }
        }
    }
}
