//! The compiled CUDA kernels, as bytes.

/// The CUDA kernels of `cuda/`, compiled ahead of time for several architectures: see `cuda/build`.
pub static CUDA_FATBIN: &[u8] = {
    // The driver reads the header in aligned words.
    #[repr(C, align(16))]
    struct Aligned<T>(T);
    const FATBIN: &Aligned<[u8; include_bytes!("../cuda/blt.fatbin").len()]> =
        &Aligned(*include_bytes!("../cuda/blt.fatbin"));
    &FATBIN.0
};
