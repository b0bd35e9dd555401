//! The files that hold a checkpoint's tensors, in any container: one file or shards with an index. Tensors are served under the names of the file.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::json;
use super::pth::PthFile;
use super::safetensors::SafetensorsFile;
use super::spec::Declared;
use crate::error::{Error, Result};
use crate::tensor::{Load, MappedFile, Storage, Tensor};

/// A file of a checkpoint and its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// Where it is; `<memory>` if it is no file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Names that weights go by in a folder, in order of preference. Which container a file is, its
/// content tells.
const WEIGHT_FILES: [&str; 5] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "consolidated.safetensors",
    "consolidated.pth",
    "pytorch_model.bin",
];

/// The weights file in `path`, or `path` itself if it is no folder.
///
/// # Errors
/// [`Error::Io`] if there is no such path, [`Error::Format`] if the folder has no weights.
pub fn find_weights(path: &Path) -> Result<PathBuf> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !meta.is_dir() {
        return Ok(path.to_path_buf());
    }
    WEIGHT_FILES
        .iter()
        .map(|name| path.join(name))
        .find(|file| file.exists())
        .ok_or_else(|| {
            Error::format(
                path,
                format!(
                    "expected weights in the folder ({}), found none",
                    WEIGHT_FILES.join(", ")
                ),
            )
        })
}

/// Largest index that is read; that of a sharded 7B model has some 60 KB.
const MAX_INDEX: usize = 4 << 20;

/// An open file of either kind.
#[derive(Debug)]
enum Container {
    Safetensors(SafetensorsFile),
    Pth(PthFile),
}

impl Container {
    /// What the file is, its first bytes tell, not its name.
    fn open(path: &Path, storage: Storage) -> Result<Container> {
        let bytes = storage.bytes();
        if PthFile::sniff(bytes) {
            return PthFile::open(path, storage).map(Container::Pth);
        }
        let known = [
            (
                &b"version https://git-lfs"[..],
                "a Git LFS pointer (fetch the file itself)",
            ),
            (
                b"\x80\x02",
                "a pickle without its archive (save it again with a newer torch)",
            ),
            (b"{", "JSON (pass the weights, or the folder)"),
        ];
        if let Some((_, found)) = known.iter().find(|(start, _)| bytes.starts_with(start))
            && !looks_like_safetensors(bytes)
        {
            return Err(Error::format(
                path,
                format!("expected weights (safetensors or pth), found {found}"),
            ));
        }
        SafetensorsFile::open(path, storage).map(Container::Safetensors)
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Container::Safetensors(file) => file.has(name),
            Container::Pth(file) => file.has(name),
        }
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        match self {
            Container::Safetensors(file) => file.tensor(name),
            Container::Pth(file) => file.tensor(name),
        }
    }

    fn metadata(&self) -> Option<&HashMap<String, String>> {
        match self {
            Container::Safetensors(file) => file.metadata(),
            Container::Pth(_) => None,
        }
    }
}

/// A length, then an object: a length may begin with any byte.
fn looks_like_safetensors(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{') && bytes[4..8] == [0; 4]
}

/// Open weights: one container, or shards and the map that tells which tensor is in which.
#[derive(Debug)]
pub struct WeightFiles {
    files: Vec<(FileInfo, Container)>,
    shard_of: Option<HashMap<String, usize>>,
    /// Tensors whose type and shape the file's container cannot express.
    declared: Declared,
}

impl WeightFiles {
    /// Opens the weights in a folder, or the file itself.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] if there are none, or they cannot be read or are damaged.
    pub fn find(path: &Path) -> Result<WeightFiles> {
        WeightFiles::open(&find_weights(path)?)
    }

    /// Maps the file at `path` and reads its table of contents; no tensor is touched.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] if the file cannot be read or is damaged.
    pub fn open(path: &Path) -> Result<WeightFiles> {
        WeightFiles::load(path, Load::Map)
    }

    /// The same for a file that is mapped or read, as `load` says.
    ///
    /// # Errors
    /// As [`WeightFiles::open`].
    pub fn load(path: &Path, load: Load) -> Result<WeightFiles> {
        if path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().ends_with(".index.json"))
        {
            return WeightFiles::load_shards(path, load);
        }
        WeightFiles::from_storage(path, Arc::new(MappedFile::load(path, load)?).into())
    }

    /// The same for bytes that are in memory or mapped already; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Format`] if the bytes are no weights or damaged.
    pub fn from_storage(path: &Path, storage: Storage) -> Result<WeightFiles> {
        Ok(WeightFiles {
            files: vec![container(path, storage)?],
            shard_of: None,
            declared: Declared::new(),
        })
    }

    fn load_shards(index: &Path, load: Load) -> Result<WeightFiles> {
        let value = json::read_up_to(index, MAX_INDEX)?;
        let root = json::Object::root(&value)?;
        let map = root.required_object("weight_map")?;
        let mut number_of: HashMap<&str, usize> = HashMap::new();
        let mut files = Vec::new();
        let mut shard_of = HashMap::new();
        for tensor in map.keys() {
            let shard = map.required(tensor, "a file name", map.text(tensor)?)?;
            let number = match number_of.get(shard) {
                Some(&n) => n,
                None => {
                    check_plain_name(index, shard)?;
                    let path = index.with_file_name(shard);
                    let storage = Arc::new(MappedFile::load(&path, load)?).into();
                    files.push(container(&path, storage)?);
                    number_of.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            shard_of.insert(tensor.to_string(), number);
        }
        if files.is_empty() {
            return Err(Error::format(
                index,
                "expected shards, found an empty weight_map",
            ));
        }
        Ok(WeightFiles {
            files,
            shard_of: Some(shard_of),
            declared: Declared::new(),
        })
    }

    /// From now on serves these tensors, which the first file holds as bytes, as what they are.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the file does not hold exactly the bytes that one of them takes.
    pub(super) fn declare(&mut self, declared: Declared) -> Result<()> {
        for (name, (dtype, shape)) in &declared {
            match &self.files[0].1 {
                Container::Safetensors(file) => file.view_as(name, *dtype, shape)?,
                Container::Pth(_) => unreachable!("a pth file has no metadata"),
            };
        }
        self.declared = declared;
        Ok(())
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        match &self.shard_of {
            Some(map) => map.contains_key(name),
            None => self.files[0].1.has(name),
        }
    }

    /// Names of all tensors of safetensors files, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = match &self.shard_of {
            Some(map) => map.keys().cloned().collect(),
            None => match &self.files[0].1 {
                Container::Safetensors(file) => file.names(),
                Container::Pth(_) => Vec::new(),
            },
        };
        names.sort_unstable();
        names
    }

    /// The tensor of that name; `None` if there is none. Shares the file's bytes.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is of a type or in a form this engine does not read.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        if let (Some((dtype, shape)), Container::Safetensors(file)) =
            (self.declared.get(name), &self.files[0].1)
        {
            return file.view_as(name, *dtype, shape).map(Some);
        }
        match self.number(name) {
            Some(n) => self.files[n].1.tensor(name),
            None => Ok(None),
        }
    }

    /// The file in which that tensor is, or is missed.
    pub fn path_of(&self, name: &str) -> &Path {
        &self.files[self.number(name).unwrap_or(0)].0.path
    }

    fn number(&self, name: &str) -> Option<usize> {
        match &self.shard_of {
            Some(map) => map.get(name).copied(),
            None => Some(0),
        }
    }

    /// The folder of the first file.
    pub fn folder(&self) -> &Path {
        let folder = self.files[0].0.path.parent().unwrap_or(Path::new(""));
        if folder.as_os_str().is_empty() {
            return Path::new(".");
        }
        folder
    }

    /// The metadata of a single safetensors file.
    pub fn metadata(&self) -> Option<&HashMap<String, String>> {
        match &self.shard_of {
            Some(_) => None,
            None => self.files[0].1.metadata(),
        }
    }

    /// The first file; all of them if there is no index.
    pub fn path(&self) -> &Path {
        &self.files[0].0.path
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = &FileInfo> {
        self.files.iter().map(|(info, _)| info)
    }
}

fn container(path: &Path, storage: Storage) -> Result<(FileInfo, Container)> {
    let info = FileInfo {
        path: path.to_path_buf(),
        bytes: storage.bytes().len() as u64,
    };
    Ok((info, Container::open(path, storage)?))
}

/// An index may only name files in its own folder.
fn check_plain_name(index: &Path, name: &str) -> Result<()> {
    let mut parts = Path::new(name).components();
    let plain = matches!(parts.next(), Some(Component::Normal(part)) if part == name)
        && parts.next().is_none()
        && !name.contains(|c: char| c.is_control() || "/\\:".contains(c));
    if plain {
        return Ok(());
    }
    Err(Error::format(
        index,
        format!("expected the plain name of a file beside the index, found {name:?}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_cannot_lead_out_of_its_folder() {
        let index = Path::new("model.safetensors.index.json");
        for name in [
            "../secret",
            "/etc/passwd",
            "a/b",
            "a\\b",
            "..",
            ".",
            "",
            "./a",
            "a/",
            "C:x",
            "a\0b",
            "a\x1b[2Jb",
        ] {
            let message = check_plain_name(index, name).expect_err(name).to_string();
            assert!(message.contains(&format!("{name:?}")), "{message}");
        }
        assert!(check_plain_name(index, "model-00001-of-00002.safetensors").is_ok());
    }
}
