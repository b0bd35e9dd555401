//! In place of `device.rs` without the feature `cuda`: types of which there are no values.

use std::ops::Range;
use std::sync::Arc;

use super::Weights;
use super::block::Rows;
use super::forward::Wanted;
use crate::error::{Error, Result};

#[derive(Debug)]
pub(super) enum DeviceModel {}

#[derive(Debug)]
pub(super) enum Caches {}

pub(super) enum Pass {}

impl DeviceModel {
    pub fn new(_: &Weights, _: usize) -> Result<DeviceModel> {
        Err(Error::Device(
            "this program was built without CUDA (feature \"cuda\"); use the CPU".into(),
        ))
    }

    pub fn bandwidth(&self) -> Result<f64> {
        match *self {}
    }

    pub fn name(&self) -> &str {
        match *self {}
    }

    pub fn begin(&self, _: &mut Option<Arc<Caches>>) -> Result<Pass> {
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

impl Pass {
    pub fn entropies(&mut self, _: &[f32], _: &Rows, _: Option<&mut Vec<f32>>) -> Result<Vec<f32>> {
        match *self {}
    }

    pub fn bytes(&mut self, _: &[f32], _: &Rows, _: bool) -> Result<Vec<f32>> {
        match *self {}
    }

    pub fn patches(
        &mut self,
        _: &[usize],
        _: Range<usize>,
        _: &Rows,
        _: bool,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        match *self {}
    }

    pub fn decode(&mut self, _: &Rows, _: &[Range<usize>], _: Wanted) -> Result<Vec<f32>> {
        match *self {}
    }
}
