//! Which device computes a model.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The device that a model is computed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// The NVIDIA GPU of that number; needs the feature `cuda`.
    Cuda(usize),
    /// The first GPU if it can hold and run the model, or else the CPU.
    Auto,
}

/// Where the tables of a model on a GPU are: six of half a million rows in the published models. A byte
/// reads one row of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TablePlace {
    /// On the GPU if its memory has room for them and 2 GiB more, or else in that of the host.
    #[default]
    Auto,
    /// In the memory of the host, which gathers the rows. The GPU then waits for it once more per byte.
    Host,
    /// On the GPU.
    Device,
}

/// How a model is computed on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GpuOptions {
    /// Where its tables are.
    pub tables: TablePlace,
}

impl FromStr for TablePlace {
    type Err = Error;

    /// `auto`, `host` or `device`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(TablePlace::Auto),
            "host" => Ok(TablePlace::Host),
            "device" => Ok(TablePlace::Device),
            _ => Err(Error::argument(
                "tables",
                format!("expected auto, host or device, found \"{text}\""),
            )),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda`, `cuda:N` or `auto`.
    fn from_str(text: &str) -> Result<Self> {
        let number = match text {
            "cpu" => return Ok(Device::Cpu),
            "auto" => return Ok(Device::Auto),
            "cuda" => Some(0),
            _ => (text.strip_prefix("cuda:")).and_then(|n| n.parse().ok()),
        };
        number.map(Device::Cuda).ok_or_else(|| {
            Error::argument(
                "device",
                format!("expected cpu, cuda, cuda:N or auto, found \"{text}\""),
            )
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
            Device::Auto => f.write_str("auto"),
        }
    }
}
