//! Trained weights as files that inference opens.

use std::path::Path;

use super::params::Params;
use crate::checkpoint::{expected_tensors, write_native};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// `values` as a tensor of this type, rounded to the nearest, ties to even.
///
/// # Errors
/// [`Error::Argument`] if the shape does not fit.
pub fn tensor(dtype: DType, shape: &[usize], values: &[f32]) -> Result<Tensor> {
    match dtype {
        DType::Bf16 => {
            let bits = |v: &f32| {
                let bits = v.to_bits();
                let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
                (rounded as u16).to_le_bytes()
            };
            let bytes = values.iter().flat_map(bits).collect();
            Tensor::from_bytes(DType::Bf16, shape.to_vec(), bytes)
        }
        _ => Tensor::from_f32(shape.to_vec(), values.to_vec()),
    }
}

/// All tensors of a model, adapters merged, from the first of `sources` that has each. Norms stay
/// f32.
///
/// # Errors
/// [`Error::Tensor`] for one that none has.
pub fn tensors(
    config: &Config,
    sources: &[&Params<f32>],
    dtype: DType,
) -> Result<Vec<(String, Tensor)>> {
    (expected_tensors(config).into_iter())
        .map(|(name, shape)| {
            let values = sources.iter().find_map(|p| p.saved_values(&name));
            let values = values
                .ok_or_else(|| Error::tensor(&name, "expected it among the trained tensors"))?;
            let dtype = if shape.len() == 1 { DType::F32 } else { dtype };
            Ok((name, tensor(dtype, &shape, &values)?))
        })
        .collect()
}

/// Writes the native file.
///
/// # Errors
/// As [`write_native`].
pub fn native(path: &Path, config: &Config, sources: &[&Params<f32>], dtype: DType) -> Result<()> {
    write_native(path, config, tensors(config, sources, dtype)?)
}
