//! Tables for people: sizes and errors of each part, and the comparison on a text.

use std::fmt::Write;

use blt::checkpoint::{Component, ModelTensor, Role};

use crate::convert::Done;
use crate::evaluate::Comparison;
use crate::stream::Loss;

/// A row of the table: the tensors of one part of the model.
#[derive(Default)]
struct Row {
    parameters: u64,
    before: u64,
    after: u64,
    from: Vec<String>,
    to: Vec<String>,
    loss: Loss,
}

impl Row {
    fn add(&mut self, done: &Done) {
        self.parameters += done.parameters;
        self.before += done.bytes_before;
        self.after += done.bytes_after;
        self.loss.add(&done.loss);
        for (list, dtype) in [(&mut self.from, done.from), (&mut self.to, done.to)] {
            let name = dtype.name().to_lowercase();
            if !list.contains(&name) {
                list.push(name);
            }
        }
    }

    fn line(&self, name: &str) -> String {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let bits = 8.0 * self.after as f64 / self.parameters.max(1) as f64;
        format!(
            "{name:<20}{:>15}{:>12.2}{:>12.2}{bits:>9.3}{:>10.4} %  {} -> {}\n",
            self.parameters,
            mb(self.before),
            mb(self.after),
            100.0 * self.loss.relative(),
            self.from.join(" "),
            self.to.join(" "),
        )
    }
}

/// The row of the table that counts a tensor.
fn row_of(tensor: &ModelTensor) -> &'static str {
    match (tensor.component, tensor.role) {
        (_, Role::Norm | Role::Lambda | Role::Bias) => "vectors",
        (Component::Entropy, _) => "entropy model",
        (_, Role::HashTable) => "hash tables",
        (_, Role::Subwords) => "subword embeddings",
        (_, Role::Boundary) => "boundary predictor",
        (_, Role::Gate) => "gates",
        (_, Role::Embedding) => "byte embeddings",
        (_, Role::Head) => "output head",
        (Component::Encoder, _) => "local encoder",
        (Component::Global, _) => "global transformer",
        (Component::Decoder, _) => "local decoder",
    }
}

/// Sizes, bits per weight and errors of every part. The error is the root of the mean squared
/// difference over that of the weights; `sampled` says that it was judged by a part of them.
pub fn parts(done: &[Done], sampled: bool) -> String {
    const ORDER: [&str; 8] = [
        "entropy model",
        "byte embeddings",
        "hash tables",
        "local encoder",
        "global transformer",
        "local decoder",
        "output head",
        "vectors",
    ];
    let error = if sampled { "error*" } else { "error" };
    let mut text = format!(
        "{:<20}{:>15}{:>12}{:>12}{:>9}{error:>12}  types\n",
        "part", "weights", "before, MB", "after, MB", "bits"
    );
    let mut all = Row::default();
    for name in ORDER {
        let mut row = Row::default();
        for done in done.iter().filter(|done| row_of(&done.tensor) == name) {
            row.add(done);
            all.add(done);
        }
        if row.parameters > 0 {
            text += &row.line(name);
        }
    }
    text += &all.line("all");
    if sampled {
        text += "* of a sample of the weights\n";
    }
    text
}

/// The comparison on a text: bits per byte before and after, divergence, agreement.
pub fn comparison(c: &Comparison) -> String {
    let (before, after) = c.bits_per_byte();
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<36}{value}");
    };
    line("bytes read", c.n.to_string());
    line("bits per byte before", format!("{before:.5}"));
    line(
        "bits per byte after",
        format!("{after:.5} ({:+.3} %)", 100.0 * c.growth()),
    );
    line(
        "divergence of next-byte guesses",
        format!("{:.3e} nats", c.mean_divergence()),
    );
    line(
        "patch boundaries unchanged",
        percent(c.boundary_agreement()),
    );
    line("greedy bytes unchanged", percent(c.greedy_agreement()));
    text
}

fn percent(share: f64) -> String {
    format!("{:.3} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blt::tensor::DType;
    use blt_kernels::BlockFormat;

    #[test]
    fn every_tensor_is_in_one_row_and_in_the_sum() {
        let config = blt::cli::synthetic::config("small").unwrap();
        let tensors = blt::checkpoint::expected_tensors(&config);
        let tensor = |name: &str| tensors.iter().find(|t| t.name == name).unwrap();
        let done = |name: &str, to, bytes_after| Done {
            tensor: tensor(name).clone(),
            from: DType::Bf16,
            to,
            parameters: 1000,
            bytes_before: 2000,
            bytes_after,
            loss: Loss {
                n: 1000,
                squared_error: 4.0,
                squares: 400.0,
            },
        };
        let list = [
            done("entropy.layers.0.wq", DType::Tiles(BlockFormat::Q8_0), 1062),
            done(
                "encoder.hash_embeddings.0",
                DType::Table(BlockFormat::Q4_0),
                562,
            ),
            done("encoder.layers.0.attention_norm", DType::F32, 4000),
            done("decoder.cross.0.norm_q", DType::F32, 4000),
            done("decoder.layers.0.w1", DType::Tiles(BlockFormat::Q4K), 562),
            done("decoder.output", DType::Tiles(BlockFormat::Q8_0), 1062),
        ];
        let text = parts(&list, true);
        let row = |name: &str| text.lines().find(|l| l.starts_with(name)).unwrap();
        assert!(
            row("vectors").contains("2000") && row("vectors").ends_with("bf16 -> f32"),
            "{text}"
        );
        assert!(row("hash tables").contains("4.496"), "{text}");
        assert!(
            row("all").contains("6000") && row("all").contains("10.0000 %"),
            "{text}"
        );
        assert!(text.contains("of a sample"));
        assert_eq!(text.lines().count(), 8, "{text}");
    }
}
