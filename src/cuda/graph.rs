//! CUDA graphs: launches recorded once and started together.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cudarc::driver::sys;

use super::driver::Gpu;
use crate::error::Result;

/// Launches that can be started again, all at once. What they read and write is at the addresses they were
/// recorded with.
#[derive(Debug)]
pub struct Graph {
    graph: sys::CUgraphExec,
    n_kernels: usize,
    gpu: Arc<Gpu>,
}

// SAFETY: a handle that any thread may use once the context is its own, which every method sees to.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `launches` starts on the device, in place of starting it.
    ///
    /// # Errors
    /// Those of `launches`; [`crate::Error::Device`] if the driver cannot record it.
    pub fn record(gpu: &Arc<Gpu>, launches: impl FnOnce() -> Result<()>) -> Result<Graph> {
        gpu.make_current()?;
        let what = "recording a graph";
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        let mut graph = std::ptr::null_mut();
        let before = gpu.n_kernels();
        // SAFETY: the stream is the device's own, and whoever records holds the only pass on it. The
        // recording ends here in every case but a panic of `launches`, which only our own mistakes cause.
        let recorded = unsafe {
            gpu.check(sys::cuStreamBeginCapture_v2(gpu.stream(), mode), what)?;
            let result = launches();
            let ended = gpu.check(sys::cuStreamEndCapture(gpu.stream(), &mut graph), what);
            result.and(ended)
        };
        // These have not been started yet.
        let n_kernels = gpu.n_kernels() - before;
        gpu.n_kernels.fetch_sub(n_kernels, Ordering::Relaxed);
        let mut made = std::ptr::null_mut();
        // SAFETY: a graph is made anew or null, and no longer needed once there is one to be started.
        let result = unsafe {
            let result = recorded.and_then(|()| {
                let result = sys::cuGraphInstantiateWithFlags(&mut made, graph, 0);
                gpu.check(result, what)
            });
            if !graph.is_null() {
                let _ = sys::cuGraphDestroy(graph);
            }
            result
        };
        result.map(|()| Graph {
            graph: made,
            n_kernels,
            gpu: Arc::clone(gpu),
        })
    }

    /// Starts all its launches. The buffers that they use should still be there: whose is not gives wrong
    /// numbers or an error of the device, which no kernel can leave.
    pub fn launch(&self) -> Result<()> {
        self.gpu.make_current()?;
        (self.gpu.n_kernels).fetch_add(self.n_kernels, Ordering::Relaxed);
        // SAFETY: the graph lives as long as `self`; its kernels reach the memory of the device alone.
        let result = unsafe { sys::cuGraphLaunch(self.graph, self.gpu.stream()) };
        self.gpu.check(result, "starting a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.make_current().is_ok() {
            // SAFETY: made by `record`, and given back once. The driver waits for a launch under way.
            let _ = unsafe { sys::cuGraphExecDestroy(self.graph) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Ops;

    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_graph_reads_what_its_buffers_hold_when_it_is_started() {
        let gpu = Gpu::new(0).unwrap();
        let ops = Ops::new(&gpu).unwrap();
        let (x, y) = (gpu.alloc(8).unwrap(), gpu.alloc(4).unwrap());
        let one = |gate: f32, up: f32| {
            gpu.write_u32s(&x, &[gate.to_bits(), up.to_bits()]).unwrap();
        };
        one(0.0, 1.0);
        ops.swiglu(1, 1, &x, &y).unwrap();
        let n_kernels = gpu.n_kernels();
        let graph = Graph::record(&gpu, || ops.swiglu(1, 1, &x, &y)).unwrap();
        assert_eq!(
            gpu.read_f32s(&y, 1).unwrap(),
            [0.0],
            "recording starts nothing"
        );
        for up in [2.0, -3.0] {
            one(100.0, up);
            graph.launch().unwrap();
            assert_eq!(gpu.read_f32s(&y, 1).unwrap(), [100.0 * up]);
        }
        assert_eq!(gpu.n_kernels(), n_kernels + 2, "kernels of two starts");
        let failed = Graph::record(&gpu, || Err(crate::Error::Device("no".into())));
        assert!(failed.is_err());
        one(100.0, 5.0);
        graph.launch().unwrap();
        assert_eq!(gpu.read_f32s(&y, 1).unwrap(), [500.0]);
    }
}
