//! The mLSTM cell and the kernels around it: every path against the scalar definition, bit for bit, and the definition
//! against the formulas in f64.

mod common;

use blt_kernels::*;
use common::*;

/// The portable path rounds each product, and a state accumulates that: values here are below 10.
const PORTABLE_TOLERANCE: f32 = 1e-3;

/// The definition's own rounding over [`STEPS`] steps, for values below 10.
const F64_TOLERANCE: f64 = 1e-4;

const STEPS: usize = 9;

/// (key_dim, value_dim): around the vector widths, and the released models' (64, 128) and (128, 256).
const SHAPES: [(usize, usize); 9] = [
    (1, 1),
    (5, 10),
    (8, 16),
    (16, 33),
    (17, 47),
    (20, 79),
    (64, 128),
    (128, 256),
    (3, 272),
];

struct Inputs {
    gates: Vec<MlstmGates>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Gates far beyond the cap on both sides are among them.
fn inputs(key_dim: usize, value_dim: usize, seed: u64) -> Inputs {
    let gate = |x: f32| {
        if seed.is_multiple_of(2) {
            4.0 * x
        } else {
            40.0 * x
        }
    };
    let gates = noise(2 * STEPS, seed + 3);
    Inputs {
        gates: (gates.chunks(2))
            .map(|g| MlstmGates {
                input: gate(g[0]),
                forget: gate(g[1]) + 2.0,
            })
            .collect(),
        q: noise(STEPS * key_dim, seed),
        k: noise(STEPS * key_dim, seed + 1),
        v: noise(STEPS * value_dim, seed + 2),
    }
}

/// Outputs of all steps, then the state.
fn run(isa: Isa, key_dim: usize, value_dim: usize, inputs: &Inputs) -> Vec<f32> {
    let (mut memory, mut normalizer, mut max) =
        (vec![0.0; key_dim * value_dim], vec![0.0; key_dim], 0.0);
    let mut all = Vec::new();
    for t in 0..STEPS {
        let head = MlstmHead {
            memory: &mut memory,
            normalizer: &mut normalizer,
            max: &mut max,
        };
        let mut out = vec![f32::NAN; value_dim];
        let (keys, values) = (
            t * key_dim..(t + 1) * key_dim,
            t * value_dim..(t + 1) * value_dim,
        );
        let (q, k, v) = (&inputs.q[keys.clone()], &inputs.k[keys], &inputs.v[values]);
        mlstm_step(isa, head, inputs.gates[t], q, k, v, &mut out);
        all.extend(out);
    }
    all.extend(memory);
    all.extend(normalizer);
    all.push(max);
    all
}

/// The formulas without the scale `m`, which then is `exp(m)` in the two constants: outputs of all steps.
fn definition(key_dim: usize, value_dim: usize, inputs: &Inputs) -> Vec<f64> {
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| x.into()).collect() };
    let (q, k, v) = (wide(&inputs.q), wide(&inputs.k), wide(&inputs.v));
    let (mut memory, mut normalizer, mut m) =
        (vec![0.0; key_dim * value_dim], vec![0.0; key_dim], 0.0f64);
    let mut all = Vec::new();
    for (t, gates) in inputs.gates.iter().enumerate() {
        let cap = |x: f32| 15.0 * (f64::from(x) / 15.0).tanh();
        let (i, f) = (cap(gates.input), 1.0 / (1.0 + (-cap(gates.forget)).exp()));
        m = (f.ln() + m).max(i);
        let scale = 1.0 / (key_dim as f64).sqrt();
        let mut out = vec![0.0; value_dim];
        let mut reach = 0.0;
        for r in 0..key_dim {
            let (q, k) = (scale * q[t * key_dim + r], i.exp() * k[t * key_dim + r]);
            normalizer[r] = f * normalizer[r] + k;
            reach += q * normalizer[r];
            for c in 0..value_dim {
                let cell = &mut memory[r * value_dim + c];
                *cell = f * *cell + k * v[t * value_dim + c];
                out[c] += q * *cell;
            }
        }
        let denominator = reach.abs().max(1.0) + 1e-6 * m.exp();
        all.extend(out.iter().map(|x| x / denominator));
    }
    all
}

#[test]
fn every_path_agrees_with_the_scalar_cell() {
    for (key_dim, value_dim) in SHAPES {
        for seed in 0..4 {
            let inputs = inputs(key_dim, value_dim, seed);
            let want = run(Isa::Scalar, key_dim, value_dim, &inputs);
            for isa in Isa::available() {
                let got = run(isa, key_dim, value_dim, &inputs);
                let what = format!("{}, ({key_dim}, {value_dim}), seed {seed}", isa.name());
                if isa == Isa::Portable {
                    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                        let bound = PORTABLE_TOLERANCE * want.abs().max(1.0);
                        assert!((got - want).abs() <= bound, "{what}: [{i}] {got} {want}");
                    }
                } else {
                    assert_eq!(bits(&got), bits(&want), "{what}");
                }
            }
        }
    }
}

#[test]
fn the_scalar_cell_computes_the_formulas() {
    for (key_dim, value_dim) in SHAPES {
        for seed in 0..4 {
            let inputs = inputs(key_dim, value_dim, seed);
            let got = run(Isa::Scalar, key_dim, value_dim, &inputs);
            let want = definition(key_dim, value_dim, &inputs);
            for (i, (&got, want)) in got.iter().zip(&want).enumerate() {
                assert!(
                    (f64::from(got) - want).abs() <= F64_TOLERANCE * want.abs().max(1.0),
                    "({key_dim}, {value_dim}), seed {seed}: [{i}] is {got}, the formulas give {want}"
                );
            }
        }
    }
}

#[test]
fn gated_norms_agree_on_every_path_and_with_the_formula() {
    for n in (1..=67).chain([79, 80, 128, 256, 1000]) {
        let (x, weight, gate) = (noise(n, 1), noise(n, 2), noise(n, 3));
        let gate: Vec<f32> = gate.iter().map(|z| 20.0 * z).collect();
        let run = |isa| {
            let mut x = x.clone();
            gated_norm(isa, &mut x, &weight, &gate, 1e-6);
            x
        };
        let want = run(Isa::Scalar);
        let wide: Vec<f64> = x.iter().map(|&x| x.into()).collect();
        let mean = wide.iter().sum::<f64>() / n as f64;
        let var = wide.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        for (i, &got) in want.iter().enumerate() {
            let normed = (wide[i] - mean) / (var + 1e-6).sqrt() * f64::from(weight[i]);
            let formula = normed / (1.0 + f64::from(-gate[i]).exp());
            assert!(
                (f64::from(got) - formula).abs() < 1e-5,
                "{n}: [{i}] {got} {formula}"
            );
        }
        for isa in Isa::available() {
            let got = run(isa);
            match isa {
                Isa::Portable => {
                    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5;
                    assert!(got.iter().zip(&want).all(close), "portable, {n}");
                }
                _ => assert_eq!(bits(&got), bits(&want), "{}, {n}", isa.name()),
            }
        }
    }
}

#[test]
fn rotations_of_halves_are_those_of_interleaved_pairs() {
    for half in (0..=40).chain([64, 128]) {
        let (x, cos, sin) = (noise(2 * half, 5), noise(half, 6), noise(half, 7));
        for isa in Isa::available() {
            let mut halves = x.clone();
            rope_halves(isa, &mut halves, &cos, &sin);
            let mut pairs: Vec<f32> = (0..half).flat_map(|i| [x[i], x[half + i]]).collect();
            rope(isa, &mut pairs, &cos, &sin);
            for i in 0..half {
                let (a, b) = (
                    [halves[i], halves[half + i]],
                    [pairs[2 * i], pairs[2 * i + 1]],
                );
                assert_eq!(bits(&a), bits(&b), "{}, {half}: pair {i}", isa.name());
            }
        }
    }
}
