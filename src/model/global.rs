//! The global transformer: one step per patch.
//!
//! Paper section 3.1, spec section 7.

use crate::cache::KvCache;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::Result;
use crate::model::block::{Rows, Stack};
use crate::model::weights::matrix;
use crate::ops::{self, Compute, Matrix, ScratchVec};

/// The global transformer's weights.
#[derive(Debug)]
pub struct Global {
    pub(crate) input_projection: Option<Matrix>, // (dim, k * local dim)
    /// The layers.
    pub layers: Stack,
}

impl Global {
    /// Takes the tensors `global.*`.
    pub fn load(checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        let input_projection = (config.has_global_projection())
            .then(|| {
                let (rows, cols) = (config.global.dim, config.patch_dim());
                matrix(checkpoint, "global.input_projection", rows, cols)
            })
            .transpose()?;
        Ok(Global {
            input_projection,
            layers: Stack::load(checkpoint, "global", &config.global)?,
        })
    }

    /// Outputs (n, dim) for patch vectors x (n, k * local dim).
    pub fn forward<'c>(
        &self,
        compute: &'c Compute,
        rows: &Rows<'_>,
        caches: &mut [&mut KvCache],
        mut x: ScratchVec<'c, f32>,
    ) -> ScratchVec<'c, f32> {
        if let Some(projection) = &self.input_projection {
            let mut y = compute.buffer(x.len() / projection.cols() * projection.rows());
            ops::linear(compute, projection, &x, &mut y);
            x = y;
        }
        for layer in 0..self.layers.n_layers() {
            self.layers
                .forward_layer(compute, layer, rows, caches, &mut x);
        }
        x
    }
}
