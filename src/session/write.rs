//! A session as a writer: prompts through `write!`, `io::copy` and similar.

use std::io;

use super::Session;
use crate::error::Error;

/// Writing is [`Session::feed`].
///
/// ```
/// # use blt::{Model, Session, SessionOptions};
/// use std::io::Write;
///
/// # let model = Model::open("tests/data/hf-gqa/model")?;
/// let mut session = Session::new(&model, SessionOptions::new())?;
/// write!(session, "{} plus {} is", 2, 3)?;
/// assert_eq!(session.len(), "2 plus 3 is".len() + 1); // and BOS
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl io::Write for Session {
    /// Reads all of `bytes`. An [`Error`] is found in the [`io::Error`] by
    /// [`get_ref`](io::Error::get_ref).
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.feed(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(Error::Io { source, .. }) => Err(source),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Does nothing: bytes are read as they are written.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
