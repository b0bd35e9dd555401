//! What one sequence has on the device.

use std::any::Any;
use std::sync::Arc;

use super::{Cross, GpuModel, Layers};
use crate::cache::KvType;
use crate::cuda::GpuRing;
use crate::error::Result;
use crate::model::MAX_BATCH;
use crate::model::device_caches::DeviceCaches;
use crate::vocab::Id;

/// The caches of one sequence: nothing until its first pass. A fork shares them until one side reads on.
#[derive(Debug)]
pub(super) struct Caches {
    kv: KvType,
    rings: Option<Arc<Rings>>,
}

/// Keys, values and states of a sequence. In every ring of keys and values a layer has two planes.
#[derive(Debug)]
pub(super) struct Rings {
    pub entropy: Option<GpuRing>,
    pub encoder: GpuRing,
    pub global: GpuRing,
    pub decoder: GpuRing,
    /// Byte states that the encoder's cross-attentions read, a plane each, of all bytes.
    pub states: GpuRing,
    /// Keys and values of these cross-attentions, of all bytes.
    pub bytes: GpuRing,
    /// Keys and values of the decoder's cross-attentions: k rows per patch.
    pub patches: GpuRing,
    /// Positions and patches ever written, since the rings were last empty.
    pub n_bytes: usize,
    pub n_patches: usize,
    pub ahead: Option<Ahead>,
}

/// An id that the device has chosen and already read as far as its entropy: the first half of the next
/// pass, if that is the id fed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    pub position: usize,
    pub id: Id,
    pub entropy: f32,
}

/// Rows a ring holds besides its window: those of a pass, and those that a rewind may need again.
const MARGIN: usize = 2 * MAX_BATCH;

impl Caches {
    pub fn new(kv: KvType) -> Caches {
        Caches { kv, rings: None }
    }

    /// The rings of a sequence for a pass to write: makes them for the first, and copies them if a fork shares them.
    pub fn own<'a>(
        caches: &'a mut Option<Box<dyn DeviceCaches>>,
        model: &GpuModel,
    ) -> Result<&'a mut Rings> {
        let caches: &mut dyn Any = &mut **caches.as_mut().expect("made with the state");
        let caches: &mut Caches = caches.downcast_mut().expect("caches of this backend");
        let shared = match &mut caches.rings {
            Some(shared) => shared,
            none => none.insert(Arc::new(Rings::new(model, caches.kv)?)),
        };
        if Arc::get_mut(shared).is_none() {
            *shared = Arc::new(shared.copied()?);
        }
        Ok(Arc::get_mut(shared).expect("copied above"))
    }
}

impl DeviceCaches for Caches {
    fn fork(&self) -> Box<dyn DeviceCaches> {
        Box::new(Caches {
            kv: self.kv,
            rings: self.rings.clone(),
        })
    }

    fn can_rewind(&self, n_bytes: usize, n_patches: usize) -> bool {
        self.rings.as_ref().is_none_or(|rings| {
            rings.n_bytes <= n_bytes + MARGIN - MAX_BATCH
                && rings.n_patches <= n_patches + MARGIN - MAX_BATCH
        })
    }

    fn n_bytes(&self) -> usize {
        self.rings.as_ref().map_or(0, |rings| rings.memory())
    }
}

impl Rings {
    /// Empty rings. Keys and values of the stacks' layers are stored as `kv`, everything else in f32.
    fn new(model: &GpuModel, kv: KvType) -> Result<Rings> {
        let gpu = &model.gpu;
        let stack = |layers: &Layers| {
            let dim = layers.heads.n_kv_heads * layers.heads.head_dim;
            let limit = layers.window.map(|window| window + MARGIN);
            GpuRing::new(gpu, kv, (2 * layers.layers.len(), dim), limit)
        };
        let entropy = model.entropy.as_ref().map(|e| stack(&e.layers));
        let exact = |n, dim, limit| GpuRing::new(gpu, KvType::F32, (n, dim), limit);
        let kv_dim = |cross: &Cross| cross.heads.n_kv_heads * cross.heads.head_dim;
        let n_cross = model.encoder_cross.len();
        let patch_limit = (model.decoder_window + MARGIN) * model.k;
        let n_patch_cross = model.decoder_cross.len();
        Ok(Rings {
            entropy: entropy.transpose()?,
            encoder: stack(&model.encoder)?,
            global: stack(&model.global)?,
            decoder: stack(&model.decoder)?,
            states: exact(n_cross, model.patch_projection.cols(), None)?,
            bytes: exact(2 * n_cross, kv_dim(&model.encoder_cross[0].1), None)?,
            patches: exact(
                2 * n_patch_cross,
                kv_dim(&model.decoder_cross[0]),
                Some(patch_limit),
            )?,
            n_bytes: 0,
            n_patches: 0,
            ahead: None,
        })
    }

    /// Makes room for `n_bytes` bytes and `n_patches` patches.
    pub fn reserve(&mut self, n_bytes: usize, n_patches: usize, k: usize) -> Result<()> {
        let of_bytes = [
            &mut self.encoder,
            &mut self.decoder,
            &mut self.states,
            &mut self.bytes,
        ];
        for ring in of_bytes.into_iter().chain(&mut self.entropy) {
            ring.reserve(n_bytes)?;
        }
        self.global.reserve(n_patches)?;
        self.patches.reserve(n_patches * k)
    }

    fn copied(&self) -> Result<Rings> {
        Ok(Rings {
            entropy: self.entropy.as_ref().map(GpuRing::copied).transpose()?,
            encoder: self.encoder.copied()?,
            global: self.global.copied()?,
            decoder: self.decoder.copied()?,
            states: self.states.copied()?,
            bytes: self.bytes.copied()?,
            patches: self.patches.copied()?,
            ..*self
        })
    }

    /// Bytes of device memory.
    fn memory(&self) -> usize {
        let stores = [
            &self.encoder,
            &self.global,
            &self.decoder,
            &self.states,
            &self.bytes,
            &self.patches,
        ];
        let stores = stores.into_iter().chain(&self.entropy);
        stores.map(GpuRing::n_bytes).sum()
    }
}
