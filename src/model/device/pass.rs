//! One pass on a GPU, over any number of sequences.
//!
//! A pass has two halves, since the host decides between them which patches end: first the entropy model
//! and the local encoder, then the global transformer and the decoder. Where the device also chooses the
//! next id, the second half goes on with the first half of the pass that will read it ([`Ahead`]), so
//! that a byte takes one answer from the device: its logits, the id chosen, and the entropy after that.
//!
//! All that differs from pass to pass (positions, ranges, angles, ids, how to choose) is uploaded as one
//! table before the launches. Those of passes that read one byte of each sequence are recorded as a
//! graph the second time, and from then on started together.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::super::block::Rows;
use super::super::forward::{Failure, Part, Wanted};
use super::super::{Model, State};
use super::{Ahead, Caches, Cross, DeviceModel, Layers};
use crate::cuda::{
    self, At, Attention, Choice, Gpu, Graph, Linear, Mode, NARROW_ROWS, Norm, Ops, Row, Store,
};
use crate::error::Result;
use crate::few::Few;
use crate::ops::Buffer;
use crate::vocab::{Id, VOCAB_SIZE};

/// Most rows of a pass whose launches are recorded: more are no longer short.
const MAX_RECORDED: usize = 64;

/// What passes use in turn.
#[derive(Debug)]
pub(super) struct Scratch {
    memory: Memory,
    graphs: HashMap<Launches, Recorded>,
}

/// Launches that are the same each time, but for the tables they read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Launches {
    /// The first half for so many rows, the first so many of them with an entropy model.
    Bytes(usize, usize),
    /// So many patches closed.
    Close(usize),
    /// Decoder and logits of so many rows, and whether ids are chosen and read ahead, with entropies.
    Decode(usize, bool, bool),
}

#[derive(Debug)]
enum Recorded {
    /// Started once: buffers are large enough.
    Seen,
    /// With the addresses it was recorded with.
    Graph(Graph, Vec<u64>),
    /// The driver does not record it.
    Refused,
}

/// Buffers that last for a pass; they grow to what is asked of them.
#[derive(Debug)]
struct Memory {
    work: Work,
    /// Byte rows of the entropy model.
    bytes: cuda::Buffer,
    /// Its logits.
    logits: cuda::Buffer,
    /// Byte rows of the local models.
    x: cuda::Buffer,
    pooled: cuda::Buffer,
    patches: cuda::Buffer,
    global: cuda::Buffer,
    /// Patch vectors for a trace.
    vectors: cuda::Buffer,
    /// What the host reads: logits, ids chosen, entropies.
    out: cuda::Buffer,
}

/// Those that last for a layer, and the tables.
#[derive(Debug)]
struct Work {
    /// Input of a product, normed.
    a: cuda::Buffer,
    /// Queries, or queries, keys and values.
    q: cuda::Buffer,
    kv: cuda::Buffer,
    o: cuda::Buffer,
    gate_up: cuda::Buffer,
    gate: cuda::Buffer,
    /// Of the first half, of closed patches, of the decoder.
    tables: [cuda::Buffer; 3],
}

/// Makes a buffer at least `n` four-byte numbers large.
fn reserve(buffer: &mut cuda::Buffer, n: usize) -> Result<()> {
    if buffer.n_bytes() < n * 4 {
        let gpu = Arc::clone(buffer.gpu());
        *buffer = gpu.alloc(n.next_power_of_two() * 4)?;
    }
    Ok(())
}

impl Scratch {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Scratch> {
        let empty = || gpu.alloc(4);
        Ok(Scratch {
            memory: Memory {
                work: Work {
                    a: empty()?,
                    q: empty()?,
                    kv: empty()?,
                    o: empty()?,
                    gate_up: empty()?,
                    gate: empty()?,
                    tables: [empty()?, empty()?, empty()?],
                },
                bytes: empty()?,
                logits: empty()?,
                x: empty()?,
                pooled: empty()?,
                patches: empty()?,
                global: empty()?,
                vectors: empty()?,
                out: empty()?,
            },
            graphs: HashMap::new(),
        })
    }

    /// Starts launches, as a graph if they have a name and have been started before.
    fn run(
        &mut self,
        gpu: &Arc<Gpu>,
        name: Option<Launches>,
        launches: impl Fn(&mut Memory) -> Result<()>,
    ) -> Result<()> {
        let memory = &mut self.memory;
        let Some(name) = name else {
            return launches(memory);
        };
        match self.graphs.get(&name) {
            Some(Recorded::Refused) => launches(memory),
            Some(Recorded::Graph(graph, addresses)) if *addresses == memory.addresses() => {
                graph.launch()
            }
            Some(Recorded::Seen) => match Graph::record(gpu, || launches(memory)) {
                Ok(graph) => {
                    graph.launch()?;
                    let recorded = Recorded::Graph(graph, memory.addresses());
                    self.graphs.insert(name, recorded);
                    Ok(())
                }
                Err(_) => {
                    self.graphs.insert(name, Recorded::Refused);
                    launches(memory)
                }
            },
            _ => {
                launches(memory)?;
                self.graphs.insert(name, Recorded::Seen);
                Ok(())
            }
        }
    }
}

/// The numbers of a table, before they are uploaded. Parts are found by where they begin.
#[derive(Debug, Default)]
struct Table {
    units: Vec<u32>,
}

/// Where a table has the rows of a stack of layers.
#[derive(Debug, Clone, Copy)]
struct StackAt {
    n: usize,
    rows: usize,
    angles: usize,
    /// Whether all are of different sequences.
    single: bool,
}

/// Where a table has what the first half of a pass needs.
#[derive(Debug)]
struct BytesAt {
    /// Ids and rows of the entropy model.
    entropy: Option<(usize, StackAt)>,
    encoder: StackAt,
    /// Ids up to each byte, or its embedding if the host has the tables.
    embeddings: Embeddings,
    states: usize,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
enum Embeddings {
    Ids(usize),
    Sums(usize),
}

impl Table {
    fn put(&mut self, units: impl IntoIterator<Item = u32>) -> usize {
        // Structures begin at multiples of 16 bytes.
        self.units.resize(self.units.len().next_multiple_of(4), 0);
        let at = self.units.len();
        self.units.extend(units);
        at
    }

    fn rows(&mut self, rows: &[Row]) -> usize {
        self.put(rows.iter().flat_map(|row| row.units()))
    }

    fn stack(&mut self, list: &[Row], rows: &Rows<'_>) -> StackAt {
        let n = list.len();
        let (cos, sin) = rows.angles.cos_sin();
        let half = cos.len() / n.max(1);
        // Per row cosines, then sines.
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        let angles = angles.flat_map(|(cos, sin)| cos.iter().chain(sin).map(|x| x.to_bits()));
        StackAt {
            n,
            rows: self.rows(list),
            angles: self.put(angles),
            single: rows.runs.iter().all(|run| run.len() == 1),
        }
    }
}

/// Those of the last run.
fn last_run<'a>(rows: &'a Rows<'_>, store: &'a Store) -> impl Iterator<Item = Row> + 'a {
    let run = rows.runs.last().expect("a run has been added");
    let visible = &rows.visible[rows.n() - run.len()..];
    let rows = run.clone().zip(visible);
    rows.map(|(position, seen)| store.row(position, seen.clone()))
}

/// Rows that are only entered or fetched at `positions`.
fn rows_at(positions: Range<usize>, store: &Store) -> impl Iterator<Item = Row> + '_ {
    positions.map(|p| store.row(p, p..p + 1))
}

/// The `window` ids up to each of `positions`; 0 before the text and where an id is not known yet.
fn windows(ids: &[Id], positions: Range<usize>, window: usize) -> Vec<u32> {
    let id = |i: Option<usize>| i.and_then(|i| ids.get(i)).map_or(0, |&id| u32::from(id));
    positions
        .flat_map(|p| (0..window).map(move |i| (p + 1 + i).checked_sub(window)))
        .map(id)
        .collect()
}

/// Rows of the second half whose logits are wanted: the first of them, and how many.
type Spans = Vec<(usize, usize)>;

impl Model {
    /// The pass of `forward.rs` on a GPU.
    pub(in super::super) fn forward_on_device(
        &self,
        device: &DeviceModel,
        parts: &mut [Part<'_>],
    ) -> Result<Few<Buffer<'_, f32>>, Failure> {
        let take = |part: &mut Part<'_>| part.state.device.take();
        let mut caches: Vec<Option<Arc<Caches>>> = parts.iter_mut().map(take).collect();
        let result = self.pass(device, parts, &mut caches);
        for (part, caches) in parts.iter_mut().zip(caches) {
            part.state.device = caches;
        }
        result
    }

    fn pass(
        &self,
        device: &DeviceModel,
        parts: &mut [Part<'_>],
        caches: &mut [Option<Arc<Caches>>],
    ) -> Result<Few<Buffer<'_, f32>>, Failure> {
        // Before anything is started, copies of what a fork shares too: a graph that another pass records
        // would record them in its stead. After a panic the scratch holds what it likes: every pass writes it
        // first.
        let scratch = device.scratch.lock();
        let scratch = &mut *scratch.unwrap_or_else(PoisonError::into_inner);
        let own = caches.iter_mut().map(|c| Caches::own(device, c));
        let mut caches: Vec<&mut Caches> = own.collect::<Result<_>>()?;
        for (part, caches) in parts.iter().zip(&mut caches) {
            // Rows know where they are, so this comes before any: one byte more is read ahead, and a byte
            // closes at most one patch.
            let n_patches = part.state.n_closed() + part.ids.len();
            let n_bytes = part.state.ids.len() + 1;
            caches.reserve(n_bytes, n_patches, device.k)?;
            caches.n_bytes = caches.n_bytes.max(n_bytes);
        }
        let mut fresh = Vec::new();
        for (i, part) in parts.iter_mut().enumerate() {
            let ahead = part.state.ahead.take();
            match ahead.filter(|a| part.ids == [a.id] && part.trace.is_none()) {
                Some(ahead) => part.state.entropies.push(ahead.entropy),
                None => fresh.push(i),
            }
        }
        if !fresh.is_empty() {
            self.first_half(device, scratch, parts, &caches, &fresh)?;
        }
        let n_closed = self.cut(parts)?;
        for (part, caches) in parts.iter().zip(&mut caches) {
            caches.n_patches = caches.n_patches.max(part.state.n_closed());
        }
        self.close_on(device, scratch, parts, &caches)?;
        Ok(self.decode_on(device, scratch, parts, &caches, &n_closed)?)
    }

    /// Fills a table for the first half at `positions` of some sequences; those with an entropy model
    /// come first, and `n_entropy` says how many rows they have.
    fn bytes_table(
        &self,
        device: &DeviceModel,
        table: &mut Table,
        sequences: &[(&State, &Caches, Range<usize>)],
    ) -> Result<BytesAt> {
        let n = sequences
            .iter()
            .map(|(.., positions)| positions.len())
            .sum();
        let mut entropy = None;
        if let Some(model) = &self.weights.entropy {
            let (mut rows, mut list) = (model.layers.rows(&self.compute, n), Vec::new());
            let mut ids = Vec::new();
            for (state, caches, positions) in sequences {
                if let (Some(store), Some(_)) = (&caches.entropy, &state.entropy_cache) {
                    self.add_entropy_run(state, positions.clone(), &mut rows);
                    list.extend(last_run(&rows, store));
                    ids.extend(windows(&state.ids, positions.clone(), 1));
                }
            }
            entropy = (!list.is_empty()).then(|| (table.put(ids), table.stack(&list, &rows)));
        }

        let layers = &self.weights.encoder.layers;
        let (mut rows, mut list) = (layers.rows(&self.compute, n), Vec::new());
        let (mut states, mut bytes) = (Vec::new(), Vec::new());
        let (mut ids, mut sums) = (Vec::new(), Vec::new());
        for (state, caches, positions) in sequences {
            self.add_encoder_run(state, positions.clone(), &mut rows);
            list.extend(last_run(&rows, &caches.encoder));
            states.extend(rows_at(positions.clone(), &caches.states));
            bytes.extend(rows_at(positions.clone(), &caches.bytes));
            match &device.tables {
                Some(tables) => {
                    ids.extend(windows(&state.ids, positions.clone(), tables.window()));
                }
                None => {
                    let encoder = &self.weights.encoder;
                    let of_run = encoder.embed(&self.compute, &state.ids, positions.start);
                    sums.extend_from_slice(&of_run);
                }
            }
        }
        Ok(BytesAt {
            entropy,
            encoder: table.stack(&list, &rows),
            embeddings: match device.tables {
                Some(_) => Embeddings::Ids(table.put(ids)),
                None => Embeddings::Sums(table.put(sums.iter().map(|x| x.to_bits()))),
            },
            states: table.rows(&states),
            bytes: table.rows(&bytes),
        })
    }

    /// The entropy model and the local encoder on the parts `fresh`.
    fn first_half(
        &self,
        device: &DeviceModel,
        scratch: &mut Scratch,
        parts: &mut [Part<'_>],
        caches: &[&mut Caches],
        fresh: &[usize],
    ) -> Result<()> {
        let mut table = Table::default();
        let sequences: Vec<(&State, &Caches, Range<usize>)> = (parts.iter().zip(caches))
            .enumerate()
            .filter(|(i, _)| fresh.contains(i))
            .map(|(_, (part, caches))| (&*part.state, &**caches, part.positions()))
            .collect();
        let at = self.bytes_table(device, &mut table, &sequences)?;
        let traced = parts.iter().any(|part| part.trace.is_some());
        let n_entropy = at.entropy.map_or(0, |(_, stack)| stack.n);
        let name = (at.encoder.single && at.encoder.n <= MAX_RECORDED && !traced)
            .then_some(Launches::Bytes(at.encoder.n, n_entropy));
        let gpu = &device.gpu;
        scratch.memory.upload(gpu, 0, &table)?;
        reserve(&mut scratch.memory.out, n_entropy)?;
        scratch.run(gpu, name, |memory| {
            memory.read_bytes(device, 0, &at, None, 0)
        })?;

        let memory = &scratch.memory;
        let entropies = gpu.read_f32s(&memory.out, n_entropy)?;
        let dim = device.patch_projection.cols();
        let (logits, hidden) = match traced {
            true => (
                gpu.read_f32s(&memory.logits, n_entropy * VOCAB_SIZE)?,
                gpu.read_f32s(&memory.x, at.encoder.n * dim)?,
            ),
            false => Default::default(),
        };
        let (mut n_known, mut n_done) = (0, 0);
        for &i in fresh {
            let part = &mut parts[i];
            let positions = part.positions();
            let known = match part.state.entropy_cache {
                Some(_) => n_known..n_known + positions.len(),
                None => n_known..n_known,
            };
            n_known = known.end;
            let done = n_done..n_done + positions.len();
            n_done = done.end;
            let state = &mut *part.state;
            state.entropies.extend_from_slice(&entropies[known.clone()]);
            state.entropies.resize(positions.end, f32::NAN);
            if let Some(trace) = part.trace.as_deref_mut() {
                let encoder = &self.weights.encoder;
                let embeddings = encoder.embed(&self.compute, &state.ids, positions.start);
                trace.input_embeds.extend_from_slice(&embeddings);
                let logits = &logits[known.start * VOCAB_SIZE..known.end * VOCAB_SIZE];
                trace.entropy_logits.extend_from_slice(logits);
                let hidden = &hidden[done.start * dim..done.end * dim];
                trace.encoder_hidden.extend_from_slice(hidden);
            }
        }
        Ok(())
    }

    /// The patches that the ids close: their vectors, the global transformer, and what the decoder reads.
    fn close_on(
        &self,
        device: &DeviceModel,
        scratch: &mut Scratch,
        parts: &mut [Part<'_>],
        caches: &[&mut Caches],
    ) -> Result<()> {
        let (k, gpu) = (device.k, &device.gpu);
        let n = parts.iter().map(|part| part.closed().len()).sum();
        let layers = &self.weights.global.layers;
        let (mut rows, mut list) = (layers.rows(&self.compute, n), Vec::new());
        let (mut pooled, mut seen, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        for (part, caches) in parts.iter().zip(caches) {
            let closed = part.closed();
            if closed.is_empty() {
                continue;
            }
            self.add_global_run(part.state, closed.clone(), &mut rows);
            list.extend(last_run(&rows, &caches.global));
            outputs.extend(rows_at(closed.start * k..closed.end * k, &caches.patches));
            let starts = &part.state.starts;
            for p in closed {
                pooled.push(caches.states.row(0, starts[p]..starts[p + 1]));
                let first = (p + 1).saturating_sub(device.encoder_window);
                let row = caches.bytes.row(0, starts[first]..starts[p + 1]);
                seen.extend(std::iter::repeat_n(row, k));
            }
        }
        if list.is_empty() {
            return Ok(());
        }
        let mut table = Table::default();
        let at = CloseAt {
            stack: table.stack(&list, &rows),
            pooled: table.rows(&pooled),
            seen: table.rows(&seen),
            outputs: table.rows(&outputs),
            traced: parts.iter().any(|part| part.trace.is_some()),
        };
        let n = at.stack.n;
        let name =
            (at.stack.single && n <= MAX_RECORDED && !at.traced).then_some(Launches::Close(n));
        scratch.memory.upload(gpu, 1, &table)?;
        scratch.run(gpu, name, |memory| memory.close(device, &at))?;
        if !at.traced {
            return Ok(());
        }
        let (width, dim) = (
            device.patch_projection.rows(),
            device.output_projection.cols(),
        );
        let memory = &scratch.memory;
        let vectors = gpu.read_f32s(&memory.vectors, n * width)?;
        let x = memory.global_rows(device);
        let outputs = gpu.read_f32s(x, n * dim)?;
        let mut done = 0;
        for part in parts {
            let of_part = done..done + part.closed().len();
            done = of_part.end;
            if let Some(trace) = part.trace.as_deref_mut() {
                let vectors = &vectors[of_part.start * width..of_part.end * width];
                trace.encoder_cross.extend_from_slice(vectors);
                let outputs = &outputs[of_part.start * dim..of_part.end * dim];
                trace.global_out.extend_from_slice(outputs);
            }
        }
        Ok(())
    }

    /// The local decoder; then, if all parts want it, the choice of the next ids, which are read ahead.
    fn decode_on(
        &self,
        device: &DeviceModel,
        scratch: &mut Scratch,
        parts: &mut [Part<'_>],
        caches: &[&mut Caches],
        n_closed: &[usize],
    ) -> Result<Few<Buffer<'_, f32>>> {
        let (k, gpu) = (device.k, &device.gpu);
        let layers = &self.weights.decoder.layers;
        let (mut rows, mut list) = (layers.rows(&self.compute, n_closed.len()), Vec::new());
        let (mut states, mut seen) = (Vec::new(), Vec::new());
        let mut spans = Spans::new();
        let mut n = 0;
        for (part, caches) in parts.iter().zip(caches) {
            let positions = part.positions();
            self.add_decoder_run(part.state, positions.clone(), &mut rows);
            list.extend(last_run(&rows, &caches.decoder));
            for (position, n_closed) in positions.clone().zip(&n_closed[n..]) {
                states.push(caches.states.row(position, position..position + 1));
                let patches = n_closed.saturating_sub(device.decoder_window)..*n_closed;
                seen.push(caches.patches.row(0, patches.start * k..patches.end * k));
            }
            let end = n + positions.len();
            let n_wanted = part.n_wanted();
            match spans.last_mut() {
                _ if n_wanted == 0 => {}
                Some((first, count)) if *first + *count == end - n_wanted => *count += n_wanted,
                _ => spans.push((end - n_wanted, n_wanted)),
            }
            n = end;
        }
        let mut table = Table::default();
        let mut at = DecodeAt {
            stack: table.stack(&list, &rows),
            states: table.rows(&states),
            seen: table.rows(&seen),
            spans,
            ahead: None,
        };
        if let Some(choices) = self.choices(device, parts) {
            let choices = table.put(choices.iter().flat_map(Choice::units));
            let sequences: Vec<(&State, &Caches, Range<usize>)> = (parts.iter().zip(caches))
                .filter(|(part, _)| part.wanted != Wanted::Nothing)
                .map(|(part, caches)| {
                    let end = part.state.ids.len();
                    (&*part.state, &**caches, end..end + 1)
                })
                .collect();
            let bytes = self.bytes_table(device, &mut table, &sequences)?;
            at.ahead = Some((choices, bytes));
        }
        let n_wanted: usize = at.spans.iter().map(|span| span.1).sum();
        let n_ahead = at.ahead.as_ref().map_or(0, |(_, bytes)| bytes.encoder.n);
        let known = (at.ahead.as_ref()).is_some_and(|(_, bytes)| bytes.entropy.is_some());
        let n_out = n_wanted * VOCAB_SIZE + 2 * n_ahead;
        let recorded = at.stack.single && n <= MAX_RECORDED && n_wanted == n;
        let name = recorded.then_some(Launches::Decode(n, n_ahead > 0, known));
        scratch.memory.upload(gpu, 2, &table)?;
        reserve(&mut scratch.memory.out, n_out)?;
        scratch.run(gpu, name, |memory| memory.decode(device, &at))?;
        let out = match n_out {
            0 => Vec::new(),
            n => gpu.read_u32s(&scratch.memory.out, n)?,
        };

        let (logits, ahead) = out.split_at(n_wanted * VOCAB_SIZE);
        let (chosen, entropies) = ahead.split_at(n_ahead);
        let wanting = parts
            .iter_mut()
            .filter(|part| part.wanted != Wanted::Nothing);
        for (part, (&id, &entropy)) in wanting.zip(chosen.iter().zip(entropies)) {
            let id = Id::try_from(id).expect("ids are below the size of the vocabulary");
            part.chosen = Some(id);
            part.state.ahead = Some(Ahead {
                id,
                entropy: match known {
                    true => f32::from_bits(entropy),
                    false => f32::NAN,
                },
            });
        }
        let mut left = logits;
        let of_part = |part: &Part<'_>| {
            let (of_part, others) = left.split_at(part.n_wanted() * VOCAB_SIZE);
            left = others;
            let mut logits = self.compute.empty(of_part.len());
            logits.extend(of_part.iter().map(|&bits| f32::from_bits(bits)));
            logits
        };
        Ok(parts.iter().map(of_part).collect())
    }

    /// How the device chooses the next ids: if it has the tables to read them, and every part that wants
    /// logits wants an id, and all or none of these run the entropy model.
    fn choices(&self, device: &DeviceModel, parts: &[Part<'_>]) -> Option<Vec<Choice>> {
        device.tables.as_ref()?;
        let wanting = parts.iter().filter(|part| part.wanted != Wanted::Nothing);
        let wanting: Vec<&Part<'_>> = wanting.collect();
        let known = |part: &&Part<'_>| part.state.entropy_cache.is_some();
        let alike = wanting.iter().all(known) || !wanting.iter().any(known);
        wanting.first().filter(|_| alike)?;
        (wanting.iter())
            .map(|part| match part.wanted {
                Wanted::Last => part.sampler?.choice(VOCAB_SIZE),
                _ => None,
            })
            .collect()
    }
}

/// Where a table has what closed patches need.
#[derive(Debug)]
struct CloseAt {
    stack: StackAt,
    pooled: usize,
    seen: usize,
    outputs: usize,
    traced: bool,
}

/// Where a table has what the decoder needs.
#[derive(Debug)]
struct DecodeAt {
    stack: StackAt,
    states: usize,
    seen: usize,
    spans: Spans,
    /// How ids are chosen, and where they are read.
    ahead: Option<(usize, BytesAt)>,
}

/// The norm of x (n, dim) into y from row `to` on.
fn norm_rows(
    norm: &Norm,
    ops: &Ops,
    n: usize,
    x: At<'_>,
    (y, to): (&mut cuda::Buffer, usize),
) -> Result<()> {
    let weight = (&norm.weight, norm.dim);
    reserve(y, (to + n) * norm.dim)?;
    ops.rms_norm(n, x, weight, norm.eps, (y, to * norm.dim))
}

/// The product with the norm of n rows of x into y, which grows to hold it; `a` is for the norm of many rows.
fn normed(
    ops: &Ops,
    (w, norm): (&Linear, &Norm),
    (n, x): (usize, &cuda::Buffer),
    a: &mut cuda::Buffer,
    y: &mut cuda::Buffer,
) -> Result<()> {
    if n > NARROW_ROWS {
        norm_rows(norm, ops, n, (x, 0), (&mut *a, 0))?;
        return linear(w, n, a, y);
    }
    reserve(y, n * w.rows())?;
    w.apply_normed(n, norm, (x, 0), (y, 0))
}

/// The product of n rows of x into y, which grows to hold it.
fn linear(w: &Linear, n: usize, x: &cuda::Buffer, y: &mut cuda::Buffer) -> Result<()> {
    reserve(y, n * w.rows())?;
    w.apply(n, (x, 0), (y, 0), Mode::Set)
}

impl Work {
    /// One layer on x (n, dim) in place.
    fn layer(
        &mut self,
        ops: &Ops,
        (layers, number): (&Layers, usize),
        (table, at): (usize, &StackAt),
        x: &cuda::Buffer,
    ) -> Result<()> {
        let (layer, heads, n) = (&layers.layers[number], layers.heads, at.n);
        let wqkv = (&layer.wqkv, &layer.attention_norm);
        normed(ops, wqkv, (n, x), &mut self.a, &mut self.q)?;
        let table = &self.tables[table];
        let (rows, angles) = ((table, at.rows), (table, at.angles));
        if !at.single {
            ops.rope_append(n, heads, &self.q, rows, angles, 2 * number)?;
        }
        reserve(&mut self.o, n * layer.wo.cols())?;
        let with = Attention {
            heads,
            rows,
            side: 2 * number,
            q_stride: layer.wqkv.rows(),
            angles: at.single.then_some(angles),
        };
        ops.attention(n, &self.q, with, &self.o)?;
        layer.wo.apply(n, (&self.o, 0), (x, 0), Mode::Add)?;

        reserve(&mut self.gate, n * layer.w2.cols())?;
        if n <= NARROW_ROWS && layer.gate_up.is_gated() {
            (layer.gate_up).apply_gated(n, &layer.ffn_norm, (x, 0), (&self.gate, 0))?;
        } else {
            let gate_up = (&layer.gate_up, &layer.ffn_norm);
            normed(ops, gate_up, (n, x), &mut self.a, &mut self.gate_up)?;
            ops.swiglu(n, layer.w2.cols(), &self.gate_up, &self.gate)?;
        }
        layer.w2.apply(n, (&self.gate, 0), (x, 0), Mode::Add)
    }

    fn stack(
        &mut self,
        ops: &Ops,
        layers: &Layers,
        at: (usize, &StackAt),
        x: &cuda::Buffer,
    ) -> Result<()> {
        (0..layers.layers.len()).try_for_each(|number| self.layer(ops, (layers, number), at, x))
    }

    /// The cross-attention of n rows of x, in place, over sides `side` and the next of what `rows` see.
    fn cross(
        &mut self,
        ops: &Ops,
        c: &Cross,
        (table, rows, n): (usize, usize, usize),
        side: usize,
        x: &cuda::Buffer,
    ) -> Result<()> {
        normed(ops, (&c.wq, &c.norm_q), (n, x), &mut self.a, &mut self.q)?;
        reserve(&mut self.o, n * c.wo.cols())?;
        let with = Attention {
            heads: c.heads,
            rows: (&self.tables[table], rows),
            side,
            q_stride: c.wq.rows(),
            angles: None,
        };
        ops.attention(n, &self.q, with, &self.o)?;
        c.wo.apply(n, (&self.o, 0), (x, 0), Mode::DoubleAdd)
    }

    /// Keys and values of n rows of x, entered at `rows` in sides `side` and the next.
    fn keys_values(
        &mut self,
        ops: &Ops,
        c: &Cross,
        (table, rows, n): (usize, usize, usize),
        side: usize,
        x: &cuda::Buffer,
    ) -> Result<()> {
        normed(ops, (&c.wkv, &c.norm_kv), (n, x), &mut self.a, &mut self.kv)?;
        let rows = (&self.tables[table], rows);
        ops.put_rows(n, &self.kv, rows, (side, 2), c.wkv.rows() / 2)
    }
}

impl Memory {
    /// Where all buffers are.
    fn addresses(&self) -> Vec<u64> {
        let Work {
            a,
            q,
            kv,
            o,
            gate_up,
            gate,
            tables,
        } = &self.work;
        let Memory {
            work: _,
            bytes,
            logits,
            x,
            pooled,
            patches,
            global,
            vectors,
            out,
        } = self;
        let buffers = [
            a, q, kv, o, gate_up, gate, bytes, logits, x, pooled, patches, global, vectors, out,
        ];
        let buffers = buffers.into_iter().chain(tables);
        buffers.map(cuda::Buffer::address).collect()
    }

    fn upload(&mut self, gpu: &Gpu, table: usize, content: &Table) -> Result<()> {
        let to = &mut self.work.tables[table];
        reserve(to, content.units.len())?;
        gpu.write_u32s(to, &content.units)
    }

    /// The first half of a pass. With `chosen` the last ids are read from there in `out`; entropies go to
    /// `entropies` in `out`.
    fn read_bytes(
        &mut self,
        model: &DeviceModel,
        table: usize,
        at: &BytesAt,
        chosen: Option<usize>,
        entropies: usize,
    ) -> Result<()> {
        let ops = &model.ops;
        let Memory {
            work,
            bytes,
            logits,
            x,
            out,
            ..
        } = self;
        if let (Some(entropy), Some((ids, stack))) = (&model.entropy, &at.entropy) {
            let (n, head) = (stack.n, &entropy.head);
            reserve(bytes, n * head.norm.dim)?;
            let ids = (&work.tables[table], *ids);
            ops.embed(n, &entropy.tables, ids, chosen.map(|c| (&*out, c)), bytes)?;
            work.stack(ops, &entropy.layers, (table, stack), bytes)?;
            let output = (&head.output, &head.norm);
            normed(ops, output, (n, bytes), &mut work.a, logits)?;
            ops.entropy(n, VOCAB_SIZE, (logits, 0), (out, entropies))?;
        }

        let (n, dim) = (at.encoder.n, model.patch_projection.cols());
        reserve(x, n * dim)?;
        match (at.embeddings, &model.tables) {
            (Embeddings::Ids(ids), Some(tables)) => {
                let ids = (&work.tables[table], ids);
                ops.embed(n, tables, ids, chosen.map(|c| (&*out, c)), x)?;
            }
            (Embeddings::Sums(from), _) => {
                let from = (&work.tables[table], from * 4);
                model.gpu.copy(from, (x, 0), n * dim * 4)?;
            }
            (Embeddings::Ids(_), None) => unreachable!("ids are for tables"),
        }
        for number in 0..model.encoder.layers.len() {
            work.layer(ops, (&model.encoder, number), (table, &at.encoder), x)?;
            let cross = model.encoder_cross.iter().enumerate();
            for (i, (_, cross)) in cross.filter(|(_, c)| c.0 == number) {
                let states = (&work.tables[table], at.states);
                ops.put_rows(n, x, states, (i, 1), dim)?;
                work.keys_values(ops, cross, (table, at.bytes, n), 2 * i, x)?;
            }
        }
        Ok(())
    }

    /// Vectors of closed patches, the global transformer, and what the decoder reads of its outputs.
    fn close(&mut self, model: &DeviceModel, at: &CloseAt) -> Result<()> {
        const TABLE: usize = 1;
        let (ops, m, k) = (&model.ops, at.stack.n, model.k);
        let dim = model.patch_projection.cols();
        let Memory {
            work,
            pooled,
            patches,
            global,
            vectors,
            ..
        } = self;
        reserve(pooled, m * dim)?;
        let bytes = (&work.tables[TABLE], at.pooled);
        ops.max_rows(m, bytes, model.pooled, dim, pooled)?;
        linear(&model.patch_projection, m, pooled, patches)?;
        for (i, (_, cross)) in model.encoder_cross.iter().enumerate() {
            work.cross(ops, cross, (TABLE, at.seen, m * k), 2 * i, patches)?;
        }
        if at.traced {
            reserve(vectors, m * k * dim)?;
            (model.gpu).copy((patches, 0), (vectors, 0), m * k * dim * 4)?;
        }

        let x = match &model.input_projection {
            Some(projection) => {
                linear(projection, m, patches, global)?;
                &*global
            }
            None => &*patches,
        };
        work.stack(ops, &model.global, (TABLE, &at.stack), x)?;

        linear(&model.output_projection, m, x, pooled)?; // (m * k, dim)
        for (i, cross) in model.decoder_cross.iter().enumerate() {
            work.keys_values(ops, cross, (TABLE, at.outputs, m * k), 2 * i, pooled)?;
        }
        Ok(())
    }

    /// The outputs of the global transformer, after [`Memory::close`].
    fn global_rows(&self, model: &DeviceModel) -> &cuda::Buffer {
        match model.input_projection {
            Some(_) => &self.global,
            None => &self.patches,
        }
    }

    /// The decoder, the wanted logits, and the next ids with the first half of their pass.
    fn decode(&mut self, model: &DeviceModel, at: &DecodeAt) -> Result<()> {
        const TABLE: usize = 2;
        let (ops, n) = (&model.ops, at.stack.n);
        let dim = model.patch_projection.cols();
        let Memory { work, x, out, .. } = self;
        reserve(x, n * dim)?;
        let states = (&work.tables[TABLE], at.states);
        ops.take_rows(n, x, states, model.encoder_cross.len() - 1, dim)?;
        for number in 0..model.decoder.layers.len() {
            if let Some(cross) = model.decoder_cross.get(number) {
                work.cross(ops, cross, (TABLE, at.seen, n), 2 * number, x)?;
            }
            work.layer(ops, (&model.decoder, number), (TABLE, &at.stack), x)?;
        }
        let wanted: usize = at.spans.iter().map(|span| span.1).sum();
        reserve(&mut work.a, wanted * dim)?;
        let mut n_wanted = 0;
        for &(first, count) in &at.spans {
            let rows = (&*x, first * dim);
            norm_rows(&model.head.norm, ops, count, rows, (&mut work.a, n_wanted))?;
            n_wanted += count;
        }
        if n_wanted == 0 {
            return Ok(());
        }
        (model.head.output).apply(n_wanted, (&work.a, 0), (out, 0), Mode::Set)?;
        let Some((choices, bytes)) = &at.ahead else {
            return Ok(());
        };
        let chosen = n_wanted * VOCAB_SIZE;
        let choices = (&work.tables[TABLE], *choices);
        ops.sample(n_wanted, VOCAB_SIZE, (out, 0), choices, (out, chosen))?;
        self.read_bytes(model, TABLE, bytes, Some(chosen), chosen + n_wanted)
    }
}
