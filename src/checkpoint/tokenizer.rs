//! The vocabulary of a subword tokenizer: which byte string each row of a table of subword embeddings stands for.
//!
//! Bolmo folders do not hold it. It comes from two files of the repository that the model's `original_identifier` names:
//! `tokenizer.json` (entries) and `tokenizer_config.json` (which entries are special). Merges are skipped unread.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::json::{self, Object};
use crate::error::{Error, Result};
use crate::input;
use crate::subwords::{Subword, SubwordTable, name_to_bytes};
use crate::vocab::Id;

/// What a model says of its subwords.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// Rows of the table of embeddings.
    pub n_rows: usize,
    /// Names of the special ids, in order.
    pub special_tokens: &'a [&'a str],
    /// The special ids that the source's BOS, EOS and padding tokens become.
    pub bos: Id,
    pub eos: Id,
    pub pad: Id,
    /// The repository that the files are fetched from.
    pub identifier: &'a str,
}

/// The two files.
const FILES: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

/// Largest `tokenizer.json` that is read; those of 128,000 entries have 9 to 17 MB.
const MAX_FILE: usize = 64 << 20;

/// Opens the tokenizer at `given`, a folder or `tokenizer.json` in it; `None`: in the folder `tokenizer` beside the
/// weights.
///
/// # Errors
/// [`Error::Format`] if the files are missing, damaged or those of another model.
pub(super) fn open(
    given: Option<&Path>,
    beside: &Path,
    wanted: &Wanted<'_>,
) -> Result<SubwordTable> {
    let folder = match given {
        Some(path) if path.is_dir() => path.to_path_buf(),
        Some(path) => path.parent().unwrap_or(Path::new("")).to_path_buf(),
        None => beside.join("tokenizer"),
    };
    let [vocabulary, settings] = FILES.map(|name| folder.join(name));
    let missing = [&vocabulary, &settings]
        .into_iter()
        .find(|path| !path.is_file());
    if let Some(path) = missing {
        return Err(Error::format(
            path,
            format!("expected a file, found none; {}", wanted.advice()),
        ));
    }
    let special = special_tokens(&settings, wanted)?;
    let entries = read_entries(&vocabulary)?;
    build(&vocabulary, &settings, entries, &special, wanted)
}

impl Wanted<'_> {
    /// What to do about a missing or wrong tokenizer.
    fn advice(&self) -> String {
        format!(
            "fetch tokenizer.json and tokenizer_config.json from the repository \"{}\" into the folder \"tokenizer\" \
             beside the weights, or name their folder with --tokenizer PATH",
            self.identifier
        )
    }
}

/// Names of the source's BOS, EOS and padding tokens, each with the special id it becomes.
fn special_tokens(path: &Path, wanted: &Wanted<'_>) -> Result<Vec<(&'static str, String, Id)>> {
    let value = json::read(path)?;
    let root = Object::root(&value)?;
    if root.text("tokenizer_class")? == Some("BolmoTokenizer") {
        return Err(Error::format(
            path,
            format!(
                "expected the source model's tokenizer, found the byte model's own, which has no vocabulary; {}",
                wanted.advice()
            ),
        ));
    }
    // EOS first: an entry that is several of them becomes the first.
    let keys = [
        ("eos_token", wanted.eos),
        ("bos_token", wanted.bos),
        ("pad_token", wanted.pad),
    ];
    let mut named = Vec::new();
    for (key, id) in keys {
        let name = match root.value(key) {
            None => continue,
            Some(Value::Object(_)) => {
                let token = root.required_object(key)?;
                token.required("content", "a string", token.text("content")?)?
            }
            Some(_) => root.required(key, "a string", root.text(key)?)?,
        };
        named.push((key, name.to_string(), id));
    }
    Ok(named)
}

/// The table of a vocabulary's entries.
fn build(
    path: &Path,
    settings: &Path,
    entries: Vec<(String, u32)>,
    special: &[(&'static str, String, Id)],
    wanted: &Wanted<'_>,
) -> Result<SubwordTable> {
    let wrong = |what: String| Error::format(path, what);
    let row_of: HashMap<&str, u32> = entries
        .iter()
        .map(|(name, row)| (name.as_str(), *row))
        .collect();
    let mut special_rows = Vec::new();
    for (key, name, id) in special {
        let row = row_of.get(name.as_str()).ok_or_else(|| {
            Error::format(
                settings,
                format!(
                    "{key}: expected an entry of tokenizer.json, found {name:?}; {}",
                    wanted.advice()
                ),
            )
        })?;
        special_rows.push((*row, *id));
    }
    if let Some((_, row)) = entries
        .iter()
        .find(|(_, row)| *row as usize >= wanted.n_rows)
    {
        return Err(wrong(format!(
            "expected ids below {}, the rows of the model's table of subwords, found {row}; this is not the tokenizer \
             of \"{}\"",
            wanted.n_rows, wanted.identifier
        )));
    }
    let mut subwords = Vec::with_capacity(entries.len());
    for (name, row) in &entries {
        let own = wanted
            .special_tokens
            .iter()
            .position(|special| special == name);
        let source = special_rows.iter().find(|(special, _)| special == row);
        let subword = match (own, source) {
            (Some(id), _) => Subword::Special(id as Id),
            (None, Some((_, id))) => Subword::Special(*id),
            (None, None) => Subword::Bytes(name_to_bytes(name).map_err(wrong)?),
        };
        subwords.push((subword, *row));
    }
    SubwordTable::new(subwords).map_err(|what| {
        wrong(format!(
            "{what}; this tokenizer is not byte-level BPE, or not that of the model"
        ))
    })
}

/// Names and ids of all entries: `model.vocab`, then `added_tokens`.
fn read_entries(path: &Path) -> Result<Vec<(String, u32)>> {
    let text = input::read(path, MAX_FILE)?;
    parse(&text, path.to_path_buf())
}

fn parse(text: &[u8], path: PathBuf) -> Result<Vec<(String, u32)>> {
    let wrong = |what: String| Error::format(&path, what);
    let mut json = serde_json::Deserializer::from_slice(text);
    let file = (&mut json)
        .deserialize_map(FileVisitor)
        .and_then(|file| json.end().map(|()| file))
        .map_err(|e| wrong(format!("expected a tokenizer's JSON, found a fault: {e}")))?;
    if let Some(kind) = file.kind.filter(|kind| kind != "BPE") {
        return Err(wrong(format!(
            "model.type: expected \"BPE\", found {kind:?}"
        )));
    }
    let mut entries = file
        .vocab
        .ok_or_else(|| wrong("model.vocab: expected an object, found nothing".into()))?;
    for token in &file.added {
        let row = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        match (token["content"].as_str(), row) {
            (Some(name), Some(row)) => entries.push((name.to_string(), row)),
            _ => {
                return Err(wrong(
                    "added_tokens: expected entries with \"content\" and \"id\", found another"
                        .into(),
                ));
            }
        }
    }
    Ok(entries)
}

/// The parts of `tokenizer.json` that matter.
#[derive(Default)]
struct File {
    kind: Option<String>,
    vocab: Option<Vec<(String, u32)>>,
    added: Vec<Value>,
}

struct FileVisitor;

impl<'de> Visitor<'de> for FileVisitor {
    type Value = File;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with \"model\" and \"added_tokens\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<File, A::Error> {
        let mut file = File::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "model" => {
                    let Model { kind, vocab } = map.next_value()?;
                    (file.kind, file.vocab) = (kind, vocab);
                }
                "added_tokens" => file.added = map.next_value::<Option<_>>()?.unwrap_or_default(),
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(file)
    }
}

/// The object `model` of the file.
#[derive(Default)]
struct Model {
    kind: Option<String>,
    vocab: Option<Vec<(String, u32)>>,
}

impl<'de> serde::Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ModelVisitor;
        impl<'de> Visitor<'de> for ModelVisitor {
            type Value = Model;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with \"vocab\"")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Model, A::Error> {
                let mut model = Model::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "type" => model.kind = map.next_value()?,
                        "vocab" => model.vocab = Some(map.next_value::<Vocab>()?.0),
                        _ => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                Ok(model)
            }
        }
        deserializer.deserialize_map(ModelVisitor)
    }
}

/// The object `vocab` of the model: names and ids.
struct Vocab(Vec<(String, u32)>);

impl<'de> serde::Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct VocabVisitor;
        impl<'de> Visitor<'de> for VocabVisitor {
            type Value = Vocab;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of names and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Vocab(entries))
            }
        }
        deserializer.deserialize_map(VocabVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subwords::byte_to_char;
    use crate::vocab::{BYTE_OFFSET, encode};
    use serde_json::json;

    const SPECIAL: [&str; 4] = ["<pad>", "<bos>", "<eos>", "<bpe_token_end>"];

    /// All bytes as entries 0 to 255, and `added` from 256 on.
    fn vocabulary(added: &[(&str, u32)]) -> Vec<(String, u32)> {
        let single = (0..=255u8).map(|byte| (byte_to_char(byte).to_string(), u32::from(byte)));
        single
            .chain(added.iter().map(|(name, row)| (name.to_string(), *row)))
            .collect()
    }

    fn table(
        added: &[(&str, u32)],
        special: &[(&'static str, &str, Id)],
        n_rows: usize,
    ) -> Result<SubwordTable> {
        let wanted = Wanted {
            n_rows,
            special_tokens: &SPECIAL,
            bos: 1,
            eos: 1,
            pad: 0,
            identifier: "org/source",
        };
        let special: Vec<_> = special
            .iter()
            .map(|(key, name, id)| (*key, name.to_string(), *id))
            .collect();
        let paths = [
            Path::new("tokenizer.json"),
            Path::new("tokenizer_config.json"),
        ];
        build(paths[0], paths[1], vocabulary(added), &special, &wanted)
    }

    #[test]
    fn special_tokens_become_special_ids_and_their_text_matches_nothing() {
        let added = [
            ("<|end|>", 300),
            ("<|start|>", 301),
            ("<|pad|>", 302),
            ("<|im|>", 303),
            ("<eos>", 304),
        ];
        let special = [
            ("eos_token", "<|end|>", 1),
            ("bos_token", "<|start|>", 1),
            ("pad_token", "<|pad|>", 0),
        ];
        let table = table(&added, &special, 400).unwrap();
        assert_eq!(
            table.lookup(&[1]),
            Some(301),
            "of two that become the same id, the later one"
        );
        assert_eq!(table.lookup(&[0]), Some(302));
        assert_eq!(table.lookup(&[2]), Some(304), "by its name");
        assert_eq!(
            table.lookup(&encode(b"<|end|>", true)),
            Some(u32::from(b'>'))
        );
        assert_eq!(table.lookup(&encode(b"<|im|>", true)), Some(303));
        assert_eq!(
            table.lookup(&[Id::from(b'\n') + BYTE_OFFSET]),
            Some(u32::from(b'\n'))
        );
    }

    #[test]
    fn a_token_that_is_eos_and_pad_becomes_eos() {
        let special = [("eos_token", "<|end|>", 1), ("pad_token", "<|end|>", 0)];
        let table = table(&[("<|end|>", 300)], &special, 400).unwrap();
        assert_eq!((table.lookup(&[1]), table.lookup(&[0])), (Some(300), None));
    }

    #[test]
    fn another_models_tokenizer_is_refused() {
        let special = [("eos_token", "<|end|>", 1)];
        let message = table(&[("<|end|>", 300)], &special, 300)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("found 300") && message.contains("org/source"),
            "{message}"
        );
        let message = table(&[], &special, 400).unwrap_err().to_string();
        assert!(
            message.contains("eos_token") && message.contains("<|end|>"),
            "{message}"
        );
        let message = table(&[("<|end|>", 300), ("▁the", 301)], &special, 400)
            .unwrap_err()
            .to_string();
        assert!(message.contains("▁the"), "{message}");
        let message = table(&[], &[], 400).unwrap_err().to_string();
        assert!(message.contains("id 1"), "{message}");
    }

    #[test]
    fn merges_and_unknown_keys_are_skipped() {
        let text = json!({
            "version": "1.0", "normalizer": null,
            "model": {"type": "BPE", "merges": [["a", "b"], "c d"], "vocab": {"a": 5, "b": 6}},
            "added_tokens": [{"id": 9, "content": "<x>", "special": true}],
        });
        let entries = parse(text.to_string().as_bytes(), PathBuf::new()).unwrap();
        assert_eq!(
            entries,
            [
                ("a".to_string(), 5),
                ("b".to_string(), 6),
                ("<x>".to_string(), 9)
            ]
        );
    }

    #[test]
    fn faults_are_named() {
        for (text, expected) in [
            ("", "JSON"),
            ("[]", "JSON"),
            (r#"{"model": {"vocab": {}}} x"#, "JSON"),
            (r#"{"model": {"vocab": [["a", -1.5]]}}"#, "names and ids"),
            (r#"{"model": {"vocab": {"a": -1}}}"#, "JSON"),
            (r#"{"model": {"type": "Unigram", "vocab": {}}}"#, "Unigram"),
            (r#"{"model": {"type": "BPE"}}"#, "model.vocab"),
            (r#"{}"#, "model.vocab"),
            (
                r#"{"model": {"vocab": {}}, "added_tokens": [{"id": 5}]}"#,
                "added_tokens",
            ),
        ] {
            let message = parse(text.as_bytes(), PathBuf::from("t.json"))
                .unwrap_err()
                .to_string();
            assert!(
                message.contains(expected) && message.contains("t.json"),
                "{text}: {message}"
            );
        }
    }
}
