//! A byte that is read like the ones before it allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use blt::{GenerateOptions, Model, Session, SessionOptions};

/// The system's allocator, counting what this thread asks for, less the question before each pass whether there is memory
/// for it: one piece that nothing touches, larger than anything that is allocated here.
struct Counting;

const QUESTION: usize = 1 << 20;

thread_local!(static COUNT: Cell<usize> = const { Cell::new(0) });

// SAFETY: hands every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + usize::from(layout.size() < QUESTION));
        // SAFETY: the caller's promises are passed on, here and below.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(p, layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(p, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `f` allocates on this thread. The threads that help it run the same kernels on parts of the same
/// memory.
fn allocations(f: impl FnOnce()) -> usize {
    let before = COUNT.get();
    f();
    COUNT.get() - before
}

/// Patches whose global keys and values are allocated together.
const PAGE: usize = 64;

/// Lists that double while they grow with the text: ids, entropies, patch starts, global outputs, and what
/// the cross-attentions keep. None doubles twice while the text does not.
const LISTS: usize = 8;

#[test]
fn a_fed_byte_allocates_only_where_the_text_outgrows_its_memory() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.safetensors");
    let mut session = Session::new(&Model::open(path).unwrap(), SessionOptions::default()).unwrap();
    let text = "The little boat had been on the lake all morning. Anna counted three ducks, a \
                heron and something green that might have been a frog.\n"
        .repeat(15);
    // Long enough for the windows of the byte models to be full.
    let (warm_up, rest) = text.as_bytes().split_at(1000);
    session.feed(warm_up).unwrap();
    let first = session.patch_starts().len();
    let counts: Vec<usize> = (rest.iter())
        .map(|byte| allocations(|| session.feed(&[*byte]).unwrap()))
        .collect();
    let patches = session.patch_starts().len() - first;
    let allocating = counts.iter().filter(|&&n| n > 0).count();
    assert!(counts.len() > 800 && patches > 130, "a text of some length");
    assert!(allocating <= patches / PAGE + 1 + LISTS, "{counts:?}");

    // Choosing bytes and looking for stop strings does not allocate either.
    let options = GenerateOptions {
        stop: vec![b"never to be found".to_vec()],
        ..GenerateOptions::default()
    };
    let mut generator = session.generate(&options).unwrap();
    let mut next = || {
        let byte = generator.next();
        assert!(byte.is_some_and(|byte| byte.is_ok()));
    };
    (0..8).for_each(|_| next());
    let counts: Vec<usize> = (0..40).map(|_| allocations(&mut next)).collect();
    let without = counts.iter().filter(|&&n| n == 0).count();
    assert!(without >= 38, "{counts:?}");
}
