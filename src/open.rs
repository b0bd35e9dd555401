//! The one way to open a model: [`ModelOptions`], from the path of a checkpoint to weights on a device.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use blt_kernels::Isa;

use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::config::PatchingMode;
use crate::device::{Device, GpuOptions};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::backend::Backend;
use crate::ops::{Compute, Profile};
use crate::tensor::{Load, Storage};

/// How a model is opened; begun with [`Model::options`].
///
/// ```
/// # let path = "tests/data/hf-gqa/model";
/// let model = blt::Model::options().threads(2).preload(true).open(path)?;
/// assert_eq!(model.compute().n_threads(), 2);
/// # Ok::<(), blt::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct ModelOptions {
    checkpoint: OpenOptions,
    threads: Option<usize>,
    isa: Option<Isa>,
    profile: Profile,
    preload: bool,
    device: Device,
    gpu: GpuOptions,
}

impl Model {
    /// Options for opening a model in another way than [`Model::open`] does.
    pub fn options() -> ModelOptions {
        ModelOptions::default()
    }

    /// This model computed on a device. On a GPU all matrices are copied to its memory, and the
    /// embedding tables if they fit too.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such device, it cannot run the kernels, its memory
    /// does not suffice, or this crate was built without the feature `cuda`. Not for
    /// [`Device::Auto`], which then is the CPU.
    pub fn on_device(&self, device: Device) -> Result<Self> {
        self.on_device_with(device, GpuOptions::default())
    }

    /// [`Model::on_device`] with options for a GPU.
    ///
    /// # Errors
    /// As [`Model::on_device`].
    pub fn on_device_with(&self, device: Device, options: GpuOptions) -> Result<Self> {
        if self.bolmo().is_some() && matches!(device, Device::Cuda(_)) {
            return Err(Error::Device(
                "a Bolmo model is computed on the CPU alone; leave out --device cuda".into(),
            ));
        }
        let backend = match device {
            _ if self.bolmo().is_some() => None,
            Device::Cpu => None,
            Device::Cuda(number) => Some(gpu(self, number, options)?),
            Device::Auto => gpu(self, 0, options).ok(),
        };
        Ok(self.with_backend(backend))
    }
}

/// The model on a GPU: the only place that knows which backends there are.
#[cfg(feature = "cuda")]
fn gpu(model: &Model, number: usize, options: GpuOptions) -> Result<Arc<dyn Backend>> {
    let model = crate::cuda::GpuModel::new(model.blt().weights, number, options)?;
    Ok(Arc::new(model))
}

/// The same without the feature.
#[cfg(not(feature = "cuda"))]
fn gpu(_: &Model, _: usize, _: GpuOptions) -> Result<Arc<dyn Backend>> {
    Err(Error::Device(
        "this program was built without CUDA (feature \"cuda\"); use the CPU".into(),
    ))
}

impl ModelOptions {
    /// Number of threads; all the machine has, if not set.
    pub fn threads(mut self, n: usize) -> Self {
        self.threads = Some(n);
        self
    }

    /// Instruction set; the best the CPU has, if not set.
    pub fn isa(mut self, isa: Isa) -> Self {
        self.isa = Some(isa);
        self
    }

    /// Arithmetic of products with unquantised weights; [`Profile::Exact`], if not set.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Device that computes; the CPU, if not set. See [`Model::on_device`].
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// How a GPU is used. See [`Model::on_device_with`].
    pub fn gpu(mut self, options: GpuOptions) -> Self {
        self.gpu = options;
        self
    }

    /// Configuration file of the weights, if it is not beside them.
    pub fn config(mut self, path: impl Into<PathBuf>) -> Self {
        self.checkpoint.config = Some(path.into());
        self
    }

    /// Entropy model, if it is not in the checkpoint or beside it.
    pub fn entropy_model(mut self, path: impl Into<PathBuf>) -> Self {
        self.checkpoint.entropy_model = Some(path.into());
        self
    }

    /// Patching mode instead of the checkpoint's own.
    pub fn patching(mut self, mode: PatchingMode) -> Self {
        self.checkpoint.patching = Some(mode);
        self
    }

    /// Tokenizer of the subword model that a Bolmo model was made from: see [`OpenOptions::tokenizer`].
    pub fn tokenizer(mut self, path: impl Into<PathBuf>) -> Self {
        self.checkpoint.tokenizer = Some(path.into());
        self
    }

    /// Whether the files are mapped or read into memory; [`Load::Map`], if not set.
    pub fn files(mut self, load: Load) -> Self {
        self.checkpoint.load = load;
        self
    }

    /// Compare all weights with the checksums of native files while opening: see [`OpenOptions::verify`].
    pub fn verify(mut self, verify: bool) -> Self {
        self.checkpoint.verify = verify;
        self
    }

    /// Read all weights while opening (see [`Model::preload`]), so that the first byte is fast.
    pub fn preload(mut self, preload: bool) -> Self {
        self.preload = preload;
        self
    }

    #[cfg(feature = "cli")]
    pub(crate) fn chosen_device(&self) -> Device {
        self.device
    }

    #[cfg(feature = "cli")]
    pub(crate) fn chosen_gpu(&self) -> GpuOptions {
        self.gpu
    }

    /// Opens a checkpoint in any of the known layouts.
    ///
    /// # Errors
    /// Same as [`Checkpoint::open`]; [`Error::Argument`] for a number of threads out of range.
    pub fn open(&self, path: impl Into<PathBuf>) -> Result<Model> {
        self.open_with(path, |_, _| ControlFlow::Continue(()))
    }

    /// Opens a checkpoint. `progress` is called with the bytes of weights read so far and in all: with 0
    /// first, with all of them last, and every few megabytes between if they are preloaded.
    ///
    /// # Errors
    /// Same as [`ModelOptions::open`]; [`Error::Cancelled`] if `progress` breaks off.
    pub fn open_with(
        &self,
        path: impl Into<PathBuf>,
        progress: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Model> {
        self.load_with(&self.open_checkpoint(path)?, progress)
    }

    /// Opens a native file that is in memory: `&'static [u8]` as it is, `Vec<u8>` or `Arc<[u8]>`
    /// kept by the model. `progress` as in [`ModelOptions::open_with`].
    ///
    /// # Errors
    /// Same as [`Checkpoint::from_bytes`] and [`ModelOptions::open_with`].
    pub fn open_bytes(
        &self,
        bytes: impl Into<Storage>,
        progress: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Model> {
        self.load_with(&Checkpoint::from_bytes(bytes, &self.checkpoint)?, progress)
    }

    /// Opens a checkpoint without taking its weights: to look at it, or to [`ModelOptions::load`] it.
    ///
    /// # Errors
    /// Same as [`Checkpoint::open`].
    pub fn open_checkpoint(&self, path: impl Into<PathBuf>) -> Result<Checkpoint> {
        Checkpoint::open(&path.into(), &self.checkpoint)
    }

    /// Opens a native file in memory without taking its weights.
    ///
    /// # Errors
    /// Same as [`Checkpoint::from_bytes`].
    pub fn open_checkpoint_bytes(&self, bytes: impl Into<Storage>) -> Result<Checkpoint> {
        Checkpoint::from_bytes(bytes, &self.checkpoint)
    }

    /// The model in an open checkpoint, whose bytes it shares. Options about files count for nothing here.
    ///
    /// # Errors
    /// Same as [`ModelOptions::open`].
    pub fn load(&self, checkpoint: &Checkpoint) -> Result<Model> {
        self.load_with(checkpoint, |_, _| ControlFlow::Continue(()))
    }

    fn load_with(
        &self,
        checkpoint: &Checkpoint,
        mut progress: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Model> {
        let compute = Compute::new(self.threads, self.isa)?.profiled(self.profile);
        let model = Model::load(checkpoint, compute)?;
        let total = model.weight_bytes();
        let mut flow = progress(0, total);
        if self.preload && flow.is_continue() {
            flow = model.preload(|n_read| match n_read == total {
                true => ControlFlow::Continue(()), // told below
                false => progress(n_read, total),
            });
        }
        if flow.is_continue() {
            flow = progress(total, total);
        }
        match flow {
            ControlFlow::Continue(()) => model.on_device_with(self.device, self.gpu),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}
