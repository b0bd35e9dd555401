//! Text to train on: files, folders, JSONL or standard input, cut into documents and pieces.
//!
//! A document is the text between two separator lines (the whole file without one) or the `text` of one JSONL
//! line. It becomes BOS, its bytes, EOS. If that is longer than the longest sequence allowed, it is cut into pieces. Pieces are drawn in an order that the
//! seed and the epoch determine.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::random::{SplitMix64, mix};
use crate::tensor::MappedFile;
use crate::vocab::{BOS, EOS, Id, byte_to_id};
use crate::wire::Checksum;

/// The line between documents.
pub const SEPARATOR: &str = "<|endoftext|>";

/// Most files that are looked at in a folder.
const MAX_FILES: usize = 1_000_000;

/// Tell the random orders of a seed apart: of documents to hold out, and of pieces to validate on. Those of epochs
/// are their numbers.
const SPLIT: u64 = 1 << 62;
const SAMPLE: u64 = 1 << 63;

/// A run of bytes of one document.
#[derive(Debug, Clone, Copy)]
struct Piece {
    source: u32,
    document: usize, // where its document starts
    start: usize,
    end: usize,
    bos: bool, // whether it begins the document
    eos: bool, // whether it ends it
}

#[derive(Debug)]
enum Source {
    Mapped(MappedFile),
    Memory(Vec<u8>),
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Source::Mapped(file) => file.bytes(),
            Source::Memory(bytes) => bytes,
        }
    }
}

/// Texts, cut into pieces. Cloning shares the texts.
#[derive(Debug, Clone)]
pub struct Corpus {
    sources: Arc<Vec<Source>>,
    pieces: Vec<Piece>,
    n_bytes: usize,
}

impl Corpus {
    /// Reads `paths`: text files, files that end in `.jsonl`, folders of both (searched through,
    /// hidden names left out), or `-` for standard input. Documents end at lines that hold only
    /// `separator` and are cut into pieces of at most `max_ids` ids.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] if a file cannot be read or is no text data,
    /// [`Error::Argument`] if there is nothing to train on.
    pub fn open(paths: &[PathBuf], separator: &str, max_ids: usize) -> Result<Corpus> {
        if max_ids < 3 {
            return Err(Error::argument(
                "seq-len",
                format!("expected at least 3, found {max_ids}"),
            ));
        }
        let mut files = Vec::new();
        for path in paths {
            find_files(path, true, &mut files)?;
        }
        let mut corpus = Corpus {
            sources: Arc::new(Vec::new()),
            pieces: Vec::new(),
            n_bytes: 0,
        };
        let mut sources = Vec::new();
        for path in &files {
            let (source, documents) = read(path, separator)?;
            let number = u32::try_from(sources.len()).expect("fewer files than 2^32");
            for document in documents {
                corpus.add(number, document, max_ids);
            }
            sources.push(source);
        }
        if corpus.pieces.is_empty() {
            return Err(Error::argument(
                "data",
                format!("expected text, found none in {}", list(paths)),
            ));
        }
        corpus.sources = Arc::new(sources);
        Ok(corpus)
    }

    /// One text as one document.
    pub fn from_bytes(text: Vec<u8>, max_ids: usize) -> Corpus {
        let mut corpus = Corpus {
            sources: Arc::new(Vec::new()),
            pieces: Vec::new(),
            n_bytes: 0,
        };
        corpus.add(0, (0, text.len()), max_ids);
        corpus.sources = Arc::new(vec![Source::Memory(text)]);
        corpus
    }

    fn add(&mut self, source: u32, (start, end): (usize, usize), max_ids: usize) {
        let mut at = start;
        while at < end {
            let bos = at == start;
            // BOS, bytes, EOS. A piece that is not the last has one more byte: the next piece's
            // first, as the target of its last position.
            let room = max_ids - usize::from(bos);
            let eos = end - at < room;
            let to = if eos { end } else { at + room };
            self.pieces.push(Piece {
                source,
                document: start,
                start: at,
                end: to,
                bos,
                eos,
            });
            self.n_bytes += to - at;
            at = if eos { end } else { to - 1 };
        }
    }

    /// Takes about `share` of the bytes away for validation: whole documents in an order that the seed
    /// determines. Of a document that is much longer than what is still wanted, its last pieces.
    pub fn split(mut self, share: f64, seed: u64) -> (Corpus, Corpus) {
        let same = |a: &Piece, b: &Piece| (a.source, a.document) == (b.source, b.document);
        let documents: Vec<&[Piece]> = self.pieces.chunk_by(same).collect();
        let mut order: Vec<usize> = (0..documents.len()).collect();
        SplitMix64::mixed(seed ^ mix(SPLIT)).shuffle(&mut order);
        let bytes = |pieces: &[Piece]| -> usize { pieces.iter().map(|p| p.end - p.start).sum() };
        let mut wanted = (share.clamp(0.0, 1.0) * self.n_bytes as f64) as usize;
        // Of each document, how many pieces stay.
        let mut kept: Vec<usize> = documents.iter().map(|pieces| pieces.len()).collect();
        for i in order {
            if wanted == 0 {
                break;
            }
            let pieces = documents[i];
            kept[i] = match bytes(pieces) <= 2 * wanted {
                true => 0,
                false => (0..pieces.len())
                    .rfind(|&first| bytes(&pieces[first..]) >= wanted)
                    .unwrap_or(0),
            };
            wanted = wanted.saturating_sub(bytes(&pieces[kept[i]..]));
        }
        let halves = || documents.iter().zip(&kept);
        let train = halves().flat_map(|(pieces, &n)| &pieces[..n]).copied();
        let valid = halves().flat_map(|(pieces, &n)| &pieces[n..]).copied();
        let (train, valid) = (train.collect(), valid.collect());
        let other = Corpus {
            sources: Arc::clone(&self.sources),
            pieces: valid,
            n_bytes: 0,
        };
        self.pieces = train;
        (self.counted(), other.counted())
    }

    fn counted(mut self) -> Corpus {
        self.n_bytes = self.pieces.iter().map(|p| p.end - p.start).sum();
        self
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there are no documents.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of text in all pieces.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// A checksum of all pieces in order, wherever their text came from.
    pub fn fingerprint(&self) -> u64 {
        let mut sum = Checksum::default();
        for p in &self.pieces {
            let bytes = &self.sources[p.source as usize].bytes()[p.start..p.end];
            sum.update(&(bytes.len() as u64).to_le_bytes());
            sum.update(&[p.bos.into(), p.eos.into()]);
            sum.update(bytes);
        }
        sum.finish()
    }

    /// The ids of a piece: at least two.
    pub fn ids(&self, piece: usize) -> Vec<Id> {
        let p = &self.pieces[piece];
        let bytes = &self.sources[p.source as usize].bytes()[p.start..p.end];
        (p.bos.then_some(BOS).into_iter())
            .chain(bytes.iter().map(|&b| byte_to_id(b)))
            .chain(p.eos.then_some(EOS))
            .collect()
    }

    /// The positions of a piece: one less than its ids.
    pub fn n_positions(&self, piece: usize) -> usize {
        let p = &self.pieces[piece];
        usize::from(p.bos) + (p.end - p.start) + usize::from(p.eos) - 1
    }

    /// A random sample of the pieces of about `max_bytes` bytes, or all of them if they have less: the same for a
    /// seed, in the order of the text.
    pub fn sample(&self, max_bytes: usize, seed: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.pieces.len() as u32).collect();
        SplitMix64::mixed(seed ^ mix(SAMPLE)).shuffle(&mut order);
        let mut n_bytes = 0;
        let mut sample: Vec<u32> = (order.into_iter())
            .take_while(|&piece| {
                let p = &self.pieces[piece as usize];
                let more = n_bytes < max_bytes;
                n_bytes += p.end - p.start;
                more
            })
            .collect();
        sample.sort_unstable();
        sample
    }

    /// The order of the pieces in an epoch.
    pub fn order(&self, seed: u64, epoch: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.pieces.len() as u32).collect();
        SplitMix64::mixed(seed ^ mix(epoch + 1)).shuffle(&mut order);
        order
    }
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    names.join(", ")
}

fn find_files(path: &Path, named: bool, files: &mut Vec<PathBuf>) -> Result<()> {
    if path == Path::new("-") {
        files.push(path.to_path_buf());
        return Ok(());
    }
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if meta.is_dir() {
        let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
        let mut inside = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(path, e))?;
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            // Links are not followed: they can lead in circles.
            let link = entry.file_type().is_ok_and(|t| t.is_symlink());
            if !hidden && !link {
                inside.push(entry.path());
            }
        }
        inside.sort();
        for path in inside {
            find_files(&path, false, files)?;
        }
    } else if meta.is_file() && meta.len() > 0 {
        if files.len() >= MAX_FILES {
            return Err(Error::format(
                path,
                format!("expected at most {MAX_FILES} files"),
            ));
        }
        files.push(path.to_path_buf());
    } else if named {
        return Err(Error::format(
            path,
            "expected text, found an empty file or a device",
        ));
    }
    Ok(())
}

/// The text of a file, and where its documents begin and end.
fn read(path: &Path, separator: &str) -> Result<(Source, Documents)> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin()
            .lock()
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("standard input", e))?;
        let documents = documents(&bytes, separator);
        return Ok((Source::Memory(bytes), documents));
    }
    let file = MappedFile::open(path)?;
    if path.extension().is_some_and(|e| e == "jsonl") {
        let (texts, documents) = texts_of_jsonl(path, file.bytes())?;
        return Ok((Source::Memory(texts), documents));
    }
    let documents = documents(file.bytes(), separator);
    Ok((Source::Mapped(file), documents))
}

/// First byte of each document, and one past its last.
type Documents = Vec<(usize, usize)>;

/// The `text` fields, one document each.
fn texts_of_jsonl(path: &Path, bytes: &[u8]) -> Result<(Vec<u8>, Documents)> {
    let (mut texts, mut documents) = (Vec::new(), Vec::new());
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let fault = |what: String| Error::format(path, format!("line {}: {what}", i + 1));
        let value: serde_json::Value = serde_json::from_slice(line)
            .map_err(|e| fault(format!("expected JSON, found a fault: {e}")))?;
        let text = value["text"]
            .as_str()
            .ok_or_else(|| fault("expected an object with a string \"text\"".into()))?;
        let start = texts.len();
        texts.extend_from_slice(text.trim_end_matches('\n').as_bytes());
        if texts.len() > start {
            documents.push((start, texts.len()));
        }
    }
    Ok((texts, documents))
}

/// Where the documents are, without the line ends around the separators.
fn documents(bytes: &[u8], separator: &str) -> Documents {
    let separator = separator.as_bytes();
    let (mut found, mut start, mut line_start) = (Vec::new(), 0, 0);
    let mut add = |start: usize, mut end: usize| {
        while end > start && bytes[end - 1] == b'\n' {
            end -= 1;
        }
        if start < end {
            found.push((start, end));
        }
    };
    while line_start < bytes.len() {
        let rest = &bytes[line_start..];
        let line = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
        let next = line_start + line + 1;
        if !separator.is_empty() && rest[..line].trim_ascii_end() == separator {
            add(start, line_start);
            start = next;
        }
        line_start = next;
    }
    add(start.min(bytes.len()), bytes.len());
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::{decode, encode};

    #[test]
    fn documents_end_at_separator_lines() {
        let text = b"one\ntwo\n<|endoftext|>\nthree <|endoftext|> four\n\n<|endoftext|>\r\n\n<|endoftext|>";
        let found: Vec<&[u8]> = (documents(text, SEPARATOR).into_iter())
            .map(|(a, b)| &text[a..b])
            .collect();
        assert_eq!(found, [&b"one\ntwo"[..], b"three <|endoftext|> four"]);
        assert_eq!(documents(b"a\n", ""), [(0, 1)]);
        assert!(documents(b"", SEPARATOR).is_empty());
    }

    #[test]
    fn pieces_cover_the_text_and_overlap_by_their_target() {
        let text: Vec<u8> = (0..100).collect();
        for max_ids in 3..120 {
            let corpus = Corpus::from_bytes(text.clone(), max_ids);
            let mut ids = corpus.ids(0);
            for piece in 1..corpus.len() {
                let more = corpus.ids(piece);
                assert!((2..=max_ids).contains(&more.len()), "{max_ids}");
                assert_eq!(corpus.n_positions(piece), more.len() - 1, "{max_ids}");
                assert_eq!(ids.last(), more.first(), "{max_ids}");
                ids.extend(&more[1..]);
            }
            let mut all = encode(&text, true);
            all.push(EOS);
            assert_eq!(ids, all, "{max_ids}");
        }
    }

    #[test]
    fn a_split_loses_nothing_and_the_seed_orders_the_pieces() {
        let corpus = Corpus::from_bytes(vec![b'x'; 10_000], 20);
        let (n, bytes) = (corpus.len(), corpus.n_bytes());
        let (train, valid) = corpus.split(0.2, 3);
        assert_eq!(
            (train.len() + valid.len(), train.n_bytes() + valid.n_bytes()),
            (n, bytes)
        );
        assert!((n / 10..n * 3 / 10).contains(&valid.len()));
        // One document: its end is held out.
        assert!(train.pieces.last().unwrap().end <= valid.pieces[0].start + 1);
        assert_eq!(train.order(1, 0), train.order(1, 0));
        assert_ne!(train.order(1, 0), train.order(1, 1));
    }

    #[test]
    fn whole_documents_are_held_out_and_the_sample_is_random() {
        let documents: Vec<String> = (0..200)
            .map(|i| format!("{i} ").repeat(20 + i % 50))
            .collect();
        let text = documents.join("\n<|endoftext|>\n");
        let mut corpus = Corpus::from_bytes(Vec::new(), 40);
        for document in super::documents(text.as_bytes(), SEPARATOR) {
            corpus.add(0, document, 40);
        }
        corpus.sources = Arc::new(vec![Source::Memory(text.into_bytes())]);
        let all = corpus.n_bytes();
        let mut first = Vec::new();
        for seed in 0..4 {
            let (train, valid) = corpus.clone().split(0.1, seed);
            let of = |c: &Corpus| -> std::collections::BTreeSet<usize> {
                c.pieces.iter().map(|p| p.document).collect()
            };
            let shared = of(&train).intersection(&of(&valid)).count();
            assert!(shared <= 1, "seed {seed}: {shared} documents in both");
            assert_eq!(train.n_bytes() + valid.n_bytes(), all);
            let share = valid.n_bytes() as f64 / all as f64;
            assert!((0.08..0.12).contains(&share), "seed {seed}: {share}");
            assert_eq!(of(&corpus.clone().split(0.1, seed).1), of(&valid));
            first.push(of(&valid));

            let sample = corpus.sample(500, seed);
            assert_eq!(sample, corpus.sample(500, seed));
            let n: usize = sample.iter().map(|&p| corpus.ids(p as usize).len()).sum();
            assert!((480..620).contains(&n), "{n}");
            assert!(
                *sample.last().unwrap() as usize > corpus.len() / 4,
                "not the head"
            );
            assert_eq!(corpus.sample(usize::MAX, seed).len(), corpus.len());
        }
        assert!(first.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(corpus.clone().split(0.0, 1).1.is_empty());
    }

    #[test]
    fn jsonl_and_its_faults() {
        let path = Path::new("x.jsonl");
        let good = b"{\"text\": \"a\\n<|endoftext|>\\n\"}\n\n{\"text\": \"\"}\n{\"text\": \"c\", \"n\": 1}";
        let (text, documents) = texts_of_jsonl(path, good).unwrap();
        let found: Vec<&[u8]> = documents.iter().map(|&(a, b)| &text[a..b]).collect();
        assert_eq!(found, [&b"a\n<|endoftext|>"[..], b"c"]);
        for (bad, what) in [("{\"text\": 1}", "string"), ("\n{", "line 2")] {
            let message = texts_of_jsonl(path, bad.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(message.contains(what), "{message}");
        }
        assert!(Corpus::open(&[PathBuf::from("/nonexistent")], "", 9).is_err());
        assert_eq!(decode(&Corpus::from_bytes(b"hi".to_vec(), 9).ids(0)), b"hi");
    }
}
