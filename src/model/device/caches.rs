//! What one sequence has on the device.

use std::sync::Arc;

use super::super::state::SLACK;
use super::{DeviceModel, Layers};
use crate::cache::KvType;
use crate::cuda::Store;
use crate::error::Result;
use crate::vocab::Id;

/// Keys, values and states of a sequence. In every store of keys and values a layer has two sides.
#[derive(Debug)]
pub(crate) struct Caches {
    pub entropy: Option<Store>,
    pub encoder: Store,
    pub global: Store,
    pub decoder: Store,
    /// Byte states that the encoder's cross-attentions read, a side each; of all bytes.
    pub states: Store,
    /// Keys and values of these cross-attentions; of all bytes.
    pub bytes: Store,
    /// Keys and values of the decoder's cross-attentions: k rows per patch.
    pub patches: Store,
    /// Positions and patches ever written, since the rings were last empty.
    pub n_bytes: usize,
    pub n_patches: usize,
}

/// An id that the device has chosen and already read as far as its entropy: the first half of the next
/// pass, if that is the id fed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    pub id: Id,
    pub entropy: f32,
}

/// Rows a ring holds besides its window: those of a pass, and those that a rewind may want back.
const MARGIN: usize = 2 * SLACK;

impl Caches {
    /// Nothing. Keys and values of the stacks' layers are kept as `kv`, all else in f32.
    pub fn new(model: &DeviceModel, kv: KvType) -> Result<Caches> {
        let gpu = &model.gpu;
        let stack = |layers: &Layers| {
            let dim = layers.heads.n_kv_heads * layers.heads.head_dim;
            let limit = layers.window.map(|window| window + MARGIN);
            Store::new(gpu, kv, (2 * layers.layers.len(), dim), limit)
        };
        let entropy = model.entropy.as_ref().map(|e| stack(&e.layers));
        let exact = |n, dim, limit| Store::new(gpu, KvType::F32, (n, dim), limit);
        let kv_dim = |cross: &super::Cross| cross.heads.n_kv_heads * cross.heads.head_dim;
        let n_cross = model.encoder_cross.len();
        let patch_limit = (model.decoder_window + MARGIN) * model.k;
        let n_patch_cross = model.decoder_cross.len();
        Ok(Caches {
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
        })
    }

    /// Copies what a fork shares; new ones are of `kv`.
    pub fn own<'a>(
        model: &DeviceModel,
        kv: KvType,
        caches: &'a mut Option<Arc<Caches>>,
    ) -> Result<&'a mut Caches> {
        if caches.is_none() {
            *caches = Some(Arc::new(Caches::new(model, kv)?));
        }
        let shared = caches.as_mut().expect("made above");
        if Arc::get_mut(shared).is_none() {
            *shared = Arc::new(shared.copied()?);
        }
        Ok(Arc::get_mut(shared).expect("copied above"))
    }

    /// Makes room for so many bytes and patches.
    pub fn reserve(&mut self, n_bytes: usize, n_patches: usize, k: usize) -> Result<()> {
        let of_bytes = [
            &mut self.encoder,
            &mut self.decoder,
            &mut self.states,
            &mut self.bytes,
        ];
        for store in of_bytes.into_iter().chain(&mut self.entropy) {
            store.reserve(n_bytes)?;
        }
        self.global.reserve(n_patches)?;
        self.patches.reserve(n_patches * k)
    }

    fn copied(&self) -> Result<Caches> {
        Ok(Caches {
            entropy: self.entropy.as_ref().map(Store::copied).transpose()?,
            encoder: self.encoder.copied()?,
            global: self.global.copied()?,
            decoder: self.decoder.copied()?,
            states: self.states.copied()?,
            bytes: self.bytes.copied()?,
            patches: self.patches.copied()?,
            ..*self
        })
    }

    /// Whether nothing that bytes after the first `n_bytes` read, with `n_patches` patches closed, has
    /// been written over.
    pub fn hold(&self, n_bytes: usize, n_patches: usize) -> bool {
        self.n_bytes <= n_bytes + MARGIN - SLACK && self.n_patches <= n_patches + MARGIN - SLACK
    }

    /// Bytes of device memory.
    pub fn memory(&self) -> usize {
        let stores = [
            &self.encoder,
            &self.global,
            &self.decoder,
            &self.states,
            &self.bytes,
            &self.patches,
        ];
        let stores = stores.into_iter().chain(&self.entropy);
        stores.map(Store::n_bytes).sum()
    }
}
