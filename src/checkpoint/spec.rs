//! What a tensor in a file is, before it is read or written: name, type, shape, size.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Metadata key of the version.
pub(super) const VERSION_KEY: &str = "blt.format_version";

/// Tensors begin at multiples of this many bytes.
pub(super) const ALIGNMENT: usize = 64;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in the file.
    pub name: String,
    /// The element type, as safetensors files spell it (`"BF16"`, `"U8"`).
    pub dtype: String,
    /// The length of each axis.
    pub shape: Vec<usize>,
    /// Size in bytes.
    pub n_bytes: u64,
}

impl TensorSpec {
    /// What `tensor` needs under this name.
    pub fn of(name: impl Into<String>, tensor: &Tensor) -> TensorSpec {
        TensorSpec::typed(name.into(), tensor.dtype(), tensor.shape())
            .expect("a tensor's size was checked when it was made")
    }

    /// What a tensor of this type and shape needs: one that is not plain is declared as its bytes.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the type cannot hold that shape.
    pub fn typed(name: impl Into<String>, dtype: DType, shape: &[usize]) -> Result<TensorSpec> {
        let name = name.into();
        let Some(n_bytes) = dtype.size_of(shape) else {
            return Err(Error::tensor(
                name,
                format!("expected a shape that {dtype} can hold, found {shape:?}"),
            ));
        };
        let (dtype, shape) = match dtype.is_plain() {
            true => (dtype.name(), shape.to_vec()),
            false => ("U8", vec![n_bytes]),
        };
        Ok(TensorSpec {
            name,
            dtype: dtype.into(),
            shape,
            n_bytes: n_bytes as u64,
        })
    }
}

/// A tensor of a native file: our name, type and shape.
pub type NativeTensor = (String, DType, Vec<usize>);

/// The `__metadata__` of a safetensors file.
pub type Metadata = Vec<(String, String)>;

/// Types and shapes of the tensors that a container holds as plain bytes.
pub(super) type Declared = HashMap<String, (DType, Vec<usize>)>;
