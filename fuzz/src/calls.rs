//! Any calls of the C functions in any order, with handles that are NULL or live and buffers that
//! are NULL or have the length that is passed with them: what a C program may do, and nothing else.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;
use std::slice;

use crate::data;

type Handle = *mut c_void;
type Progress = Option<unsafe extern "C" fn(*mut c_void, u64, u64) -> c_int>;
type Write = Option<unsafe extern "C" fn(*mut c_void, *const u8, usize) -> c_int>;

extern crate blt; // links them

// As in blt.h; every handle is a `void *` here.
unsafe extern "C" {
    fn blt_status_name(status: c_int) -> *const c_char;
    fn blt_last_error() -> *const c_char;
    fn blt_options_new(out: *mut Handle) -> c_int;
    fn blt_options_free(options: Handle);
    fn blt_options_set_int(options: Handle, option: c_int, value: u64) -> c_int;
    fn blt_options_set_real(options: Handle, option: c_int, value: f64) -> c_int;
    fn blt_options_set_text(o: Handle, option: c_int, text: *const u8, n: usize) -> c_int;
    fn blt_model_open_memory(
        model: *const u8,
        n: usize,
        options: Handle,
        progress: Progress,
        user: *mut c_void,
        out: *mut Handle,
    ) -> c_int;
    fn blt_model_info(model: Handle, key: c_int, out: *mut u64) -> c_int;
    fn blt_model_free(model: Handle);
    fn blt_session_new(model: Handle, options: Handle, out: *mut Handle) -> c_int;
    fn blt_session_clone(session: Handle, out: *mut Handle) -> c_int;
    fn blt_session_reset(session: Handle) -> c_int;
    fn blt_session_free(session: Handle);
    fn blt_session_set_sampling(session: Handle, options: Handle) -> c_int;
    fn blt_session_feed(session: Handle, bytes: *const u8, n: usize) -> c_int;
    fn blt_session_next_byte(session: Handle, out: *mut c_int) -> c_int;
    fn blt_session_generate(
        session: Handle,
        max_bytes: usize,
        write: Write,
        user: *mut c_void,
        reason: *mut c_int,
    ) -> c_int;
    fn blt_session_logits(s: Handle, out: *mut f32, capacity: usize, n: *mut usize) -> c_int;
    fn blt_session_entropies(
        s: Handle,
        first: usize,
        out: *mut f32,
        capacity: usize,
        n: *mut usize,
    ) -> c_int;
    fn blt_session_patch_starts(
        s: Handle,
        first: usize,
        out: *mut usize,
        capacity: usize,
        n: *mut usize,
    ) -> c_int;
    fn blt_session_score(s: Handle, bytes: *const u8, n: usize, bits: *mut f64) -> c_int;
    fn blt_session_rewind(session: Handle, n_positions: usize) -> c_int;
    fn blt_session_info(session: Handle, key: c_int, out: *mut u64) -> c_int;
    fn blt_session_cancel(session: Handle) -> c_int;
    fn blt_session_save_memory(s: Handle, out: *mut u8, capacity: usize, n: *mut usize) -> c_int;
    fn blt_session_load_memory(
        model: Handle,
        options: Handle,
        state: *const u8,
        n: usize,
        out: *mut Handle,
    ) -> c_int;
}

/// Numbers and bytes out of the input; zeros when it ends.
struct Input<'a>(slice::Iter<'a, u8>);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    /// Mostly small, now and then huge.
    fn size(&mut self) -> usize {
        match self.byte() {
            255 => usize::MAX,
            254 => isize::MAX as usize + 1,
            n => usize::from(n),
        }
    }

    fn bytes(&mut self) -> &'a [u8] {
        let n = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.as_slice().split_at(n);
        self.0 = rest.iter();
        bytes
    }
}

unsafe extern "C" fn write(user: *mut c_void, bytes: *const u8, n: usize) -> c_int {
    // SAFETY: `user` is the counter that the call below passes; the bytes are there.
    unsafe {
        let left = &mut *user.cast::<u8>();
        assert!(n > 0 && !slice::from_raw_parts(bytes, n).is_empty());
        *left = left.saturating_sub(1);
        c_int::from(*left == 0)
    }
}

unsafe extern "C" fn progress(user: *mut c_void, done: u64, total: u64) -> c_int {
    assert!(done <= total);
    // SAFETY: as for `write`.
    unsafe { c_int::from(*user.cast::<u8>() == 1) }
}

/// A native file in memory.
fn native() -> &'static [u8] {
    static FILE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        use blt::checkpoint::{Checkpoint, OpenOptions, write_native};
        let open = Checkpoint::open(&data("meta-space/hub"), &OpenOptions::default());
        let checkpoint = open.expect("a model of the project's own");
        let tensors = checkpoint
            .tensors()
            .map(|(name, t)| (name.to_string(), t.clone()));
        let path = std::env::temp_dir().join(format!("blt-fuzz-{}.native", std::process::id()));
        write_native(&path, checkpoint.config(), tensors).expect("room for a small model");
        let bytes = std::fs::read(&path).expect("just written");
        std::fs::remove_file(&path).expect("just read");
        bytes
    });
    &FILE
}

/// Runs a program: a byte per call, then its arguments. Says whether it came to have a session.
pub fn capi(input: &[u8]) -> bool {
    let mut input = Input(input.iter());
    // Handles of each kind; the first stays NULL.
    let (mut options, mut models, mut sessions) =
        ([null_mut(); 3], [null_mut(); 3], [null_mut(); 4]);
    let mut saved: Vec<u8> = Vec::new();
    let mut n_calls = 0;
    let mut any_session = false;
    while input.0.len() > 0 && n_calls < 60 {
        n_calls += 1;
        let call = input.byte();
        let (i, j, k) = (input.byte(), input.byte(), input.byte());
        let o = options[usize::from(i % 3)];
        let m = models[usize::from(j % 3)];
        let s = sessions[usize::from(k % 4)];
        // Outputs that must stay as they are on a failure.
        let mut handle: Handle = slice::from_ref(&n_calls).as_ptr() as Handle;
        let untouched = handle;
        let (mut number, mut n, mut int) = (77u64, 77usize, 77);
        // SAFETY: handles are NULL or live, and buffers as long as said, or absurdly said so of
        // NULL or of too long a length, which the library must notice.
        let status = unsafe {
            match call % 24 {
                0 => blt_options_new(&mut handle),
                1 => blt_options_set_int(o, c_int::from(input.byte()), input.size() as u64),
                2 => {
                    let value = f64::from(input.byte()) / 64.0 - 1.0;
                    blt_options_set_real(o, c_int::from(input.byte()), value)
                }
                3 => {
                    let (option, text) = (c_int::from(input.byte()), input.bytes());
                    // Not the names of files: those would be looked for.
                    match option {
                        3 | 4 => 0,
                        _ => blt_options_set_text(o, option, text.as_ptr(), text.len()),
                    }
                }
                4 => {
                    let mut how = input.byte() % 4;
                    let cut = match input.byte() {
                        0 => 0,
                        b if b < 200 => native().len(),
                        b => native().len() * usize::from(b) / 256,
                    };
                    let user = (&raw mut how).cast();
                    let bytes = native().as_ptr();
                    blt_model_open_memory(bytes, cut, o, Some(progress), user, &mut handle)
                }
                5 => blt_model_info(m, c_int::from(input.byte()), &mut number),
                6 => blt_session_new(m, o, &mut handle),
                7 => blt_session_clone(s, &mut handle),
                8 => blt_session_reset(s),
                9 => blt_session_set_sampling(s, o),
                10 => {
                    let bytes = input.bytes();
                    blt_session_feed(s, bytes.as_ptr(), bytes.len())
                }
                11 => blt_session_feed(s, null_mut(), input.size()),
                12 => blt_session_next_byte(s, &mut int),
                13 => {
                    let mut left = input.byte() % 32;
                    let user = (&raw mut left).cast();
                    blt_session_generate(
                        s,
                        usize::from(input.byte() % 32),
                        Some(write),
                        user,
                        &mut int,
                    )
                }
                14 => {
                    let mut out = vec![0.0; usize::from(input.byte()) * 2];
                    blt_session_logits(s, out.as_mut_ptr(), out.len(), &mut n)
                }
                15 => {
                    let mut out = vec![0.0; usize::from(input.byte())];
                    let first = input.size();
                    blt_session_entropies(s, first, out.as_mut_ptr(), out.len(), &mut n)
                }
                16 => {
                    let mut out = vec![0; usize::from(input.byte())];
                    let first = input.size();
                    blt_session_patch_starts(s, first, out.as_mut_ptr(), out.len(), &mut n)
                }
                17 => {
                    let bytes = input.bytes();
                    let mut bits = 0.0;
                    blt_session_score(s, bytes.as_ptr(), bytes.len(), &mut bits)
                }
                18 => blt_session_rewind(s, input.size()),
                19 => blt_session_info(s, c_int::from(input.byte()), &mut number),
                20 => blt_session_cancel(s),
                21 => {
                    let status = blt_session_save_memory(s, null_mut(), 0, &mut n);
                    if status == 0 {
                        saved = vec![0; n];
                        assert_eq!(blt_session_save_memory(s, saved.as_mut_ptr(), n, &mut n), 0);
                        assert_eq!(n, saved.len());
                    }
                    status
                }
                22 => {
                    let cut = saved.len().saturating_sub(usize::from(input.byte() % 4));
                    blt_session_load_memory(m, o, saved.as_ptr(), cut, &mut handle)
                }
                _ => {
                    match input.byte() % 3 {
                        0 => blt_options_free(std::mem::replace(
                            &mut options[usize::from(i % 3)],
                            null_mut(),
                        )),
                        1 => blt_model_free(std::mem::replace(
                            &mut models[usize::from(j % 3)],
                            null_mut(),
                        )),
                        _ => blt_session_free(std::mem::replace(
                            &mut sessions[usize::from(k % 4)],
                            null_mut(),
                        )),
                    }
                    0
                }
            }
        };
        check(status, status == 0 || handle == untouched);
        if handle != untouched {
            let (place, free): (&mut Handle, unsafe extern "C" fn(Handle)) = match call % 24 {
                0 => (&mut options[1 + usize::from(i % 2)], blt_options_free),
                4 => (&mut models[1 + usize::from(j % 2)], blt_model_free),
                _ => {
                    any_session = true;
                    (&mut sessions[1 + usize::from(k % 3)], blt_session_free)
                }
            };
            // SAFETY: NULL or live, and replaced.
            unsafe { free(std::mem::replace(place, handle)) };
        }
    }
    // SAFETY: NULL or live, and used no more. In the order least expected.
    unsafe {
        models.into_iter().for_each(|m| blt_model_free(m));
        options.into_iter().for_each(|o| blt_options_free(o));
        sessions.into_iter().for_each(|s| blt_session_free(s));
    }
    any_session
}

/// A status is a known one, never "panicked", and has a text if it is a failure.
fn check(status: c_int, outputs_kept: bool) {
    // SAFETY: both return NUL-terminated texts.
    let (name, text) = unsafe {
        let text = |t| std::ffi::CStr::from_ptr(t).to_string_lossy().into_owned();
        (text(blt_status_name(status)), text(blt_last_error()))
    };
    assert!(name.starts_with("BLT_"), "{status}");
    assert_ne!(name, "BLT_ERROR_PANICKED", "{text}");
    assert!(status == 0 || !text.is_empty(), "{name}");
    assert!(outputs_kept, "{name} wrote an output");
}
