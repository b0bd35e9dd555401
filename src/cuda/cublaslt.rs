//! cuBLASLt: products of many rows by NVIDIA's own library, in place of our kernels where the caller asks for it.
//!
//! The library is hundreds of megabytes that most machines do not have, so it is looked for at run time. It
//! multiplies only what is of one type: x comes as two rows of the weights' type, what rounding left below the
//! rounded values (`split_*` in linear.cu). Both are rows of one product, which so reads the weights once; it goes to
//! scratch memory, where `join_slices` adds the two. The alternative, a second product added to the first in y,
//! writes less but reads the weights twice, of which there are more where rows are few: those of patches.

use std::collections::HashMap;
use std::ptr::{from_ref, null_mut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Wish, cublasStatus_t as Status, cudaDataType,
};

use super::driver::{Buffer, Gpu};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Bytes that algorithms may use: what NVIDIA recommends for the GPUs that want most.
const WORKSPACE: usize = 32 << 20;
/// The oldest library whose types are those of the bindings, as it names itself.
const OLDEST: usize = 120_000;
/// CUBLAS_OP_T, which the bindings lack.
const TRANSPOSED: i32 = 1;
/// Products whose algorithms are remembered: prompts come in many lengths.
const MAX_PLANS: usize = 1024;

/// Whether the library is where the system looks for libraries: what products of prompts can use if asked to, see
/// [`crate::GpuOptions::cublaslt`].
pub fn has_cublaslt() -> bool {
    // SAFETY: only looks for the library.
    unsafe { sys::is_culib_present() }
}

/// The library, started on a device.
#[derive(Debug)]
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    /// Of sums in f32, with the weights transposed.
    product: sys::cublasLtMatmulDesc_t,
    wishes: sys::cublasLtMatmulPreference_t,
    workspace: Buffer,
    plans: Mutex<HashMap<Shape, Plan>>,
}

// SAFETY: NVIDIA lets any thread use a handle and descriptors that nobody changes; plans are behind a lock.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

/// A product: x (n, cols) times weights (rows, cols), all without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Of both factors: f16 or bf16.
    pub dtype: DType,
    /// Outputs.
    pub rows: usize,
    /// Terms of a sum.
    pub cols: usize,
    /// Rows of x.
    pub n: usize,
}

/// How a product is computed.
#[derive(Debug)]
struct Plan {
    weights: Layout,
    x: Layout,
    y: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// Where the values of a matrix lie.
#[derive(Debug)]
struct Layout(sys::cublasLtMatrixLayout_t);

// SAFETY: memory of the host that nobody else knows.
unsafe impl Send for Layout {}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by the library, and given back once.
        let _ = unsafe { sys::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

/// Turns a status into our error; `what` says what was tried.
fn check(gpu: &Gpu, status: Status, what: &str) -> Result<()> {
    match status {
        Status::CUBLAS_STATUS_SUCCESS => Ok(()),
        _ => Err(Error::Device(format!(
            "{}: cuBLASLt: {what}: {status:?}; leave cuBLASLt out to use blt's own kernels",
            gpu.info()
        ))),
    }
}

impl CublasLt {
    /// Finds the library and starts it.
    ///
    /// # Errors
    /// [`Error::Device`] if it is not there, too old or does not start, or if the device's memory does not suffice.
    pub fn new(gpu: &Arc<Gpu>) -> Result<CublasLt> {
        if !has_cublaslt() {
            return Err(Error::Device(
                "no cuBLASLt library (libcublasLt.so, libcublasLt.so.12, cublasLt64_12.dll) where this system looks for \
                 libraries; install it from CUDA or leave cuBLASLt out to use blt's own kernels"
                    .into(),
            ));
        }
        // SAFETY: the library is there; this function is in every version of it.
        let version = unsafe { sys::cublasLtGetVersion() };
        if version < OLDEST {
            return Err(Error::Device(format!(
                "cuBLASLt: expected version {OLDEST} (CUDA 12.0) or later, found {version}"
            )));
        }
        let mut lt = CublasLt {
            handle: null_mut(),
            product: null_mut(),
            wishes: null_mut(),
            workspace: gpu.alloc(WORKSPACE)?,
            plans: Mutex::default(),
        };
        gpu.make_current()?;
        // SAFETY: the library is there, the context current, and values are of the types that their names say.
        // Dropping `lt` gives back what was made, in whatever state an error leaves it.
        unsafe {
            let status = sys::cublasLtCreate(&mut lt.handle);
            check(gpu, status, "starting it")?;
            let sums = (Compute::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F);
            let status = sys::cublasLtMatmulDescCreate(&mut lt.product, sums.0, sums.1);
            check(gpu, status, "sums in f32")?;
            let status = sys::cublasLtMatmulDescSetAttribute(
                lt.product,
                Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
                from_ref(&TRANSPOSED).cast(),
                size_of_val(&TRANSPOSED),
            );
            check(gpu, status, "transposed weights")?;
            let status = sys::cublasLtMatmulPreferenceCreate(&mut lt.wishes);
            check(gpu, status, "preferences")?;
            let status = sys::cublasLtMatmulPreferenceSetAttribute(
                lt.wishes,
                Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                from_ref(&(WORKSPACE as u64)).cast(),
                size_of::<u64>(),
            );
            check(gpu, status, "its workspace")?;
        }
        Ok(lt)
    }

    /// `y = x W^T`: x (n, cols) and weights (rows, cols) in the shape's type, y (n, rows) in f32, each from the
    /// start of its buffer, where the library finds the alignment it takes for granted.
    ///
    /// # Errors
    /// [`Error::Device`] if it knows no way to compute that, or fails.
    pub fn multiply(&self, shape: Shape, weights: &Buffer, x: &Buffer, y: &Buffer) -> Result<()> {
        let Shape { rows, cols, n, .. } = shape;
        assert!(
            rows * cols * 2 <= weights.n_bytes()
                && n * cols * 2 <= x.n_bytes()
                && n * rows * 4 <= y.n_bytes(),
            "a product would leave its buffers"
        );
        let gpu = weights.gpu();
        gpu.make_current()?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if !plans.contains_key(&shape) {
            if plans.len() == MAX_PLANS {
                plans.clear();
            }
            plans.insert(shape, self.plan(gpu, shape)?);
        }
        let plan = &plans[&shape];
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: buffers hold what the layouts say, checked above; the scalars are read before the call returns;
        // the workspace is used by one product at a time, since all go through one stream.
        let status = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                self.product,
                from_ref(&one).cast(),
                weights.address() as *const _,
                plan.weights.0,
                x.address() as *const _,
                plan.x.0,
                from_ref(&zero).cast(),
                y.address() as *const _,
                plan.y.0,
                y.address() as *mut _,
                plan.y.0,
                &plan.algorithm,
                self.workspace.address() as *mut _,
                WORKSPACE,
                gpu.stream().cast(),
            )
        };
        gpu.n_kernels.fetch_add(1, Ordering::Relaxed);
        check(gpu, status, &name(shape))
    }

    /// The library's matrices are column by column: weights (rows, cols) are (cols, rows) there, to be transposed,
    /// and rows of x and y are columns.
    fn plan(&self, gpu: &Gpu, shape: Shape) -> Result<Plan> {
        let Shape { rows, cols, n, .. } = shape;
        let factors = match shape.dtype {
            DType::F16 => cudaDataType::CUDA_R_16F,
            DType::Bf16 => cudaDataType::CUDA_R_16BF,
            other => panic!("products in {other} are for our own kernels"),
        };
        let layout = |dtype, height: usize, width: usize| {
            let mut made = null_mut();
            // SAFETY: the library is there.
            let status = unsafe {
                sys::cublasLtMatrixLayoutCreate(
                    &mut made,
                    dtype,
                    height as u64,
                    width as u64,
                    height as i64,
                )
            };
            check(gpu, status, &name(shape)).map(|()| Layout(made))
        };
        let mut plan = Plan {
            weights: layout(factors, cols, rows)?,
            x: layout(factors, cols, n)?,
            y: layout(cudaDataType::CUDA_R_32F, rows, n)?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        let mut found = sys::cublasLtMatmulHeuristicResult_t {
            algo: plan.algorithm,
            workspaceSize: 0,
            state: Status::CUBLAS_STATUS_NOT_SUPPORTED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        let mut n_found = 0;
        // SAFETY: all descriptors are live, and there is room for the one result asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                self.product,
                plan.weights.0,
                plan.x.0,
                plan.y.0,
                plan.y.0,
                self.wishes,
                1,
                &mut found,
                &mut n_found,
            )
        };
        check(gpu, status, &name(shape))?;
        check(gpu, found.state, &name(shape))?;
        plan.algorithm = found.algo;
        Ok(plan)
    }
}

fn name(shape: Shape) -> String {
    let Shape {
        dtype,
        rows,
        cols,
        n,
    } = shape;
    format!("product of {n} rows with {dtype} ({rows}, {cols})")
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        if self.workspace.gpu().make_current().is_err() {
            return;
        }
        // SAFETY: each was made by `new` or is null, and is given back once. Errors are those of work done before.
        unsafe {
            if !self.wishes.is_null() {
                let _ = sys::cublasLtMatmulPreferenceDestroy(self.wishes);
            }
            if !self.product.is_null() {
                let _ = sys::cublasLtMatmulDescDestroy(self.product);
            }
            if !self.handle.is_null() {
                let _ = sys::cublasLtDestroy(self.handle);
            }
        }
    }
}
