//! Threads that share out the tasks of one operation after another.
//!
//! Generating a byte crosses over a hundred operations of 10 to 100 us, so that calling the threads
//! together and waiting for them has to cost about one.
//!
//! ```text
//! caller: publish the job (its number, "open"); take tasks until none is left; close it;
//!         wait for the helpers that are inside
//! helper: watch for an open job it has not seen; enter it; take tasks until none is left; leave
//! ```
//!
//! 1. Each thread, the caller too, takes the tasks of its share in order, as neighbouring tasks read
//!    neighbouring memory, and then what the others' shares still have. The caller waits for helpers in
//!    the middle of a task only: one that sleeps or has lost its core delays nobody.
//! 2. A helper without work first spins, then offers its core to others between two looks, and sleeps
//!    after that: 200 us is longer than anything between two operations of a text being read.
//! 3. A call that finds the pool at work for another caller, or comes out of a task, does its tasks alone.

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

/// Looks for work, or for the end of it, before others are let on the core: about 10 us.
const SPINS: usize = 500;

/// How long a helper looks before it sleeps.
const AWAKE: Duration = Duration::from_micros(200);

/// Threads, the calling one among them, that work on one job at a time.
#[derive(Debug)]
pub struct ThreadPool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

/// What helpers and caller share. The parts that are written at different times lie apart: helpers
/// look at `state` all the time.
#[derive(Debug)]
struct Shared {
    /// Whether a caller has the pool.
    taken: AtomicBool,
    /// Whether a helper's task panicked.
    panicked: AtomicBool,
    /// Whether the threads are to end.
    ends: AtomicBool,
    /// Which helpers sleep, or are about to.
    asleep: Box<[AtomicBool]>,
    state: CachePadded<AtomicU64>,
    /// The next task of each thread's share.
    next_tasks: Box<[CachePadded<AtomicUsize>]>,
    job: UnsafeCell<Job>,
}

/// A value with cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct CachePadded<T>(T);

// The state: the job's number, whether it may be entered, and how many helpers are inside.
const NUMBER: u32 = 32;
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

#[derive(Debug, Clone, Copy)]
struct Job {
    n_tasks: usize,
    /// The lifetime is that of the call of [`ThreadPool::run`].
    work: *const (dyn Fn(usize) + Sync),
}

// SAFETY: `job` is written by the caller that has `taken` the pool, while the state says that it is
// closed and nobody inside; helpers read it only once they are inside. What it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl ThreadPool {
    /// A pool of `n_threads`, the caller included: the others are started, and named `blt-1` and so on.
    ///
    /// # Errors
    /// If the system does not start so many.
    pub fn start(n_threads: usize) -> io::Result<Self> {
        let n_helpers = n_threads.saturating_sub(1);
        let mut pool = ThreadPool {
            shared: Arc::new(Shared {
                taken: AtomicBool::new(false),
                panicked: AtomicBool::new(false),
                ends: AtomicBool::new(false),
                asleep: (0..n_helpers).map(|_| AtomicBool::new(false)).collect(),
                state: CachePadded(AtomicU64::new(0)),
                next_tasks: (0..n_helpers + 1)
                    .map(|_| CachePadded(AtomicUsize::new(0)))
                    .collect(),
                job: UnsafeCell::new(Job {
                    n_tasks: 0,
                    work: &|_| {},
                }),
            }),
            helpers: Vec::with_capacity(n_helpers),
        };
        for helper in 0..n_helpers {
            let shared = Arc::clone(&pool.shared);
            let builder = thread::Builder::new().name(format!("blt-{}", helper + 1));
            // If this one cannot be started, dropping the pool ends the others.
            let handle = builder.spawn(move || shared.worker_loop(helper))?;
            pool.helpers.push(handle);
        }
        Ok(pool)
    }

    /// The number of threads, the caller included.
    pub fn n_threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work(0)` to `work(n_tasks - 1)`, each once, on the threads.
    ///
    /// # Panics
    /// If a task does.
    pub fn run(&self, n_tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        if n_tasks < 2 || self.helpers.is_empty() || shared.taken.swap(true, Acquire) {
            return (0..n_tasks).for_each(work);
        }
        // SAFETY: only the lifetime changes; `JobGuard` lets no helper use it after this call, even if a
        // task panics.
        let work = unsafe {
            core::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(
                work,
            )
        };
        let job = Job { n_tasks, work };
        // SAFETY: the pool is this caller's; the state is closed and nobody inside, see `JobGuard`.
        unsafe { *shared.job.get() = job };
        for (thread, next) in shared.next_tasks.iter().enumerate() {
            next.0
                .store(shared.range_of_thread(n_tasks, thread).start, Relaxed);
        }
        let number = (shared.state.0.load(Relaxed) >> NUMBER).wrapping_add(1);
        // In one order with what a helper does before it sleeps: one of the two sees the other.
        shared.state.0.store(number << NUMBER | OPEN, SeqCst);
        let guard = JobGuard(shared);
        let helpers = self.helpers.iter().zip(&shared.asleep);
        for (helper, asleep) in helpers.take(n_tasks - 1) {
            if asleep.load(SeqCst) {
                helper.thread().unpark();
            }
        }
        // SAFETY: this caller's job, not yet over.
        unsafe { shared.take_tasks(job, 0) };
        drop(guard);
    }

    /// Calls `work(i, row, col, part)` on the threads for parts of each of the matrices, of at most
    /// `n_rows` and `n_cols`: `part` is what matrix `i` has from `row` and `col` on.
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
        let across = |m: &ViewMut<'_, F>| m.shape().1.div_ceil(n_cols);
        let parts = |m: &ViewMut<'_, F>| m.shape().0.div_ceil(n_rows) * across(m);
        self.run(matrices.iter().map(parts).sum(), &|mut task| {
            for (i, matrix) in matrices.iter().enumerate() {
                let n = parts(matrix);
                if task < n {
                    let row = task / across(matrix) * n_rows;
                    let col = task % across(matrix) * n_cols;
                    // SAFETY: each task runs once, so no part is lent twice.
                    let part = unsafe { matrix.part(row, n_rows, col, n_cols) };
                    return work(i, row, col, part);
                }
                task -= n;
            }
        });
    }
}

/// The time in which a job may be entered. Its end waits for those inside.
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
    /// The tasks of thread `thread`.
    fn range_of_thread(&self, n_tasks: usize, thread: usize) -> Range<usize> {
        let at = |thread| n_tasks * thread / self.next_tasks.len();
        at(thread)..at(thread + 1)
    }

    /// Does tasks of the job on thread `thread` until none is left.
    ///
    /// # Safety
    /// The job's caller waits for this.
    unsafe fn take_tasks(&self, job: Job, thread: usize) {
        // SAFETY: the caller of the job is in `ThreadPool::run`.
        let work = unsafe { &*job.work };
        let n_threads = self.next_tasks.len();
        for share in (thread..n_threads).chain(0..thread) {
            let end = self.range_of_thread(job.n_tasks, share).end;
            loop {
                let task = self.next_tasks[share].0.fetch_add(1, Relaxed);
                if task >= end {
                    break;
                }
                work(task);
            }
        }
    }

    /// What helper number `helper` does all its life.
    fn worker_loop(&self, helper: usize) {
        let mut seen = 0;
        while self.wait(helper, seen) {
            let Some(number) = self.enter(seen) else {
                continue;
            };
            seen = number;
            // SAFETY: inside an open job: its caller waits, and writes no other.
            let done = catch_unwind(AssertUnwindSafe(|| unsafe {
                self.take_tasks(*self.job.get(), helper + 1);
            }));
            if done.is_err() {
                self.panicked.store(true, Relaxed);
            }
            self.state.0.fetch_sub(1, Release);
        }
    }

    /// Whether there is an open job with another number than `seen`.
    fn has_work(state: u64, seen: u64) -> bool {
        state & OPEN != 0 && state >> NUMBER != seen
    }

    /// Enters the open job, unless that is `seen`, and returns its number.
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

    /// Waits for an open job other than `seen`; `false` at the end.
    fn wait(&self, helper: usize, seen: u64) -> bool {
        let asleep = &self.asleep[helper];
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
            while !has_work() && !self.ends.load(SeqCst) {
                thread::park();
            }
            asleep.store(false, SeqCst);
            if self.ends.load(SeqCst) {
                return false;
            }
        }
    }
}

impl Drop for ThreadPool {
    /// Waits for the threads to end: a program that unloads the library, or looks for leaks, finds none
    /// of them.
    fn drop(&mut self) {
        self.shared.ends.store(true, SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A task's panic was noticed where its work was.
            let _ = helper.join();
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
                    thread::sleep(2 * AWAKE); // the helpers fall asleep
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
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let pool = ThreadPool::start(3).unwrap();
        for bad in 0..30 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(30, &|task| assert_ne!(task, bad, "as the test wants"));
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
    fn the_threads_end_with_the_team() {
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
        let (helped, both) = (AtomicUsize::new(0), 2);
        // Helpers come when they can; all tasks but theirs wait for them.
        pool.run(3, &|_| {
            if thread::current().id() != here {
                assert!(thread::current().name().unwrap().starts_with("blt-"));
                ENDS.set(Some(Ends(Arc::clone(&n_ended))));
                helped.fetch_add(1, SeqCst);
            }
            while helped.load(SeqCst) < both {
                thread::yield_now();
            }
        });
        drop(pool);
        assert_eq!(n_ended.load(SeqCst), 2);
    }
}
