//! The local encoder: bytes with the subwords that end there in, byte states and patch vectors out.

use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::config::{BolmoConfig, Config};
use crate::error::Result;
use crate::model::mlstm::MlstmStack;
use crate::model::weights::{matrix, table, vector};
use crate::ops::{self, Compute, Matrix, ScratchVec};
use crate::recurrence::Recurrence;
use crate::subwords::SubwordTable;
use crate::vocab::Id;

/// The local encoder's weights.
#[derive(Debug)]
pub struct Encoder {
    tok_embeddings: Matrix, // (2 * vocab, dim); the second half is never an input
    subwords: Option<Subwords>,
    /// The layers.
    pub layers: MlstmStack,
    norm: Vec<f32>, // (dim)
    norm_eps: f32,
    patch_projection: Matrix, // (dim, dim)
    patch_bias: Vec<f32>,     // (dim)
}

/// Subwords and their embeddings.
#[derive(Debug)]
struct Subwords {
    table: Arc<SubwordTable>,
    embeddings: Matrix, // (subword rows, dim)
}

impl Encoder {
    /// Takes the tensors `encoder.*`, the boundary predictor's apart.
    pub fn load(checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        let dim = config.encoder.dim;
        let bolmo = bolmo(config);
        let subwords = match &bolmo.subwords {
            None => None,
            Some(subwords) => {
                let embeddings = table(
                    checkpoint,
                    "encoder.subword_embeddings",
                    subwords.n_rows,
                    dim,
                )?;
                // A row is read for each byte, far from the last.
                embeddings.tensor().advise_random();
                Some(Subwords {
                    table: Arc::clone(&subwords.table),
                    embeddings,
                })
            }
        };
        Ok(Encoder {
            tok_embeddings: table(checkpoint, "encoder.tok_embeddings", config.n_logits(), dim)?,
            subwords,
            layers: MlstmStack::load(checkpoint, "encoder", &config.encoder)?,
            norm: vector(checkpoint, "encoder.norm", dim)?,
            norm_eps: bolmo.join_norm_eps,
            patch_projection: matrix(checkpoint, "encoder.patch_projection", dim, dim)?,
            patch_bias: vector(checkpoint, "encoder.patch_bias", dim)?,
        })
    }

    /// Width of a byte's state.
    pub fn dim(&self) -> usize {
        self.norm.len()
    }

    /// The row of the subword that ends the text `ids`; `None` if the model has no subwords, or none for a special id.
    pub fn subword(&self, ids: &[Id]) -> Option<u32> {
        self.subwords.as_ref()?.table.lookup(ids)
    }

    /// Whether `id` can be read at all.
    pub fn can_read(&self, id: Id) -> bool {
        usize::from(id) < crate::vocab::VOCAB_SIZE
            && id != crate::vocab::BPE
            && (self.subwords.is_none() || self.subword(&[id]).is_some())
    }

    /// Adds to `x` the embeddings (n, dim) of the ids from position `first` on; `ids` is the text from its start.
    pub fn embed(&self, compute: &Compute, ids: &[Id], first: usize, x: &mut ScratchVec<'_, f32>) {
        for position in first..ids.len() {
            let start = x.len();
            x.extend(std::iter::repeat_n(0.0, self.dim()));
            let row = &mut x[start..];
            ops::add_table_row(compute, &self.tok_embeddings, ids[position].into(), row);
            if let Some(subwords) = &self.subwords {
                let oldest = (position + 1).saturating_sub(subwords.table.longest());
                let subword = subwords.table.lookup(&ids[oldest..=position]);
                let subword = subword.expect("ids without a subword are refused");
                ops::add_table_row(compute, &subwords.embeddings, subword as usize, row);
            }
        }
    }

    /// Runs the layers on embeddings x (n, dim): the byte states (n, dim).
    pub fn forward<'c>(
        &self,
        compute: &'c Compute,
        runs: &mut [(usize, &mut Recurrence)],
        mut x: ScratchVec<'c, f32>,
    ) -> ScratchVec<'c, f32> {
        self.layers.forward(compute, runs, &mut x);
        let mut states = compute.buffer(x.len());
        ops::rms_norm(compute, &x, &self.norm, self.norm_eps, &mut states);
        states
    }

    /// Patch vectors (n, dim) from the states of their last bytes (n, dim).
    pub fn patches<'c>(&self, compute: &'c Compute, states: &[f32]) -> ScratchVec<'c, f32> {
        let mut patches = compute.buffer(states.len());
        ops::linear_with_bias(
            compute,
            &self.patch_projection,
            &self.patch_bias,
            states,
            &mut patches,
        );
        patches
    }
}

/// The part of a Bolmo model's configuration that others lack.
pub(super) fn bolmo(config: &Config) -> &BolmoConfig {
    config
        .bolmo
        .as_ref()
        .expect("the configuration of a Bolmo model")
}
