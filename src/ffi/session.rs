//! Sessions: made, fed, asked, stopped, freed.

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, MutexGuard};

use super::guard::{Out, OutSlice, Result, bytes, free, guard, handle, lock, optional};
use super::model::{blt_model, wrong_key};
use super::options::{Settings, blt_options};
use super::status::{Failure, blt_status};
use crate::generate::{FinishReason, GenerateOptions};
use crate::sampler::Sampler;
use crate::session::Canceller;
use crate::session::Session;
use crate::vocab::{self, EOS};

/// One text that a model reads and continues, with its caches.
pub struct blt_session {
    talk: Mutex<Talk>,
    /// Apart from the rest, because it is used while another call has that.
    canceller: Canceller,
}

/// What a session's calls change.
#[derive(Clone)]
pub(super) struct Talk {
    pub session: Session,
    generate: GenerateOptions,
    sampler: Sampler,
}

impl Talk {
    pub fn new(session: Session, generate: GenerateOptions) -> Result<Self> {
        Ok(Talk {
            session,
            sampler: Sampler::new(generate.sampler.clone())?,
            generate,
        })
    }

    fn set_sampling(&mut self, generate: GenerateOptions) -> Result<()> {
        self.sampler = Sampler::new(generate.sampler.clone())?;
        self.generate = generate;
        Ok(())
    }

    pub fn into_handle(self) -> *mut blt_session {
        let canceller = self.session.canceller();
        let talk = Mutex::new(self);
        Box::into_raw(Box::new(blt_session { talk, canceller }))
    }
}

/// The session behind a handle, for one call.
///
/// # Safety
/// The header's rules.
pub(super) unsafe fn talk<'a>(session: *const blt_session) -> Result<MutexGuard<'a, Talk>> {
    // SAFETY: the same rules.
    lock("session", unsafe { &handle("session", session)?.talk })
}

/// What blt_session_next_byte gives at the end of the text; stated in `cbindgen.toml`.
const BLT_END: c_int = -1;
/// Number of logits: four special ids and 256 bytes.
pub const BLT_N_LOGITS: usize = 260;
/// Index of the logit of byte 0; byte b has index BLT_FIRST_BYTE + b.
pub const BLT_FIRST_BYTE: usize = 4;
/// Index of the logit of the end of the text.
pub const BLT_EOS: usize = 2;

// cbindgen wants literals.
const _: () = assert!(
    BLT_N_LOGITS == vocab::VOCAB_SIZE
        && BLT_FIRST_BYTE == vocab::BYTE_OFFSET as usize
        && BLT_EOS == EOS as usize
);

/// Why a generation ended. Numbers are never reused; new ones may be added.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum blt_finish {
    /// The largest number of bytes allowed.
    BLT_FINISH_MAX_BYTES = 1,
    /// The model ended the text.
    BLT_FINISH_EOS = 2,
    /// A BLT_OPTION_STOP was generated.
    BLT_FINISH_STOP = 3,
    /// The callback stopped it.
    BLT_FINISH_CALLBACK = 4,
}

/// Keys of blt_session_info. Numbers are never reused.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum blt_session_key {
    /// Positions read: bytes, and the begin-of-sequence id before the first.
    BLT_SESSION_LENGTH = 1,
    /// Maximum number of positions.
    BLT_SESSION_MAX_BYTES = 2,
    /// Number of times the context slid (BLT_OPTION_SLIDE_KEEP).
    BLT_SESSION_SLIDES = 3,
    /// Bytes of memory held by the caches; shared parts count in each clone.
    BLT_SESSION_CACHE_BYTES = 4,
}

/// Makes an empty session. options may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_new(
    model: *const blt_model,
    options: *const blt_options,
    out: *mut *mut blt_session,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (blt_model(model), options, out) = unsafe {
            (
                handle("model", model)?,
                Settings::of(optional(options))?,
                Out::new("out", out)?,
            )
        };
        let session = Session::new(model, options.session(model))?;
        out.set(Talk::new(session, options.generate)?.into_handle());
        Ok(())
    })
}

/// Makes a second session that has read the same bytes and continues independently. Cheap: the two
/// share their caches up to here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_clone(
    session: *const blt_session,
    out: *mut *mut blt_session,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (talk, out) = unsafe { (talk(session)?, Out::new("out", out)?) };
        talk.session.check_memory_of_clone()?;
        out.set(talk.clone().into_handle());
        Ok(())
    })
}

/// Forgets everything read, restarts the random numbers, and withdraws a pending
/// blt_session_cancel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_reset(session: *mut blt_session) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let mut talk = unsafe { talk(session)? };
        talk.session.reset();
        talk.session.canceller().withdraw();
        talk.sampler = Sampler::new(talk.sampler.config().clone())?;
        Ok(())
    })
}

/// Frees a session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_free(session: *mut blt_session) {
    // SAFETY: the header's rules.
    unsafe { free(session) };
}

/// Changes sampling and the end of generations (BLT_OPTION_TEMPERATURE and above), and restarts the
/// random numbers. Other options are ignored; NULL restores the defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_set_sampling(
    session: *mut blt_session,
    options: *const blt_options,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (mut talk, options) = unsafe { (talk(session)?, Settings::of(optional(options))?) };
        talk.set_sampling(options.generate)
    })
}

/// Reads bytes. After an error the session is unchanged, unless its context had slid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_feed(
    session: *mut blt_session,
    bytes: *const c_void,
    n_bytes: usize,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (mut talk, bytes) = unsafe { (talk(session)?, self::bytes("bytes", bytes, n_bytes)?) };
        Ok(talk.session.feed(bytes)?)
    })
}

/// Samples the next byte, reads it, and writes it to out: 0 to 255, or BLT_END if the model ends
/// the text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_next_byte(
    session: *mut blt_session,
    out: *mut c_int,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (mut talk, out) = unsafe { (talk(session)?, Out::new("out", out)?) };
        let mut byte = BLT_END;
        let options = GenerateOptions {
            stop: Vec::new(),
            max_bytes: None,
            ..talk.generate.clone()
        };
        talk.generate(&options, Then::GoOn, |b| {
            byte = b.into();
            false
        })?;
        out.set(byte);
        Ok(())
    })
}

/// Called with the bytes of a generation as they are sampled: at least one, not NUL-terminated, valid
/// during the call. Returns 0 to continue; any other value ends the generation.
pub type blt_write =
    Option<unsafe extern "C" fn(user: *mut c_void, bytes: *const u8, n_bytes: usize) -> c_int>;

/// Continues the text for at most max_bytes bytes and passes them to write.
///
/// reason (may be NULL) says why it ended. The session has then read the bytes passed to write, and
/// after BLT_FINISH_STOP also the stop text. After BLT_ERROR_CANCELLED it has read the bytes passed
/// and can continue; after other errors it has read all of them but the last.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_generate(
    session: *mut blt_session,
    max_bytes: usize,
    write: blt_write,
    user: *mut c_void,
    reason: *mut blt_finish,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let mut talk = unsafe { talk(session)? };
        let write =
            write.ok_or_else(|| Failure::argument("write", "expected a function, found NULL"))?;
        let options = GenerateOptions {
            max_bytes: Some(max_bytes),
            ..talk.generate.clone()
        };
        // SAFETY: the caller's own function and pointer, and one byte that is there.
        let write = |byte| unsafe { write(user, &byte, 1) } == 0;
        let finish = talk.generate(&options, Then::End, write)?;
        if !reason.is_null() {
            // SAFETY: the header's rules.
            unsafe { reason.write(finish) };
        }
        Ok(())
    })
}

/// What comes after a generation.
#[derive(Clone, Copy)]
enum Then {
    /// Anything.
    End,
    /// Most likely another, with the same settings.
    GoOn,
}

impl Talk {
    /// Generates until `write` returns false; leaves the session with what was handed out.
    fn generate(
        &mut self,
        options: &GenerateOptions,
        then: Then,
        mut write: impl FnMut(u8) -> bool,
    ) -> Result<blt_finish> {
        let Talk {
            session, sampler, ..
        } = self;
        session.begin()?;
        let start = session.len();
        let n_slides = session.n_slides();
        let mut generator = session.generate(options)?;
        generator.set_sampler(sampler.clone());
        let mut handed_out = 0;
        let mut last = 0;
        let mut go_on = true;
        let mut failure = None;
        while go_on && let Some(byte) = generator.next() {
            match byte {
                Ok(byte) => {
                    go_on = write(byte);
                    handed_out += 1;
                    last = byte;
                }
                Err(error) => failure = Some(error),
            }
        }
        *sampler = generator.sampler().clone();
        let reason = generator.finish_reason();
        if failure.is_none() {
            match then {
                Then::End => generator.finish()?,
                Then::GoOn => generator.finish_and_draft()?,
            }
        }
        if (!go_on || failure.is_some()) && session.n_slides() == n_slides {
            // What was chosen in search of a stop text, but not handed out, goes.
            let ids = &session.ids()[start..];
            let is_byte = |id: &vocab::Id| vocab::id_to_byte(*id).is_some();
            let n_read = ids.iter().filter(|id| is_byte(id)).count();
            let ends = ids.iter().scan(0, |n, id| {
                *n += usize::from(is_byte(id));
                Some(*n)
            });
            let kept = ends.take_while(|&n| n <= handed_out).count();
            session.rewind(start + kept)?;
            if n_read < handed_out && matches!(failure, Some(crate::Error::Cancelled)) {
                session.feed(&[last])?;
            }
        }
        match (failure, reason) {
            (Some(error), _) => Err(error.into()),
            (None, _) if !go_on => Ok(blt_finish::BLT_FINISH_CALLBACK),
            (None, Some(FinishReason::Eos)) => Ok(blt_finish::BLT_FINISH_EOS),
            (None, Some(FinishReason::StopString)) => Ok(blt_finish::BLT_FINISH_STOP),
            (None, _) => Ok(blt_finish::BLT_FINISH_MAX_BYTES),
        }
    }
}

/// Copies the logits of the next id: BLT_N_LOGITS numbers, or none before anything was read. A Bolmo
/// model has twice that: the second half is for the same ids with the end of a patch.
///
/// For this function and the next two, out has room for capacity elements, and n receives their
/// number. With out NULL and capacity 0 they are only counted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_logits(
    session: *const blt_session,
    out: *mut f32,
    capacity: usize,
    n: *mut usize,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (talk, out) = unsafe { (talk(session)?, OutSlice::new(out, capacity, n)?) };
        out.set(talk.session.logits())
    })
}

/// Copies the entropies, in nats, of the id after each position, starting at position first. NaN
/// where the entropy model did not run (BLT_OPTION_ENTROPIES).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_entropies(
    session: *const blt_session,
    first: usize,
    out: *mut f32,
    capacity: usize,
    n: *mut usize,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (talk, out) = unsafe { (talk(session)?, OutSlice::new(out, capacity, n)?) };
        out.set(from(talk.session.entropies(), first)?)
    })
}

/// Copies the positions at which patches start, without the first `first` of them. They ascend from
/// 0. If the next byte will start a patch, the last is the number of positions read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_patch_starts(
    session: *const blt_session,
    first: usize,
    out: *mut usize,
    capacity: usize,
    n: *mut usize,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (talk, out) = unsafe { (talk(session)?, OutSlice::new(out, capacity, n)?) };
        out.set(from(talk.session.patch_starts(), first)?)
    })
}

fn from<T>(all: &[T], first: usize) -> Result<&[T]> {
    all.get(first..).ok_or_else(|| {
        let n = all.len();
        Failure::argument("first", format!("expected at most {n}, found {first}"))
    })
}

/// Reads bytes and sums -log2 of their probabilities; divided by n_bytes that is bits per byte. With
/// BLT_OPTION_NO_BOS the first byte of a session has no probability and is not counted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_score(
    session: *mut blt_session,
    bytes: *const c_void,
    n_bytes: usize,
    bits: *mut f64,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let (mut talk, bytes, bits) = unsafe {
            (
                talk(session)?,
                self::bytes("bytes", bytes, n_bytes)?,
                Out::new("bits", bits)?,
            )
        };
        bits.set(talk.session.score(bytes)?.bits);
        Ok(())
    })
}

/// Goes back to the first n_positions. Going back a few hundred bytes costs as much as reading one;
/// going back further reads everything before again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_rewind(
    session: *mut blt_session,
    n_positions: usize,
) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let mut talk = unsafe { talk(session)? };
        Ok(talk.session.rewind(n_positions)?)
    })
}

/// Writes a number about a session to out; key is a blt_session_key.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_info(
    session: *const blt_session,
    key: c_int,
    out: *mut u64,
) -> blt_status {
    use blt_session_key::*;
    guard(|| {
        // SAFETY: the header's rules.
        let (talk, out) = unsafe { (talk(session)?, Out::new("out", out)?) };
        let session = &talk.session;
        let is = |k: blt_session_key| k as c_int == key;
        let number = if is(BLT_SESSION_LENGTH) {
            session.len()
        } else if is(BLT_SESSION_MAX_BYTES) {
            session.max_bytes()
        } else if is(BLT_SESSION_SLIDES) {
            session.n_slides()
        } else if is(BLT_SESSION_CACHE_BYTES) {
            session.cache_bytes()
        } else {
            return wrong_key("blt_session_key", key);
        };
        out.set(number as u64);
        Ok(())
    })
}

/// Stops the call that is reading bytes in this session, or else the next one that does. That call
/// returns BLT_ERROR_CANCELLED before its next batch of 256 bytes. This is the only function that may
/// be called while another call runs on the session, but not while the session is being freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blt_session_cancel(session: *const blt_session) -> blt_status {
    guard(|| {
        // SAFETY: the header's rules.
        let session = unsafe { handle("session", session)? };
        session.canceller.cancel();
        Ok(())
    })
}
