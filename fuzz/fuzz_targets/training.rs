#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    blt_fuzz::training(data);
});
