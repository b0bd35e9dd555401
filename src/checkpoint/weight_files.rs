//! The files that hold a checkpoint's tensors, in any container: one file or shards with an index. Tensors are
//! served under the names of the file.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use super::json;
use super::locate::{is_index, weights_at};
use super::pth::PthFile;
use super::safetensors::SafetensorsFile;
use super::spec::Declared;
use crate::error::{Error, Result};
use crate::input;
use crate::tensor::{Load, MappedFile, Storage, Tensor};

/// A file of a checkpoint and its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// Path; `<memory>` for bytes that are not in a file.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
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
        if let Some(found) = input::foreign(Some(path), bytes)
            && !looks_like_safetensors(bytes)
        {
            let what = format!("expected weights (safetensors or pth), found {found}");
            return Err(Error::format(path, what));
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
            (b"<", "a web page (the download failed)"),
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

    fn names(&self) -> Vec<String> {
        match self {
            Container::Safetensors(file) => file.names(),
            Container::Pth(file) => file.names(),
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
    beginning: Beginning,
}

/// How names in the files begin otherwise than those of their layout, which wrappers of a model cause.
#[derive(Debug, Default)]
struct Beginning {
    /// What the names of the layout have and those of the files lack.
    lost: &'static str,
    /// What those of the files have then.
    added: String,
}

impl Beginning {
    /// The name in the files of the layout's `name`.
    fn in_files<'a>(&self, name: &'a str) -> Cow<'a, str> {
        if self.lost.is_empty() && self.added.is_empty() {
            return name.into();
        }
        let name = name.strip_prefix(self.lost).unwrap_or(name);
        format!("{}{name}", self.added).into()
    }
}

impl WeightFiles {
    /// Maps the weights at `path`, a file or a folder, and reads their tables of contents; no tensor is touched.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] if there are none, or they cannot be read or are damaged.
    pub fn open(path: &Path) -> Result<WeightFiles> {
        WeightFiles::load(path, Load::Map)
    }

    /// As [`WeightFiles::open`]; `load` decides whether files are mapped or read.
    ///
    /// # Errors
    /// As [`WeightFiles::open`].
    pub fn load(path: &Path, load: Load) -> Result<WeightFiles> {
        let paths = weights_at(path)?;
        match &paths[..] {
            [index] if index.file_name().is_some_and(is_index) => {
                WeightFiles::load_shards(index, load)
            }
            [file] => WeightFiles::from_storage(file, MappedFile::load(file, load)?.into()),
            shards => WeightFiles::load_all(shards, load),
        }
    }

    /// Opens weights whose bytes are in memory or mapped already; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Format`] if the bytes are not weights or are damaged.
    pub fn from_storage(path: &Path, storage: Storage) -> Result<WeightFiles> {
        Ok(WeightFiles::of(vec![container(path, storage)?], None))
    }

    fn of(
        files: Vec<(FileInfo, Container)>,
        shard_of: Option<HashMap<String, usize>>,
    ) -> WeightFiles {
        WeightFiles {
            files,
            shard_of,
            declared: Declared::new(),
            beginning: Beginning::default(),
        }
    }

    /// Opens shards that no index lists.
    fn load_all(shards: &[PathBuf], load: Load) -> Result<WeightFiles> {
        let mut files = Vec::new();
        let mut shard_of = HashMap::new();
        for path in shards {
            let (info, shard) = container(path, MappedFile::load(path, load)?.into())?;
            for name in shard.names() {
                if let Some(first) = shard_of.insert(name.clone(), files.len()) {
                    let (first, _): &(FileInfo, _) = &files[first];
                    let first = first.path.display();
                    let what =
                        format!("expected each tensor in one shard, found {name:?} in {first} too");
                    return Err(Error::format(path, what));
                }
            }
            files.push((info, shard));
        }
        Ok(WeightFiles::of(files, Some(shard_of)))
    }

    fn load_shards(index: &Path, load: Load) -> Result<WeightFiles> {
        let value = json::read_up_to(index, MAX_INDEX)?;
        let in_index = |e: Error| e.in_file(index);
        let root = json::Object::root(&value).map_err(in_index)?;
        let map = root.required_object("weight_map").map_err(in_index)?;
        let mut number_of: HashMap<&str, usize> = HashMap::new();
        let mut files = Vec::new();
        let mut shard_of = HashMap::new();
        for tensor in map.keys() {
            let shard = (map.text(tensor))
                .and_then(|name| map.required(tensor, "a file name", name))
                .map_err(in_index)?;
            let number = match number_of.get(shard) {
                Some(&n) => n,
                None => {
                    check_plain_name(index, shard)?;
                    let path = index.with_file_name(shard);
                    if !path.exists() {
                        let what =
                            format!("expected the file {shard:?} beside the index, found none");
                        return Err(Error::format(index, what));
                    }
                    files.push(container(&path, MappedFile::load(&path, load)?.into())?);
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
        Ok(WeightFiles::of(files, Some(shard_of)))
    }

    /// Learns how names in the files begin from the first of these names, each of which a layout has, that one name in
    /// the files is or ends with: `module.`, `_orig_mod.` or `base_model.model.` may stand before it, and what `lost` lists
    /// may be missing from it.
    pub fn recognise(&mut self, names: &[&str], lost: &[&'static str]) {
        if names.iter().any(|name| self.has(name)) {
            return;
        }
        let all = self.names();
        let spellings = names.iter().flat_map(|name| {
            let shorter =
                (lost.iter()).filter_map(move |lost| Some((*lost, name.strip_prefix(lost)?)));
            [("", *name)].into_iter().chain(shorter)
        });
        for (lost, name) in spellings {
            let added = |found: &String| {
                let added = found.strip_suffix(name)?;
                (added.is_empty() || added.ends_with('.')).then(|| added.to_string())
            };
            let mut found = all.iter().filter_map(added);
            if let (Some(added), None) = (found.next(), found.next()) {
                self.beginning = Beginning { lost, added };
                return;
            }
        }
    }

    /// The name in the files of the layout's `name`.
    pub fn in_files<'a>(&self, name: &'a str) -> Cow<'a, str> {
        self.beginning.in_files(name)
    }

    /// What the names in the files suggest if the layout's `name` is not among them, for messages; empty if nothing.
    pub fn advice(&self, name: &str) -> String {
        let beginning = &self.beginning.added;
        if !beginning.is_empty() {
            return format!(
                "; names begin with {beginning:?}, so this may be a wrapper of a model: save the unwrapped one"
            );
        }
        let names = self.names();
        let ends_alike = |found: &&String| {
            (found.strip_suffix(name)).is_some_and(|start| start.is_empty() || start.ends_with('.'))
        };
        let alike: Vec<&String> = names.iter().filter(ends_alike).collect();
        if let [first, second, ..] = alike[..] {
            return format!(
                "; {first:?} and {second:?} are there, so these may be several models: save one alone"
            );
        }
        let wrapper = |name: &&str| name.starts_with('_');
        match names.iter().find_map(|name| name.split('.').find(wrapper)) {
            Some(part) => format!(
                "; names have the part {part:?}, so this may be a wrapped model: save the unwrapped one"
            ),
            None => String::new(),
        }
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
        let name = &*self.beginning.in_files(name);
        match &self.shard_of {
            Some(map) => map.contains_key(name),
            None => self.files[0].1.has(name),
        }
    }

    /// Names of all tensors as they are in the files, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = match &self.shard_of {
            Some(map) => map.keys().cloned().collect(),
            None => self.files[0].1.names(),
        };
        names.sort_unstable();
        names
    }

    /// The tensor of that name; `None` if there is none. Shares the file's bytes.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is of a type or in a form this engine does not read.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let name = &*self.beginning.in_files(name);
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
        let number = self.number(&self.beginning.in_files(name));
        &self.files[number.unwrap_or(0)].0.path
    }

    /// The file with that name in the files.
    fn number(&self, name: &str) -> Option<usize> {
        match &self.shard_of {
            Some(map) => map.get(name).copied(),
            None => Some(0),
        }
    }

    /// Compares the file with its checksums, if it is one that has them: see `checksums.rs`. Returns the number of tensors
    /// compared.
    ///
    /// # Errors
    /// If a tensor is damaged, or the error that `progress` returns. `progress` gets the number of bytes read so far.
    pub fn verify(&self, progress: impl FnMut(u64) -> Result<()>) -> Result<usize> {
        match &self.files[..] {
            [(_, Container::Safetensors(file))] => file.verify(progress),
            _ => Ok(0),
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
    fn wrappers_of_a_model_are_recognised_by_one_name() {
        let weights = |names: &[&str]| {
            let entry = |name: &&str| {
                format!("{name:?}:{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}")
            };
            let entries: Vec<String> = names.iter().map(entry).collect();
            let header = format!("{{{}}}", entries.join(","));
            let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
            WeightFiles::from_storage(Path::new("x"), bytes.into()).unwrap()
        };
        let landmarks = ["model.a.weight", "b.weight"];
        for (names, beginning, asked, has) in [
            (
                &["model.a.weight", "module.model.a.weight"][..],
                "",
                "model.a.weight",
                true,
            ),
            (
                &["module.model.a.weight", "module.lm_head.weight"],
                "module.",
                "lm_head.weight",
                true,
            ),
            (
                &["_orig_mod.model.a.weight"],
                "_orig_mod.",
                "model.a.weight",
                true,
            ),
            (&["a.weight", "c.weight"], "", "model.c.weight", true),
            (&["x.a.weight", "x.c.weight"], "x.", "model.c.weight", true),
            (&["module.b.weight"], "module.", "b.weight", true),
            // Two: it is not known which is meant.
            (&["x.b.weight", "y.b.weight"], "", "b.weight", false),
            (&["xb.weight"], "", "b.weight", false),
        ] {
            let mut weights = weights(names);
            weights.recognise(&landmarks, &["model."]);
            assert_eq!(weights.beginning.added, beginning, "{names:?}");
            assert_eq!(weights.has(asked), has, "{names:?}");
            assert_eq!(
                weights.tensor(asked).unwrap_or(None).is_some() || has,
                has,
                "{names:?}"
            );
        }
        for (names, advice) in [
            (&["module.b.weight"][..], "begin with \"module.\""),
            (
                &["x.b.weight", "y.b.weight", "x.c", "y.c"],
                "\"x.c\" and \"y.c\" are there",
            ),
            (
                &["b.weight", "layers.0._orig_mod.d"],
                "the part \"_orig_mod\"",
            ),
        ] {
            let mut weights = weights(names);
            weights.recognise(&landmarks, &["model."]);
            let found = weights.advice("c");
            assert!(found.contains(advice), "{names:?}: {found}");
        }
        assert_eq!(weights(&["b.weight"]).advice("c"), "");
    }

    #[test]
    fn what_is_no_weights_file_is_named() {
        for (bytes, expected) in [
            (&b"\x1f\x8b\x08"[..], "gzip -dk 'a b'"),
            (b"GGUF\x03", "a GGUF file"),
            (b"<!DOCTYPE html>", "a web page"),
            (b"{\"a\": 1}", "JSON"),
            (
                b"\x1f\x8b\0\0\0\0\0\0{",
                "a safetensors header of 35615 bytes",
            ),
            (b"version https://git-lfs.github.com", "a Git LFS pointer"),
        ] {
            let bytes = bytes.to_vec();
            let opened = WeightFiles::from_storage(Path::new("a b"), bytes.into());
            let message = opened.unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

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
