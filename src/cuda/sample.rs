//! The choice of an id by its logits: sample.cu.

use super::ops::{Ops, ROW_THREADS, Slice, u32_arg};
use crate::error::Result;
use crate::model::sequence::IdChoice;

/// Most logits of a row that are sampled from.
pub const MAX_VOCAB: usize = 512;

/// Four-byte numbers of a choice.
pub const CHOICE_UNITS: usize = 12;

/// A choice as the kernel reads it: `Choice` in sample.cu.
pub fn choice_units(choice: &IdChoice) -> [u32; CHOICE_UNITS] {
    let mut units = [0; CHOICE_UNITS];
    let numbers = [choice.draw, choice.temperature, choice.top_p, choice.min_p];
    for (pair, number) in units.chunks_exact_mut(2).zip(numbers) {
        let bits = number.to_bits();
        pair.copy_from_slice(&[bits as u32, (bits >> 32) as u32]);
    }
    units[8..11].copy_from_slice(&[choice.top_k, choice.banned, choice.fallback]);
    units
}

impl Ops {
    /// Chooses an id by each row of logits (n, vocab), as `choices` (n, [`CHOICE_UNITS`]) say.
    pub fn sample(
        &self,
        n: usize,
        vocab: usize,
        logits: Slice<'_>,
        choices: Slice<'_>,
        chosen: Slice<'_>,
    ) -> Result<()> {
        assert!(vocab <= MAX_VOCAB);
        let args = [
            logits.0.after(logits.1, n * vocab),
            choices.0.after(choices.1, n * CHOICE_UNITS),
            chosen.0.after(chosen.1, n),
            u32_arg(vocab),
        ];
        let gpu = chosen.0.gpu();
        // SAFETY: the arguments of `sample` in sample.cu, sizes checked.
        unsafe { gpu.launch(self.sample, [n, 1], ROW_THREADS, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::ops::testing::{device, noise, upload};

    /// Ties, infinities, numbers that are none, and every setting of the sampler.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn ids_are_chosen_as_the_sampler_does() {
        use crate::sampler::{Sampler, SamplerConfig};
        use crate::vocab::VOCAB_SIZE;
        let gpu = device();
        let ops = Ops::new(&gpu).unwrap();
        let (n, mut seed) = (40, 0);
        for temperature in [0.0, 0.3, 1.0, 7.5] {
            for (top_k, top_p, min_p) in [
                (None, None, None),
                (Some(1), None, None),
                (Some(5), Some(0.7), None),
                (Some(1000), Some(0.95), Some(0.02)),
                (None, Some(0.3), Some(1.0)),
            ] {
                seed += 1;
                let config = SamplerConfig {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    seed,
                    ban_special: seed % 2 == 0,
                    ignore_eos: seed % 3 == 0,
                    ..SamplerConfig::default()
                };
                let mut sampler = Sampler::new(config).unwrap();
                let mut logits = noise(n * VOCAB_SIZE, seed);
                for (i, logit) in logits.iter_mut().enumerate() {
                    *logit = match (i / VOCAB_SIZE, i % VOCAB_SIZE) {
                        (0, _) => f32::NAN,
                        (1, _) => f32::NEG_INFINITY,
                        (2, 7 | 90) => f32::INFINITY,
                        (3, id) => [0.0, -0.0, 1.0][id % 3],
                        (4, id) if id % 5 == 0 => f32::NAN,
                        (row, _) => *logit * row as f32,
                    };
                }
                let (mut choices, mut expected) = (Vec::new(), Vec::new());
                for row in logits.chunks(VOCAB_SIZE) {
                    choices.extend(choice_units(&sampler.choice(VOCAB_SIZE).unwrap()));
                    expected.push(u32::from(sampler.sample(row, &[])));
                }
                let on_device = gpu.alloc(choices.len() * 4).unwrap();
                gpu.write_u32s(&on_device, &choices).unwrap();
                let chosen = gpu.alloc(n * 4).unwrap();
                let logits = upload(&gpu, &logits);
                ops.sample(n, VOCAB_SIZE, (&logits, 0), (&on_device, 0), (&chosen, 0))
                    .unwrap();
                let found = gpu.read_u32s(&chosen, n).unwrap();
                assert_eq!(found, expected, "{:?}", sampler.config());
            }
        }
    }
}
