//! Which device computes.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

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

impl FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda`, `cuda:N` or `auto`.
    fn from_str(text: &str) -> Result<Self, Error> {
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
