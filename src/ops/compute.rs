//! The instruction set and the threads that the operations use.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use blt_kernels::{Isa, ThreadPool, ViewMut};

use super::matrix::Matrix;
use super::scratch::{Pooled, Scratch, ScratchVec};
use crate::error::{Error, Result};

/// The largest thread count that is accepted.
pub(crate) const MAX_THREADS: usize = 1024;

/// The arithmetic of products with unquantised weights. Within a profile, results have the same bits for any chunking;
/// the two profiles differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Activations in f32, as the reference implementations compute in full precision.
    #[default]
    Exact,
    /// Activations rounded to bfloat16 where the weights are bfloat16, as most frameworks do on most hardware. Faster on
    /// prompts with AVX-512 BF16, slower without it.
    Fast,
}

impl Profile {
    /// All profiles.
    pub const ALL: [Profile; 2] = [Profile::Exact, Profile::Fast];

    /// The name that is parsed and displayed.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Exact => "exact",
            Profile::Fast => "fast",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Profile::ALL.into_iter().find(|p| p.name() == name);
        found.ok_or_else(|| {
            Error::argument(
                "profile",
                format!("expected exact or fast, found \"{name}\""),
            )
        })
    }
}

/// The instruction set and the threads of the operations. It owns its threads and does not use a pool of the embedding
/// program.
#[derive(Debug)]
pub struct Compute {
    isa: Isa,
    profile: Profile,
    /// The smallest number of multiply-adds that is worth a task.
    min_work: usize,
    pool: ThreadPool,
    scratch: Scratch,
    observer: Option<Observer>,
}

/// A callback that receives each matrix and the rows it is multiplied with.
struct Observer(Box<Observe>);

type Observe = dyn Fn(&Matrix, &[f32]) + Send + Sync;

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// A few microseconds on one core, which is several times the cost of starting a task.
const MIN_WORK: usize = 1 << 16;

impl Compute {
    /// Starts `n_threads` threads (`None`: one per available core) and uses `isa` (`None`: the fastest instruction set of
    /// the CPU).
    ///
    /// # Errors
    /// [`Error::Argument`] if `n_threads` is 0 or more than 1024, or the threads do not start.
    pub fn new(n_threads: Option<usize>, isa: Option<Isa>) -> Result<Self> {
        let n_threads = n_threads.unwrap_or_else(|| {
            std::thread::available_parallelism()
                .map_or(1, NonZeroUsize::get)
                .min(MAX_THREADS)
        });
        if !(1..=MAX_THREADS).contains(&n_threads) {
            return Err(Error::argument(
                "threads",
                format!("expected 1 to {MAX_THREADS}, found {n_threads}"),
            ));
        }
        let pool = ThreadPool::start(n_threads)
            .map_err(|e| Error::argument("threads", format!("cannot start {n_threads}: {e}")))?;
        Ok(Compute {
            isa: isa.unwrap_or_else(Isa::detect),
            profile: Profile::Exact,
            min_work: MIN_WORK,
            pool,
            scratch: Scratch::default(),
            observer: None,
        })
    }

    /// Sets the profile.
    pub fn profiled(self, profile: Profile) -> Self {
        Compute { profile, ..self }
    }

    /// Calls `observer` before every product, with the matrix and the rows (n, cols) it is multiplied with, to collect
    /// activation statistics. Calls may come from several threads.
    pub fn observed(self, observer: impl Fn(&Matrix, &[f32]) + Send + Sync + 'static) -> Self {
        Compute {
            observer: Some(Observer(Box::new(observer))),
            ..self
        }
    }

    /// Passes a product to the observer, if there is one.
    pub(super) fn observe(&self, w: &Matrix, x: &[f32]) {
        if let Some(Observer(observer)) = &self.observer {
            observer(w, x);
        }
    }

    /// Splits even the smallest operation into tasks. Slow; for tests with tiny models.
    pub fn split_everything(self) -> Self {
        Compute {
            min_work: 1,
            ..self
        }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The arithmetic.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// The number of threads.
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// Scratch memory for `n` values, with arbitrary content. Write it before reading it.
    pub fn buffer(&self, n: usize) -> ScratchVec<'_, f32> {
        self.scratch.lend(n)
    }

    /// Scratch memory that is empty, with capacity for `n` elements.
    pub fn empty<T: Pooled>(&self, n: usize) -> ScratchVec<'_, T> {
        self.scratch.lend_empty(n)
    }

    /// The number of tasks for `work` multiply-adds: one if waking a thread would cost more.
    pub(super) fn n_tasks(&self, work: usize) -> usize {
        if self.n_threads() == 1 || work < 2 * self.min_work {
            return 1;
        }
        // More tasks than threads, so that a thread that loses its core does not delay the others.
        (work / self.min_work).min(4 * self.n_threads())
    }

    /// Calls `f(i, row, col, part)` on the threads for parts of the matrices: see [`ThreadPool::parts`].
    pub(super) fn parts<F: Send + Sync>(
        &self,
        matrices: &mut [ViewMut<'_, F>],
        size: (usize, usize),
        f: impl Fn(usize, usize, usize, ViewMut<'_, F>) + Sync,
    ) {
        self.pool.parts(matrices, size, f);
    }

    /// Calls `f(i, item)` on the threads for each item. A call takes about as long as `work` multiply-adds.
    pub(crate) fn each<T: Send + Sync>(
        &self,
        items: &mut [T],
        work: usize,
        f: impl Fn(usize, &mut T) + Sync,
    ) {
        let n = items.len();
        let (pool, task_rows) = self.task_rows(n, 1, work);
        pool.parts(
            &mut [ViewMut::strided(items, 1, n, n)],
            (1, task_rows),
            |_, _, first, mut part| {
                let part = part.row(0).iter_mut().enumerate();
                part.for_each(|(i, item)| f(first + i, item));
            },
        );
    }

    /// The thread pool, and the number of rows per task for `n` rows of `dim` elements, if an element takes about as long as
    /// `work` multiply-adds.
    pub(super) fn task_rows(&self, n: usize, dim: usize, work: usize) -> (&ThreadPool, usize) {
        let n_tasks = self.n_tasks(work * n * dim);
        (&self.pool, n.div_ceil(n_tasks).max(1))
    }

    /// Calls `f(first, rows)` on the threads for runs of rows of x (n, dim). `work` is that of [`Compute::task_rows`].
    pub(crate) fn rows(
        &self,
        x: &mut [f32],
        dim: usize,
        work: usize,
        f: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let (n, len) = (x.len() / dim, x.len());
        let (pool, task_rows) = self.task_rows(n, dim, work);
        let whole = ViewMut::strided(x, 1, len, len);
        pool.parts(
            &mut [whole],
            (1, task_rows * dim),
            |_, _, start, mut part| {
                f(start / dim, part.row(0));
            },
        );
    }
}
