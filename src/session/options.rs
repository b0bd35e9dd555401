//! Settings of a session: as fields, or in a chain of methods of the same names.

use crate::cache::KvType;
use crate::config::PatcherConfig;
use crate::error::{Error, Result};
use crate::model::Model;

/// What happens when the text outgrows the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// [`Error::ContextFull`].
    #[default]
    Error,
    /// Restart with BOS and the last `keep` bytes; [`Session::n_slides`](super::Session::n_slides) counts
    /// the restarts.
    Slide {
        /// Bytes kept.
        keep: usize,
    },
}

/// Settings of a session.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// Do not put BOS before the first byte.
    pub no_bos: bool,
    /// Patcher settings instead of the model's own.
    pub patcher: Option<PatcherConfig>,
    /// Patch lengths to use instead of any rule; the last patch reaches to the end of the text.
    pub patch_lengths: Option<Vec<usize>>,
    /// Run the entropy model even if the patcher does not need it.
    pub entropies: bool,
    /// Restart the entropy model after this many bytes. Meta's patcher does at 8192, the HF
    /// implementation never.
    pub entropy_reset: Option<usize>,
    /// Most byte positions (BOS included); the model's own limit if `None`.
    pub max_bytes: Option<usize>,
    /// Most patches; the model's own limit if `None`.
    pub max_patches: Option<usize>,
    /// What to do at a limit.
    pub overflow: Overflow,
    /// Type of cached keys and values; [`Model::default_kv`](crate::Model::default_kv) if `None`. Either way every chunking
    /// gives the same bits; the two differ from each other by rounding.
    pub kv: Option<KvType>,
}

impl SessionOptions {
    /// The settings of [`SessionOptions::default`], to be changed in a chain.
    ///
    /// ```
    /// # use blt::{Model, Overflow, Session, SessionOptions};
    /// # let model = Model::open("tests/data/hf-gqa/model")?;
    /// let options = SessionOptions::new().max_bytes(4096).overflow(Overflow::Slide { keep: 512 });
    /// let session = Session::new(&model, options)?;
    /// # Ok::<(), blt::Error>(())
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`SessionOptions::no_bos`].
    #[must_use]
    pub fn no_bos(mut self, no_bos: bool) -> Self {
        self.no_bos = no_bos;
        self
    }

    /// Sets [`SessionOptions::patcher`].
    #[must_use]
    pub fn patcher(mut self, patcher: PatcherConfig) -> Self {
        self.patcher = Some(patcher);
        self
    }

    /// Sets [`SessionOptions::patch_lengths`].
    #[must_use]
    pub fn patch_lengths(mut self, lengths: impl Into<Vec<usize>>) -> Self {
        self.patch_lengths = Some(lengths.into());
        self
    }

    /// Sets [`SessionOptions::entropies`].
    #[must_use]
    pub fn entropies(mut self, entropies: bool) -> Self {
        self.entropies = entropies;
        self
    }

    /// Sets [`SessionOptions::entropy_reset`].
    #[must_use]
    pub fn entropy_reset(mut self, n_bytes: usize) -> Self {
        self.entropy_reset = Some(n_bytes);
        self
    }

    /// Sets [`SessionOptions::max_bytes`].
    #[must_use]
    pub fn max_bytes(mut self, n: usize) -> Self {
        self.max_bytes = Some(n);
        self
    }

    /// Sets [`SessionOptions::max_patches`].
    #[must_use]
    pub fn max_patches(mut self, n: usize) -> Self {
        self.max_patches = Some(n);
        self
    }

    /// Sets [`SessionOptions::overflow`].
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Sets [`SessionOptions::kv`].
    #[must_use]
    pub fn kv(mut self, kv: KvType) -> Self {
        self.kv = Some(kv);
        self
    }
}

impl SessionOptions {
    /// Refuses options that have no meaning for the model.
    pub(super) fn check(&self, model: &Model) -> Result<()> {
        if model.config().bolmo.is_none() {
            return Ok(());
        }
        if self.no_bos {
            return Err(Error::argument(
                "no_bos",
                "expected a text that begins with BOS, as all texts that a Bolmo model was trained on do",
            ));
        }
        if self
            .patcher
            .as_ref()
            .is_some_and(|patcher| *patcher != model.config().patcher)
        {
            return Err(Error::argument(
                "patcher",
                "expected none with a Bolmo model, whose patches are its own",
            ));
        }
        match self.patch_lengths.as_deref() {
            None | Some([1, ..]) => Ok(()),
            Some(_) => Err(Error::argument(
                "patch_lengths",
                "expected 1 first, since BOS is a patch of a Bolmo model",
            )),
        }
    }
}
