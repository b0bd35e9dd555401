//! Text to train on, cut into documents (see [`crate::documents`]) and pieces.
//!
//! A document becomes BOS, its bytes, EOS. If that is longer than the longest sequence allowed, it is cut into pieces.
//! Pieces are drawn in an order that the seed and the epoch determine.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::documents::{self, Format, TextFile};
use crate::error::{Error, Result};
use crate::random::{SplitMix64, mix};
use crate::vocab::{BOS, EOS, Id, byte_to_id};
use crate::wire::Checksum;

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

/// Texts, cut into pieces. Cloning shares the texts.
#[derive(Debug, Clone)]
pub struct Corpus {
    sources: Arc<Vec<TextFile>>,
    pieces: Vec<Piece>,
    n_bytes: usize,
}

impl Corpus {
    /// Reads `paths`: files and folders as [`documents::files`] finds them, whose documents are cut into pieces of at most
    /// `max_ids` ids.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] if a file cannot be read or is no text data,
    /// [`Error::Argument`] if there is nothing to train on.
    pub fn open(paths: &[PathBuf], format: &Format, max_ids: usize) -> Result<Corpus> {
        if max_ids < 3 {
            return Err(Error::argument(
                "seq-len",
                format!("expected at least 3, found {max_ids}"),
            ));
        }
        let files = documents::files(paths)?;
        let sources: Result<Vec<TextFile>> = files
            .iter()
            .map(|path| TextFile::open(path, format))
            .collect();
        let corpus = Corpus::of(sources?, max_ids);
        if corpus.pieces.is_empty() {
            return Err(Error::argument(
                "data",
                format!("expected text, found none in {}", list(paths)),
            ));
        }
        Ok(corpus)
    }

    /// One text as one document, less the line ends at its end.
    pub fn from_bytes(text: Vec<u8>, max_ids: usize) -> Corpus {
        Corpus::of(vec![TextFile::from_bytes(text, "")], max_ids)
    }

    fn of(sources: Vec<TextFile>, max_ids: usize) -> Corpus {
        let mut corpus = Corpus {
            sources: Arc::new(Vec::new()),
            pieces: Vec::new(),
            n_bytes: 0,
        };
        for (number, source) in sources.iter().enumerate() {
            let number = u32::try_from(number).expect("fewer files than 2^32");
            for document in source.documents() {
                corpus.add(number, document.clone(), max_ids);
            }
        }
        corpus.sources = Arc::new(sources);
        corpus
    }

    fn add(&mut self, source: u32, Range { start, end }: Range<usize>, max_ids: usize) {
        let mut position = start;
        while position < end {
            let bos = position == start;
            // BOS, bytes, EOS. A piece that is not the last has one more byte: the next piece's
            // first, as the target of its last position.
            let room = max_ids - usize::from(bos);
            let eos = end - position < room;
            let to = if eos { end } else { position + room };
            self.pieces.push(Piece {
                source,
                document: start,
                start: position,
                end: to,
                bos,
                eos,
            });
            self.n_bytes += to - position;
            position = if eos { end } else { to - 1 };
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
        // How many pieces of each document stay.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::{decode, encode};

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
        let texts: Vec<String> = (0..200)
            .map(|i| format!("{i} ").repeat(20 + i % 50))
            .collect();
        let text = texts.join("\n<|endoftext|>\n");
        let text = TextFile::from_bytes(text.into_bytes(), documents::SEPARATOR);
        let corpus = Corpus::of(vec![text], 40);
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
    fn what_cannot_be_read_is_an_error() {
        assert!(Corpus::open(&[PathBuf::from("/nonexistent")], &Format::default(), 9).is_err());
        assert_eq!(decode(&Corpus::from_bytes(b"hi".to_vec(), 9).ids(0)), b"hi");
    }
}
