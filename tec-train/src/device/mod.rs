//! Where tensors live and operations run: the CPU, or a GPU of this machine.

#[cfg(feature = "cuda")]
mod libraries;
#[cfg(feature = "cuda")]
pub(crate) mod nccl;

use std::{fmt, str::FromStr};

use candle_core::Device;

use crate::{Error, Result};

/// A device as people name it: `cpu`, `cuda` (the process's own GPU) or `cuda:N`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU of this number, counted as CUDA counts them.
    Cuda(usize),
    /// `cuda`: the GPU for the process of this number on its machine. Where CUDA shows a single one, as launchers can arrange
    /// for each process, it is that; else the one of the same number.
    OwnCuda(usize),
}

impl DeviceName {
    /// The device itself.
    ///
    /// # Errors
    /// [`Error::Usage`] naming what is missing: CUDA in this build, the driver, a library, that GPU.
    pub fn open(self) -> Result<Device> {
        self.find()
            .map_err(|reason| Error::Usage(format!("--device {self}: {reason}, or go on with --device cpu")))
    }

    /// The device itself, for those who can do without.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn find(self) -> Result<Device, String> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) | Self::OwnCuda(_) => open_cuda(self),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::OwnCuda(_) => f.write_str("cuda"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::OwnCuda(0)),
            (_, Some(Ok(number))) => Ok(Self::Cuda(number)),
            _ => Err("use cpu, cuda or cuda:N, where N is the number of a GPU".into()),
        }
    }
}

/// What a device without room for a tensor says; `None` for other errors.
pub(crate) fn out_of_memory(error: &Error) -> Option<String> {
    let Error::Candle(error) = error else { return None };
    let text = error.to_string();
    match text.find(NO_ROOM) {
        // Where it is our own sentence, it ends with its line.
        Some(start) => Some(text[start..].lines().next().unwrap_or(NO_ROOM).to_owned()),
        // The driver's name for it, in errors of candle's own operations.
        None => text.contains("OUT_OF_MEMORY").then(|| NO_ROOM.to_owned()),
    }
}

/// How sentences about memory of a GPU begin.
pub(crate) const NO_ROOM: &str = "the GPU has no room";

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: DeviceName) -> Result<Device, String> {
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
            ("cuda", DeviceName::OwnCuda(0)),
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

    #[test]
    fn a_lack_of_memory_is_told_from_other_errors() {
        let said = |text: &str| out_of_memory(&Error::Candle(candle_core::Error::msg(text.to_owned())));
        let ours = format!("{NO_ROOM} for 12 MB more; 3 of its 40 MB are free");
        assert_eq!(said(&ours), Some(ours.clone()));
        assert_eq!(said(&format!("{ours}\n   0: a backtrace")), Some(ours));
        assert_eq!(
            said("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"),
            Some(NO_ROOM.into())
        );
        assert_eq!(said("shape mismatch"), None);
        assert_eq!(out_of_memory(&Error::Data(NO_ROOM.into())), None);
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
