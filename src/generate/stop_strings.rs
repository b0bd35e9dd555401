//! Stop strings in a stream of bytes: which bytes must be held back, and when one is complete.
//!
//! ```
//! use blt::generate::{Stop, StopMatcher};
//!
//! let mut stops = StopMatcher::new(&["\n\n"])?;
//! assert_eq!(stops.push(b'a'), Stop::Held(0));
//! assert_eq!(stops.push(b'\n'), Stop::Held(1)); // may be the beginning of "\n\n"
//! assert_eq!(stops.push(b'\n'), Stop::Found { index: 0, len: 2 });
//! # Ok::<(), blt::error::Error>(())
//! ```

use crate::error::{Error, Result};

/// What [`StopMatcher::push`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// No stop string is complete. The last `n` bytes may be the beginning of one; all bytes
    /// before them can be shown.
    Held(usize),
    /// The last `len` bytes are stop string number `index`. They were all held or are new, so
    /// none of them has been shown; what was held before them belongs to the text. If several stop
    /// strings end here, this is the longest.
    Found {
        /// Which of the strings given to [`StopMatcher::new`].
        index: usize,
        /// The length of the stop string in bytes.
        len: usize,
    },
}

/// Finds the first place where one of several byte strings ends.
///
/// Knuth-Morris-Pratt for each string: a byte costs a few steps per string, and nothing is read
/// twice. There are seldom more than three, so a joint automaton would not pay.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone)]
struct Pattern {
    bytes: Vec<u8>,
    /// For the first i + 1 bytes: length of their longest proper suffix that is a prefix.
    borders: Vec<usize>,
    /// How many bytes of the pattern the stream ends with.
    matched: usize,
}

impl StopMatcher {
    /// A matcher for these strings; with none, nothing is ever held or found.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty string, which would stop before the first byte.
    pub fn new(stops: &[impl AsRef<[u8]>]) -> Result<Self> {
        let patterns = stops.iter().enumerate().map(|(i, stop)| {
            let bytes = stop.as_ref();
            if bytes.is_empty() {
                return Err(Error::argument(
                    "stop",
                    format!("expected at least 1 byte per stop string, found 0 in number {i}"),
                ));
            }
            Ok(Pattern::new(bytes))
        });
        Ok(Self {
            patterns: patterns.collect::<Result<_>>()?,
        })
    }

    /// Takes the next byte of the stream.
    pub fn push(&mut self, byte: u8) -> Stop {
        let mut held = 0;
        let mut found: Option<(usize, usize)> = None; // (index, length)
        for (index, pattern) in self.patterns.iter_mut().enumerate() {
            let matched = pattern.push(byte);
            if matched < pattern.bytes.len() {
                held = held.max(matched);
            } else if found.is_none_or(|(_, len)| matched > len) {
                found = Some((index, matched));
            }
        }
        match found {
            Some((index, len)) => Stop::Found { index, len },
            None => Stop::Held(held),
        }
    }

    /// Forgets the stream: the next byte is the first of a new one.
    pub fn reset(&mut self) {
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
    }
}

impl Pattern {
    fn new(bytes: &[u8]) -> Self {
        let mut borders = vec![0; bytes.len()];
        for i in 1..bytes.len() {
            let mut border = borders[i - 1];
            while border > 0 && bytes[border] != bytes[i] {
                border = borders[border - 1];
            }
            borders[i] = border + usize::from(bytes[border] == bytes[i]);
        }
        Self {
            bytes: bytes.to_vec(),
            borders,
            matched: 0,
        }
    }

    /// How many bytes of the pattern the stream ends with, `byte` included.
    fn push(&mut self, byte: u8) -> usize {
        if self.matched == self.bytes.len() {
            self.matched = self.borders[self.matched - 1];
        }
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// By trying every length of every string on the whole stream.
    fn naive(stops: &[Vec<u8>], stream: &[u8]) -> Stop {
        let mut longest: Option<(usize, usize)> = None;
        let mut held = 0;
        for (index, stop) in stops.iter().enumerate() {
            if stream.ends_with(stop) && longest.is_none_or(|(_, len)| stop.len() > len) {
                longest = Some((index, stop.len()));
            }
            for len in 0..stop.len() {
                if stream.ends_with(&stop[..len]) {
                    held = held.max(len);
                }
            }
        }
        match longest {
            Some((index, len)) => Stop::Found { index, len },
            None => Stop::Held(held),
        }
    }

    #[test]
    fn every_answer_is_that_of_a_naive_search() {
        let mut random = SplitMix64(1);
        let mut below = |n| random.below(n);
        let mut n_found = 0;
        for round in 0..2000 {
            // Two or three letters: overlaps everywhere.
            let letters = 2 + round % 2;
            let stops: Vec<Vec<u8>> = (0..below(4))
                .map(|_| (0..1 + below(7)).map(|_| below(letters) as u8).collect())
                .collect();
            let mut matcher = StopMatcher::new(&stops).unwrap();
            let mut stream = Vec::new();
            let mut shown = 0;
            let mut open = true;
            for _ in 0..60 {
                stream.push(below(letters) as u8);
                let answer = matcher.push(*stream.last().unwrap());
                assert_eq!(answer, naive(&stops, &stream), "{stops:?} {stream:?}");
                // A reader shows what is not held and never has to take a byte back.
                match answer {
                    Stop::Held(n) if open => {
                        assert!(stream.len() - n >= shown);
                        shown = stream.len() - n;
                    }
                    Stop::Found { len, .. } if open => {
                        assert!(stream.len() - len >= shown, "{stops:?} {stream:?}");
                        n_found += 1;
                        open = false;
                    }
                    _ => {}
                }
            }
            matcher.reset();
            let first = naive(&stops, &stream[..1]);
            assert_eq!(matcher.push(stream[0]), first);
        }
        assert!(n_found > 500, "{n_found} of the streams stopped");
    }

    #[test]
    fn a_stop_inside_the_beginning_of_another_leaves_the_rest_as_text() {
        let mut matcher = StopMatcher::new(&["abcd", "bc"]).unwrap();
        assert_eq!(matcher.push(b'a'), Stop::Held(1));
        assert_eq!(matcher.push(b'b'), Stop::Held(2));
        assert_eq!(matcher.push(b'c'), Stop::Found { index: 1, len: 2 });
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        let message = StopMatcher::new(&["ok", ""]).unwrap_err().to_string();
        assert!(message.starts_with("stop: "), "{message}");
        assert!(message.contains("number 1"), "{message}");
    }
}
