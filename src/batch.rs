//! Several sessions of one model at once: every matrix is read once for all of them.
//!
//! What a session reads and writes is the same bits as alone. Sessions join and leave at any time: each
//! call takes the sessions that have something to do. They may be at different positions, end their
//! patches at different times, and have different settings, samplers and stop strings.
//!
//! ```
//! # use blt::{GenerateOptions, Model, Session, SessionOptions, batch};
//! # let model = Model::open("tests/data/hf-gqa/model")?;
//! let mut cat = Session::new(&model, SessionOptions::default())?;
//! let mut dog = Session::new(&model, SessionOptions::default())?;
//! for result in batch::feed(&mut [(&mut cat, b"The cat"), (&mut dog, b"Another animal")]) {
//!     result?;
//! }
//! let options = GenerateOptions { max_bytes: Some(20), ..Default::default() };
//! let (mut cat, mut dog) = (cat.generate(&options)?, dog.generate(&options)?);
//! loop {
//!     let bytes = batch::next_bytes(&mut [&mut cat, &mut dog]);
//!     if bytes.iter().all(Option::is_none) {
//!         break;
//!     }
//!     for byte in bytes.into_iter().flatten() {
//!         print!("{}", byte? as char);
//!     }
//! }
//! # Ok::<(), blt::Error>(())
//! ```

use std::cell::RefCell;

use crate::error::Result;
use crate::generate::Generator;
use crate::session::{FeedRequest, Position, Session, run_together};
use crate::vocab::{self, Id};

/// Lets each session read its bytes, after BOS if they are its first: [`Session::feed`] for several.
///
/// # Errors
/// For each session as [`Session::feed_ids`]; also [`Error::Argument`](crate::Error::Argument) if its model is
/// not the first session's, or runs elsewhere. The other sessions continue.
pub fn feed(feeds: &mut [(&mut Session, &[u8])]) -> Vec<Result<()>> {
    let ids: Vec<Vec<Id>> = (feeds.iter())
        .map(|(session, bytes)| {
            vocab::encode(bytes, session.is_empty() && !session.options().no_bos)
        })
        .collect();
    let feeds = feeds.iter_mut().zip(&ids);
    run(feeds.map(|((session, _), ids)| FeedRequest::new(session, ids)))
}

/// Lets each session read its ids as they are: [`Session::feed_ids`] for several.
///
/// # Errors
/// As [`feed`].
pub fn feed_ids(feeds: &mut [(&mut Session, &[Id])]) -> Vec<Result<()>> {
    run((feeds.iter_mut()).map(|(session, ids)| FeedRequest::new(session, ids)))
}

/// Lets each session read its ids as they are and shows what each position gave, after the number of the session among
/// these: [`Session::feed_ids_with`] for several.
///
/// # Errors
/// As [`feed`]; positions may have been shown before an error.
pub fn feed_ids_with(
    feeds: &mut [(&mut Session, &[Id])],
    show: impl FnMut(usize, Position<'_>),
) -> Vec<Result<()>> {
    let show = RefCell::new(show);
    let show_of = |i: usize| {
        let show = &show;
        move |position: Position<'_>| show.borrow_mut()(i, position)
    };
    let mut shows: Vec<_> = (0..feeds.len()).map(show_of).collect();
    let feeds = feeds.iter_mut().zip(&mut shows);
    run(feeds.map(|((session, ids), show)| FeedRequest::new(session, ids).showing(show)))
}

fn run<'a>(requests: impl Iterator<Item = FeedRequest<'a>>) -> Vec<Result<()>> {
    let mut requests: Vec<FeedRequest<'_>> = requests.collect();
    run_together(&mut requests);
    let finished = requests.into_iter().map(FeedRequest::finish);
    finished.map(|result| result.map(|_| ())).collect()
}

/// The next byte of each generator, as its [`Iterator::next`]: `None` once it has ended, an error
/// once if its session fails. The bytes chosen before are read together.
pub fn next_bytes(generators: &mut [&mut Generator<'_>]) -> Vec<Option<Result<u8>>> {
    Generator::next_of_all(generators).into_iter().collect()
}

/// Lets each session read the byte that its generator chose last, as [`Generator::finish`] does.
///
/// # Errors
/// As [`feed`].
pub fn finish(generators: Vec<Generator<'_>>) -> Vec<Result<()>> {
    Generator::finish_all(generators)
}
