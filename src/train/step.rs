//! One optimiser step or validation: sequences split over threads.
//!
//! Sequences are assigned to a fixed number of shards by length, shards run on the available threads, and their
//! gradients are added in order. So the result depends on the number of shards, not on the number of threads.

use rayon::prelude::*;

use super::batch::{Batch, ByteBatch, Sequence};
use super::blt::Blt;
use super::byte_model::ByteModel;
use super::grads::Grads;
use super::matmul::{MatmulOptions, Precision};
use super::ops::{Dropout, Score};
use super::params::Params;
use super::pass::Pass;
use crate::config::Config;
use crate::error::Result;
use crate::model::patcher::Patcher;
use crate::random::mix;
use crate::vocab::Id;

/// Which of the two networks is trained.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // there is one of it
pub enum Network {
    /// The entropy model.
    Bytes(ByteModel),
    /// All the rest.
    Patches(Blt),
}

/// Positions that a shard computes at once. More would move more memory, fewer would make the
/// matrix products too small.
const CHUNK: usize = 2048;

/// Shares `sequences` out: the longest first, each to the shard that has least.
fn shards(sequences: &[Sequence], n_shards: usize) -> Vec<Vec<&Sequence>> {
    let mut order: Vec<&Sequence> = sequences.iter().collect();
    order.sort_by_key(|s| std::cmp::Reverse(s.n()));
    let mut shards = vec![(0, Vec::new()); n_shards.max(1)];
    for sequence in order {
        let least = (0..shards.len()).min_by_key(|&i| shards[i].0).unwrap_or(0);
        shards[least].0 += sequence.n();
        shards[least].1.push(sequence);
    }
    shards.into_iter().map(|(_, s)| s).collect()
}

/// Runs of sequences of about [`CHUNK`] positions.
fn chunks<'b, T: ?Sized>(all: &'b [&T], n_positions: impl Fn(&T) -> usize) -> Vec<&'b [&'b T]> {
    let (mut chunks, mut first, mut n) = (Vec::new(), 0, 0);
    for (i, one) in all.iter().enumerate() {
        let more = n_positions(one);
        if n > 0 && n + more > CHUNK {
            chunks.push(&all[first..i]);
            (first, n) = (i, 0);
        }
        n += more;
    }
    if first < all.len() {
        chunks.push(&all[first..]);
    }
    chunks
}

impl Network {
    fn run(
        &self,
        config: &Config,
        pass: Pass<'_, f32>,
        sequences: &[&Sequence],
        weight: f64,
        grads: Option<&mut Grads<f32>>,
    ) -> Result<Score> {
        match self {
            Network::Bytes(model) => {
                let entropy = config.entropy.as_ref().expect("an entropy model");
                let batch = ByteBatch::new(entropy, sequences.iter().map(|s| &s.ids[..]));
                Ok(model.run(pass, &batch, weight, grads))
            }
            Network::Patches(model) => {
                let batch = Batch::new(config, sequences)?;
                Ok(model.run(pass, &batch, weight, grads, None))
            }
        }
    }

    /// Loss, and the gradients of the sum over all positions of all `sequences`, divided by `n_positions`: those
    /// of the whole step, of which `sequences` may be a part.
    ///
    /// # Errors
    /// Same as [`Batch::new`].
    #[allow(clippy::too_many_arguments)]
    pub fn gradients(
        &self,
        config: &Config,
        params: &Params<f32>,
        sequences: &[Sequence],
        n_shards: usize,
        precision: Precision,
        n_positions: usize,
        dropout: Option<Dropout>,
    ) -> Result<(Score, Grads<f32>)> {
        let weight = 1.0 / n_positions as f64;
        let options = MatmulOptions {
            threads: rayon::current_num_threads() / n_shards.max(1),
            precision,
        };
        let of_shard = |(number, shard): (usize, Vec<&Sequence>)| {
            let mut grads = Grads::zero(params);
            let mut score = Score::default();
            for (c, chunk) in chunks(&shard, Sequence::n).into_iter().enumerate() {
                let dropout = dropout.map(|d| Dropout {
                    seed: mix(d.seed ^ mix((number as u64) << 32 | c as u64)),
                    ..d
                });
                let pass = Pass {
                    params,
                    options,
                    dropout,
                };
                score.add(&self.run(config, pass, chunk, weight, Some(&mut grads))?);
            }
            Ok((score, grads))
        };
        let shards: Vec<_> = shards(sequences, n_shards)
            .into_iter()
            .enumerate()
            .collect();
        let parts: Vec<Result<(Score, Grads<f32>)>> =
            shards.into_par_iter().map(of_shard).collect();
        let mut sum = Score::default();
        let mut grads: Option<Grads<f32>> = None;
        for part in parts {
            let (score, of_part) = part?;
            sum.add(&score);
            match &mut grads {
                Some(grads) => grads.add(of_part, params),
                None => grads = Some(of_part),
            }
        }
        Ok((sum, grads.unwrap_or_else(|| Grads::zero(params))))
    }

    /// The loss alone, without dropout.
    ///
    /// # Errors
    /// Same as [`Batch::new`].
    pub fn score(
        &self,
        config: &Config,
        params: &Params<f32>,
        sequences: &[Sequence],
    ) -> Result<Score> {
        let all: Vec<&Sequence> = sequences.iter().collect();
        let parts: Vec<Result<Score>> = (chunks(&all, Sequence::n).into_par_iter())
            .map(|chunk| self.run(config, plain(params), chunk, 1.0, None))
            .collect();
        let mut sum = Score::default();
        for part in parts {
            sum.add(&part?);
        }
        Ok(sum)
    }
}

fn plain(params: &Params<f32>) -> Pass<'_, f32> {
    Pass {
        params,
        options: MatmulOptions::default(),
        dropout: None,
    }
}

/// Entropies in nats after each position of each text.
pub fn entropies(
    model: &ByteModel,
    config: &Config,
    params: &Params<f32>,
    texts: &[Vec<Id>],
) -> Vec<Vec<f32>> {
    let config = config.entropy.as_ref().expect("an entropy model");
    let n = |ids: &[Id]| ids.len() - 1;
    let texts: Vec<&[Id]> = texts.iter().map(|ids| &ids[..]).collect();
    let of_chunk = |chunk: &[&[Id]]| -> Vec<Vec<f32>> {
        let batch = ByteBatch::new(config, chunk.iter().copied());
        let all = model.entropies(plain(params), &batch);
        let mut rest = &all[..];
        let of_text = |ids: &&[Id]| rest.split_off(..n(ids)).expect("one a position").to_vec();
        chunk.iter().map(of_text).collect()
    };
    let parts: Vec<_> = (chunks(&texts, n).into_par_iter()).map(of_chunk).collect();
    parts.into_iter().flatten().collect()
}

/// Cuts a text into patches as inference does. `entropies` is empty if the patcher needs none.
///
/// # Errors
/// Same as [`Patcher::new`].
pub fn cut(config: &Config, ids: Vec<Id>, entropies: &[f32]) -> Result<Sequence> {
    let mut patcher = Patcher::new(&config.patcher)?;
    let mut starts = vec![0];
    for (i, &id) in ids[..ids.len() - 1].iter().enumerate() {
        let entropy = entropies.get(i).copied().unwrap_or(f32::NAN);
        if patcher.push(id, entropy) {
            starts.push(i + 1);
        }
    }
    Ok(Sequence { ids, starts })
}
