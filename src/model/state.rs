//! The state of one sequence of a BLT: its text, patch boundaries and caches.

use std::ops::Range;

use super::block::{Rows, Stack};
use super::blt::{Blt, BltWeights};
use super::decoder::PatchKv;
use super::device_caches::DeviceCaches;
use super::patcher::Patcher;
use crate::cache::{KvCache, KvType, RowStore};
use crate::config::arch;
use crate::vocab::Id;

/// The state of one sequence. Cloning is a fork: cache pages are shared until one side writes.
#[derive(Debug, Clone)]
pub struct State {
    /// The ids read so far.
    pub(crate) ids: Vec<Id>,
    /// Entropy in nats of the id after each of `ids`; NaN where it was not computed.
    pub(crate) entropies: Vec<f32>,
    /// Decided patch starts, ascending, `0` first. The last is where the open patch starts; it is
    /// `ids.len()` when the next byte is known to start a patch.
    pub(crate) starts: Vec<usize>,
    /// Positions of the EOS ids.
    pub(super) eos: Vec<usize>,
    pub(super) patcher: Patcher,
    pub(crate) entropy_cache: Option<KvCache>,
    pub(super) encoder_cache: KvCache,
    pub(super) decoder_cache: KvCache,
    pub(super) global_cache: KvCache,
    /// What the encoder's cross-attentions read, from the oldest byte that can still be in an open
    /// patch after a rewind: rows of the local width.
    pub(super) byte_states: Vec<RowStore>,
    /// Global outputs of all closed patches (from which `patch_kv` is rebuilt on a rewind).
    pub(super) global_out: RowStore,
    /// What the decoder's cross-attentions read.
    pub(super) patch_kv: Vec<PatchKv>,
    /// The entropy model restarts with an empty context every `entropy_reset` bytes; `None`: never.
    pub(super) entropy_reset: Option<usize>,
    /// Caches in the memory of a device, instead of those above, which then stay empty.
    pub(crate) device: Option<Box<dyn DeviceCaches>>,
}

/// Most bytes of a sequence in one pass, and most bytes that a rewind takes back without computing
/// anything again: the caches keep this many positions besides their windows.
pub(crate) const MAX_BATCH: usize = 256;

/// A text's lengths at one moment: [`State::mark`].
#[derive(Debug)]
pub(crate) struct Mark {
    n_ids: usize,
    n_starts: usize,
    n_eos: usize,
    patcher: Patcher,
}

impl State {
    /// Whether the caches are on a GPU.
    pub(crate) fn is_on_device(&self) -> bool {
        self.device.is_some()
    }

    /// The state before the first byte. The entropy model restarts every `entropy_reset` bytes
    /// (Meta's patcher: 8192; `None`: never), and does not run at all unless `entropies`. `device`: empty
    /// caches where the backend has its own.
    pub fn new(
        blt: Blt<'_>,
        device: Option<Box<dyn DeviceCaches>>,
        patcher: Patcher,
        entropies: bool,
        entropy_reset: Option<usize>,
        kv: KvType,
    ) -> Self {
        let w = blt.weights;
        let entropy = w.entropy.as_ref().filter(|_| entropies);
        State {
            ids: Vec::new(),
            entropies: Vec::new(),
            starts: vec![0],
            eos: Vec::new(),
            patcher,
            entropy_cache: entropy.map(|e| e.layers.new_cache(kv, MAX_BATCH)),
            encoder_cache: w.encoder.layers.new_cache(kv, MAX_BATCH),
            decoder_cache: w.decoder.layers.new_cache(kv, MAX_BATCH),
            global_cache: w.global.layers.new_cache(kv, MAX_BATCH),
            byte_states: w.encoder.new_states(),
            global_out: RowStore::new(w.config.global.dim),
            patch_kv: w.decoder.new_patch_kv(),
            entropy_reset,
            device,
        }
    }

    /// Ids read so far.
    pub fn ids(&self) -> &[Id] {
        &self.ids
    }

    /// The entropy in nats of the id after each id. NaN if the entropy model does not run.
    pub fn entropies(&self) -> &[f32] {
        &self.entropies
    }

    /// Where patches start, the open one included; ends with `ids().len()` when the next byte is
    /// known to start a patch.
    pub fn patch_starts(&self) -> &[usize] {
        &self.starts
    }

    /// Number of closed patches.
    pub fn n_closed(&self) -> usize {
        self.starts.len() - 1
    }

    /// Bytes of memory that the caches take.
    pub fn n_bytes(&self) -> usize {
        let caches = [&self.encoder_cache, &self.decoder_cache, &self.global_cache];
        let rows = self.byte_states.iter().chain([&self.global_out]);
        (caches
            .into_iter()
            .chain(&self.entropy_cache)
            .map(KvCache::n_bytes))
        .sum::<usize>()
            + rows.map(RowStore::n_bytes).sum::<usize>()
            + self.device.as_ref().map_or(0, |caches| caches.n_bytes())
    }

    /// Whether the entropy model runs.
    pub(crate) fn runs_entropy(&self) -> bool {
        self.entropy_cache.is_some()
    }

    /// Where the text ends now. Called before a pass or a draft that may have to be undone.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            n_ids: self.ids.len(),
            n_starts: self.starts.len(),
            n_eos: self.eos.len(),
            patcher: self.patcher.clone(),
        }
    }

    /// Goes back to `mark`. Called when a pass has failed or a draft cannot be verified, before anything
    /// is evicted, so that it always can.
    pub(crate) fn rollback(&mut self, blt: Blt<'_>, mark: Mark) {
        self.ids.truncate(mark.n_ids);
        self.entropies.truncate(mark.n_ids);
        self.starts.truncate(mark.n_starts);
        self.eos.truncate(mark.n_eos);
        self.patcher = mark.patcher;
        self.rewind_caches(blt);
    }

    /// Goes back to the first `n_ids` ids. Called when a session goes back, and when drafted bytes are
    /// not the ones that follow.
    ///
    /// Returns `false`, leaving the state as it is, if rows that are needed have been evicted; the
    /// caller then starts over and reads the ids again.
    pub(crate) fn rewind(&mut self, blt: Blt<'_>, n_ids: usize) -> bool {
        let n_starts = self.starts.partition_point(|&s| s <= n_ids);
        if !self.can_rewind(blt.weights, n_ids, n_starts - 1) {
            return false;
        }
        self.ids.truncate(n_ids);
        self.entropies.truncate(n_ids);
        self.starts.truncate(n_starts);
        self.eos.retain(|&p| p < n_ids);
        let patch_start = self.starts[n_starts - 1];
        (self.patcher).rewind(n_ids, &self.ids, &self.entropies, patch_start);
        self.rewind_caches(blt);
        true
    }

    /// Drops the rows that neither the next bytes nor a rewind of [`MAX_BATCH`] bytes can need. Called
    /// after each pass and each draft.
    pub(crate) fn evict(&mut self, weights: &BltWeights) {
        if self.device.is_some() {
            return;
        }
        let w = weights;
        let back_to = self.ids.len().saturating_sub(MAX_BATCH);
        let patch = self.starts.partition_point(|&s| s <= back_to) - 1;
        let patch = patch.saturating_sub(w.encoder.patches_seen_back());
        for store in &mut self.byte_states {
            store.evict(self.starts[patch]);
        }
        (w.decoder).evict_patches(self.n_closed(), &mut self.patch_kv);
    }

    /// Whether no row has been evicted that a byte after the first `n_ids` reads, when these close
    /// `n_closed` patches.
    fn can_rewind(&self, weights: &BltWeights, n_ids: usize, n_closed: usize) -> bool {
        if let Some(caches) = &self.device {
            return caches.can_rewind(n_ids, n_closed);
        }
        let w = weights;
        // The next byte sees `window - 1` positions before its own.
        let has_window = |cache: &KvCache, window: Option<usize>| {
            window.is_none_or(|window| cache.oldest() <= (n_ids + 1).saturating_sub(window))
        };
        let entropy_window = w.entropy.as_ref().and_then(|e| e.layers.config.window);
        let oldest_patch = n_closed.saturating_sub(w.encoder.patches_seen_back());
        (self.entropy_cache.iter()).all(|cache| has_window(cache, entropy_window))
            && has_window(&self.encoder_cache, w.config.encoder.window)
            && has_window(&self.decoder_cache, w.config.decoder.window)
            && (self.byte_states.iter()).all(|s| s.first() <= self.starts[oldest_patch])
    }

    /// Drops the rows of bytes and patches beyond the text.
    fn rewind_caches(&mut self, blt: Blt<'_>) {
        if self.device.is_some() {
            return;
        }
        let (n_ids, n_closed) = (self.ids.len(), self.n_closed());
        for cache in self.entropy_cache.iter_mut() {
            cache.rewind(n_ids);
        }
        self.encoder_cache.rewind(n_ids);
        self.decoder_cache.rewind(n_ids);
        self.byte_states.iter_mut().for_each(|s| s.rewind(n_ids));
        self.global_cache.rewind(n_closed);
        self.global_out.rewind(n_closed);
        if !(blt.weights.decoder).rewind_patches(n_closed, &mut self.patch_kv) {
            self.rebuild_patches(blt);
        }
    }

    /// Computes what the decoder reads of the last patches from the global outputs.
    pub(super) fn rebuild_patches(&mut self, blt: Blt<'_>) {
        let decoder = &blt.weights.decoder;
        let seen = decoder.patches_seen(self.n_closed());
        decoder.clear_patches(seen.start, &mut self.patch_kv);
        let outputs = self.global_out.rows(seen.clone());
        let sequence = (self.n_closed() - seen.start, &mut self.patch_kv[..]);
        decoder.add_patches(blt.compute, outputs, &mut [sequence]);
    }

    /// What the local encoder writes: its cache, and the byte states.
    pub(super) fn encoder_memory(&mut self) -> (&mut KvCache, &mut [RowStore]) {
        (&mut self.encoder_cache, &mut self.byte_states)
    }

    /// The decoder's cache, and what it reads of patches.
    pub(super) fn decoder_memory(&mut self) -> (&mut KvCache, &[PatchKv]) {
        (&mut self.decoder_cache, &self.patch_kv)
    }

    /// Adds rows of the entropy model at `positions`.
    pub(crate) fn add_entropy_rows(
        &self,
        layers: &Stack,
        positions: Range<usize>,
        rows: &mut Rows<'_>,
    ) {
        let reset = self.entropy_reset.unwrap_or(usize::MAX);
        let origin = |p: usize| p / reset * reset;
        let barrier = |p| segment(layers, &self.eos, p).max(origin(p));
        layers.add_run(rows, positions, origin, barrier);
    }

    /// Adds rows of the local encoder or decoder at `positions`.
    pub(crate) fn add_byte_rows(
        &self,
        layers: &Stack,
        positions: Range<usize>,
        rows: &mut Rows<'_>,
    ) {
        layers.add_run(rows, positions, |_| 0, |p| segment(layers, &self.eos, p));
    }

    /// Adds rows of the global transformer: `patches`.
    pub(crate) fn add_patch_rows(
        &self,
        layers: &Stack,
        patches: Range<usize>,
        rows: &mut Rows<'_>,
    ) {
        let ends = arch::eos_patches(&self.eos, &self.starts);
        layers.add_run(rows, patches, |_| 0, |p| segment(layers, &ends, p));
    }
}

/// The first position that `position` may see, if the layers keep segments apart.
fn segment(layers: &Stack, ends: &[usize], position: usize) -> usize {
    match layers.config.eos_segments {
        true => arch::segment_start(ends, position),
        false => 0,
    }
}
