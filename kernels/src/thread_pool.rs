//! A thread pool for short operations that follow each other closely.
//!
//! Generating a byte runs more than a hundred operations of 10 to 100 us each, so starting an operation on all
//! threads and waiting for its end must cost about 1 us.
//!
//! ```text
//! caller: publish the job (its number, "open"); run tasks until none remains; close the job;
//!         wait for the workers that are inside
//! worker: wait for an open job with a new number; enter it; run tasks until none remains; leave
//! ```
//!
//! 1. Each thread, the caller included, runs the tasks of its own range in order, because neighbouring tasks read
//!    neighbouring memory. Then it takes the remaining tasks of the other ranges. The caller only waits for workers
//!    that are in the middle of a task: a worker that sleeps or has lost its core delays nobody.
//! 2. An idle worker first spins, then yields its core between checks, and then sleeps. It sleeps after 200 us, which
//!    is longer than any gap between two operations of a forward pass.
//! 3. A call made while the pool works for another caller, or from inside a task, runs its tasks on its own thread.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::ops::Range;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::view::ViewMut;

/// Checks for a new job, or for the end of one, before a thread yields its core: about 10 us.
const SPINS: usize = 500;

/// How long an idle worker stays awake.
const AWAKE: Duration = Duration::from_micros(200);

/// A thread pool that runs one job at a time. The calling thread takes part.
#[derive(Debug)]
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// The state shared by the caller and the workers. Fields written at different times are in separate cache lines,
/// because idle workers poll `state`.
#[derive(Debug)]
struct Shared {
    /// Whether a caller is using the pool.
    taken: AtomicBool,
    /// Whether a task panicked on a worker.
    panicked: AtomicBool,
    /// Whether the workers must exit.
    exit: AtomicBool,
    /// Which workers sleep, or are about to sleep.
    asleep: Box<[AtomicBool]>,
    state: CachePadded<AtomicU64>,
    /// The next task of each thread's range.
    next_tasks: Box<[CachePadded<AtomicUsize>]>,
    job: UnsafeCell<Job>,
}

/// A value in its own cache lines.
#[derive(Debug)]
#[repr(align(128))]
struct CachePadded<T>(T);

// The state: the number of the job, whether workers may enter it, and how many are inside.
const NUMBER: u32 = 32;
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

#[derive(Debug, Clone, Copy)]
struct Job {
    n_tasks: usize,
    /// Valid until the call of [`ThreadPool::run`] returns.
    work: *const (dyn Fn(usize) + Sync),
}

// SAFETY: `job` is written by the caller that has `taken` the pool, while the state says that the job is closed and
// no worker is inside. Workers read it only while they are inside. Its closure is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl ThreadPool {
    /// Starts a pool of `n_threads`, the caller included. The workers are named `blt-1`, `blt-2` and so on.
    ///
    /// # Errors
    /// If the system cannot start the threads.
    pub fn start(n_threads: usize) -> io::Result<Self> {
        let n_workers = n_threads.saturating_sub(1);
        let mut pool = ThreadPool {
            shared: Arc::new(Shared {
                taken: AtomicBool::new(false),
                panicked: AtomicBool::new(false),
                exit: AtomicBool::new(false),
                asleep: (0..n_workers).map(|_| AtomicBool::new(false)).collect(),
                state: CachePadded(AtomicU64::new(0)),
                next_tasks: (0..n_workers + 1)
                    .map(|_| CachePadded(AtomicUsize::new(0)))
                    .collect(),
                job: UnsafeCell::new(Job {
                    n_tasks: 0,
                    work: &|_| {},
                }),
            }),
            workers: Vec::with_capacity(n_workers),
        };
        for worker in 0..n_workers {
            let shared = Arc::clone(&pool.shared);
            let builder = thread::Builder::new().name(format!("blt-{}", worker + 1));
            // If this thread does not start, dropping the pool ends the others.
            let handle = builder.spawn(move || shared.worker_loop(worker))?;
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// The number of threads, the caller included.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(0)` to `work(n_tasks - 1)` on the threads, each once.
    ///
    /// # Panics
    /// If a task panics.
    pub fn run(&self, n_tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        if n_tasks < 2 || self.workers.is_empty() || shared.taken.swap(true, Acquire) {
            return (0..n_tasks).for_each(work);
        }
        // SAFETY: only the lifetime changes. `JobGuard` makes sure that no worker uses the closure after this call, even
        // if a task panics.
        let work = unsafe {
            core::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(
                work,
            )
        };
        let job = Job { n_tasks, work };
        // SAFETY: this caller has taken the pool; the job is closed and no worker is inside, see `JobGuard`.
        unsafe { *shared.job.get() = job };
        for (thread, next) in shared.next_tasks.iter().enumerate() {
            next.0
                .store(shared.range_of_thread(n_tasks, thread).start, Relaxed);
        }
        let number = (shared.state.0.load(Relaxed) >> NUMBER).wrapping_add(1);
        // Sequentially consistent with what a worker does before it sleeps: one of the two sees the other.
        shared.state.0.store(number << NUMBER | OPEN, SeqCst);
        let guard = JobGuard(shared);
        let workers = self.workers.iter().zip(&shared.asleep);
        for (worker, asleep) in workers.take(n_tasks - 1) {
            if asleep.load(SeqCst) {
                worker.thread().unpark();
            }
        }
        // SAFETY: this is the caller's own job, which has not ended.
        unsafe { shared.take_tasks(job, 0) };
        drop(guard);
    }

    /// Splits each matrix into parts of at most (`n_rows`, `n_cols`) and calls `work(i, row, col, part)` on the threads
    /// for each: `part` is the part of matrix `i` that starts at `row` and `col`.
    ///
    /// # Panics
    /// If `n_rows` or `n_cols` is 0, or a task panics.
    pub fn parts<F: Send + Sync>(
        &self,
        matrices: &mut [ViewMut<'_, F>],
        (n_rows, n_cols): (usize, usize),
        work: impl Fn(usize, usize, usize, ViewMut<'_, F>) + Sync,
    ) {
        let matrices = &*matrices; // shared from here on
        let parts_per_row = |m: &ViewMut<'_, F>| m.shape().1.div_ceil(n_cols);
        let parts = |m: &ViewMut<'_, F>| m.shape().0.div_ceil(n_rows) * parts_per_row(m);
        self.run(matrices.iter().map(parts).sum(), &|mut task| {
            for (i, matrix) in matrices.iter().enumerate() {
                let n = parts(matrix);
                if task < n {
                    let row = task / parts_per_row(matrix) * n_rows;
                    let col = task % parts_per_row(matrix) * n_cols;
                    // SAFETY: each task runs once, so no part is borrowed twice.
                    let part = unsafe { matrix.part(row, n_rows, col, n_cols) };
                    return work(i, row, col, part);
                }
                task -= n;
            }
        });
    }
}

/// Keeps a job open. Dropping it closes the job and waits for the workers inside.
struct JobGuard<'a>(&'a Shared);

impl Drop for JobGuard<'_> {
    fn drop(&mut self) {
        let state = &self.0.state.0;
        let mut inside = state.fetch_and(!OPEN, AcqRel) & INSIDE;
        let mut spins = 0;
        while inside > 0 {
            match spins < SPINS {
                true => spin_loop(),
                false => thread::yield_now(),
            }
            spins += 1;
            inside = state.load(Acquire) & INSIDE;
        }
        let panicked = self.0.panicked.swap(false, Relaxed);
        self.0.taken.store(false, Release);
        if panicked && !thread::panicking() {
            panic!("a task panicked on another thread");
        }
    }
}

impl Shared {
    /// The range of tasks that thread `thread` starts with.
    fn range_of_thread(&self, n_tasks: usize, thread: usize) -> Range<usize> {
        let start = |thread| n_tasks * thread / self.next_tasks.len();
        start(thread)..start(thread + 1)
    }

    /// Runs tasks of the job on thread `thread` until none remains.
    ///
    /// # Safety
    /// The caller of the job waits until this returns.
    unsafe fn take_tasks(&self, job: Job, thread: usize) {
        // SAFETY: the caller of the job is in `ThreadPool::run`.
        let work = unsafe { &*job.work };
        let n_threads = self.next_tasks.len();
        for range in (thread..n_threads).chain(0..thread) {
            let end = self.range_of_thread(job.n_tasks, range).end;
            loop {
                let task = self.next_tasks[range].0.fetch_add(1, Relaxed);
                if task >= end {
                    break;
                }
                work(task);
            }
        }
    }

    /// The main loop of worker `worker`.
    fn worker_loop(&self, worker: usize) {
        let mut seen = 0;
        while self.wait(worker, seen) {
            let Some(number) = self.enter(seen) else {
                continue;
            };
            seen = number;
            // SAFETY: this worker is inside an open job, so its caller waits and does not write another.
            let done = catch_unwind(AssertUnwindSafe(|| unsafe {
                self.take_tasks(*self.job.get(), worker + 1);
            }));
            if done.is_err() {
                self.panicked.store(true, Relaxed);
            }
            self.state.0.fetch_sub(1, Release);
        }
    }

    /// Whether there is an open job whose number is not `seen`.
    fn has_work(state: u64, seen: u64) -> bool {
        state & OPEN != 0 && state >> NUMBER != seen
    }

    /// Enters the open job, unless its number is `seen`, and returns its number.
    fn enter(&self, seen: u64) -> Option<u64> {
        let mut state = self.state.0.load(Relaxed);
        while Self::has_work(state, seen) {
            match (self.state.0).compare_exchange_weak(state, state + 1, Acquire, Relaxed) {
                Ok(_) => return Some(state >> NUMBER),
                Err(now) => state = now,
            }
        }
        None
    }

    /// Waits for an open job other than `seen`. Returns `false` when the pool is dropped.
    fn wait(&self, worker: usize, seen: u64) -> bool {
        let asleep = &self.asleep[worker];
        loop {
            let has_work = || Self::has_work(self.state.0.load(SeqCst), seen);
            for _ in 0..SPINS {
                if has_work() {
                    return true;
                }
                spin_loop();
            }
            let start = Instant::now();
            while start.elapsed() < AWAKE {
                if has_work() {
                    return true;
                }
                thread::yield_now();
            }
            asleep.store(true, SeqCst);
            while !has_work() && !self.exit.load(SeqCst) {
                thread::park();
            }
            asleep.store(false, SeqCst);
            if self.exit.load(SeqCst) {
                return false;
            }
        }
    }
}

impl Drop for ThreadPool {
    /// Joins the threads, so that a program can unload the library and a leak checker finds nothing.
    fn drop(&mut self) {
        self.shared.exit.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A panic in a task was already reported to the caller of its job.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn every_task_runs_once() {
        for n_threads in [1, 2, 5] {
            let pool = ThreadPool::start(n_threads).unwrap();
            assert_eq!(pool.n_threads(), n_threads);
            for round in 0..2000 {
                let n = round % 40;
                let runs: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n, &|task| {
                    runs[task].fetch_add(1, Relaxed);
                });
                assert!(runs.iter().all(|runs| runs.load(Relaxed) == 1), "{round}");
                if round % 500 == 0 {
                    thread::sleep(2 * AWAKE); // the workers fall asleep
                }
            }
        }
    }

    #[test]
    fn parts_cover_matrices() {
        let pool = ThreadPool::start(3).unwrap();
        let want = |i: usize, cols: usize| move |at: usize| 100 * i + at / cols * 10 + at % cols;
        for size in [(1, 1), (2, 4), (5, 3), (9, 90)] {
            let (mut a, mut b) = (vec![0; 3 * 10], vec![0; 2 * 7]);
            let matrices = &mut [ViewMut::dense(&mut a, 10), ViewMut::dense(&mut b, 7)];
            pool.parts(matrices, size, |i, row, col, mut part| {
                let (rows, cols) = part.shape();
                for r in 0..rows {
                    for c in 0..cols {
                        part.row(r)[c] += 100 * i + 10 * (row + r) + col + c;
                    }
                }
            });
            assert!((0..30).map(want(0, 10)).eq(a), "{size:?}");
            assert!((0..14).map(want(1, 7)).eq(b), "{size:?}");
        }
    }

    #[test]
    fn several_callers_and_calls_out_of_tasks() {
        let pool = ThreadPool::start(3).unwrap();
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        pool.run(5, &|task| {
                            pool.run(2, &|inner| {
                                sum.fetch_add(task * 2 + inner, Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Relaxed), 4 * 300 * 45);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_still_works() {
        let pool = ThreadPool::start(3).unwrap();
        for bad in 0..30 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(30, &|task| {
                    assert_ne!(task, bad, "the test panics on purpose")
                });
            }));
            assert!(result.is_err());
            let done = AtomicUsize::new(0);
            pool.run(30, &|_| {
                done.fetch_add(1, Relaxed);
            });
            assert_eq!(done.load(Relaxed), 30);
        }
    }

    #[test]
    fn dropping_the_pool_ends_its_threads() {
        struct Ends(Arc<AtomicUsize>);
        impl Drop for Ends {
            fn drop(&mut self) {
                thread::sleep(Duration::from_millis(20));
                self.0.fetch_add(1, SeqCst);
            }
        }
        thread_local!(static ENDS: RefCell<Option<Ends>> = const { RefCell::new(None) });
        let n_ended = Arc::new(AtomicUsize::new(0));
        let pool = ThreadPool::start(3).unwrap();
        let here = thread::current().id();
        let (n_helped, n_workers) = (AtomicUsize::new(0), 2);
        // Workers enter when they can; the other tasks wait for them.
        pool.run(3, &|_| {
            if thread::current().id() != here {
                assert!(thread::current().name().unwrap().starts_with("blt-"));
                ENDS.set(Some(Ends(Arc::clone(&n_ended))));
                n_helped.fetch_add(1, SeqCst);
            }
            while n_helped.load(SeqCst) < n_workers {
                thread::yield_now();
            }
        });
        drop(pool);
        assert_eq!(n_ended.load(SeqCst), 2);
    }
}
