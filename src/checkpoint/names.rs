//! The one list of the model's tensors: our names, their shapes, what each is for, their order.
//!
//! Linear weights are (out, in), row-major. The layouts' name tables translate these names; training, the
//! quantiser and the programs decide by [`Role`], never by the text of a name.

use crate::config::{BolmoConfig, Config, CrossAttentionConfig, QkNorm, TransformerConfig};
use crate::vocab::VOCAB_SIZE;

/// One of the four networks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Component {
    /// The entropy model.
    Entropy,
    /// The local encoder.
    Encoder,
    /// The global transformer.
    Global,
    /// The local decoder.
    Decoder,
}

impl Component {
    /// The first part of its tensors' names.
    pub fn name(self) -> &'static str {
        match self {
            Component::Entropy => "entropy",
            Component::Encoder => "encoder",
            Component::Global => "global",
            Component::Decoder => "decoder",
        }
    }
}

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The gain of a norm, (dim).
    Norm,
    /// One of the four vectors of differential attention, (head_dim / 2).
    Lambda,
    /// What is added to the products with a matrix, (out).
    Bias,
    /// A matrix of a linear layer, (out, in).
    Matrix,
    /// A matrix whose product is added to the residual stream: `wo` or `w2`.
    Residual,
    /// Byte embeddings, (vocab, dim): an id looks its row up.
    Embedding,
    /// Hashed n-gram embeddings, (hash vocab, dim): a hash looks its row up.
    HashTable,
    /// Subword embeddings, (subword rows, dim): each byte looks up one row.
    Subwords,
    /// Gates of a recurrence, one row a head: what they give decides what is forgotten.
    Gate,
    /// A matrix whose products decide where patches end.
    Boundary,
    /// The last matrix of a network, (vocab, dim): it gives the logits.
    Head,
}

impl Role {
    /// Whether it is a vector: a few kilobytes that scale everything.
    pub fn is_vector(self) -> bool {
        matches!(self, Role::Norm | Role::Lambda | Role::Bias)
    }

    /// Whether rows are looked up in it.
    pub fn is_table(self) -> bool {
        matches!(self, Role::Embedding | Role::HashTable | Role::Subwords)
    }

    /// Whether activations are multiplied with it.
    pub fn is_multiplied(self) -> bool {
        !self.is_vector() && !self.is_table()
    }
}

/// How often generation reads a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pace {
    /// For every byte of text.
    Byte,
    /// For every patch, when it closes.
    Patch,
    /// For every byte of a text that is read, and never for one that is written.
    Reading,
}

/// A tensor of a model, as its configuration implies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelTensor {
    /// Our name: `encoder.layers.0.wq`.
    pub name: String,
    /// The length of each axis.
    pub shape: Vec<usize>,
    /// The network it belongs to.
    pub component: Component,
    /// The purpose of the tensor.
    pub role: Role,
    /// Whether it belongs to a cross-attention.
    pub is_cross: bool,
    /// How often generation reads it.
    pub pace: Pace,
}

impl ModelTensor {
    /// The last part of its name: `wq`.
    pub fn leaf(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// Every tensor of a model of this configuration in canonical order: entropy model, encoder, global
/// transformer, decoder.
///
/// The configuration must be [valid](Config::validate).
pub fn expected_tensors(config: &Config) -> Vec<ModelTensor> {
    use Component::{Decoder, Encoder, Entropy, Global};
    use Role::{Embedding, HashTable, Head, Matrix, Norm};

    let local = config.encoder.dim;
    let patch = config.patch_dim();
    let global = config.global.dim;
    let mut list = List::default();
    if let Some(bolmo) = &config.bolmo {
        list.bolmo(config, bolmo);
        return list.0;
    }

    if let Some(entropy) = &config.entropy {
        let dim = entropy.dim;
        list.add(Entropy, "tok_embeddings", [VOCAB_SIZE, dim], Embedding);
        list.layers(Entropy, entropy);
        list.add(Entropy, "norm", [dim], Norm);
        list.add(Entropy, "output", [VOCAB_SIZE, dim], Head);
    }

    list.add(Encoder, "tok_embeddings", [VOCAB_SIZE, local], Embedding);
    for table in 0..config.hash.n_tables() {
        let name = format!("hash_embeddings.{table}");
        list.add(Encoder, &name, [config.hash.vocab, local], HashTable);
    }
    list.layers(Encoder, &config.encoder);
    let n_cross = config.n_encoder_cross();
    list.cross(Encoder, n_cross, &config.encoder_cross, local);
    list.add(Encoder, "patch_projection", [patch, local], Matrix);
    list.last_is_read_per_patch();

    if config.has_global_projection() {
        list.add(Global, "input_projection", [global, patch], Matrix);
    }
    list.layers(Global, &config.global);

    list.add(Decoder, "patch_projection", [patch, global], Matrix);
    list.last_is_read_per_patch();
    let n_cross = config.n_decoder_cross();
    list.cross(Decoder, n_cross, &config.decoder_cross, local);
    list.layers(Decoder, &config.decoder);
    list.add(Decoder, "norm", [local], Norm);
    list.add(Decoder, "output", [VOCAB_SIZE, local], Head);
    list.0
}

/// Collects the list.
#[derive(Default)]
struct List(Vec<ModelTensor>);

impl List {
    /// Adds a tensor; those of the global transformer are read once per patch.
    fn add<const N: usize>(
        &mut self,
        component: Component,
        name: &str,
        shape: [usize; N],
        role: Role,
    ) {
        self.0.push(ModelTensor {
            name: format!("{}.{name}", component.name()),
            shape: shape.to_vec(),
            component,
            role,
            is_cross: false,
            pace: match component {
                Component::Global => Pace::Patch,
                _ => Pace::Byte,
            },
        });
    }

    /// A model of the Bolmo family.
    fn bolmo(&mut self, config: &Config, bolmo: &BolmoConfig) {
        use Component::{Decoder, Encoder, Global};
        use Role::{Bias, Boundary, Embedding, Head, Matrix, Norm, Subwords};
        let (dim, n_logits) = (config.encoder.dim, config.n_logits());
        self.add(Encoder, "tok_embeddings", [n_logits, dim], Embedding);
        if let Some(subwords) = &bolmo.subwords {
            self.add(
                Encoder,
                "subword_embeddings",
                [subwords.n_rows, dim],
                Subwords,
            );
        }
        self.mlstm_layers(Encoder, &config.encoder);
        self.add(Encoder, "norm", [dim], Norm);
        for (name, shape, role, pace) in [
            ("patch_projection", &[dim, dim][..], Matrix, Pace::Patch),
            ("patch_bias", &[dim], Bias, Pace::Patch),
            ("boundary_q", &[dim, dim], Boundary, Pace::Reading),
            ("boundary_k", &[dim, dim], Boundary, Pace::Reading),
        ] {
            self.0.push(ModelTensor {
                name: format!("encoder.{name}"),
                shape: shape.to_vec(),
                component: Encoder,
                role,
                is_cross: false,
                pace,
            });
        }
        self.layers(Global, &config.global);
        self.add(Decoder, "patch_norm", [dim], Norm);
        self.last_is_read_per_patch();
        self.add(Decoder, "byte_projection", [dim, dim], Matrix);
        self.add(Decoder, "byte_bias", [dim], Bias);
        self.mlstm_layers(Decoder, &config.decoder);
        self.add(Decoder, "norm", [dim], Norm);
        self.add(Decoder, "output", [n_logits, dim], Head);
    }

    fn mlstm_layers(&mut self, component: Component, c: &TransformerConfig) {
        use Role::{Bias, Gate, Matrix, Norm, Residual};
        for l in 0..c.n_layers {
            let at = |tensor: &str| format!("layers.{l}.{tensor}");
            self.add(component, &at("cell_norm"), [c.dim], Norm);
            self.add(component, &at("wq"), [c.dim / 2, c.dim], Matrix);
            self.add(component, &at("wk"), [c.dim / 2, c.dim], Matrix);
            self.add(component, &at("wv"), [c.dim, c.dim], Matrix);
            self.add(component, &at("wg"), [c.dim, c.dim], Matrix);
            self.add(component, &at("wi"), [c.n_heads, c.dim], Gate);
            self.add(component, &at("bi"), [c.n_heads], Bias);
            self.add(component, &at("wf"), [c.n_heads, c.dim], Gate);
            self.add(component, &at("bf"), [c.n_heads], Bias);
            self.add(component, &at("head_norm"), [c.dim], Norm);
            self.add(component, &at("wo"), [c.dim, c.dim], Residual);
            self.add(component, &at("ffn_norm"), [c.dim], Norm);
            self.add(component, &at("w1"), [c.hidden_dim, c.dim], Matrix);
            self.add(component, &at("w2"), [c.dim, c.hidden_dim], Residual);
            self.add(component, &at("w3"), [c.hidden_dim, c.dim], Matrix);
        }
    }

    fn last_is_read_per_patch(&mut self) {
        if let Some(last) = self.0.last_mut() {
            last.pace = Pace::Patch;
        }
    }

    fn layers(&mut self, component: Component, c: &TransformerConfig) {
        use Role::{Bias, Lambda, Matrix, Norm, Residual};
        let q = c.n_heads * c.head_dim;
        let kv = c.n_kv_heads * c.head_dim;
        for l in 0..c.n_layers {
            let at = |tensor: &str| format!("layers.{l}.{tensor}");
            self.add(component, &at("attention_norm"), [c.dim], Norm);
            self.add(component, &at("wq"), [q, c.dim], Matrix);
            self.add(component, &at("wk"), [kv, c.dim], Matrix);
            self.add(component, &at("wv"), [kv, c.dim], Matrix);
            self.add(component, &at("wo"), [c.dim, q], Residual);
            self.add(component, &at("ffn_norm"), [c.dim], Norm);
            self.add(component, &at("w1"), [c.hidden_dim, c.dim], Matrix);
            self.add(component, &at("w2"), [c.dim, c.hidden_dim], Residual);
            self.add(component, &at("w3"), [c.hidden_dim, c.dim], Matrix);
            if let Some(variant) = &c.variant {
                if variant.attention_bias {
                    for (bias, width) in [("bq", q), ("bk", kv), ("bv", kv), ("bo", c.dim)] {
                        self.add(component, &at(bias), [width], Bias);
                    }
                }
                let widths = variant.qk_norm.map(|norm| match norm {
                    QkNorm::Row => [q, kv],
                    QkNorm::Head => [c.head_dim; 2],
                });
                for (name, width) in ["norm_q", "norm_k"]
                    .into_iter()
                    .zip(widths.into_iter().flatten())
                {
                    self.add(component, &at(name), [width], Norm);
                }
            }
            if let Some(differential) = &c.differential {
                for vector in ["lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"] {
                    self.add(component, &at(vector), [c.key_dim()], Lambda);
                }
                if differential.head_norm {
                    self.add(component, &at("head_norm"), [c.head_dim], Norm);
                }
            }
        }
    }

    /// The encoder's cross-attentions run when a patch closes. So do keys and values of the decoder's; its
    /// queries and outputs belong to the byte.
    fn cross(&mut self, component: Component, n: usize, c: &CrossAttentionConfig, dim: usize) {
        use Pace::{Byte, Patch};
        use Role::{Matrix, Norm, Residual};
        let q = c.n_heads * c.head_dim;
        let kv = c.n_kv_heads * c.head_dim;
        let of_queries = match component {
            Component::Decoder => Byte,
            _ => Patch,
        };
        for l in 0..n {
            for (tensor, shape, role, pace) in [
                ("norm_q", &[dim][..], Norm, of_queries),
                ("norm_kv", &[dim], Norm, Patch),
                ("wq", &[q, dim], Matrix, of_queries),
                ("wk", &[kv, dim], Matrix, Patch),
                ("wv", &[kv, dim], Matrix, Patch),
                ("wo", &[dim, q], Residual, of_queries),
            ] {
                self.0.push(ModelTensor {
                    name: format!("{}.cross.{l}.{tensor}", component.name()),
                    shape: shape.to_vec(),
                    component,
                    role,
                    is_cross: true,
                    pace,
                });
            }
        }
    }
}
