//! Which backend computes a model on a [`Device`]: the only place that knows them all.

use std::sync::Arc;

use super::{Device, GpuOptions};
use crate::error::Result;
use crate::model::Model;
use crate::model::backend::Backend;

impl Model {
    /// This model computed on a device. On a GPU all matrices are copied to its memory, and the
    /// embedding tables if they fit too.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if there is no such device, it cannot run the kernels, its memory
    /// does not suffice, or this crate was built without the feature `cuda`. Not for
    /// [`Device::Auto`], which then is the CPU.
    pub fn on_device(&self, device: Device) -> Result<Self> {
        self.on_device_with(device, GpuOptions::default())
    }

    /// [`Model::on_device`] with options for a GPU.
    ///
    /// # Errors
    /// As [`Model::on_device`].
    pub fn on_device_with(&self, device: Device, options: GpuOptions) -> Result<Self> {
        if self.bolmo().is_some() && matches!(device, Device::Cuda(_)) {
            return Err(crate::Error::Device(
                "a Bolmo model is computed on the CPU alone; leave out --device cuda".into(),
            ));
        }
        let backend = match device {
            _ if self.bolmo().is_some() => None,
            Device::Cpu => None,
            Device::Cuda(number) => Some(gpu(self, number, options)?),
            Device::Auto => gpu(self, 0, options).ok(),
        };
        Ok(self.with_backend(backend))
    }
}

#[cfg(feature = "cuda")]
fn gpu(model: &Model, number: usize, options: GpuOptions) -> Result<Arc<dyn Backend>> {
    let model = crate::cuda::GpuModel::new(model.blt().weights, number, options)?;
    Ok(Arc::new(model))
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: &Model, _: usize, _: GpuOptions) -> Result<Arc<dyn Backend>> {
    Err(crate::Error::Device(
        "this program was built without CUDA (feature \"cuda\"); use the CPU".into(),
    ))
}
