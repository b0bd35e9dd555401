//! A pool of threads that are gone when it is.

use std::io;
use std::thread::{self, JoinHandle};

/// A pool that waits for its threads to end when it is dropped: a program that unloads the library,
/// or looks for leaks, finds none of them. (rayon's own pools let theirs end some time later.)
#[derive(Debug)]
pub(super) struct Threads {
    pool: Option<rayon::ThreadPool>, // `None` only while it is dropped
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts `n` threads, named `blt-0` and so on.
    pub fn start(n: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let mut handles = Vec::with_capacity(n);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .spawn_handler(|thread| -> io::Result<()> {
                let builder = thread::Builder::new().name(format!("blt-{}", thread.index()));
                handles.push(builder.spawn(|| thread.run())?);
                Ok(())
            })
            .build();
        // If not all could be started, those that were find out and end by themselves.
        Ok(Threads {
            pool: Some(pool?),
            handles,
        })
    }

    /// The pool.
    pub fn pool(&self) -> &rayon::ThreadPool {
        self.pool.as_ref().expect("there until the drop")
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        drop(self.pool.take());
        let this = thread::current().id();
        for handle in self.handles.drain(..) {
            // A thread cannot wait for itself; one that panicked was noticed where its work was.
            if handle.thread().id() != this {
                let _ = handle.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn the_threads_end_with_the_pool() {
        struct Ends(Arc<AtomicUsize>);
        impl Drop for Ends {
            fn drop(&mut self) {
                thread::sleep(std::time::Duration::from_millis(20));
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        thread_local!(static ENDS: RefCell<Option<Ends>> = const { RefCell::new(None) });
        let n_ended = Arc::new(AtomicUsize::new(0));
        let threads = Threads::start(3).unwrap();
        threads.pool().broadcast(|_| {
            assert!(thread::current().name().unwrap().starts_with("blt-"));
            ENDS.set(Some(Ends(Arc::clone(&n_ended))));
        });
        drop(threads);
        assert_eq!(n_ended.load(Ordering::SeqCst), 3);
    }
}
