//! A training run: its data, weights, optimiser and position, step by step.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use half::bf16;
use rayon::prelude::*;

use super::adamw::AdamW;
use super::batch::Sequence;
use super::blt::Blt;
use super::byte_model::ByteModel;
use super::data::Corpus;
use super::ops::{Dropout, Score};
use super::params::{Params, Value};
use super::schedule::Schedule;
use super::settings::Settings;
use super::state::{Position, Saved, save};
use super::step::{Network, cut, entropies};
use super::{export, matmul};
use crate::config::{Config, PatchingMode};
use crate::error::{Error, Result};
use crate::output_file::OutputFile;
use crate::random::mix;
use crate::tensor::DType;
use crate::vocab::Id;

/// The state of a run, in its folder.
pub const STATE: &str = "state.safetensors";

/// The state before that.
const PREVIOUS_STATE: &str = "state.previous.safetensors";

/// The best weights so far.
const BEST: &str = "best.safetensors";

/// The model that a run hands out.
pub const MODEL: &str = "model.safetensors";

/// The log of a run, unless the program is told another place.
pub const LOG: &str = "log.jsonl";

/// What a finished entropy stage hands to the main stage, in the folder of its run: a state file with the weights
/// to be used and their threshold.
pub const ENTROPY_FILE: &str = "entropy.safetensors";

/// All files of a run.
pub const RUN_FILES: [&str; 6] = [STATE, PREVIOUS_STATE, BEST, MODEL, ENTROPY_FILE, LOG];

/// Ids whose loss is computed before weights are saved.
const CHECKED_IDS: usize = 2048;

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
    /// The quality of the predictions.
    pub score: Score,
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Seconds it took, patching included.
    pub seconds: f64,
    /// Seconds of these that cutting patches took.
    pub patching: f64,
    /// Seconds of these that the optimiser took.
    pub optimiser: f64,
    /// Floating-point operations in matrix products.
    pub flops: u64,
}

/// Everything of a run.
#[derive(Debug)]
pub struct Trainer {
    /// The settings of the run.
    pub settings: Settings,
    /// The model's shape.
    pub config: Config,
    /// How far the run is.
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
        mut entropy: Option<Params<f32>>,
    ) -> Result<Trainer> {
        settings.validate()?;
        if let Some(entropy) = &mut entropy {
            // Patches are cut in training as they will be with the model file.
            export::round_as_saved(entropy, settings.dtype());
        }
        let paths = |list: &[String]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        if settings.data.is_empty() {
            return Err(Error::argument(
                "data",
                "expected at least one file or folder, found none",
            ));
        }
        let format = &settings.format();
        let train = Corpus::open(&paths(&settings.data), format, settings.seq_len)?;
        let (train, valid) = match settings.valid.is_empty() {
            false => (
                train,
                Corpus::open(&paths(&settings.valid), format, settings.seq_len)?,
            ),
            true => train.split(settings.valid_share, settings.seed),
        };
        if train.is_empty() {
            return Err(Error::argument(
                "data",
                "expected text to train on, found none left",
            ));
        }
        if settings.patience > 0 && valid.is_empty() {
            return Err(Error::argument(
                "patience",
                "expected text to validate on, found none; give --valid or a larger --valid-share",
            ));
        }
        if settings.is_tied() && stage == Stage::Main {
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
            position: Position {
                data: mix(train.fingerprint()) ^ valid.fingerprint(),
                ..Position::start()
            },
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

    /// Continues where `saved` was. With `new_data` its text may be another, which is read from the start.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is of another model, [`Error::Argument`] if it is of another text.
    pub fn resume(&mut self, saved: &Saved, new_data: bool) -> Result<()> {
        saved.restore(&mut self.params, &mut self.optimiser)?;
        let data = self.position.data;
        self.position = saved.position.clone();
        // States of earlier versions do not know their text; a cursor beyond its end is of another.
        let is_same = match self.position.data {
            0 => self.position.cursor <= self.order.len(),
            known => known == data,
        };
        if !is_same {
            if !new_data {
                return Err(Error::argument(
                    "data",
                    "expected the text that this run was trained on, cut into the same pieces, found another; \
                     --data, --valid, --valid-share, --separator and --seq-len must stay as they were, or pass \
                     --new-data to continue on another text",
                ));
            }
            self.position.cursor = 0;
            self.position.surplus = 0;
            self.position.epoch += 1;
            // Losses on another text do not compare.
            self.position.best = f64::INFINITY;
            self.position.stale = 0;
        }
        self.position.data = data;
        self.order = self.train.order(self.settings.seed, self.position.epoch);
        Ok(())
    }

    /// Where the files of the run are.
    pub fn path(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    /// The learning rates.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Bytes of text to train and to validate on.
    pub fn data_bytes(&self) -> (usize, usize) {
        (self.train.n_bytes(), self.valid.n_bytes())
    }

    /// Pieces for `settings.batch` ids, and the number of positions in them. Pieces are read whole, so a batch
    /// can be up to one piece longer; the next is shorter by as much, so that batches have the size asked for on
    /// average.
    fn draw(&mut self) -> (Vec<u32>, usize) {
        let batch = self.settings.batch;
        let wanted = batch.saturating_sub(self.position.surplus);
        let (mut pieces, mut n) = (Vec::new(), 0);
        while pieces.is_empty() || n < wanted {
            if self.position.cursor == self.order.len() {
                self.position.epoch += 1;
                self.position.cursor = 0;
                self.order = self.train.order(self.settings.seed, self.position.epoch);
            }
            let piece = self.order[self.position.cursor];
            self.position.cursor += 1;
            n += self.train.n_positions(piece as usize);
            pieces.push(piece);
        }
        // Pieces longer than a batch leave a debt that no batch can pay back: at most one batch of it counts.
        self.position.surplus = (self.position.surplus + n).saturating_sub(batch).min(batch);
        (pieces, n)
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
        let (micro_batches, sizes): (Vec<Vec<u32>>, Vec<usize>) =
            (0..self.settings.accumulate).map(|_| self.draw()).unzip();
        // Every position of the step counts the same, whichever micro-batch it is in.
        let n_positions = sizes.iter().sum();
        for (micro, pieces) in micro_batches.iter().enumerate() {
            let (config, train) = (&self.config, &self.train);
            let before = Instant::now();
            let sequences = (self.cutter).sequences(self.stage, config, train, false, pieces)?;
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
                n_positions,
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

    /// The loss on validation text: on a random sample of about `max_bytes` of it, the same every time.
    ///
    /// # Errors
    /// Same as [`Trainer::step`].
    pub fn validate(&mut self, max_bytes: usize) -> Result<Score> {
        let mut sum = Score::default();
        let sample = self.valid.sample(max_bytes, self.settings.seed);
        for pieces in sample.chunks(32) {
            let (config, valid) = (&self.config, &self.valid);
            let sequences = (self.cutter).sequences(self.stage, config, valid, true, pieces)?;
            sum.add(&self.network.score(config, &self.params, &sequences)?);
        }
        Ok(sum)
    }

    /// Checks the weights before they replace saved ones: they are finite in the type of the model files, and so is
    /// a loss that is computed with them.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the step.
    pub fn check(&mut self) -> Result<()> {
        self.check_weights()?;
        let of_valid = !self.valid.is_empty();
        let corpus = if of_valid { &self.valid } else { &self.train };
        let mut n_ids = 0;
        let pieces: Vec<u32> = (0..corpus.len() as u32)
            .take_while(|&piece| {
                let is_needed = n_ids < CHECKED_IDS;
                n_ids += corpus.n_positions(piece as usize);
                is_needed
            })
            .collect();
        let (config, cutter) = (&self.config, &mut self.cutter);
        let sequences = cutter.sequences(self.stage, config, corpus, of_valid, &pieces)?;
        let nats = self.network.score(config, &self.params, &sequences)?.nats;
        match nats.is_finite() {
            true => Ok(()),
            false => Err(self.not_finite(format!("loss, found {nats}"))),
        }
    }

    fn check_weights(&self) -> Result<()> {
        for param in self.params.list() {
            if let Value::Owned(values) = &param.value
                && !values.par_iter().all(|x| x.abs() <= bf16::MAX.to_f32())
            {
                return Err(self.not_finite(format!("weights, found others in {}", param.name)));
            }
        }
        Ok(())
    }

    fn not_finite(&self, what: String) -> Error {
        Error::Unsupported(format!(
            "step {}: expected finite {what}; the last checkpoint is intact; a lower --lr or --clip may help",
            self.position.step
        ))
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

    /// Writes the state that [`Trainer::resume`] reads, and keeps the state before it.
    ///
    /// # Errors
    /// [`Error::Io`], and as [`Trainer::check`]; the state of before is then intact.
    pub fn save(&mut self, stage: &str) -> Result<()> {
        self.check()?;
        let (state, previous) = (self.path(STATE), self.path(PREVIOUS_STATE));
        if state.exists() {
            // A second name: there is a state at every moment. Not every file system has them.
            let _ = std::fs::remove_file(&previous);
            if std::fs::hard_link(&state, &previous).is_err() {
                let _ = std::fs::copy(&state, &previous);
            }
        }
        self.save_as(STATE, stage)
    }

    /// Keeps the weights of now as the best: a model, or in the entropy stage a state.
    ///
    /// # Errors
    /// Same as [`Trainer::save`].
    pub fn keep_as_best(&self, stage: &str) -> Result<()> {
        self.check_weights()?;
        match self.stage {
            Stage::Entropy => self.save_as(BEST, stage),
            Stage::Main => self.export(&self.path(BEST)),
        }
    }

    /// The file of the best weights, if those are to be handed out rather than the last.
    fn best(&self) -> Option<PathBuf> {
        let wanted = self.settings.keep == "best" && self.position.best.is_finite();
        Some(self.path(BEST)).filter(|path| wanted && path.is_file())
    }

    fn save_as(&self, name: &str, stage: &str) -> Result<()> {
        save(
            &self.path(name),
            &self.config,
            stage,
            &self.settings.to_json(),
            &self.position,
            &self.params,
            &self.optimiser,
        )
    }

    /// Ends a run of the main stage: writes the model as `model.safetensors` and, for transformers, to the folder
    /// `hf`. It is the best on validation or the last, as the settings say. Returns the path of the file and
    /// whether it is the best.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written; as [`Trainer::check`] and [`export::hf`].
    pub fn finish(&mut self, hf: Option<&Path>) -> Result<(PathBuf, bool)> {
        let path = self.path(MODEL);
        let best = self.best();
        match &best {
            None => {
                self.check()?;
                self.export(&path)?
            }
            Some(best) => {
                let mut model = OutputFile::create(&path)?;
                let copied = File::open(best).and_then(|mut f| std::io::copy(&mut f, &mut model));
                copied.map_err(|e| Error::io(&path, e))?;
                model.finish()?;
            }
        }
        if let Some(folder) = hf {
            export::hf_of_native(folder, &path, self.exported().2)?;
        }
        Ok((path, best.is_some()))
    }

    /// Ends a run of the entropy stage: chooses the threshold for the weights to be used, the best on validation
    /// or the last, and writes both to [`ENTROPY_FILE`]. Returns what [`Trainer::choose_threshold`] does.
    ///
    /// # Errors
    /// Same as [`Trainer::choose_threshold`] and [`Trainer::save`].
    pub fn finish_entropy(&mut self, stage: &str) -> Result<(f32, f64)> {
        let last = match self.best() {
            None => None,
            Some(best) => {
                let mut params = self.params.clone();
                Saved::open(&best)?.restore_params(&mut params)?;
                Some(std::mem::replace(&mut self.params, params))
            }
        };
        let result = self.choose_threshold();
        let result = result.and_then(|found| self.save_as(ENTROPY_FILE, stage).map(|()| found));
        if let Some(last) = last {
            self.params = last;
        }
        let found = result?;
        self.save(stage)?;
        Ok(found)
    }

    /// Writes the model as a native file (main stage).
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn export(&self, path: &Path) -> Result<()> {
        let (config, sources, dtype) = self.exported();
        export::native(path, &config, &sources, dtype)
    }

    fn exported(&self) -> (Config, Vec<&Params<f32>>, DType) {
        let dtype = self.settings.dtype();
        let entropy = self.cutter.entropy.as_ref();
        let mut config = self.config.clone();
        if entropy.is_none() {
            config.entropy = None;
        }
        let sources = [&self.params].into_iter().chain(entropy).collect();
        (config, sources, dtype)
    }

    /// Entropy stage: chooses the threshold that cuts validation text into patches of
    /// `settings.patch_length` bytes on average, and stores it in the configuration. Entropies are those of the
    /// weights as they are stored, which will cut the patches. Returns the threshold and the mean length it
    /// gives.
    ///
    /// # Errors
    /// Same as [`Trainer::step`].
    pub fn choose_threshold(&mut self) -> Result<(f32, f64)> {
        let Network::Bytes(model) = &self.network else {
            return Err(Error::argument("stage", "expected the entropy stage"));
        };
        let corpus = if self.valid.is_empty() {
            &self.train
        } else {
            &self.valid
        };
        let texts: Vec<Vec<Id>> = (corpus.sample(1 << 20, self.settings.seed).into_iter())
            .map(|piece| corpus.ids(piece as usize))
            .collect();
        let n: usize = texts.iter().map(|ids| ids.len() - 1).sum();
        let mut stored = self.params.clone();
        export::round_as_saved(&mut stored, self.settings.dtype());
        let entropies = entropies(model, &self.config, &stored, &texts);
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
