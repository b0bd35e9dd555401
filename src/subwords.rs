//! The subword of every byte: the longest entry of a subword vocabulary that ends there.
//!
//! Models of the Bolmo family add the embedding of that subword to the embedding of each byte. The vocabulary is that of
//! the subword model they were made from. Only its entries matter here, not how a tokenizer would cut a text: what is
//! found for a byte depends on the bytes up to it and nothing else.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::vocab::{BOS, BYTE_OFFSET, Id, id_to_byte};

/// What an entry of the vocabulary stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subword {
    /// A special id, which no byte is part of.
    Special(Id),
    /// One byte or more.
    Bytes(Vec<u8>),
}

/// Entries of a vocabulary, each with the row of the embedding table that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubwordTable {
    /// All byte strings, each reversed, one after the other, in lexicographic order.
    reversed: Vec<u8>,
    /// Where each of them starts, and where the last ends.
    starts: Vec<u32>,
    /// Their rows.
    rows: Vec<u32>,
    /// Rows of the special ids.
    special: [Option<u32>; BYTE_OFFSET as usize],
    /// Length of the longest byte string.
    longest: usize,
}

impl SubwordTable {
    /// A table of entries with their rows. Of equal entries the one with the highest row counts.
    ///
    /// # Errors
    /// What was expected and what was found: all 256 single bytes and BOS must be there, and their total length must
    /// fit into 32 bits.
    pub fn new(entries: impl IntoIterator<Item = (Subword, u32)>) -> Result<Self, String> {
        let mut special = [None; BYTE_OFFSET as usize];
        let mut strings: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        let raise = |row: &mut u32, new: u32| *row = new.max(*row);
        for (subword, row) in entries {
            match subword {
                Subword::Special(id) => {
                    let slot = (special.get_mut(usize::from(id)))
                        .ok_or_else(|| format!("expected a special id below 4, found {id}"))?;
                    raise(slot.get_or_insert(row), row);
                }
                Subword::Bytes(mut bytes) => {
                    if bytes.is_empty() {
                        return Err(format!(
                            "expected at least one byte in entry {row}, found none"
                        ));
                    }
                    bytes.reverse();
                    raise(strings.entry(bytes).or_insert(row), row);
                }
            }
        }
        let missing = (0..=255u8).find(|&byte| !strings.contains_key(&[byte][..]));
        if let Some(byte) = missing {
            return Err(format!(
                "expected an entry for every byte, found none for byte {byte}"
            ));
        }
        if special[usize::from(BOS)].is_none() {
            return Err("expected an entry for the start of a text (id 1), found none".into());
        }
        let n_bytes: usize = strings.keys().map(Vec::len).sum();
        u32::try_from(n_bytes)
            .map_err(|_| format!("expected less than 4 GiB of entries, found {n_bytes} bytes"))?;
        let mut table = SubwordTable {
            reversed: Vec::with_capacity(n_bytes),
            starts: vec![0],
            rows: Vec::with_capacity(strings.len()),
            special,
            longest: strings.keys().map(Vec::len).max().unwrap_or(0),
        };
        for (bytes, row) in strings {
            table.reversed.extend(bytes);
            table.starts.push(table.reversed.len() as u32);
            table.rows.push(row);
        }
        Ok(table)
    }

    /// Number of entries.
    pub fn n_entries(&self) -> usize {
        self.rows.len() + self.special.iter().flatten().count()
    }

    /// Bytes of the longest entry: how far back a lookup can see, the byte itself included.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The highest row of an entry.
    pub fn last_row(&self) -> u32 {
        let special = self.special.iter().flatten();
        self.rows.iter().chain(special).copied().max().unwrap_or(0)
    }

    /// The row of the longest entry that ends the text `ids`; `None` if it is empty or ends with a special id that has
    /// no entry.
    pub fn lookup(&self, ids: &[Id]) -> Option<u32> {
        let last = *ids.last()?;
        if let Some(row) = self.special.get(usize::from(last)) {
            return *row;
        }
        // The entries that start with the bytes walked over, all of them reversed. They are ordered, so the one that
        // ends there comes first.
        let mut found = None;
        let (mut low, mut high) = (0, self.rows.len());
        for (depth, &id) in ids.iter().rev().take(self.longest).enumerate() {
            let Some(byte) = id_to_byte(id) else { break };
            let order = |entry: usize| match self.entry(entry).get(depth) {
                None => Ordering::Less,
                Some(b) => b.cmp(&byte),
            };
            low = partition(low, high, |entry| order(entry) == Ordering::Less);
            high = partition(low, high, |entry| order(entry) == Ordering::Equal);
            if low == high {
                break;
            }
            if self.entry(low).len() == depth + 1 {
                found = Some(self.rows[low]);
            }
        }
        found
    }

    /// An entry's bytes, the last first.
    fn entry(&self, number: usize) -> &[u8] {
        &self.reversed[self.starts[number] as usize..self.starts[number + 1] as usize]
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = (Subword, u32)> {
        let special = (0..)
            .zip(self.special)
            .filter_map(|(id, row)| Some((Subword::Special(id), row?)));
        let strings = (0..self.rows.len()).map(|i| {
            let bytes = self.entry(i).iter().rev().copied().collect();
            (Subword::Bytes(bytes), self.rows[i])
        });
        special.chain(strings)
    }

    /// The table as text, from which [`SubwordTable::from_text`] makes an equal one: rows in order, separated by spaces;
    /// in a row its entries, separated by tabs; bytes in the characters of byte-level BPE ([`byte_to_char`]), a special
    /// id as a newline and the number.
    pub fn to_text(&self) -> String {
        let mut by_row: BTreeMap<u32, Vec<Subword>> = BTreeMap::new();
        for (subword, row) in self.entries() {
            by_row.entry(row).or_default().push(subword);
        }
        let mut text = String::with_capacity(2 * self.reversed.len());
        let mut next = 0;
        for (row, subwords) in by_row {
            (next..row).for_each(|_| text.push(' '));
            next = row;
            for (i, subword) in subwords.iter().enumerate() {
                if i > 0 {
                    text.push('\t');
                }
                match subword {
                    Subword::Special(id) => {
                        write!(text, "\n{id}").expect("a string takes everything")
                    }
                    Subword::Bytes(bytes) => {
                        text.extend(bytes.iter().map(|&byte| byte_to_char(byte)))
                    }
                }
            }
        }
        text
    }

    /// Reads what [`SubwordTable::to_text`] wrote.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let mut entries = Vec::new();
        for (row, subwords) in (0u32..).zip(text.split(' ')) {
            for name in subwords.split('\t').filter(|name| !name.is_empty()) {
                let subword = match name.strip_prefix('\n') {
                    Some(id) => Subword::Special(id.parse().map_err(|_| {
                        format!(
                            "expected a special id in row {row}, found {:?}",
                            shorten(id)
                        )
                    })?),
                    None => Subword::Bytes(name_to_bytes(name)?),
                };
                entries.push((subword, row));
            }
        }
        SubwordTable::new(entries)
    }
}

/// The first of `low..high` for which `is_before` does not hold.
fn partition(mut low: usize, mut high: usize, is_before: impl Fn(usize) -> bool) -> usize {
    while low < high {
        let middle = low.midpoint(high);
        match is_before(middle) {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    low
}

/// The character that stands for a byte in the names of byte-level BPE vocabularies: itself if it is printable, else one
/// from U+0100 on.
pub fn byte_to_char(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae.. => char::from(byte),
        0..=0x20 => shifted(u32::from(byte)),
        0x7f..=0xa0 => shifted(u32::from(byte) - 0x7f + 0x21),
        0xad => shifted(67),
    }
}

/// The `n`-th of the bytes that are not printable.
fn shifted(n: u32) -> char {
    char::from_u32(0x100 + n).expect("below U+0144")
}

/// The byte that a character stands for.
fn char_to_byte(c: char) -> Option<u8> {
    let code = u32::from(c);
    let byte = match code {
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => code,
    };
    u8::try_from(byte)
        .ok()
        .filter(|&byte| byte_to_char(byte) == c)
}

/// The bytes that a name of a byte-level BPE vocabulary stands for.
///
/// # Errors
/// The name, if it has a character that stands for no byte.
pub fn name_to_bytes(name: &str) -> Result<Vec<u8>, String> {
    (name.chars())
        .map(|c| {
            char_to_byte(c).ok_or_else(|| {
                format!(
                    "expected names in the characters of byte-level BPE, found {:?} in {:?}",
                    c,
                    shorten(name)
                )
            })
        })
        .collect()
}

/// At most 40 characters, for a message.
fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::{BYTE_OFFSET, encode};

    fn bytes(text: &str) -> Subword {
        Subword::Bytes(text.as_bytes().to_vec())
    }

    /// All single bytes as rows 0 to 255 and BOS as row 256, and more from 300 on.
    fn table(more: &[&str]) -> SubwordTable {
        let single = (0..=255u8).map(|b| (Subword::Bytes(vec![b]), u32::from(b)));
        let bos = [(Subword::Special(BOS), 256)];
        let more = (300..).zip(more).map(|(row, text)| (bytes(text), row));
        SubwordTable::new(single.chain(bos).chain(more)).unwrap()
    }

    /// The definition: every entry is compared with the end of the text.
    fn naive(table: &SubwordTable, ids: &[Id]) -> Option<u32> {
        let sequence = |subword: &Subword| match subword {
            Subword::Special(id) => vec![*id],
            Subword::Bytes(bytes) => bytes.iter().map(|&b| Id::from(b) + BYTE_OFFSET).collect(),
        };
        let matches = (table.entries()).filter(|(subword, _)| ids.ends_with(&sequence(subword)));
        let longest = matches.max_by_key(|(subword, _)| sequence(subword).len());
        longest.map(|(_, row)| row)
    }

    #[test]
    fn the_longest_entry_that_ends_the_text_is_found() {
        let table = table(&["the", "he", " the", "hen", "nnnnnnnn", "n", "ethe then"]);
        assert_eq!(table.longest(), 9);
        let text = encode(b"the then hennnnnnnnnnn, ethe the. \xffhe", true);
        for end in 1..=text.len() {
            let found = table.lookup(&text[..end]);
            assert_eq!(found, naive(&table, &text[..end]), "{end}");
        }
        assert_eq!(table.lookup(&text[..4]), Some(300), "the");
        assert_eq!(table.lookup(&[BOS]), Some(256));
        assert_eq!(table.lookup(&[0]), None);
        assert_eq!(table.lookup(&[]), None);
    }

    /// An entry reaches over a gap that no shorter entry bridges: the walk continues while some entry does.
    #[test]
    fn a_long_entry_needs_no_entries_between() {
        let table = table(&["abcdef"]);
        assert_eq!(table.lookup(&encode(b"xabcdef", true)), Some(300));
        assert_eq!(table.lookup(&encode(b"bcdef", true)), Some(u32::from(b'f')));
    }

    #[test]
    fn a_special_id_ends_what_can_match() {
        let table = table(&["ab"]);
        let ids =
            [b'a'.into(), 0, b'b'.into()].map(|id: Id| if id > 3 { id + BYTE_OFFSET } else { id });
        assert_eq!(table.lookup(&ids), Some(u32::from(b'b')));
    }

    #[test]
    fn of_equal_entries_the_highest_row_counts() {
        let single = || (0..=255u8).map(|b| (Subword::Bytes(vec![b]), u32::from(b)));
        let ties = [
            (Subword::Special(1), 700),
            (Subword::Special(1), 400),
            (bytes("a"), 500),
        ];
        let table = SubwordTable::new(single().chain(ties)).unwrap();
        assert_eq!(table.lookup(&[BOS]), Some(700));
        assert_eq!(table.lookup(&encode(b"a", false)), Some(500));
        assert_eq!((table.n_entries(), table.last_row()), (257, 700));
    }

    #[test]
    fn a_byte_or_bos_without_an_entry_is_refused() {
        let single = |n: u8| (0..=n).map(|b| (Subword::Bytes(vec![b]), u32::from(b)));
        let bos = [(Subword::Special(BOS), 300)];
        let message = SubwordTable::new(single(254).chain(bos.clone())).unwrap_err();
        assert!(message.contains("byte 255"), "{message}");
        let message = SubwordTable::new(single(255)).unwrap_err();
        assert!(message.contains("id 1"), "{message}");
        assert!(SubwordTable::new(single(255).chain(bos.clone()).chain([(bytes(""), 1)])).is_err());
        assert!(
            SubwordTable::new(single(255).chain(bos).chain([(Subword::Special(4), 1)])).is_err()
        );
    }

    #[test]
    fn every_byte_has_a_character_of_its_own_and_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        let name: String = all.iter().map(|&byte| byte_to_char(byte)).collect();
        assert_eq!(name_to_bytes(&name).unwrap(), all);
        assert_eq!(
            (byte_to_char(b' '), byte_to_char(b'\n')),
            ('\u{120}', '\u{10a}')
        );
        assert_eq!(
            (byte_to_char(0xad), byte_to_char(0x7f)),
            ('\u{143}', '\u{121}')
        );
        for bad in ["a b", "\u{ad}", "\u{144}", "\n1"] {
            assert!(name_to_bytes(bad).unwrap_err().contains("byte-level BPE"));
        }
    }

    #[test]
    fn text_comes_back_as_the_same_table() {
        let single = (0..=255u8).map(|b| (Subword::Bytes(vec![b]), 2 * u32::from(b)));
        let more = [
            (Subword::Special(BOS), 7),
            (Subword::Special(0), 9),
            (bytes("two names"), 9),
            (bytes("  "), 600),
        ];
        let table = SubwordTable::new(single.chain(more)).unwrap();
        assert_eq!(SubwordTable::from_text(&table.to_text()).unwrap(), table);
        for bad in ["", "a b", "\nx", "\n70000", "a\u{2028}"] {
            assert!(SubwordTable::from_text(bad).is_err(), "{bad:?}");
        }
    }
}
