//! Gradients: against the reference cases (transformers' own model under autograd), and against
//! finite differences in f64, part by part.
#![cfg(feature = "train")]

mod common;

use std::path::Path;

use blt::checkpoint::{Checkpoint, Component, ModelTensor, OpenOptions, Role};
use blt::config::{
    Config, CrossAttentionConfig, DifferentialConfig, HashConfig, PatcherConfig, PatchingMode,
    TransformerConfig,
};
use blt::random::SplitMix64;
use blt::tensor::DType;
use blt::train::adamw::{AdamConfig, AdamW};
use blt::train::batch::{Batch, ByteBatch, Sequence};
use blt::train::blt::Blt;
use blt::train::byte_model::ByteModel;
use blt::train::float::Float;
use blt::train::grads::{Grad, Grads};
use blt::train::matmul::MatmulOptions;
use blt::train::ops::Dropout;
use blt::train::params::{ParamId, Params, Value};
use blt::train::pass::Pass;
use blt::vocab::{EOS, Id};

/// The reference in f32 differs from itself in f64 by 8e-7.
const LOSS_TOLERANCE: f64 = 1e-5;
/// Tolerance as a share of a tensor's largest entry. The reference differs from itself by 2e-6.
const GRAD_TOLERANCE: f64 = 2e-5;
/// Parameters after 20 steps. The reference differs from itself by 4.5e-5.
const PARAM_TOLERANCE: f64 = 5e-4;

fn pass<F>(params: &Params<F>) -> Pass<'_, F> {
    Pass {
        params,
        options: MatmulOptions::default(),
        dropout: None,
    }
}

/// The tensors `{prefix}*` of a case under our names: what opening the case's model gives when they
/// stand in for its weights.
fn recorded(folder: &Path, prefix: &str) -> Checkpoint {
    let model = std::fs::read(folder.join("model/model.safetensors")).unwrap();
    let recorded = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let model = safetensors::SafeTensors::deserialize(&model).unwrap();
    let recorded = safetensors::SafeTensors::deserialize(&recorded).unwrap();
    let tensors: Vec<_> = (model.names().into_iter())
        .map(|name| {
            let of_case = recorded.tensor(&format!("{prefix}{name}"));
            (
                name,
                of_case.unwrap_or_else(|_| model.tensor(name).unwrap()),
            )
        })
        .collect();
    let bytes = safetensors::serialize(tensors, None).unwrap();
    let name = folder.file_name().unwrap().to_string_lossy();
    let leaf = format!(
        "blt-{name}-{}-{}",
        prefix.trim_end_matches('/'),
        std::process::id()
    );
    let copy = std::env::temp_dir().join(leaf);
    std::fs::create_dir_all(&copy).unwrap();
    std::fs::write(copy.join("model.safetensors"), bytes).unwrap();
    std::fs::copy(folder.join("model/config.json"), copy.join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(&copy, &OpenOptions::default()).unwrap();
    // The files stay mapped (on Unix) after their names are gone.
    std::fs::remove_dir_all(&copy).unwrap();
    checkpoint
}

fn params_of(checkpoint: &Checkpoint, entropy: bool) -> Params<f32> {
    let wanted = |t: &ModelTensor| (t.component == Component::Entropy) == entropy;
    Params::new(checkpoint.config(), wanted, |t| {
        let tensor = checkpoint.tensor(&t.name, &t.shape)?;
        assert_eq!(tensor.dtype(), DType::F32);
        Ok(Value::Owned(tensor.to_f32_vec()))
    })
    .unwrap()
}

/// The gradient of a tensor as one list.
fn dense<F: Float>(params: &Params<F>, grads: &Grads<F>, id: ParamId) -> Vec<F> {
    let param = params.get(id);
    match &grads.list()[id.0] {
        Grad::None => vec![F::ZERO; param.n_elements()],
        Grad::Dense(values) => values.to_vec(),
        Grad::Sparse(rows) => {
            let cols = param.shape[1];
            let mut values = vec![F::ZERO; param.n_elements()];
            for (i, &row) in rows.rows.iter().enumerate() {
                values[row as usize * cols..][..cols]
                    .copy_from_slice(&rows.values[i * cols..][..cols]);
            }
            values
        }
    }
}

fn worst_difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let differences = found
        .iter()
        .zip(expected)
        .map(|(f, e)| f64::from((f - e).abs()));
    differences.fold(0.0, f64::max)
}

/// Whether the case trains the entropy model or all the rest: it has gradients of what it trains.
fn trains_entropy(folder: &Path) -> bool {
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let recorded = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    (recorded.names().iter()).all(|name| name.contains("model.patcher."))
}

#[test]
fn grad_and_steps_are_those_of_the_reference() {
    // The repository has a case for the entropy model and one for all the rest.
    let cases = common::folders_with("adamw");
    let n_entropy = cases.iter().filter(|(f, _)| trains_entropy(f)).count();
    assert!(
        0 < n_entropy && n_entropy < cases.len(),
        "a case is missing"
    );
    let named = cases
        .into_iter()
        .map(|(folder, expected)| (folder.display().to_string(), (folder, expected)));
    common::check_all(named, |name, (folder, expected)| {
        let folder = &folder;
        let checkpoint = Checkpoint::open(&folder.join("model"), &OpenOptions::default()).unwrap();
        let config = checkpoint.config().clone();
        let starts = recorded(folder, "grad/");
        let after = recorded(folder, "after/");
        let entropy = trains_entropy(folder);
        let mut params = params_of(&checkpoint, entropy);
        for param in params.list_mut() {
            // The recorded run spared whatever has "embed" in transformers' name for it.
            param.decays &= !param.name.ends_with("_projection");
        }
        let ids: Vec<Vec<Id>> = expected["ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(common::ids)
            .collect();
        let weight = 1.0 / ids.iter().map(|row| row.len() - 1).sum::<usize>() as f64;
        let lengths = expected["patch_lengths"].as_array().unwrap();
        let sequences: Vec<Sequence> = (ids.iter().zip(lengths))
            .map(|(ids, l)| Sequence::with_lengths(ids.clone(), &common::lengths(l)))
            .collect();
        let run = |params: &Params<f32>, grads: Option<&mut Grads<f32>>| {
            let score = if entropy {
                let config = config.entropy.as_ref().unwrap();
                let batch = ByteBatch::new(config, ids.iter().map(|row| &row[..]));
                ByteModel::new(params, config).run(pass(params), &batch, weight, grads)
            } else {
                let all: Vec<&Sequence> = sequences.iter().collect();
                let batch = Batch::new(&config, &all).unwrap();
                Blt::new(params, &config).run(pass(params), &batch, weight, grads, None)
            };
            score.loss()
        };

        let mut grads = Grads::zero(&params);
        let loss = run(&params, Some(&mut grads));
        let difference = (loss - expected["loss"].as_f64().unwrap()).abs();
        assert!(
            difference < LOSS_TOLERANCE,
            "{name}: loss off by {difference:e}"
        );
        for (id, param) in params.iter() {
            let want = starts
                .tensor(&param.name, &param.shape)
                .unwrap()
                .to_f32_vec();
            let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert!(
                largest > 0.0,
                "{name}: {}: no gradient recorded",
                param.name
            );
            let worst = worst_difference(&dense(&params, &grads, id), &want) / f64::from(largest);
            assert!(
                worst < GRAD_TOLERANCE,
                "{name}: {}: gradient off by {worst:e}",
                param.name
            );
        }

        let adamw = &expected["adamw"];
        let number = |key: &str| adamw[key].as_f64().unwrap();
        let settings = AdamConfig {
            betas: (
                adamw["betas"][0].as_f64().unwrap(),
                adamw["betas"][1].as_f64().unwrap(),
            ),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
            clip: number("clip_global_norm"),
        };
        let mut optimiser = AdamW::new(settings, &params);
        let losses = common::numbers(&expected["loss_before_each_step"]);
        let norms = common::numbers(&expected["gradient_norm_before_clipping"]);
        for (step, (want_loss, want_norm)) in losses.iter().zip(&norms).enumerate() {
            let mut grads = Grads::zero(&params);
            let loss = run(&params, Some(&mut grads));
            let norm = optimiser.step(&mut params, &grads, number("lr"));
            let off = (loss - want_loss).abs();
            assert!(
                off < LOSS_TOLERANCE,
                "{name}: step {step}: loss off by {off:e}"
            );
            let off = (norm - want_norm).abs() / want_norm;
            assert!(off < 1e-3, "{name}: step {step}: norm off by {off:e}");
        }
        let off = (run(&params, None) - expected["loss_after"].as_f64().unwrap()).abs();
        assert!(off < LOSS_TOLERANCE, "{name}: last loss off by {off:e}");
        for (_, param) in params.iter() {
            let want = after
                .tensor(&param.name, &param.shape)
                .unwrap()
                .to_f32_vec();
            let worst = worst_difference(&param.value.values(), &want);
            assert!(
                worst < PARAM_TOLERANCE,
                "{name}: {}: off by {worst:e}",
                param.name
            );
        }
    });
}

fn stack(dim: usize, n_layers: usize, n_heads: usize, n_kv_heads: usize) -> TransformerConfig {
    TransformerConfig {
        dim,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim: 4,
        hidden_dim: 10,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        window: Some(5),
        eos_segments: false,
        differential: None,
        variant: None,
    }
}

fn cross(n_kv_heads: usize) -> CrossAttentionConfig {
    CrossAttentionConfig {
        n_heads: 2,
        n_kv_heads,
        head_dim: 4,
        norm_eps: 1e-5,
        all_layers: true,
        window: None,
        pool_each_layer: true,
    }
}

/// A model small enough that every parameter can be moved.
fn tiny() -> Config {
    let config = Config {
        entropy: Some(stack(8, 2, 2, 1)),
        encoder: stack(8, 1, 2, 1),
        encoder_cross: cross(1),
        global: TransformerConfig {
            window: None,
            ..stack(12, 1, 3, 1)
        },
        decoder: stack(8, 2, 2, 2),
        decoder_cross: cross(2),
        cross_attn_k: 2,
        hash: HashConfig {
            group_sizes: vec![2, 3],
            vocab: 11,
            n_functions: 2,
        },
        patcher: PatcherConfig {
            mode: PatchingMode::Entropy,
            threshold: 1.0,
            threshold_add: None,
            monotonicity: false,
            max_patch_length: None,
            patch_size: 4,
        },
        bolmo: None,
        max_bytes: 512,
        max_patches: 512,
    };
    config.validate().unwrap();
    config
}

/// Weights large enough that every part matters.
fn random_params(config: &Config, entropy: bool, seed: u64) -> Params<f64> {
    let wanted = |t: &ModelTensor| (t.component == Component::Entropy) == entropy;
    Params::new(config, wanted, |t| {
        let mut rng = SplitMix64::named(seed, &t.name);
        let n = t.shape.iter().product();
        let mean = f64::from(u8::from(t.role == Role::Norm));
        let scale = if t.role.is_vector() { 0.2 } else { 0.5 };
        Ok(Value::Owned(
            (0..n).map(|_| mean + scale * rng.normal()).collect(),
        ))
    })
    .unwrap()
}

fn text(seed: u64, n: usize) -> Vec<Id> {
    let mut rng = SplitMix64::mixed(seed);
    (0..n)
        .map(|i| if i == 0 { 1 } else { 100 + rng.below(7) as Id })
        .collect()
}

/// Compares the gradient of every parameter with central differences: every element of small
/// tensors, some of large ones, those with a gradient first.
fn check(
    name: &str,
    params: &mut Params<f64>,
    run: impl Fn(&Params<f64>, Option<&mut Grads<f64>>) -> f64,
) {
    let mut grads = Grads::zero(params);
    run(params, Some(&mut grads));
    let mut checked = 0;
    for i in 0..params.len() {
        let id = ParamId(i);
        let param = params.get(id);
        if !param.trained {
            continue;
        }
        let (tensor, found) = (param.name.clone(), dense(params, &grads, id));
        let mut order: Vec<usize> = (0..found.len()).collect();
        order.sort_by(|&a, &b| found[b].abs().total_cmp(&found[a].abs()));
        let step = order.len().div_ceil(24);
        let some: Vec<usize> = order
            .iter()
            .copied()
            .take(12)
            .chain(order.iter().copied().step_by(step))
            .collect();
        assert!(
            found[order[0]] != 0.0,
            "{name}: {tensor}: no gradient at all"
        );
        for at in some {
            const H: f64 = 1e-5;
            let mut moved = |by: f64| {
                let Value::Owned(values) = &mut params.list_mut()[i].value else {
                    unreachable!()
                };
                let old = values[at];
                values[at] = old + by;
                let loss = run(params, None);
                let Value::Owned(values) = &mut params.list_mut()[i].value else {
                    unreachable!()
                };
                values[at] = old;
                loss
            };
            let slope = (moved(H) - moved(-H)) / (2.0 * H);
            let off = (slope - found[at]).abs() / (1e-2 + slope.abs());
            assert!(
                off < 1e-6,
                "{name}: {tensor}[{at}]: gradient {}, slope {slope}",
                found[at]
            );
            checked += 1;
        }
    }
    assert!(checked > 100, "{name}: {checked} checked");
}

#[test]
fn grad_of_the_byte_model_is_the_slope_of_its_loss() {
    for (variant, window, eos, differential) in [
        ("windows", Some(5), false, None),
        ("eos segments, all keys", None, true, None),
        ("differential", Some(5), true, Some(false)),
        ("differential with norm", None, false, Some(true)),
    ] {
        let mut config = tiny();
        let entropy = config.entropy.as_mut().unwrap();
        (entropy.window, entropy.eos_segments) = (window, eos);
        entropy.differential = differential.map(|head_norm| DifferentialConfig { head_norm });
        let entropy = entropy.clone();
        let mut rows = [text(1, 9), text(2, 14)];
        rows[1][6] = EOS;
        let batch = ByteBatch::new(&entropy, rows.iter().map(|r| &r[..]));
        let mut params = random_params(&config, true, 3);
        check(variant, &mut params, |params, grads| {
            let model = ByteModel::new(params, &entropy);
            model.run(pass(params), &batch, 1.0, grads).nats
        });
    }
}

/// Every variant of the main model, with what changes it.
fn variants() -> Vec<(&'static str, Config)> {
    let base = tiny();
    let mut list = vec![("base", base.clone())];
    let mut add = |name, change: &dyn Fn(&mut Config)| {
        let mut config = base.clone();
        change(&mut config);
        config.validate().unwrap();
        list.push((name, config));
    };
    add("no projection, no hash", &|c| {
        c.global.dim = 16;
        (c.global.n_heads, c.global.n_kv_heads) = (4, 2);
        c.hash.group_sizes.clear();
    });
    add("two encoder layers, pooled again", &|c| {
        c.encoder.n_layers = 2
    });
    add("two encoder layers, patches refined", &|c| {
        c.encoder.n_layers = 2;
        c.encoder_cross.pool_each_layer = false;
    });
    add("one cross-attention each", &|c| {
        c.encoder.n_layers = 2;
        c.encoder_cross.all_layers = false;
        c.decoder_cross.all_layers = false;
    });
    add("cross windows", &|c| {
        c.encoder_cross.window = Some(2);
        c.decoder_cross.window = Some(3);
    });
    add("differential encoder", &|c| {
        c.encoder.differential = Some(DifferentialConfig { head_norm: true });
    });
    add("differential global transformer", &|c| {
        c.global.differential = Some(DifferentialConfig { head_norm: true });
    });
    add("differential decoder", &|c| {
        c.decoder.differential = Some(DifferentialConfig { head_norm: false });
    });
    add("eos segments", &|c| {
        for stack in [&mut c.encoder, &mut c.decoder, &mut c.global] {
            stack.eos_segments = true;
        }
    });
    list
}

fn sequences() -> [Sequence; 2] {
    let mut second = text(5, 18);
    second[8] = EOS;
    [
        Sequence::with_lengths(text(4, 11), &[1, 3, 1, 2, 4]),
        Sequence::with_lengths(second, &[1, 2, 4, 5, 1, 5, 0]),
    ]
}

#[test]
fn grad_of_the_main_model_is_the_slope_of_its_loss() {
    let sequences = sequences();
    let all: Vec<&Sequence> = sequences.iter().collect();
    for (variant, config) in variants() {
        let batch = Batch::new(&config, &all).unwrap();
        let mut params = random_params(&config, false, 7);
        // Where a layer pools again, only the last one's cross-attention is read.
        let unread = config.encoder_cross.all_layers && config.encoder_cross.pool_each_layer;
        for param in params.list_mut() {
            if unread && config.encoder.n_layers > 1 && param.name.starts_with("encoder.cross.0") {
                param.trained = false;
            }
        }
        check(variant, &mut params, |params, grads| {
            let model = Blt::new(params, &config);
            model.run(pass(params), &batch, 1.0, grads, None).nats
        });
    }
}

#[test]
fn grad_goes_through_dropout_ties_and_adapters() {
    let sequences = sequences();
    let all: Vec<&Sequence> = sequences.iter().collect();
    let config = tiny();
    let batch = Batch::new(&config, &all).unwrap();
    let run = |params: &Params<f64>, grads: Option<&mut Grads<f64>>, p: f64, hash: f64| {
        let pass = Pass {
            dropout: Some(Dropout { p, hash, seed: 5 }),
            ..pass(params)
        };
        Blt::new(params, &config)
            .run(pass, &batch, 1.0, grads, None)
            .nats
    };
    let mut params = random_params(&config, false, 7);
    let plain = run(&params, None, 0.0, 0.0);
    for (variant, p, hash) in [("dropout", 0.2, 0.0), ("n-gram dropout", 0.0, 0.4)] {
        assert_ne!(plain, run(&params, None, p, hash), "{variant}");
        check(variant, &mut params, |params, grads| {
            run(params, grads, p, hash)
        });
    }

    params.tie_embeddings();
    check("tied", &mut params, |params, grads| {
        run(params, grads, 0.0, 0.0)
    });

    let mut params = random_params(&config, false, 7);
    let targets = ["wq", "w2", "output", "patch_projection"].map(String::from);
    params.add_adapters(2, 4.0, &targets, 1).unwrap();
    assert!(
        (run(&params, None, 0.0, 0.0) - plain).abs() < 1e-9,
        "an adapter begins as nothing"
    );
    for param in params.list_mut() {
        if let (true, Value::Owned(values)) = (param.name.ends_with(".lora_b"), &mut param.value) {
            let mut rng = SplitMix64::named(1, &param.name);
            values.iter_mut().for_each(|v| *v = 0.3 * rng.normal());
        }
    }
    check("adapters", &mut params, |params, grads| {
        run(params, grads, 0.0, 0.0)
    });

    // Merged, they give the same loss.
    let merged = Params::new(
        &config,
        |t| t.component != Component::Entropy,
        |t| Ok(Value::Owned(params.saved_values(&t.name).unwrap().to_vec())),
    )
    .unwrap();
    let (apart, merged) = (run(&params, None, 0.0, 0.0), run(&merged, None, 0.0, 0.0));
    assert!(
        (apart - merged).abs() < 1e-9,
        "{apart} apart, {merged} merged"
    );
}

#[test]
fn grad_of_a_prediction_with_respect_to_later_bytes_is_exactly_zero() {
    for (variant, config) in variants() {
        let whole = &sequences()[1];
        let params = random_params(&config, false, 7);
        let model = Blt::new(&params, &config);
        for end in 2..whole.ids.len() {
            // Only position end - 2 has a target that counts: the loss of the first `end` ids
            // less that of the first `end - 1`, as gradients.
            let of = |end: usize| {
                let sequence = Sequence {
                    ids: whole.ids.clone(),
                    starts: whole.starts.clone(),
                };
                let mut batch = Batch::new(&config, &[&sequence]).unwrap();
                batch.n_counted = end - 1;
                let mut grads = Grads::zero(&params);
                let mut d = Vec::new();
                model.run(pass(&params), &batch, 1.0, Some(&mut grads), Some(&mut d));
                d
            };
            let d = of(end);
            let dim = config.encoder.dim;
            assert!(
                d[..(end - 1) * dim].iter().any(|&v| v != 0.0),
                "{variant}: {end}"
            );
            assert!(
                d[(end - 1) * dim..].iter().all(|&v| v == 0.0),
                "{variant}: {end}"
            );
        }
    }
}
