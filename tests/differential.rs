//! Differential attention: inference and training against a slow reference in f64, and against each
//! other.

mod common;

use blt::checkpoint::{Checkpoint, Component, ModelTensor};
use blt::config::TransformerConfig;
use blt::ops::Compute;
use blt::tensor::Tensor;
use blt::vocab::{Id, VOCAB_SIZE};
use blt::{Model, SessionOptions};

/// Tolerance of entropies in nats, computed in f32. The worst seen is 2e-6.
const ENTROPY_TOLERANCE: f64 = 1e-5;

/// A row of activations.
type Row = Vec<f64>;

/// The entropy model as the formulas have it: loops over everything, nothing kept.
struct Reference<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a TransformerConfig,
}

impl Reference<'_> {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Vec<Row> {
        let tensor = self
            .checkpoint
            .tensor(&format!("entropy.{name}"), &[rows, cols]);
        let values = tensor.unwrap().to_f32_vec();
        let row = |r: &[f32]| r.iter().map(|&v| v.into()).collect();
        values.chunks(cols).map(row).collect()
    }

    fn vector(&self, name: &str, n: usize) -> Row {
        let tensor = self.checkpoint.tensor(&format!("entropy.{name}"), &[n]);
        let values = tensor.unwrap().to_f32_vec();
        values.into_iter().map(f64::from).collect()
    }

    fn norm(&self, x: &[f64], gain: &[f64]) -> Row {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let root = (mean + f64::from(self.config.norm_eps)).sqrt();
        x.iter().zip(gain).map(|(v, g)| v / root * g).collect()
    }

    /// Half a head, turned by its position. Angles are rounded as everywhere in the engine.
    fn turned(&self, half: &[f64], position: usize) -> Row {
        let d = half.len();
        let mut out = half.to_vec();
        for j in 0..d / 2 {
            let exponent = (2 * j) as f32 / d as f32;
            let freq = 1.0 / f64::from(self.config.rope_theta).powf(exponent.into()) as f32;
            let (sin, cos) = f64::from(position as f32 * freq).sin_cos();
            let (sin, cos) = (f64::from(sin as f32), f64::from(cos as f32));
            out[2 * j] = half[2 * j] * cos - half[2 * j + 1] * sin;
            out[2 * j + 1] = half[2 * j] * sin + half[2 * j + 1] * cos;
        }
        out
    }

    /// What row `i` puts into `wo`, from the rows before `wq`, `wk` and `wv`.
    fn attention(&self, layer: usize, a: &[Row], i: usize) -> Row {
        let c = self.config;
        let (width, d) = (c.head_dim, c.head_dim / 2);
        let at = |name: &str| format!("layers.{layer}.{name}");
        let wq = self.matrix(&at("wq"), c.n_heads * width, c.dim);
        let wk = self.matrix(&at("wk"), c.n_kv_heads * width, c.dim);
        let wv = self.matrix(&at("wv"), c.n_kv_heads * width, c.dim);
        let lambda_init = 0.8 - 0.6 * (-0.3 * layer as f64).exp();
        let product = |q: &str, k: &str| dot(&self.vector(&at(q), d), &self.vector(&at(k), d));
        let lambda = product("lambda_q1", "lambda_k1").exp()
            - product("lambda_q2", "lambda_k2").exp()
            + lambda_init;
        let first = (i + 1).saturating_sub(c.window.unwrap_or(i + 1));
        let mut out = Vec::new();
        for head in 0..c.n_heads {
            let kv_head = head / (c.n_heads / c.n_kv_heads);
            let share = |half: usize| {
                let q = apply(&wq[head * width + half * d..][..d], &a[i]);
                let q = self.turned(&q, i);
                let scores = (first..=i).map(|j| {
                    let k = apply(&wk[kv_head * width + half * d..][..d], &a[j]);
                    dot(&q, &self.turned(&k, j)) / (d as f64).sqrt()
                });
                softmax(&scores.collect::<Row>())
            };
            let (p1, p2) = (share(0), share(1));
            let mut o = vec![0.0; width];
            for (j, (p1, p2)) in (first..=i).zip(p1.iter().zip(&p2)) {
                let v = apply(&wv[kv_head * width..][..width], &a[j]);
                for (o, v) in o.iter_mut().zip(v) {
                    *o += (p1 - lambda * p2) * v;
                }
            }
            if c.differential.as_ref().unwrap().head_norm {
                o = self.norm(&o, &self.vector(&at("head_norm"), width));
            }
            out.extend(o.iter().map(|o| (1.0 - lambda_init) * o));
        }
        out
    }

    /// Distributions of the id after each of `ids`.
    fn forward(&self, ids: &[Id]) -> Vec<Row> {
        let c = self.config;
        let table = self.matrix("tok_embeddings", VOCAB_SIZE, c.dim);
        let mut x: Vec<Row> = ids
            .iter()
            .map(|&id| table[usize::from(id)].clone())
            .collect();
        for layer in 0..c.n_layers {
            let at = |name: &str| format!("layers.{layer}.{name}");
            let gain = self.vector(&at("attention_norm"), c.dim);
            let a: Vec<Row> = x.iter().map(|x| self.norm(x, &gain)).collect();
            let wo = self.matrix(&at("wo"), c.dim, c.n_heads * c.head_dim);
            for (i, x) in x.iter_mut().enumerate() {
                add(x, &apply(&wo, &self.attention(layer, &a, i)));
            }
            let gain = self.vector(&at("ffn_norm"), c.dim);
            let w1 = self.matrix(&at("w1"), c.hidden_dim, c.dim);
            let w2 = self.matrix(&at("w2"), c.dim, c.hidden_dim);
            let w3 = self.matrix(&at("w3"), c.hidden_dim, c.dim);
            for x in &mut x {
                let f = self.norm(x, &gain);
                let gated = apply(&w1, &f).into_iter().zip(apply(&w3, &f));
                let h: Row = gated.map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(x, &apply(&w2, &h));
            }
        }
        let (gain, output) = (
            self.vector("norm", c.dim),
            self.matrix("output", VOCAB_SIZE, c.dim),
        );
        let logits = |x: &Row| softmax(&apply(&output, &self.norm(x, &gain)));
        x.iter().map(logits).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn apply(matrix: &[Row], x: &[f64]) -> Row {
    matrix.iter().map(|row| dot(row, x)).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn softmax(scores: &[f64]) -> Row {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Row = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// BOS and a few words, longer than the window of 24.
fn ids() -> Vec<Id> {
    blt::vocab::encode(b"The difference of two maps, and of two more", true)
}

/// The reference distributions with and without the head-wise norm.
fn cases() -> Vec<(Checkpoint, Vec<Row>)> {
    let case = |head_norm| {
        let checkpoint = common::differential([head_norm; 4]);
        let reference = Reference {
            checkpoint: &checkpoint,
            config: checkpoint.config().entropy.as_ref().unwrap(),
        };
        let distributions = reference.forward(&ids());
        (checkpoint, distributions)
    };
    [false, true].map(case).into()
}

#[test]
fn inference_gives_the_entropies_of_the_reference() {
    for (checkpoint, distributions) in cases() {
        let mut session = common::session(&common::model(&checkpoint), SessionOptions::default());
        session.feed_ids(&ids()).unwrap();
        let mut worst = 0.0f64;
        for (found, p) in session.entropies().iter().zip(&distributions) {
            let expected: f64 = p.iter().map(|p| -p * p.ln()).sum();
            worst = worst.max((f64::from(*found) - expected).abs());
        }
        assert!(worst < ENTROPY_TOLERANCE, "entropies off by {worst:e}");
    }
}

#[test]
fn vectors_that_give_no_finite_lambda_are_refused() {
    let good = common::differential([true; 4]);
    let tensors = good.tensors().map(|(name, tensor)| {
        let huge = ["decoder.layers.1.lambda_q1", "decoder.layers.1.lambda_k1"];
        let tensor = match huge.contains(&name) {
            true => {
                Tensor::from_f32(tensor.shape().to_vec(), vec![1e4; tensor.n_elements()]).unwrap()
            }
            false => tensor.clone(),
        };
        (name.to_string(), tensor)
    });
    let bad = common::native(good.config(), tensors.collect());
    let message = Model::load(&bad, Compute::new(Some(1), None).unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("decoder.layers.1.lambda_q1") && message.contains("found inf"),
        "{message}"
    );
}

#[cfg(feature = "train")]
mod training {
    use super::*;
    use blt::train::batch::{Batch, ByteBatch, Sequence};
    use blt::train::blt::Blt;
    use blt::train::byte_model::ByteModel;
    use blt::train::matmul::MatmulOptions;
    use blt::train::params::{Params, Value};
    use blt::train::pass::Pass;

    /// Tolerance of a loss in nats, computed in f64.
    const LOSS_TOLERANCE: f64 = 1e-9;
    /// Tolerance of a byte's loss in nats, f32 in inference and f64 in training. The worst seen is 6e-6.
    const AGREEMENT: f64 = 2e-5;

    fn params(checkpoint: &Checkpoint, entropy: bool) -> Params<f64> {
        let wanted = |t: &ModelTensor| (t.component == Component::Entropy) == entropy;
        Params::new(checkpoint.config(), wanted, |t| {
            let values = checkpoint.tensor(&t.name, &t.shape)?.to_f32_vec();
            Ok(Value::Owned(values.into_iter().map(f64::from).collect()))
        })
        .unwrap()
    }

    fn pass(params: &Params<f64>) -> Pass<'_, f64> {
        Pass {
            params,
            options: MatmulOptions::default(),
            dropout: None,
        }
    }

    #[test]
    fn training_gives_the_loss_of_the_reference() {
        let ids = ids();
        for (checkpoint, distributions) in cases() {
            let config = checkpoint.config().entropy.as_ref().unwrap();
            let params = params(&checkpoint, true);
            let batch = ByteBatch::new(config, [&ids[..]]);
            let model = ByteModel::new(&params, config);
            let found = model.run(pass(&params), &batch, 1.0, None).nats;
            let of = |(p, &id): (&Row, &Id)| -p[usize::from(id)].ln();
            let expected: f64 = distributions.iter().zip(&ids[1..]).map(of).sum();
            let off = (found - expected).abs();
            assert!(off < LOSS_TOLERANCE, "loss off by {off:e}");
        }
    }

    #[test]
    fn inference_and_training_agree_on_every_byte() {
        let ids = ids();
        for head_norm in [false, true] {
            let checkpoint = common::differential([head_norm; 4]);
            let model = common::model(&checkpoint);
            let mut session = common::session(&model, SessionOptions::default());
            let mut logits = Vec::new();
            common::feed(&mut session, &ids, &mut logits);
            let starts = session.patch_starts().iter().copied();
            let sequence = Sequence {
                starts: starts.filter(|&start| start < ids.len()).collect(),
                ids: ids.clone(),
            };
            assert!(sequence.starts.len() > 5, "{:?}", sequence.starts);

            let params = params(&checkpoint, false);
            let model = Blt::new(&params, checkpoint.config());
            let mut batch = Batch::new(checkpoint.config(), &[&sequence]).unwrap();
            let losses: Vec<f64> = (0..ids.len())
                .map(|n| {
                    batch.n_counted = n;
                    model.run(pass(&params), &batch, 1.0, None, None).nats
                })
                .collect();
            let mut worst = 0.0f64;
            for (i, logits) in logits.chunks(VOCAB_SIZE).take(ids.len() - 1).enumerate() {
                let p = softmax(&logits.iter().map(|&l| l.into()).collect::<Row>());
                let expected = -p[usize::from(ids[i + 1])].ln();
                worst = worst.max((losses[i + 1] - losses[i] - expected).abs());
            }
            assert!(worst < AGREEMENT, "losses off by {worst:e}");
        }
    }
}
