//! What the files that call kernels share. Sizes are checked where a kernel is called, so that no call can
//! leave its buffers.

use std::sync::Arc;

use super::driver::{Arg, Buffer, Gpu, Kernel};
use super::splits::Partials;
use crate::error::Result;

/// Part of a buffer: so many four-byte numbers from its start.
pub type Slice<'a> = (&'a Buffer, usize);

/// Most rows of one launch: the limit of a grid's second side.
pub(super) const MAX_ROWS: usize = 65535;

/// Threads of a kernel that gives each row a block.
pub(super) const ROW_THREADS: usize = 256;

/// A size as kernels take it.
pub(super) fn u32_arg(n: usize) -> Arg {
    Arg::U32(u32::try_from(n).expect("sizes of a model fit 32 bits"))
}

/// The kernels that are for no type of weights.
#[derive(Debug)]
pub struct Ops {
    pub(super) rms_norm: Kernel,
    pub(super) swiglu: Kernel,
    pub(super) max_pool: Kernel,
    pub(super) entropy: Kernel,
    pub(super) rope_append: Kernel,
    pub(super) scatter: Kernel,
    pub(super) gather: Kernel,
    pub(super) attention: Kernel,
    pub(super) embed: Kernel,
    pub(super) sample: Kernel,
    /// Of the attention's blocks.
    pub(super) partials: Partials,
}

impl Ops {
    /// Looks the kernels up, and makes what their blocks share.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Ops> {
        Ok(Ops {
            rms_norm: gpu.kernel("rms_norm")?,
            swiglu: gpu.kernel("swiglu")?,
            max_pool: gpu.kernel("max_pool")?,
            entropy: gpu.kernel("entropy")?,
            rope_append: gpu.kernel("rope_append")?,
            scatter: gpu.kernel("scatter")?,
            gather: gpu.kernel("gather")?,
            attention: gpu.kernel("attention")?,
            embed: gpu.kernel("embed")?,
            sample: gpu.kernel("sample")?,
            partials: Partials::new(gpu)?,
        })
    }
}

/// For the tests of kernels.
#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::cache::KvType;
    use crate::cuda::Row;
    use crate::random::SplitMix64;

    /// Numbers in -1..1, the same for a seed.
    pub fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut random = SplitMix64(seed);
        (0..n).map(|_| random.signed() as f32).collect()
    }

    pub fn device() -> Arc<Gpu> {
        Gpu::new(0).unwrap()
    }

    pub fn upload(gpu: &Arc<Gpu>, values: &[f32]) -> Buffer {
        let buffer = gpu.alloc(values.len() * 4).unwrap();
        let bits: Vec<u32> = values.iter().map(|v| v.to_bits()).collect();
        gpu.write_u32s(&buffer, &bits).unwrap();
        buffer
    }

    pub fn rows(gpu: &Arc<Gpu>, rows: &[Row]) -> Buffer {
        let units: Vec<u32> = rows.iter().flat_map(|r| r.units()).collect();
        let buffer = gpu.alloc(units.len() * 4).unwrap();
        gpu.write_u32s(&buffer, &units).unwrap();
        buffer
    }

    /// Values as a store keeps them.
    pub fn kept(kv: KvType, values: &[f32]) -> Vec<f32> {
        let one = |&x: &f32| match kv {
            KvType::F32 => x,
            KvType::F16 => half::f16::from_f32(x).to_f32(),
        };
        values.iter().map(one).collect()
    }

    #[track_caller]
    pub fn assert_near(what: &str, found: f32, expected: f64) {
        let difference = (f64::from(found) - expected).abs();
        assert!(
            difference <= 1e-5 * expected.abs().max(1.0) || found.is_nan() && expected.is_nan(),
            "{what}: expected {expected}, found {found}"
        );
    }
}
