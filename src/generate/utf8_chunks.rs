//! Bytes as text in whole characters, each as soon as it is complete.
//!
//! A model writes bytes, and a character can take up to four. Invalid UTF-8 becomes U+FFFD, exactly as
//! [`String::from_utf8_lossy`] would do over the whole stream.

use std::str;

use super::Generator;
use crate::error::Result;

/// Splits a stream into whole characters and keeps the incomplete one at its end.
#[derive(Debug, Clone, Default)]
pub struct Utf8Stream {
    tail: [u8; 4], // the beginning of one character, never a whole one
    n_tail: usize,
}

impl Utf8Stream {
    /// A stream before its first byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes and appends to `out` every whole character, and U+FFFD for each sequence that can no
    /// longer become one.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut String) {
        while self.n_tail > 0 {
            let Some((&byte, rest)) = bytes.split_first() else {
                return;
            };
            self.tail[self.n_tail] = byte;
            match str::from_utf8(&self.tail[..=self.n_tail]) {
                Ok(character) => {
                    out.push_str(character);
                    self.n_tail = 0;
                    bytes = rest;
                }
                Err(e) if e.error_len().is_none() => {
                    self.n_tail += 1;
                    bytes = rest;
                }
                // The tail was a beginning without this byte: it ends here, and the byte is the
                // first of something new.
                Err(_) => {
                    out.push(char::REPLACEMENT_CHARACTER);
                    self.n_tail = 0;
                }
            }
        }
        loop {
            match str::from_utf8(bytes) {
                Ok(text) => return out.push_str(text),
                Err(e) => {
                    let (valid, rest) = bytes.split_at(e.valid_up_to());
                    out.extend(str::from_utf8(valid));
                    let Some(n_bad) = e.error_len() else {
                        self.tail[..rest.len()].copy_from_slice(rest);
                        self.n_tail = rest.len();
                        return;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    bytes = &rest[n_bad..];
                }
            }
        }
    }

    /// Ends the stream: an incomplete character becomes one U+FFFD. The next byte starts a new one.
    pub fn finish(&mut self, out: &mut String) {
        if self.n_tail > 0 {
            out.push(char::REPLACEMENT_CHARACTER);
            self.n_tail = 0;
        }
    }

    /// The bytes of the incomplete character, 0 to 3.
    pub fn pending(&self) -> &[u8] {
        &self.tail[..self.n_tail]
    }
}

/// Generated text in pieces of whole characters; made by [`Generator::strings`].
#[derive(Debug)]
pub struct Strings<'a> {
    bytes: Generator<'a>,
    utf8: Utf8Stream,
    ended: bool,
}

impl<'a> Generator<'a> {
    /// Returns whole UTF-8 characters as soon as they are complete. Invalid UTF-8 becomes U+FFFD, as in
    /// [`String::from_utf8_lossy`].
    ///
    /// ```
    /// # use blt::{GenerateOptions, Model, Session, SessionOptions};
    /// # let model = Model::open("tests/data/hf-gqa/model")?;
    /// # let mut session = Session::new(&model, SessionOptions::new())?;
    /// session.feed(b"Once upon a time")?;
    /// for text in session.generate(&GenerateOptions::new().max_bytes(20))?.strings() {
    ///     print!("{}", text?);
    /// }
    /// # Ok::<(), blt::Error>(())
    /// ```
    pub fn strings(self) -> Strings<'a> {
        Strings {
            bytes: self,
            utf8: Utf8Stream::new(),
            ended: false,
        }
    }
}

impl<'a> Strings<'a> {
    /// The generator, for instance to call [`Generator::finish`].
    pub fn into_generator(self) -> Generator<'a> {
        self.bytes
    }
}

impl Iterator for Strings<'_> {
    type Item = Result<String>;

    /// The next characters; at the end, U+FFFD for one that was not completed.
    fn next(&mut self) -> Option<Result<String>> {
        let mut text = String::new();
        while text.is_empty() && !self.ended {
            match self.bytes.next() {
                Some(Ok(byte)) => self.utf8.push(&[byte], &mut text),
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.ended = true;
                    self.utf8.finish(&mut text);
                }
            }
        }
        (!text.is_empty()).then_some(Ok(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    #[test]
    fn any_chunking_of_any_bytes_is_the_lossy_text_of_the_whole() {
        let mut random = SplitMix64(7);
        let mut below = |n| random.below(n);
        // Pieces of characters and boundary bytes make broken sequences of every kind likely.
        let pieces: [&[u8]; 16] = [
            b"a",
            "é".as_bytes(),
            "語".as_bytes(),
            "🙂".as_bytes(),
            b"\xc3",
            b"\xe8\xaa",
            b"\xe8",
            b"\xf0\x9f",
            b"\xf0\x9f\x99",
            b"\x82",
            b"\xed\xa0\x80",
            b"\xc0\x80",
            b"\xf5",
            b"\xff",
            b"\xf4\x90",
            b"\xe0\x80",
        ];
        for round in 0..3000 {
            let mut bytes = Vec::new();
            for _ in 0..below(30) {
                match below(4) {
                    0 => bytes.push(below(256) as u8),
                    _ => bytes.extend_from_slice(pieces[below(pieces.len())]),
                }
            }
            let mut stream = Utf8Stream::new();
            let mut out = String::new();
            let mut at = 0;
            while at < bytes.len() {
                let n = (1 + below(1 + round % 7)).min(bytes.len() - at);
                stream.push(&bytes[at..at + n], &mut out);
                at += n;
                // What is shown is certain, and nothing that is certain waits.
                let lossy = String::from_utf8_lossy(&bytes[..at]);
                assert!(stream.pending().len() <= 3);
                let shown = at - stream.pending().len();
                assert_eq!(out, String::from_utf8_lossy(&bytes[..shown]), "{bytes:x?}");
                if stream.pending().is_empty() {
                    assert_eq!(out, lossy);
                } else {
                    assert_eq!(format!("{out}\u{fffd}"), lossy, "{bytes:x?}");
                }
            }
            stream.finish(&mut out);
            assert_eq!(out, String::from_utf8_lossy(&bytes), "{bytes:x?}");
            assert!(stream.pending().is_empty());
        }
    }

    #[test]
    fn a_character_appears_with_its_last_byte() {
        let mut stream = Utf8Stream::new();
        let mut out = String::new();
        for (i, byte) in "🙂".bytes().enumerate() {
            assert_eq!(out, "", "before byte {i}");
            stream.push(&[byte], &mut out);
        }
        assert_eq!(out, "🙂");
        stream.push(b"\xe8\xaa", &mut out);
        stream.push(b"", &mut out);
        assert_eq!(stream.pending(), b"\xe8\xaa");
        stream.finish(&mut out);
        stream.finish(&mut out);
        assert_eq!(out, "🙂\u{fffd}");
    }
}
