//! A run: what is trained on what, step by step, and everything that must survive it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::adamw::AdamW;
use super::batch::Sequence;
use super::blt::Blt;
use super::byte_model::ByteModel;
use super::data::Corpus;
use super::ops::{Dropout, Score};
use super::params::Params;
use super::schedule::Schedule;
use super::settings::Settings;
use super::state::{Position, Saved, save};
use super::step::{Network, cut, entropies};
use super::{export, matmul};
use crate::config::{Config, PatchingMode};
use crate::error::{Error, Result};
use crate::random::mix;
use crate::tensor::DType;
use crate::vocab::Id;

/// Which part is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The entropy model.
    Entropy,
    /// All the rest.
    Main,
}

/// One step's numbers.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// What the predictions were worth.
    pub score: Score,
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Seconds it took, patching included.
    pub seconds: f64,
    /// Of these, seconds in which patches were cut.
    pub patching: f64,
    /// Of these, seconds in which the optimiser changed the weights.
    pub optimiser: f64,
    /// Floating-point operations in matrix products.
    pub flops: u64,
}

/// Everything of a run.
#[derive(Debug)]
pub struct Trainer {
    /// Its settings.
    pub settings: Settings,
    /// The model's shape.
    pub config: Config,
    /// Where it is.
    pub position: Position,
    /// What is trained.
    pub params: Params<f32>,
    stage: Stage,
    network: Network,
    schedule: Schedule,
    optimiser: AdamW<f32>,
    train: Corpus,
    valid: Corpus,
    order: Vec<u32>,
    cutter: Cutter,
    out: PathBuf,
}

/// Cuts pieces into patches, each once.
#[derive(Debug)]
struct Cutter {
    /// The frozen entropy model, if there is one.
    entropy: Option<Params<f32>>,
    /// Where its tensors are, if patches are cut by it.
    model: Option<ByteModel>,
    starts: HashMap<(bool, u32), Vec<u32>>, // by (of validation, piece)
}

impl Cutter {
    fn sequences(
        &mut self,
        stage: Stage,
        config: &Config,
        corpus: &Corpus,
        of_valid: bool,
        pieces: &[u32],
    ) -> Result<Vec<Sequence>> {
        let texts: Vec<Vec<Id>> = pieces.iter().map(|&p| corpus.ids(p as usize)).collect();
        if stage == Stage::Entropy {
            let whole = |ids| Sequence {
                ids,
                starts: vec![0, 1],
            };
            return Ok(texts.into_iter().map(whole).collect());
        }
        let missing: Vec<usize> = (0..pieces.len())
            .filter(|&i| !self.starts.contains_key(&(of_valid, pieces[i])))
            .collect();
        let new: Vec<Vec<Id>> = missing.iter().map(|&i| texts[i].clone()).collect();
        let known = match (&self.entropy, &self.model) {
            (Some(params), Some(model)) => entropies(model, config, params, &new),
            _ => vec![Vec::new(); new.len()],
        };
        for ((i, ids), entropies) in missing.into_iter().zip(new).zip(&known) {
            let starts = cut(config, ids, entropies)?.starts;
            let starts = starts.into_iter().map(|s| s as u32).collect();
            self.starts.insert((of_valid, pieces[i]), starts);
        }
        let joined = pieces.iter().zip(texts).map(|(&piece, ids)| Sequence {
            starts: self.starts[&(of_valid, piece)]
                .iter()
                .map(|&s| s as usize)
                .collect(),
            ids,
        });
        Ok(joined.collect())
    }
}

impl Trainer {
    /// A run from these weights. `entropy` is the frozen entropy model of a main stage.
    ///
    /// # Errors
    /// For settings that make no sense, and data that cannot be read.
    pub fn new(
        stage: Stage,
        settings: Settings,
        config: Config,
        mut params: Params<f32>,
        entropy: Option<Params<f32>>,
    ) -> Result<Trainer> {
        settings.validate()?;
        let paths = |list: &[String]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        if settings.data.is_empty() {
            return Err(Error::argument(
                "data",
                "expected at least one file or folder, found none",
            ));
        }
        let separator = &settings.separator;
        let train = Corpus::open(&paths(&settings.data), separator, settings.seq_len)?;
        let (train, valid) = match settings.valid.is_empty() {
            false => (
                train,
                Corpus::open(&paths(&settings.valid), separator, settings.seq_len)?,
            ),
            true => train.split(settings.valid_share, settings.seed),
        };
        if train.is_empty() {
            return Err(Error::argument(
                "data",
                "expected text to train on, found none left",
            ));
        }
        if settings.tied && stage == Stage::Main {
            params.tie_embeddings();
        }
        if settings.lora_rank > 0 {
            let (rank, alpha) = (settings.lora_rank, settings.lora_alpha);
            params.add_adapters(rank, alpha, &settings.lora_targets, settings.seed)?;
        }
        let network = match (stage, &config.entropy) {
            (Stage::Entropy, Some(entropy)) => Network::Bytes(ByteModel::new(&params, entropy)),
            (Stage::Entropy, None) => {
                return Err(Error::config(
                    "entropy",
                    "expected an entropy model to train",
                ));
            }
            (Stage::Main, _) => Network::Patches(Blt::new(&params, &config)),
        };
        let cuts_by_entropy = stage == Stage::Main && config.patcher.mode == PatchingMode::Entropy;
        let model = match (&config.entropy, &entropy) {
            (Some(shape), Some(params)) if cuts_by_entropy => Some(ByteModel::new(params, shape)),
            _ if cuts_by_entropy => {
                return Err(Error::argument(
                    "entropy-model",
                    "expected a trained entropy model for entropy patching; train one with \
                     blt-train entropy, or choose --patching space",
                ));
            }
            _ => None,
        };
        let out = PathBuf::from(&settings.out);
        std::fs::create_dir_all(&out).map_err(|e| Error::io(&out, e))?;
        Ok(Trainer {
            optimiser: AdamW::new(settings.adam(), &params),
            schedule: settings.schedule()?,
            order: train.order(settings.seed, 0),
            position: Position::start(),
            cutter: Cutter {
                entropy,
                model,
                starts: HashMap::new(),
            },
            network,
            stage,
            settings,
            config,
            params,
            train,
            valid,
            out,
        })
    }

    /// Goes on where `saved` was.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is of another model.
    pub fn resume(&mut self, saved: &Saved) -> Result<()> {
        saved.restore(&mut self.params, &mut self.optimiser)?;
        self.position = saved.position.clone();
        self.order = self.train.order(self.settings.seed, self.position.epoch);
        Ok(())
    }

    /// Where the files of the run are.
    pub fn path(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    /// Bytes of text to train and to validate on.
    pub fn data_bytes(&self) -> (usize, usize) {
        (self.train.n_bytes(), self.valid.n_bytes())
    }

    /// Pieces for about `settings.batch` ids.
    fn draw(&mut self) -> Vec<u32> {
        let (mut pieces, mut n) = (Vec::new(), 0);
        while n < self.settings.batch {
            if self.position.cursor == self.order.len() {
                self.position.epoch += 1;
                self.position.cursor = 0;
                self.order = self.train.order(self.settings.seed, self.position.epoch);
            }
            let piece = self.order[self.position.cursor];
            self.position.cursor += 1;
            n += self.train.ids(piece as usize).len() - 1;
            pieces.push(piece);
        }
        pieces
    }

    /// One step of the optimiser.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the step if loss or gradient are not finite; the weights are
    /// then as they were.
    pub fn step(&mut self) -> Result<Report> {
        let start = Instant::now();
        let flops = matmul::flops();
        let step = self.position.step;
        let mut score = Score::default();
        let mut sum = None;
        let mut patching = 0.0;
        for micro in 0..self.settings.accumulate {
            let pieces = self.draw();
            let (config, train) = (&self.config, &self.train);
            let before = Instant::now();
            let sequences = (self.cutter).sequences(self.stage, config, train, false, &pieces)?;
            patching += before.elapsed().as_secs_f64();
            let (p, hash) = (self.settings.dropout, self.settings.hash_dropout);
            let dropout = (p > 0.0 || hash > 0.0).then(|| Dropout {
                p,
                hash,
                seed: mix(self.settings.seed ^ mix(step << 8 | micro as u64)),
            });
            let shards = self.settings.shards;
            let (part, grads) = self.network.gradients(
                config,
                &self.params,
                &sequences,
                shards,
                self.settings.precision,
                1.0 / self.settings.accumulate as f64,
                dropout,
            )?;
            score.add(&part);
            match &mut sum {
                None => sum = Some(grads),
                Some(sum) => super::grads::Grads::add(sum, grads, &self.params),
            }
        }
        let not_finite = |what: &str, value: f64| {
            Error::Unsupported(format!(
                "step {}: expected a finite {what}, found {value}; the last checkpoint is intact; \
                 a lower --lr or --clip may help",
                step + 1
            ))
        };
        if !score.nats.is_finite() {
            return Err(not_finite("loss", score.nats));
        }
        let lr = self.schedule.at(step);
        let grads = sum.expect("at least one micro-batch");
        let before = Instant::now();
        let norm = self.optimiser.step(&mut self.params, &grads, lr);
        let optimiser = before.elapsed().as_secs_f64();
        if !norm.is_finite() {
            return Err(not_finite("gradient", norm));
        }
        let seconds = start.elapsed().as_secs_f64();
        self.position.step += 1;
        self.position.seconds += seconds;
        self.position.bytes += score.n_bytes as u64;
        Ok(Report {
            score,
            norm,
            lr,
            seconds,
            patching,
            optimiser,
            flops: matmul::flops() - flops,
        })
    }

    /// The loss on validation text, up to `max_bytes` of it.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn validate(&mut self, max_bytes: usize) -> Result<Score> {
        let mut sum = Score::default();
        let mut pieces = 0..self.valid.len() as u32;
        while sum.n_bytes < max_bytes && !pieces.is_empty() {
            let some: Vec<u32> = pieces.by_ref().take(32).collect();
            let (config, valid) = (&self.config, &self.valid);
            let sequences = (self.cutter).sequences(self.stage, config, valid, true, &some)?;
            sum.add(&self.network.score(config, &self.params, &sequences)?);
        }
        Ok(sum)
    }

    /// Takes note of a validation. Whether it is the best so far.
    pub fn note(&mut self, loss: f64) -> bool {
        let better = loss < self.position.best;
        if better {
            self.position.best = loss;
            self.position.stale = 0;
        } else {
            self.position.stale += 1;
        }
        better
    }

    /// Whether validation has not become better for too long.
    pub fn is_stale(&self) -> bool {
        self.settings.patience > 0 && self.position.stale >= self.settings.patience
    }

    /// Writes the state that [`Trainer::resume`] reads.
    ///
    /// # Errors
    /// [`Error::Io`]; the state of before is then intact.
    pub fn save(&self, stage: &str) -> Result<()> {
        save(
            &self.path("state.safetensors"),
            &self.config,
            stage,
            &self.settings.to_json(),
            &self.position,
            &self.params,
            &self.optimiser,
        )
    }

    /// Writes the model as a native file (main stage).
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn export(&self, path: &Path) -> Result<()> {
        let (config, sources, dtype) = self.exported();
        export::native(path, &config, &sources, dtype)
    }

    /// Writes the model in the layout of transformers (main stage).
    ///
    /// # Errors
    /// As [`export::hf`].
    pub fn export_hf(&self, folder: &Path) -> Result<()> {
        let (config, sources, dtype) = self.exported();
        export::hf(folder, &config, &sources, dtype)
    }

    fn exported(&self) -> (Config, Vec<&Params<f32>>, DType) {
        let dtype = match self.settings.dtype.as_str() {
            "f32" => DType::F32,
            _ => DType::Bf16,
        };
        let entropy = self.cutter.entropy.as_ref();
        let mut config = self.config.clone();
        if entropy.is_none() {
            config.entropy = None;
        }
        let sources = [&self.params].into_iter().chain(entropy).collect();
        (config, sources, dtype)
    }

    /// Entropy stage: chooses the threshold that cuts validation text into patches of
    /// `settings.patch_length` bytes on average, and stores it in the configuration. Returns it and
    /// the mean length it gives.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn choose_threshold(&mut self) -> Result<(f32, f64)> {
        let Network::Bytes(model) = &self.network else {
            return Err(Error::argument("stage", "expected the entropy stage"));
        };
        let corpus = if self.valid.is_empty() {
            &self.train
        } else {
            &self.valid
        };
        let mut texts = Vec::new();
        let mut n = 0;
        for piece in 0..corpus.len() {
            texts.push(corpus.ids(piece));
            n += texts[piece].len() - 1;
            if n > 1 << 20 {
                break;
            }
        }
        let entropies = entropies(model, &self.config, &self.params, &texts);
        let mut sorted: Vec<f32> = entropies.iter().flatten().copied().collect();
        sorted.sort_by(f32::total_cmp);
        if sorted.is_empty() {
            return Err(Error::argument("valid", "expected text, found none"));
        }
        // Two patches a text are forced; the rest is what exceeds the threshold.
        let wanted = (n as f64 / self.settings.patch_length) as usize;
        let above = wanted
            .saturating_sub(2 * texts.len())
            .clamp(1, sorted.len());
        let threshold = sorted[sorted.len() - above];
        self.config.patcher.threshold = threshold;
        let mut patches = 0;
        for (ids, entropies) in texts.into_iter().zip(&entropies) {
            patches += cut(&self.config, ids, entropies)?.starts.len();
        }
        Ok((threshold, n as f64 / patches as f64))
    }
}
