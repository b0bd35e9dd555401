//! Session states as files and buffers: load one and continue with the same bits, at once.
//!
//! A state belongs to the model it was made with and is refused by any other. Layout, numbers
//! little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | [`MAGIC`] |
//! | 4 | [`VERSION`] |
//! | 8 | [`Model::fingerprint`] |
//! | | settings, in the order of [`SessionOptions`] |
//! | | ids, entropies, caches (`model/state_file.rs`) |
//! | 1040 | logits after the last id; none of an empty session |
//! | 8 | checksum of everything before it |
//!
//! Sizes are not stored where they follow from the model and the number of ids. A state is data
//! from an untrusted source, like a checkpoint: a hostile one gives an error, or a session that writes nonsense.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::{Overflow, Session, SessionOptions};
use crate::cache::KvType;
use crate::config::PatcherConfig;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::state_file::finite;
use crate::output_file::OutputFile;
use crate::wire::{Checksum, ReadError, Reader, Writer};

/// The first bytes of a state.
pub const MAGIC: &[u8; 8] = b"bltstate";
/// The version this engine writes and reads.
pub const VERSION: u32 = 2;

impl Session {
    /// Writes the session's state to the file at `path`, which appears or changes when it is complete: see
    /// [`OutputFile`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut file = OutputFile::create(path)?;
        self.save_to(&mut file).map_err(|e| Error::io(path, e))?;
        file.finish()
    }

    /// Writes the session's state to `out`, which should be buffered.
    ///
    /// # Errors
    /// Any error of `out`.
    pub fn save_to(&self, out: impl Write) -> io::Result<()> {
        if self.state.is_on_device() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a session on a GPU cannot be saved: save its text and read it again",
            ));
        }
        let mut out = Writer::new(out);
        out.bytes(MAGIC)?;
        out.u32(VERSION)?;
        out.u64(self.model.fingerprint())?;
        self.save_options(&mut out)?;
        out.size(self.n_slides)?;
        if self.lookahead.n_unread() == 0 {
            self.state.save(&self.model, &mut out)?;
        } else {
            let mut session = self.clone();
            session.drop_lookahead();
            session.state.save(&self.model, &mut out)?;
        }
        out.f32s(&self.logits)?;
        out.finish()
    }

    /// Bytes that [`Session::save_to`] will write; 0 on a GPU, whose sessions it refuses.
    pub fn saved_bytes(&self) -> usize {
        if self.state.is_on_device() {
            return 0;
        }
        struct Count<'a>(&'a mut usize);
        impl Write for Count<'_> {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                *self.0 += bytes.len();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut n = 0;
        self.save_to(Count(&mut n)).expect("counting does not fail");
        n
    }

    /// Reads a state that [`Session::save`] wrote with the same model.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] if the file is damaged, not a session state, or of another
    /// model or version; [`Error::Config`] or [`Error::Argument`] if its settings are invalid.
    pub fn load(model: &Model, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |e| Error::io(path, e);
        if !fs::metadata(path).map_err(io)?.is_file() {
            return Err(Error::format(
                path,
                "expected a regular file, found another kind",
            ));
        }
        Session::read_state(model, path, &fs::read(path).map_err(io)?)
    }

    /// Reads a state that [`Session::save_to`] wrote with the same model.
    ///
    /// # Errors
    /// As [`Session::load`].
    pub fn load_from(model: &Model, state: &[u8]) -> Result<Self> {
        Session::read_state(model, Path::new("<memory>"), state)
    }

    fn read_state(model: &Model, path: &Path, state: &[u8]) -> Result<Self> {
        if model.gpu_name().is_some() {
            return Err(Error::Unsupported(
                "a saved session cannot be read on a GPU: use the CPU".into(),
            ));
        }
        let damaged = |what: ReadError| Error::format(path, what);
        let mut input = check(model, state).map_err(damaged)?;
        let options = load_options(&mut input).map_err(damaged)?;
        let mut session = Session::new(model, options)?;
        session.n_slides = input.size("number of slides").map_err(damaged)?;
        let limits = (session.max_bytes, session.max_patches);
        session
            .state
            .load(model, limits, &mut input)
            .map_err(damaged)?;
        if !session.is_empty() {
            let logits = input
                .f32s("logits", model.config().n_logits())
                .and_then(|l| finite("logits", l));
            session.logits = logits.map_err(damaged)?;
        }
        match input.n_left() {
            0 => session.refresh_logits().map(|()| session),
            n => Err(damaged(format!("expected the end, found {n} more bytes"))),
        }
    }

    fn save_options(&self, out: &mut Writer<impl Write>) -> io::Result<()> {
        let SessionOptions {
            no_bos,
            patcher,
            patch_lengths,
            entropies,
            entropy_reset,
            max_bytes,
            max_patches,
            overflow,
            kv,
        } = &self.options;
        out.u8((*no_bos).into())?;
        // The model's own settings can be overridden when it is opened, so they are stored too.
        let patcher = patcher.as_ref().unwrap_or(&self.model.config().patcher);
        save_patcher(patcher, out)?;
        out.u8(patch_lengths.is_some().into())?;
        if let Some(lengths) = patch_lengths {
            out.size(lengths.len())?;
            lengths.iter().try_for_each(|&n| out.size(n))?;
        }
        out.u8((*entropies).into())?;
        for size in [entropy_reset, max_bytes, max_patches] {
            out.optional_size(*size)?;
        }
        out.optional_size(match overflow {
            Overflow::Error => None,
            Overflow::Slide { keep } => Some(*keep),
        })?;
        out.u8((*kv == Some(KvType::F16)).into())
    }
}

/// Checks everything but the content: the kind of file, its version, the model, the checksum. Returns the
/// content.
fn check<'a>(model: &Model, state: &'a [u8]) -> Result<Reader<'a>, ReadError> {
    let mut input = Reader::new(state);
    if input.bytes("session state", MAGIC.len())? != MAGIC {
        return Err("expected a session state, found another kind of file".into());
    }
    let version = input.u32("version")?;
    if version != VERSION {
        return Err(format!(
            "session state: expected version {VERSION}, found {version}"
        ));
    }
    let fingerprint = input.u64("model")?;
    if fingerprint != model.fingerprint() {
        return Err(format!(
            "session state: expected one of this model ({:016x}), found one of another \
             ({fingerprint:016x})",
            model.fingerprint()
        ));
    }
    let (rest, end) = input
        .bytes("session state", input.n_left())?
        .split_last_chunk::<8>()
        .ok_or("session state: expected a checksum, found the end")?;
    let mut sum = Checksum::default();
    sum.update(&state[..state.len() - end.len()]);
    // A fuzzer would never get past the checksum.
    if sum.finish() != u64::from_le_bytes(*end) && !cfg!(fuzzing) {
        return Err("session state: expected another checksum; it is cut short or damaged".into());
    }
    Ok(Reader::new(rest))
}

fn load_options(input: &mut Reader<'_>) -> Result<SessionOptions, ReadError> {
    let no_bos = input.flag("no_bos")?;
    let patcher = Some(load_patcher(input)?);
    let patch_lengths = match input.flag("patch_lengths")? {
        false => None,
        true => {
            let n = input.size("patch_lengths")?;
            let lengths = input.bytes("patch_lengths", n.saturating_mul(8))?;
            let mut lengths = Reader::new(lengths);
            let lengths = (0..n).map(|_| lengths.size("patch_lengths"));
            Some(lengths.collect::<Result<_, _>>()?)
        }
    };
    Ok(SessionOptions {
        no_bos,
        patcher,
        patch_lengths,
        entropies: input.flag("entropies")?,
        entropy_reset: input.optional_size("entropy_reset")?,
        max_bytes: input.optional_size("max_bytes")?,
        max_patches: input.optional_size("max_patches")?,
        overflow: match input.optional_size("overflow")? {
            None => Overflow::Error,
            Some(keep) => Overflow::Slide { keep },
        },
        kv: Some(match input.flag("kv")? {
            false => KvType::F32,
            true => KvType::F16,
        }),
    })
}

fn save_patcher(patcher: &PatcherConfig, out: &mut Writer<impl Write>) -> io::Result<()> {
    let mode = patcher.mode.name();
    out.size(mode.len())?;
    out.bytes(mode.as_bytes())?;
    out.f32s(&[patcher.threshold])?;
    out.u8(patcher.threshold_add.is_some().into())?;
    out.f32s(patcher.threshold_add.as_slice())?;
    out.u8(patcher.monotonicity.into())?;
    out.optional_size(patcher.max_patch_length)?;
    out.size(patcher.patch_size)
}

fn load_patcher(input: &mut Reader<'_>) -> Result<PatcherConfig, ReadError> {
    let n = input.size("patching mode")?;
    let mode = String::from_utf8_lossy(input.bytes("patching mode", n)?);
    Ok(PatcherConfig {
        mode: (mode.chars().take(40).collect::<String>().parse())
            .map_err(|e: Error| e.to_string())?,
        threshold: input.f32("threshold")?,
        threshold_add: match input.flag("threshold_add")? {
            true => Some(input.f32("threshold_add")?),
            false => None,
        },
        monotonicity: input.flag("monotonicity")?,
        max_patch_length: input.optional_size("max_patch_length")?,
        patch_size: input.size("patch_size")?,
    })
}
