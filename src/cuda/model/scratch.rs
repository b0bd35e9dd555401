//! The buffers of passes, and their recorded launches.
//!
//! The launches of passes that read one byte of each sequence are recorded as a graph the second time, and from
//! then on started together.

use std::collections::HashMap;
use std::sync::Arc;

use super::inputs::PassInputs;
use crate::cuda::{self, Gpu, Graph, Staging};
use crate::error::Result;

/// Most rows of a pass whose launches are recorded: more are no longer short.
pub(super) const MAX_RECORDED: usize = 64;

/// Buffers and recorded launches, which one pass at a time uses.
#[derive(Debug)]
pub(super) struct Scratch {
    pub memory: Memory,
    /// The number of kernels launched for patches that ended.
    pub n_closing: usize,
    graphs: HashMap<Name, Recorded>,
}

/// A sequence of launches that differs from pass to pass only in the contents of its input tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Launches {
    /// The first half of a pass: the number of rows, and how many of them, from the first, run the entropy model.
    Bytes(usize, usize),
    /// The number of patches closed.
    Close(usize),
    /// Decoder and logits: the number of rows, whether the device chooses the next ids and reads them, and whether it computes
    /// their entropies.
    Decode(usize, bool, bool),
}

/// Launches, and the number of splits of their attentions.
pub(super) type Name = (Launches, usize);

#[derive(Debug)]
enum Recorded {
    /// Started once: buffers are large enough.
    Seen,
    /// With the addresses it was recorded with.
    Graph(Graph, Vec<u64>),
    /// The driver does not record it.
    Refused,
}

/// Buffers that are used throughout a pass. They grow on demand.
#[derive(Debug)]
pub(super) struct Memory {
    pub work: Work,
    /// Byte rows of the entropy model.
    pub bytes: cuda::Buffer,
    /// Its logits.
    pub logits: cuda::Buffer,
    /// Byte rows of the local models.
    pub x: cuda::Buffer,
    pub pooled: cuda::Buffer,
    pub patches: cuda::Buffer,
    pub global: cuda::Buffer,
    /// Patch vectors for a trace.
    pub vectors: cuda::Buffer,
    /// What the host reads: logits, ids chosen, entropies.
    pub out: cuda::Buffer,
}

/// Buffers that are used within a layer, and the input tables.
#[derive(Debug)]
pub(super) struct Work {
    /// Input of a product, normed.
    pub a: cuda::Buffer,
    /// Queries, or queries, keys and values.
    pub q: cuda::Buffer,
    pub kv: cuda::Buffer,
    pub o: cuda::Buffer,
    pub gate_up: cuda::Buffer,
    pub gate: cuda::Buffer,
    /// Input tables of the first half, of closing patches and of the decoder.
    pub inputs: [cuda::Buffer; 3],
    /// The host memory each table is copied from.
    pub staging: [Staging; 3],
    /// The number of splits of the attentions in each.
    pub splits: [usize; 3],
}

/// Makes a buffer at least `n` four-byte numbers large.
pub(super) fn reserve(buffer: &mut cuda::Buffer, n: usize) -> Result<()> {
    if buffer.n_bytes() < n * 4 {
        let gpu = Arc::clone(buffer.gpu());
        *buffer = gpu.alloc(n.next_power_of_two() * 4)?;
    }
    Ok(())
}

impl Scratch {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Scratch> {
        let empty = || gpu.alloc(4);
        let staging = || Staging::new(gpu);
        Ok(Scratch {
            memory: Memory {
                work: Work {
                    a: empty()?,
                    q: empty()?,
                    kv: empty()?,
                    o: empty()?,
                    gate_up: empty()?,
                    gate: empty()?,
                    inputs: [empty()?, empty()?, empty()?],
                    staging: [staging()?, staging()?, staging()?],
                    splits: [1; 3],
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
            n_closing: 0,
            graphs: HashMap::new(),
        })
    }

    /// Starts launches, as a graph if they have a name and have been started before.
    pub fn run(
        &mut self,
        gpu: &Arc<Gpu>,
        name: Option<Name>,
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
            inputs,
            staging: _,
            splits: _,
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
        let buffers = buffers.into_iter().chain(inputs);
        buffers.map(cuda::Buffer::address).collect()
    }

    pub fn upload(&mut self, stage: usize, content: &PassInputs) -> Result<()> {
        self.work.splits[stage] = content.splits();
        let to = &mut self.work.inputs[stage];
        reserve(to, content.units.len())?;
        self.work.staging[stage].write(to, &content.units)
    }
}
