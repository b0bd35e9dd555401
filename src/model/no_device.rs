//! In place of `device/` without the feature `cuda`: types of which there are no values.

use smallvec::SmallVec;

use super::forward::{Failure, Part};
use super::{Model, Weights};
use crate::device::GpuOptions;
use crate::error::{Error, Result};
use crate::ops::ScratchVec;

#[derive(Debug)]
pub(super) enum DeviceModel {}

#[derive(Debug)]
pub(super) enum Caches {}

#[derive(Debug, Clone, Copy)]
pub(super) enum Ahead {}

impl DeviceModel {
    pub fn new(_: &Weights, _: usize, _: GpuOptions) -> Result<DeviceModel> {
        Err(Error::Device(
            "this program was built without CUDA (feature \"cuda\"); use the CPU".into(),
        ))
    }

    pub fn bandwidth(&self) -> Result<f64> {
        match *self {}
    }

    pub fn n_kernels(&self) -> (usize, usize) {
        match *self {}
    }

    pub fn name(&self) -> &str {
        match *self {}
    }
}

impl Caches {
    pub fn hold(&self, _: usize, _: usize) -> bool {
        match *self {}
    }

    pub fn memory(&self) -> usize {
        match *self {}
    }
}

impl Model {
    pub(super) fn forward_on_device(
        &self,
        device: &DeviceModel,
        _: &mut [Part<'_>],
    ) -> Result<SmallVec<[ScratchVec<'_, f32>; 1]>, Failure> {
        match *device {}
    }
}
