//! The driver: which devices there are, device memory, copies and launches.
//!
//! Every `unsafe` block here calls a driver function whose pointers are to live values of the types
//! the driver names; what else a call needs is said at the call. That the library is present is
//! checked once, in [`load`], before any other call: `cudarc` panics without it.

use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};

use crate::error::{Error, Result};

/// What the driver says of a device.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// Its number, as in `cuda:1`.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Bytes of its memory.
    pub memory: usize,
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device cuda:{} ({})", self.number, self.name)
    }
}

/// Oldest driver that loads the kernels, as it names itself: 1000 * major + 10 * minor.
const OLDEST_DRIVER: i32 = 12000;
/// The same for devices from [`BLACKWELL`] on, whose machine code is of a later compiler.
const OLDEST_DRIVER_BLACKWELL: i32 = 12080;
const BLACKWELL: (i32, i32) = (10, 0);
/// Least compute capability that has everything that the kernels use.
const OLDEST_DEVICE: (i32, i32) = (8, 0);

/// The driver's words for an error.
fn words(result: CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: the driver sets `text` to a static string, or leaves it null for a code unknown to it.
    unsafe {
        let _ = sys::cuGetErrorString(result, &mut text);
        match text.is_null() {
            true => format!("error {}", result as u32),
            false => CStr::from_ptr(text).to_string_lossy().into_owned(),
        }
    }
}

/// What can be done about an error, if that is known.
fn advice(result: CUresult) -> &'static str {
    use CUresult::*;
    match result {
        // After these every call of the process fails.
        CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUDA_ERROR_ECC_UNCORRECTABLE
        | CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_ASSERT
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_UNKNOWN => "; the device is lost to this process: start it anew",
        _ => "",
    }
}

/// Turns a result of the driver into ours; `what` says what was tried.
fn check(result: CUresult, what: &str) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        _ => {
            let (words, advice) = (words(result), advice(result));
            Err(Error::Device(format!("{what}: {words}{advice}")))
        }
    }
}

/// A version as the driver tells it, for people.
fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Finds the driver and starts it; its version, and whether it sees any device.
fn load() -> Result<(i32, bool)> {
    // SAFETY: only looks for the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Device(
            "no CUDA driver (libcuda.so.1, nvcuda.dll) on this machine; use the CPU".into(),
        ));
    }
    let mut version = 0;
    // SAFETY: the library is there; this function is in every version of it.
    let result = unsafe { sys::cuDriverGetVersion(&mut version) };
    check(result, "version of the CUDA driver")?;
    // Before any call that an older driver might not have.
    if version < OLDEST_DRIVER {
        return Err(Error::Device(format!(
            "the CUDA driver: expected one for CUDA {} or later, found one for {}; \
             install a newer driver or use the CPU",
            version_text(OLDEST_DRIVER),
            version_text(version)
        )));
    }
    // SAFETY: the library is there; any number of calls is fine.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_ERROR_NO_DEVICE => Ok((version, false)),
        result => check(result, "starting the CUDA driver").map(|()| (version, true)),
    }
}

/// The devices of this machine.
///
/// # Errors
/// [`Error::Device`] if there is no driver or it does not start.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    match load()? {
        (_, true) => (0..count()?).map(device).collect(),
        (_, false) => Ok(Vec::new()),
    }
}

fn count() -> Result<usize> {
    let mut n = 0;
    // SAFETY: see the top of this file.
    check(unsafe { sys::cuDeviceGetCount(&mut n) }, "counting devices")?;
    Ok(n as usize)
}

fn device(number: usize) -> Result<DeviceInfo> {
    let what = format!("device cuda:{number}");
    let (mut device, mut name, mut memory, mut capability) = (0, [0; 256], 0, [0; 2]);
    let attributes = [
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    ];
    let wanted = i32::try_from(number).unwrap_or(i32::MAX);
    // SAFETY: see the top of this file; the name ends with a zero within the length given.
    let name = unsafe {
        check(sys::cuDeviceGet(&mut device, wanted), &what)?;
        check(sys::cuDeviceGetName(name.as_mut_ptr(), 256, device), &what)?;
        check(sys::cuDeviceTotalMem_v2(&mut memory, device), &what)?;
        for (value, attribute) in capability.iter_mut().zip(attributes) {
            check(sys::cuDeviceGetAttribute(value, attribute, device), &what)?;
        }
        CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
    };
    Ok(DeviceInfo {
        number,
        name,
        capability: (capability[0], capability[1]),
        memory,
    })
}

/// A device with our kernels on it.
#[derive(Debug)]
pub struct Gpu {
    info: DeviceInfo,
    context: sys::CUcontext,
    stream: sys::CUstream,
    module: sys::CUmodule,
    /// See [`Gpu::n_kernels`].
    pub(super) n_kernels: AtomicUsize,
}

// SAFETY: contexts, streams, modules and functions of the driver may be used from any thread, once the
// context is made the thread's own, which every method here does first.
unsafe impl Send for Gpu {}
// SAFETY: as above; the driver locks what calls of several threads share.
unsafe impl Sync for Gpu {}

/// A kernel of the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel(sys::CUfunction);

// SAFETY: as for `Gpu`: a function is a handle that any thread may use.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arg {
    Pointer(u64),
    U32(u32),
    F32(f32),
}

impl Gpu {
    /// Device `number` with the kernels loaded.
    ///
    /// # Errors
    /// [`Error::Device`] without a driver or such a device, or if the device cannot run the kernels.
    pub fn new(number: usize) -> Result<Arc<Gpu>> {
        let (version, any) = load()?;
        let n = if any { count()? } else { 0 };
        if number >= n {
            return Err(Error::Device(format!(
                "device cuda:{number}: expected a number below that of the devices, found {n} of them; \
                 see blt-info --devices"
            )));
        }
        let info = device(number)?;
        let (what, (major, minor)) = (info.to_string(), info.capability);
        if info.capability < OLDEST_DEVICE {
            let (least, point) = OLDEST_DEVICE;
            return Err(Error::Device(format!(
                "{what}: expected compute capability {least}.{point} or later, found {major}.{minor}"
            )));
        }
        let oldest = match info.capability < BLACKWELL {
            true => OLDEST_DRIVER,
            false => OLDEST_DRIVER_BLACKWELL,
        };
        let mut gpu = Gpu {
            info,
            context: std::ptr::null_mut(),
            stream: std::ptr::null_mut(),
            module: std::ptr::null_mut(),
            n_kernels: AtomicUsize::new(0),
        };
        let fatbin = blt_kernels::CUDA_FATBIN.as_ptr().cast();
        // SAFETY: see the top of this file; the fatbin is a whole one, made by NVIDIA's tools. Dropping
        // `gpu` gives back what was made, in whatever state an error leaves it.
        unsafe {
            check(
                sys::cuDevicePrimaryCtxRetain(&mut gpu.context, number as i32),
                &what,
            )?;
            check(sys::cuCtxSetCurrent(gpu.context), &what)?;
            check(sys::cuStreamCreate(&mut gpu.stream, 0), &what)?;
            let result = sys::cuModuleLoadData(&mut gpu.module, fatbin);
            if result != CUresult::CUDA_SUCCESS {
                return Err(Error::Device(format!(
                    "kernels for {what}: expected a driver for CUDA {} or later, found one for {} \
                     and compute capability {major}.{minor}: {}",
                    version_text(oldest),
                    version_text(version),
                    words(result)
                )));
            }
        }
        Ok(Arc::new(gpu))
    }

    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// How many kernels have been started, those of graphs included.
    pub fn n_kernels(&self) -> usize {
        self.n_kernels.load(Ordering::Relaxed)
    }

    /// As [`check`], naming the device.
    pub(super) fn check(&self, result: CUresult, what: &str) -> Result<()> {
        match result {
            CUresult::CUDA_SUCCESS => Ok(()),
            _ => check(result, &format!("{}: {what}", self.info)),
        }
    }

    /// What all work goes through.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Bytes of its memory that are free, and all of them.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.make_current()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: see the top of this file; the context is current.
        let result = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        self.check(result, "how much memory is free")?;
        Ok((free, total))
    }

    pub(super) fn make_current(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        self.check(unsafe { sys::cuCtxSetCurrent(self.context) }, "its context")
    }

    /// The kernel of that name.
    pub(super) fn kernel(&self, name: &str) -> Result<Kernel> {
        self.make_current()?;
        let mut function = std::ptr::null_mut();
        let text = CString::new(name).expect("names of kernels have no zero");
        // SAFETY: see the top of this file; the module is loaded.
        let result = unsafe { sys::cuModuleGetFunction(&mut function, self.module, text.as_ptr()) };
        self.check(result, &format!("kernel {name}"))?;
        Ok(Kernel(function))
    }

    /// Memory for `n_bytes`, at least one, at a multiple of 256; its content is undefined.
    ///
    /// # Errors
    /// [`Error::Device`] if there is not so much left.
    pub fn alloc(self: &Arc<Self>, n_bytes: usize) -> Result<Buffer> {
        self.make_current()?;
        let mut address = 0;
        let n_bytes = n_bytes.max(1);
        // SAFETY: see the top of this file; the context is current.
        let result = unsafe { sys::cuMemAlloc_v2(&mut address, n_bytes) };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = self.memory().unwrap_or_default();
            return Err(Error::Device(format!(
                "memory of {}: expected {n_bytes} bytes in one piece, found {free} of {total} free; \
                 use a smaller format or the CPU",
                self.info
            )));
        }
        self.check(result, "memory")?;
        Ok(Buffer {
            address,
            n_bytes,
            gpu: Arc::clone(self),
        })
    }

    /// Memory with these bytes.
    ///
    /// # Errors
    /// As [`Gpu::alloc`].
    pub fn upload(self: &Arc<Self>, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.alloc(bytes.len())?;
        self.write((&buffer, 0), bytes)?;
        Ok(buffer)
    }

    /// Writes bytes of a buffer, from byte `at` on.
    pub fn write(&self, (to, at): (&Buffer, usize), bytes: &[u8]) -> Result<()> {
        assert!(
            bytes.len() <= to.n_bytes - at,
            "write past the end of a buffer"
        );
        if bytes.is_empty() {
            return Ok(());
        }
        self.make_current()?;
        let address = to.address + at as u64;
        // SAFETY: both sides have that many bytes. `bytes` is pageable memory, of which the driver takes
        // a copy before it returns.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(address, bytes.as_ptr().cast(), bytes.len(), self.stream)
        };
        self.check(result, "copy to it")
    }

    /// Writes numbers, as [`Gpu::write`].
    #[cfg(test)]
    pub fn write_u32s(&self, to: &Buffer, values: &[u32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.write((to, 0), &bytes)
    }

    /// The first `n` floats of a buffer, once all work so far is done.
    ///
    /// # Errors
    /// [`Error::Device`] also for whatever went wrong in that work.
    pub fn read_f32s(&self, from: &Buffer, n: usize) -> Result<Vec<f32>> {
        Ok((self.read_u32s(from, n)?.into_iter())
            .map(f32::from_bits)
            .collect())
    }

    /// The first `n` four-byte numbers of a buffer, as [`Gpu::read_f32s`]; nothing waits for none.
    pub fn read_u32s(&self, from: &Buffer, n: usize) -> Result<Vec<u32>> {
        assert!(n * 4 <= from.n_bytes, "read past the end of a buffer");
        let mut values = vec![0; n];
        if n == 0 {
            return Ok(values);
        }
        self.make_current()?;
        // SAFETY: both sides have that many bytes, any bits are a number, and `values` is left alone until
        // the stream has been waited for.
        unsafe {
            let to = values.as_mut_ptr().cast();
            let copied = sys::cuMemcpyDtoHAsync_v2(to, from.address, n * 4, self.stream);
            let done = sys::cuStreamSynchronize(self.stream);
            self.check(copied, "copy from it")?;
            self.check(done, "work on it")?;
        }
        Ok(values)
    }

    /// Copies `n_bytes` from one buffer to another, each from a byte on.
    pub fn copy(
        &self,
        (from, skip): (&Buffer, usize),
        (to, at): (&Buffer, usize),
        n_bytes: usize,
    ) -> Result<()> {
        assert!(
            skip + n_bytes <= from.n_bytes && at + n_bytes <= to.n_bytes,
            "copy past the end of a buffer"
        );
        self.make_current()?;
        let (from, to) = (from.address + skip as u64, to.address + at as u64);
        // SAFETY: both buffers have that many bytes and are different allocations.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, n_bytes, self.stream) };
        self.check(result, "copy on it")
    }

    /// Runs a kernel on `grid` blocks, in up to three dimensions, of `threads` threads.
    ///
    /// # Safety
    /// `args` are of the kernel's types, in its order, and its pointers hold what it reads and writes for
    /// this grid.
    pub(super) unsafe fn launch<const D: usize>(
        &self,
        kernel: Kernel,
        grid: [usize; D],
        threads: usize,
        args: &[Arg],
    ) -> Result<()> {
        self.make_current()?;
        let mut values: Vec<u64> = (args.iter())
            .map(|arg| match *arg {
                Arg::Pointer(address) => address,
                // The driver reads the first four bytes.
                Arg::U32(n) => u64::from_ne_bytes(padded(n.to_ne_bytes())),
                Arg::F32(x) => u64::from_ne_bytes(padded(x.to_ne_bytes())),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = values
            .iter_mut()
            .map(|v| std::ptr::from_mut(v).cast())
            .collect();
        let mut dims = [1; 3];
        for (dim, n) in dims.iter_mut().zip(grid) {
            *dim = u32::try_from(n).expect("a grid fits");
        }
        let [x, y, z] = dims;
        // SAFETY: the caller vouches for the arguments; the driver copies their values before it
        // returns.
        let result = unsafe {
            sys::cuLaunchKernel(
                kernel.0,
                x,
                y,
                z,
                threads as u32,
                1,
                1,
                0,
                self.stream,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.n_kernels.fetch_add(1, Ordering::Relaxed);
        self.check(result, "starting a kernel")
    }
}

fn padded(bytes: [u8; 4]) -> [u8; 8] {
    let [a, b, c, d] = bytes;
    [a, b, c, d, 0, 0, 0, 0]
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: buffers keep the device alive, so nothing uses these any more. Errors are those of work
        // done before, or of a device that is lost; there is nobody left to tell.
        unsafe {
            if self.context.is_null() {
                return;
            }
            let _ = sys::cuCtxSetCurrent(self.context);
            if !self.module.is_null() {
                let _ = sys::cuModuleUnload(self.module);
            }
            if !self.stream.is_null() {
                let _ = sys::cuStreamDestroy_v2(self.stream);
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.info.number as i32);
        }
    }
}

/// Memory of a device.
#[derive(Debug)]
pub struct Buffer {
    address: u64,
    n_bytes: usize,
    gpu: Arc<Gpu>,
}

impl Buffer {
    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes of the buffer.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// As an argument, checked to hold `n` values of four bytes.
    pub(super) fn holding(&self, n: usize) -> Arg {
        self.after(0, n)
    }

    /// The part after `skip` values of four bytes, checked to hold `n` more.
    pub(super) fn after(&self, skip: usize, n: usize) -> Arg {
        assert!(
            (skip + n) * 4 <= self.n_bytes,
            "a kernel would leave its buffer"
        );
        Arg::Pointer(self.address + skip as u64 * 4)
    }

    /// As an argument, checked to hold `n` bytes.
    pub(super) fn holding_bytes(&self, n: usize) -> Arg {
        assert!(n <= self.n_bytes, "a kernel would leave its buffer");
        Arg::Pointer(self.address)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.gpu.make_current().is_ok() {
            // SAFETY: allocated by the same device, and freed once. The driver waits for work that uses it.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}
