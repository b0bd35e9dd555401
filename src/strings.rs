//! A generation as whole UTF-8 strings instead of bytes.

use crate::error::Result;
use crate::generate::Generator;
use crate::utf8::Utf8Stream;

/// The text a model goes on with, in pieces of whole characters; made by [`Generator::strings`].
#[derive(Debug)]
pub struct Strings<'a> {
    bytes: Generator<'a>,
    utf8: Utf8Stream,
    ended: bool,
}

impl<'a> Generator<'a> {
    /// Hands out whole UTF-8 characters as soon as they are complete. Bytes that are no UTF-8
    /// become U+FFFD, as in [`String::from_utf8_lossy`].
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
    /// The generation itself, for [`Generator::finish`] and the like.
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
