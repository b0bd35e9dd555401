//! The parameters of a model in training, under their checkpoint names.
//!
//! A tensor is either held in the training precision, or frozen: left in the mapped file and widened whenever
//! it is used. A low-rank adapter (LoRA) on a matrix is two more tensors.

use std::collections::HashMap;
use std::ops::Deref;

use super::float::{Float, axpy};
use super::matmul::{Accumulate, MatmulOptions, View, ViewMut, matmul};
use super::pooled_vec::PooledVec;
use crate::checkpoint::{ModelTensor, Role, expected_tensors};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::random::SplitMix64;
use crate::tensor::Tensor;

/// Index of a tensor in [`Params`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParamId(pub usize);

/// One tensor.
#[derive(Debug, Clone)]
pub struct Param<F> {
    /// The name in a checkpoint; an adapter's ends in `.lora_a` or `.lora_b`.
    pub name: String,
    /// The length of each axis; a matrix is (out, in), row-major.
    pub shape: Vec<usize>,
    /// The purpose of the tensor; an adapter is two matrices.
    pub role: Role,
    /// The numbers.
    pub value: Value<F>,
    /// Whether it is trained.
    pub trained: bool,
    /// Whether weight decay shrinks it. Norms and embeddings are spared.
    pub decays: bool,
    /// The low-rank adapter, if there is one.
    pub(super) adapter: Option<Adapter>,
}

/// Where a tensor's numbers are.
#[derive(Debug, Clone)]
pub enum Value<F> {
    /// In memory, in the precision of training.
    Owned(Vec<F>),
    /// Where the checkpoint has them.
    Frozen(Tensor),
}

/// A low-rank change of a matrix: `W + scale * B A`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Adapter {
    pub a: ParamId, // (rank, in)
    pub b: ParamId, // (out, rank)
    pub scale: f64,
}

/// The numbers of a tensor, to be read.
#[derive(Debug)]
pub enum Values<'a, F: Float> {
    /// As they are held.
    Held(&'a [F]),
    /// Widened, or changed by an adapter.
    Copied(PooledVec<F>),
}

impl<F: Float> Deref for Values<'_, F> {
    type Target = [F];
    fn deref(&self) -> &[F] {
        match self {
            Values::Held(values) => values,
            Values::Copied(values) => values,
        }
    }
}

/// Elements widened at a time: few enough for the first-level cache.
const WIDENED: usize = 1 << 12;

impl<F: Float> Value<F> {
    /// The numbers, widened if they are frozen.
    pub fn values(&self) -> Values<'_, F> {
        let tensor = match self {
            Value::Owned(values) => return Values::Held(values),
            Value::Frozen(tensor) => tensor,
        };
        let mut wide = PooledVec::any(tensor.n_elements());
        for (first, rows) in tensor.row_pieces(WIDENED) {
            let wide = &mut wide[first * rows.cols()..];
            for (wide, x) in wide.iter_mut().zip(rows.to_f32_vec()) {
                *wide = F::of(x.into());
            }
        }
        Values::Copied(wide)
    }
}

impl<F: Float> Param<F> {
    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// All tensors of a model, in canonical order, then the adapters.
#[derive(Debug, Clone)]
pub struct Params<F> {
    list: Vec<Param<F>>,
    by_name: HashMap<String, ParamId>,
    tied: bool,
}

/// The two ends that tying makes one.
const TIED: (&str, &str) = ("encoder.tok_embeddings", "decoder.output");

/// Whether models of this configuration's family can be trained.
///
/// # Errors
/// [`Error::Unsupported`] for a Bolmo model.
pub fn check_family(config: &Config) -> Result<()> {
    match config.bolmo {
        None => Ok(()),
        Some(_) => Err(Error::Unsupported(
            "a Bolmo model cannot be trained yet, only run: blt-train is for Byte Latent Transformers".into(),
        )),
    }
}

impl<F: Float> Params<F> {
    /// The tensors of a model of this configuration that `wanted` accepts, with values from `value`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a Bolmo model; whatever `value` returns.
    pub fn new(
        config: &Config,
        wanted: impl Fn(&ModelTensor) -> bool,
        mut value: impl FnMut(&ModelTensor) -> Result<Value<F>>,
    ) -> Result<Self> {
        check_family(config)?;
        let mut params = Params {
            list: Vec::new(),
            by_name: HashMap::new(),
            tied: false,
        };
        for tensor in expected_tensors(config) {
            if wanted(&tensor) {
                let value = value(&tensor)?;
                params.push(tensor.name, tensor.shape, tensor.role, value);
            }
        }
        Ok(params)
    }

    fn push(&mut self, name: String, shape: Vec<usize>, role: Role, value: Value<F>) -> ParamId {
        let id = ParamId(self.list.len());
        self.by_name.insert(name.clone(), id);
        let trained = matches!(value, Value::Owned(_));
        self.list.push(Param {
            decays: role.is_multiplied(),
            name,
            shape,
            role,
            value,
            trained,
            adapter: None,
        });
        id
    }

    /// The tensor of that name, which the configuration calls for.
    ///
    /// # Panics
    /// If the model lacks it.
    pub fn id(&self, name: &str) -> ParamId {
        match self.find(self.real_name(name)) {
            Some(id) => id,
            None => panic!("no tensor {name}"),
        }
    }

    /// The name of the tensor that stands for the one of this name.
    fn real_name<'a>(&self, name: &'a str) -> &'a str {
        match self.tied && name == TIED.1 {
            true => TIED.0,
            false => name,
        }
    }

    /// The tensor of that name, if there is one.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied()
    }

    /// The tensor.
    pub fn get(&self, id: ParamId) -> &Param<F> {
        &self.list[id.0]
    }

    /// All tensors.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Param<F>)> {
        self.list.iter().enumerate().map(|(i, p)| (ParamId(i), p))
    }

    /// All tensors.
    pub fn list(&self) -> &[Param<F>] {
        &self.list
    }

    /// All tensors, to be changed.
    pub fn list_mut(&mut self) -> &mut [Param<F>] {
        &mut self.list
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Makes the output matrix the byte embedding: one tensor from now on, with the embedding's
    /// values.
    pub fn tie_embeddings(&mut self) {
        self.tied = true;
        let id = self.by_name[TIED.1];
        self.list[id.0].trained = false;
    }

    /// Number of parameters; what is tied counts once.
    pub fn n_parameters(&self) -> usize {
        let counts = |p: &&Param<F>| !(self.tied && p.name == TIED.1);
        self.list.iter().filter(counts).map(Param::n_elements).sum()
    }

    /// Whether byte embedding and output are one tensor.
    pub fn are_tied(&self) -> bool {
        self.tied
    }

    /// The tensor `name` of the checkpoint that the weights came from, if it is to be saved as it is.
    pub fn unchanged(&self, name: &str) -> Option<&Tensor> {
        let param = self.get(self.find(self.real_name(name))?);
        match (&param.value, param.adapter) {
            (Value::Frozen(tensor), None) => Some(tensor),
            _ => None,
        }
    }

    /// The values under which `name` is to be saved: of a tied output, the embedding's.
    pub fn saved_values(&self, name: &str) -> Option<Values<'_, F>> {
        let param = self.get(self.find(self.real_name(name))?);
        let mut values = param.value.values();
        if let Some(adapter) = param.adapter {
            let mut merged = match values {
                Values::Held(values) => PooledVec::from(values),
                Values::Copied(values) => values,
            };
            let cols = param.shape[1];
            let a = self.get(adapter.a).value.values(); // (rank, in)
            let b = self.get(adapter.b).value.values(); // (out, rank)
            let rank = a.len() / cols;
            matmul(
                Accumulate::Add,
                ViewMut::dense(&mut merged, cols),
                F::of(adapter.scale),
                View::dense(&b, rank),
                View::dense(&a, cols),
                MatmulOptions::default(),
            );
            values = Values::Copied(merged);
        }
        Some(values)
    }

    /// Freezes everything there is and puts an adapter of this rank on every matrix of a linear
    /// layer whose last name part is in `targets` (`wq`, `w1`, ...). Returns how many there are.
    ///
    /// # Errors
    /// [`Error::Argument`] for a rank of 0 or no matrix of these names.
    pub fn add_adapters(
        &mut self,
        rank: usize,
        alpha: f64,
        targets: &[String],
        seed: u64,
    ) -> Result<usize> {
        if rank == 0 || rank > 1024 {
            return Err(Error::argument(
                "lora-rank",
                format!("expected 1 to 1024, found {rank}"),
            ));
        }
        let mut n = 0;
        for i in 0..self.list.len() {
            self.list[i].trained = false;
            let param = &self.list[i];
            let leaf = param.name.rsplit('.').next().unwrap_or_default();
            if !param.role.is_multiplied() || !targets.iter().any(|t| t == leaf) {
                continue;
            }
            let (name, shape) = (param.name.clone(), param.shape.clone());
            let mut rng = SplitMix64::named(seed, &format!("{name}.lora_a"));
            let bound = 1.0 / (shape[1] as f64).sqrt();
            let a = (0..rank * shape[1])
                .map(|_| F::of(rng.signed() * bound))
                .collect();
            let b = vec![F::ZERO; shape[0] * rank];
            let a_shape = vec![rank, shape[1]];
            let a = self.push(
                format!("{name}.lora_a"),
                a_shape,
                Role::Matrix,
                Value::Owned(a),
            );
            let b_shape = vec![shape[0], rank];
            let b = self.push(
                format!("{name}.lora_b"),
                b_shape,
                Role::Matrix,
                Value::Owned(b),
            );
            let scale = alpha / rank as f64;
            self.list[i].adapter = Some(Adapter { a, b, scale });
            n += 1;
        }
        if n == 0 {
            return Err(Error::argument(
                "lora-targets",
                format!("expected names such as wq, wv or w1, found {targets:?}"),
            ));
        }
        Ok(n)
    }

    /// Adds rows (n, cols) of a table to `x`, each multiplied by its entry of `shares` if given.
    pub fn add_rows(
        &self,
        table: ParamId,
        rows: impl Iterator<Item = usize>,
        shares: Option<&[F]>,
        x: &mut [F],
    ) {
        let param = self.get(table);
        let cols = param.shape[1];
        for (i, (row, x)) in rows.zip(x.chunks_exact_mut(cols)).enumerate() {
            let share = shares.map_or(F::ONE, |shares| shares[i]);
            match &param.value {
                Value::Owned(v) => axpy(share, &v[row * cols..][..cols], x),
                Value::Frozen(t) => {
                    // Quantised rows lie in groups.
                    let group = t.dtype().row_multiple(cols);
                    let first = row / group * group;
                    let end = (first + group).min(param.shape[0]);
                    let rows = t.slice_rows(first..end).expect("rows of the table");
                    let values = rows.to_f32_vec();
                    for (x, &v) in x.iter_mut().zip(&values[(row - first) * cols..]) {
                        *x += share * F::of(v.into());
                    }
                }
            }
        }
    }
}
