//! Which instructions and how many threads the operations use.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use blt_kernels::{Isa, ThreadPool, ViewMut};

use super::Matrix;
use super::scratch::{Pooled, Scratch, ScratchVec};
use crate::error::{Error, Result};

/// Largest thread count that is believed.
const MAX_THREADS: usize = 1024;

/// The arithmetic of products with unquantised weights. Each gives the same bits however a text is
/// read; the two differ from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Activations in f32: what the reference implementations compute in full precision.
    #[default]
    Exact,
    /// Activations rounded to bfloat16 where the weights are bfloat16, as most frameworks do on most
    /// hardware: prompts are read about twice as fast with AVX-512 BF16, and slower without.
    Fast,
}

impl Profile {
    /// All profiles.
    pub const ALL: [Profile; 2] = [Profile::Exact, Profile::Fast];

    /// The name that is parsed and shown.
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

/// Instruction set and threads of the operations. Owns its threads: an embedder's own pool is left
/// alone.
#[derive(Debug)]
pub struct Compute {
    isa: Isa,
    profile: Profile,
    /// Least multiply-adds worth a task of their own.
    min_work: usize,
    pool: ThreadPool,
    scratch: Scratch,
    observer: Option<Observer>,
}

/// Sees each matrix and the rows it is about to be multiplied with.
struct Observer(Box<Observe>);

type Observe = dyn Fn(&Matrix, &[f32]) + Send + Sync;

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// A few microseconds on one core, several times what handing a task over costs.
const MIN_WORK: usize = 1 << 16;

impl Compute {
    /// `n_threads` threads (`None`: as many as the machine offers) and the best instructions the
    /// CPU has, or those given.
    ///
    /// # Errors
    /// [`Error::Argument`] if `n_threads` is 0 or absurd, or the threads cannot be started.
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

    /// Computes in another profile than [`Profile::Exact`].
    pub fn profiled(self, profile: Profile) -> Self {
        Compute { profile, ..self }
    }

    /// Calls `observer` before every product with the matrix and the rows (n, cols) it is multiplied
    /// with: to gather statistics of what a model's matrices meet. It may be called from several
    /// threads.
    pub fn observed(self, observer: impl Fn(&Matrix, &[f32]) + Send + Sync + 'static) -> Self {
        Compute {
            observer: Some(Observer(Box::new(observer))),
            ..self
        }
    }

    /// Shows the observer, if there is one, a product about to be made.
    pub(super) fn observe(&self, w: &Matrix, x: &[f32]) {
        if let Some(Observer(observer)) = &self.observer {
            observer(w, x);
        }
    }

    /// Shares out even the smallest piece of work, which is slow: for tests with tiny models.
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

    /// Memory for `n` intermediate values, of any content: to be written before it is read.
    pub fn buffer(&self, n: usize) -> ScratchVec<'_, f32> {
        self.scratch.lend(n)
    }

    /// Memory like that of [`Compute::buffer`], empty, with room for `n` elements.
    pub fn empty<T: Pooled>(&self, n: usize) -> ScratchVec<'_, T> {
        self.scratch.lend_empty(n)
    }

    /// How many tasks to cut `work` multiply-adds into: one if a thread's wake-up would cost more.
    pub(super) fn n_tasks(&self, work: usize) -> usize {
        if self.n_threads() == 1 || work < 2 * self.min_work {
            return 1;
        }
        // More tasks than threads, so that a thread that loses its core does not hold up the rest.
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

    /// Calls `f(i, item)` on the threads for each of the items, which takes about as long as `work`
    /// multiply-adds.
    pub(crate) fn each<T: Send + Sync>(
        &self,
        items: &mut [T],
        work: usize,
        f: impl Fn(usize, &mut T) + Sync,
    ) {
        let n = items.len();
        let (pool, run) = self.runs(n, 1, work);
        pool.parts(
            &mut [ViewMut::strided(items, 1, n, n)],
            (1, run),
            |_, _, first, mut part| {
                let part = part.row(0).iter_mut().enumerate();
                part.for_each(|(i, item)| f(first + i, item));
            },
        );
    }

    /// The threads, and how many of `n` rows of `dim` elements each takes at a time, if an element takes
    /// about as long as `work` multiply-adds.
    pub(super) fn runs(&self, n: usize, dim: usize, work: usize) -> (&ThreadPool, usize) {
        let n_tasks = self.n_tasks(work * n * dim);
        (&self.pool, n.div_ceil(n_tasks).max(1))
    }

    /// Calls `f(first, rows)` on the threads for runs of rows of x (n, dim); `work` as for
    /// [`Compute::runs`].
    pub(crate) fn rows(
        &self,
        x: &mut [f32],
        dim: usize,
        work: usize,
        f: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let (n, len) = (x.len() / dim, x.len());
        let (pool, run) = self.runs(n, dim, work);
        let whole = ViewMut::strided(x, 1, len, len);
        pool.parts(&mut [whole], (1, run * dim), |_, _, at, mut part| {
            f(at / dim, part.row(0));
        });
    }
}
