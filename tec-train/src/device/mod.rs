//! Where tensors live and operations run: the CPU, or a GPU of this machine.

#[cfg(feature = "cuda")]
mod libraries;

use std::{fmt, str::FromStr};

use candle_core::Device;

use crate::{Error, Result};

/// A device as people name it: `cpu`, `cuda` (the first GPU) or `cuda:N`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU of this number, counted as CUDA counts them.
    Cuda(usize),
}

impl DeviceName {
    /// The device itself.
    ///
    /// # Errors
    /// [`Error::Usage`] naming what is missing: CUDA in this build, the driver, a library, that GPU.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => open_cuda(number)
                .map_err(|reason| Error::Usage(format!("--device {self}: {reason}, or go on with --device cpu"))),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(number))) => Ok(Self::Cuda(number)),
            _ => Err("use cpu, cuda or cuda:N, where N is the number of a GPU".into()),
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize) -> Result<Device, String> {
    Err("this build computes on the CPU only; build it with `cargo build --release --features cuda`".into())
}

#[cfg(feature = "cuda")]
use cuda::open as open_cuda;

#[cfg(feature = "cuda")]
mod cuda;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_people_write_them() {
        for (text, name) in [
            ("cpu", DeviceName::Cpu),
            ("cuda", DeviceName::Cuda(0)),
            ("cuda:0", DeviceName::Cuda(0)),
            ("cuda:3", DeviceName::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(name));
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for wrong in ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:a", "cuda0", "0"] {
            assert!(wrong.parse::<DeviceName>().unwrap_err().contains("cuda:N"), "{wrong}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        let error = DeviceName::Cuda(1).open().unwrap_err().to_string();
        assert!(
            error.contains("--device cuda:1") && error.contains("--features cuda") && error.contains("--device cpu"),
            "{error}"
        );
    }
}
