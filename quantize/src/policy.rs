//! Decides the type of every tensor.
//!
//! | part | default |
//! |---|---|
//! | norms and other vectors | `f32`: a few kilobytes that scale everything |
//! | entropy model | unchanged with `q8_0` (`bf16` packed as `bf12`), else `q8_0` except for embeddings and head, which stay unchanged (1) |
//! | byte embeddings | `q8_0`: 260 rows |
//! | hash tables | `q8_0` with `q8_0` and `q6_k`, else `q4_0`: every byte adds up several of their rows |
//! | output head | `q8_0` |
//! | all other matrices | the type asked for |
//!
//! (1) It decides where patches start, and a patch that starts elsewhere changes everything after it.
//!
//! With `bf12` vectors stay unchanged. A matrix whose rows do not fill a format's blocks would be padded: a format with
//! super-blocks is then replaced by `q8_0`, and where padding costs more than it saves, the matrix becomes `bf16`.

use blt::checkpoint::{Checkpoint, Component, ModelTensor, Role};
use blt::config::Config;
use blt::error::{Error, Result};
use blt::tensor::DType;
use blt_kernels::BlockFormat;

/// A type asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A block format.
    Blocks(BlockFormat),
    /// `F32`, `F16` or `BF16`, or the last packed.
    Float(DType),
    /// As the input has it.
    Keep,
}

impl Target {
    /// The names that [`Target::parse`] understands.
    pub const NAMES: &str = "q8_0, q4_0, q4_k, q6_k, bf12, bf16, f16, f32, keep";

    /// The target of that name.
    pub fn parse(name: &str) -> Option<Target> {
        let float = |d: &DType| d.name().eq_ignore_ascii_case(name);
        if name == "keep" {
            return Some(Target::Keep);
        }
        let blocks = BlockFormat::by_name(name).map(Target::Blocks);
        let floats = DType::FLOATS.into_iter().chain([DType::Bf12]);
        blocks.or_else(|| floats.into_iter().find(float).map(Target::Float))
    }
}

/// A tensor name with `*` for any run of characters, and what such tensors become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pattern: String,
    target: Target,
}

impl std::str::FromStr for Rule {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let parsed = s
            .rsplit_once('=')
            .and_then(|(pattern, name)| Some((pattern, Target::parse(name)?)));
        match parsed {
            Some((pattern, target)) if !pattern.is_empty() => Ok(Rule {
                pattern: pattern.into(),
                target,
            }),
            _ => Err(format!(
                "expected PATTERN=TYPE with a type of {}, found \"{s}\"",
                Target::NAMES
            )),
        }
    }
}

impl Rule {
    /// Whether the rule is about the tensor. A pattern for many tensors that asks for a block format is about matrices:
    /// vectors have none.
    pub fn is_for(&self, tensor: &ModelTensor) -> bool {
        let is_of_matrices = matches!(self.target, Target::Blocks(_)) && self.pattern.contains('*');
        self.matches(&tensor.name) && !(is_of_matrices && tensor.role.is_vector())
    }

    /// Whether the pattern fits the name.
    pub fn matches(&self, name: &str) -> bool {
        fn matches(pattern: &[u8], name: &[u8]) -> bool {
            // Where to go back to when what follows the last `*` does not fit.
            let (mut p, mut n, mut star) = (0, 0, None);
            while n < name.len() {
                if pattern.get(p) == Some(&b'*') {
                    star = Some((p, n));
                    p += 1;
                } else if pattern.get(p) == Some(&name[n]) {
                    (p, n) = (p + 1, n + 1);
                } else if let Some((at, from)) = star {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                } else {
                    return false;
                }
            }
            pattern[p..].iter().all(|&c| c == b'*')
        }
        matches(self.pattern.as_bytes(), name.as_bytes())
    }
}

/// How all tensors are converted.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The type asked for.
    pub main: Target,
    /// Exceptions; the last that matches counts.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// The type of every tensor of the checkpoint, in canonical order.
    ///
    /// # Errors
    /// [`Error::Argument`] if a rule matches no tensor, or asks for a block format for a norm.
    pub fn plan(&self, checkpoint: &Checkpoint) -> Result<Vec<(String, DType)>> {
        for rule in &self.rules {
            if !checkpoint.model_tensors().any(|(of, _)| rule.is_for(of)) {
                return Err(Error::argument(
                    "tensor-type",
                    format!(
                        "expected a pattern that matches a tensor of that kind, found \"{}\"",
                        rule.pattern
                    ),
                ));
            }
        }
        (checkpoint.model_tensors())
            .map(|(of, tensor)| Ok((of.name.clone(), self.dtype(of, tensor.dtype())?)))
            .collect()
    }

    fn dtype(&self, tensor: &ModelTensor, source: DType) -> Result<DType> {
        let (name, role) = (&tensor.name, tensor.role);
        let shape = &tensor.shape[..];
        let rule = self.rules.iter().rev().find(|rule| rule.is_for(tensor));
        let target = match rule {
            Some(rule) => rule.target,
            None => self.by_default(tensor, source),
        };
        let format = match target {
            Target::Float(DType::Bf12) if role.is_vector() => return Ok(source),
            Target::Float(DType::Bf12) if rule.is_none() => {
                return Ok(smaller_than_bf16(DType::Bf12, shape));
            }
            Target::Float(dtype) => return Ok(dtype),
            // Quantised inputs are converted to floats of moderate size, unless asked otherwise.
            Target::Keep if source.is_quantized() => return Ok(DType::Bf16),
            Target::Keep => return Ok(source),
            Target::Blocks(format) => format,
        };
        if role.is_vector() {
            return Err(Error::argument(
                "tensor-type",
                format!(
                    "expected bf16, f16, f32 or keep for the vector {name}, found {}",
                    format.name()
                ),
            ));
        }
        let arranged = |format| match role.is_table() {
            true => DType::Table(format),
            false => DType::Tiles(format),
        };
        if rule.is_some() {
            return Ok(arranged(format));
        }
        let cols = shape.last().copied().unwrap_or(0);
        let fits = cols.is_multiple_of(format.chunk_cols());
        let format = match fits {
            true => format,
            false if format.chunk_cols() > BlockFormat::Q8_0.chunk_cols() => BlockFormat::Q8_0,
            false => format,
        };
        Ok(smaller_than_bf16(arranged(format), shape))
    }

    /// The table at the head of this file.
    fn by_default(&self, tensor: &ModelTensor, source: DType) -> Target {
        let Target::Blocks(main) = self.main else {
            return self.main;
        };
        let in_entropy = tensor.component == Component::Entropy;
        let format = match tensor.role {
            Role::Norm | Role::Lambda | Role::Bias => return Target::Float(DType::F32),
            // Two rows a head, which decide what is forgotten.
            Role::Gate => return Target::Keep,
            // Measured on the default model, of which the size of embeddings and head is nothing: layers in q8_0,
            // 0.5 % of the patches start elsewhere; w2 in q6_k 0.9 %, all in q6_k 2.1 %.
            Role::Matrix | Role::Residual if in_entropy => match main {
                BlockFormat::Q8_0 if source.unpacked() == DType::Bf16 => {
                    return Target::Float(DType::Bf12);
                }
                BlockFormat::Q8_0 => return Target::Keep,
                _ => BlockFormat::Q8_0,
            },
            _ if in_entropy => return Target::Keep,
            Role::Embedding | Role::Subwords | Role::Boundary | Role::Head => BlockFormat::Q8_0,
            Role::HashTable => match main {
                // Measured: with tables of q4_0, q6_k is no better than q4_k.
                BlockFormat::Q8_0 | BlockFormat::Q6K => BlockFormat::Q8_0,
                _ => BlockFormat::Q4_0,
            },
            Role::Matrix | Role::Residual => main,
        };
        Target::Blocks(format)
    }
}

/// The type, or `BF16` where padding makes that smaller.
fn smaller_than_bf16(dtype: DType, shape: &[usize]) -> DType {
    match dtype.size_of(shape) < DType::Bf16.size_of(shape) {
        true => dtype,
        false => DType::Bf16,
    }
}

/// Bytes that a model takes with these types.
pub fn planned_bytes(config: &Config, plan: &[(String, DType)]) -> u64 {
    let tensors = blt::checkpoint::expected_tensors(config);
    (plan.iter().zip(tensors))
        .map(|((_, dtype), tensor)| dtype.size_of(&tensor.shape).unwrap_or(0) as u64)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(main: &str, rules: &[&str]) -> Policy {
        Policy {
            main: Target::parse(main).unwrap(),
            rules: rules.iter().map(|r| r.parse().unwrap()).collect(),
        }
    }

    /// The tensor of that name in a model, with another shape.
    fn tensor(name: &str, shape: &[usize]) -> ModelTensor {
        let config = blt::cli::synthetic::config("small").unwrap();
        let mut all = blt::checkpoint::expected_tensors(&config).into_iter();
        let mut tensor = all.find(|t| t.name == name).expect(name);
        tensor.shape = shape.to_vec();
        tensor
    }

    #[test]
    fn patterns_match_as_shells_do() {
        let matches = |pattern: &str, name: &str| {
            let rule: Rule = format!("{pattern}=f32").parse().unwrap();
            rule.matches(name)
        };
        assert!(matches("global.*", "global.layers.0.wq"));
        assert!(matches("*.wq", "global.layers.0.wq"));
        assert!(matches("*.layers.*.w*", "global.layers.10.wq"));
        assert!(matches("**", "x"));
        assert!(matches("a*b*c", "abbc") && matches("a*b*c", "axxbyybzzc"));
        assert!(!matches("a*b*c", "abb") && !matches("*.wq", "global.layers.0.wqq"));
        assert!(!matches("wq", "global.layers.0.wq"));
        for bad in ["", "x", "=f32", "x=", "x=q9", "x=F99"] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults_and_exceptions() {
        let q4 = policy(
            "q4_k",
            &["*.wv=q6_k", "global.layers.0.*=bf16", "*.norm=keep"],
        );
        let of = |name: &str, shape: &[usize]| q4.dtype(&tensor(name, shape), DType::Bf16).unwrap();
        use BlockFormat::{Q4_0, Q4K, Q6K, Q8_0};
        for (name, shape, expected) in [
            ("global.layers.1.wq", &[256, 256][..], DType::Tiles(Q4K)),
            ("global.layers.1.wv", &[256, 256], DType::Tiles(Q6K)),
            ("global.layers.0.wv", &[256, 256], DType::Bf16),
            ("global.layers.1.attention_norm", &[256], DType::F32),
            ("decoder.norm", &[256], DType::Bf16),
            ("decoder.output", &[260, 256], DType::Tiles(Q8_0)),
            ("entropy.layers.0.w1", &[512, 256], DType::Tiles(Q8_0)),
            ("entropy.layers.0.w2", &[256, 512], DType::Tiles(Q8_0)),
            ("entropy.output", &[260, 256], DType::Bf16),
            ("entropy.tok_embeddings", &[260, 256], DType::Bf16),
            ("encoder.tok_embeddings", &[260, 256], DType::Table(Q8_0)),
            (
                "encoder.hash_embeddings.3",
                &[1000, 256],
                DType::Table(Q4_0),
            ),
            // Rows that do not fill super-blocks, or any block.
            ("decoder.layers.0.wq", &[128, 128], DType::Tiles(Q8_0)),
            ("decoder.layers.0.w2", &[128, 8], DType::Bf16),
        ] {
            assert_eq!(of(name, shape), expected, "{name}");
        }
        let all = policy("q8_0", &["*=q6_k"]);
        let of = |name, shape: &[usize]| all.dtype(&tensor(name, shape), DType::F32).unwrap();
        assert_eq!(of("decoder.norm", &[256]), DType::F32);
        assert_eq!(of("decoder.output", &[260, 256]), DType::Tiles(Q6K));
        let exact = policy("q8_0", &["decoder.norm=q8_0"]);
        let error = exact.dtype(&tensor("decoder.norm", &[256]), DType::F32);
        assert!(error.unwrap_err().to_string().contains("decoder.norm"));
        let q8 = policy("q8_0", &[]);
        let of = |name| q8.dtype(&tensor(name, &[256, 256]), DType::F16).unwrap();
        assert_eq!(of("entropy.layers.0.w1"), DType::F16);
        for source in [DType::Bf16, DType::Bf12] {
            let of = |name, shape: &[usize]| q8.dtype(&tensor(name, shape), source).unwrap();
            assert_eq!(of("entropy.layers.0.w1", &[256, 256]), DType::Bf12);
            assert_eq!(of("entropy.layers.0.w1", &[256, 96]), DType::Bf16);
            assert_eq!(of("entropy.output", &[260, 256]), source);
        }
        assert_eq!(of("encoder.hash_embeddings.0"), DType::Table(Q8_0));
        assert_eq!(of("decoder.layers.0.w1"), DType::Tiles(Q8_0));
        let packed = policy("bf12", &["decoder.layers.0.w1=bf12"]);
        let of = |name, shape: &[usize]| packed.dtype(&tensor(name, shape), DType::Bf16).unwrap();
        assert_eq!(of("global.layers.0.w1", &[256, 256]), DType::Bf12);
        assert_eq!(of("encoder.hash_embeddings.0", &[9, 256]), DType::Bf12);
        assert_eq!(of("global.layers.0.w1", &[256, 96]), DType::Bf16);
        assert_eq!(of("decoder.layers.0.w1", &[256, 96]), DType::Bf12);
        assert_eq!(of("decoder.norm", &[256]), DType::Bf16);
        let q6 = policy("q6_k", &[]);
        let table = q6.dtype(&tensor("encoder.hash_embeddings.0", &[9, 256]), DType::Bf16);
        assert_eq!(table.unwrap(), DType::Table(Q8_0));
        let keep = policy("keep", &[]);
        let wq = tensor("global.layers.0.wq", &[4, 4]);
        assert_eq!(keep.dtype(&wq, DType::F16).unwrap(), DType::F16);
    }
}
