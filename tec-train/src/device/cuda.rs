//! Opening a GPU.

use candle_core::{
    Device,
    cuda_backend::cudarc::driver::{result, sys},
};

use super::{DeviceName, libraries};

/// The least compute capability: bf16 products on tensor cores begin with it.
const LEAST: (i32, i32) = (8, 0);

/// The GPU of that name.
///
/// # Errors
/// What is missing, in words that end without a full stop.
pub fn open(name: DeviceName) -> Result<Device, String> {
    libraries::load()?;
    let refused = |what: &'static str| move |e: result::DriverError| format!("{what}: {}", reason(e));
    result::init().map_err(refused("the NVIDIA driver does not start"))?;
    let count = result::device::get_count().map_err(refused("the NVIDIA driver does not count its GPUs"))?;
    let number = number(name, usize::try_from(count).unwrap_or(0))?;
    let ordinal = i32::try_from(number).unwrap_or(i32::MAX);
    let device = result::device::get(ordinal).map_err(refused("the GPU cannot be used"))?;
    let name = result::device::get_name(device).map_err(refused("the GPU cannot be used"))?;
    let capability = capability(device).map_err(refused("the GPU cannot be used"))?;
    if capability < LEAST {
        return Err(format!(
            "the {name} has compute capability {}.{}, and the kernels need {}.{} at least (bf16 tensor cores: Ampere and \
             newer); use another GPU",
            capability.0, capability.1, LEAST.0, LEAST.1
        ));
    }
    // A stream of its own: candle's `new_cuda` takes one for each thread, and threads then do not wait for each other.
    let opened = Device::new_cuda_with_stream(number).map_err(|e| format!("the {name} cannot be used: {e}"))?;
    if let Device::Cuda(cuda) = &opened {
        // SAFETY: every tensor of this device is made, used and freed on its one stream, but for those of `data::upload`, which
        // orders the streams itself.
        unsafe { cuda.disable_event_tracking() };
        keep_freed_memory(device).map_err(refused("the GPU's memory cannot be set up"))?;
    }
    Ok(opened)
}

/// Which of `count` GPUs is meant.
fn number(name: DeviceName, count: usize) -> Result<usize, String> {
    match (name, count) {
        (_, 0) => Err("there is no GPU that CUDA may use (see nvidia-smi and CUDA_VISIBLE_DEVICES)".into()),
        // Whether two processes were given the same one shows when they connect.
        (DeviceName::OwnCuda(_), 1) | (DeviceName::Cpu, _) => Ok(0),
        (DeviceName::OwnCuda(number) | DeviceName::Cuda(number), _) if number < count => Ok(number),
        (DeviceName::OwnCuda(number), _) => Err(format!(
            "there are {count} GPUs, and this is process {} of its machine: start one process a GPU",
            number + 1
        )),
        (DeviceName::Cuda(_), 1) => Err("there is one GPU: use --device cuda:0".into()),
        (DeviceName::Cuda(_), _) => Err(format!(
            "there are {count} GPUs: use --device cuda:0 to cuda:{}",
            count - 1
        )),
    }
}

fn capability(device: sys::CUdevice) -> Result<(i32, i32), result::DriverError> {
    use sys::CUdevice_attribute_enum::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    // SAFETY: the device is one the driver gave.
    unsafe {
        Ok((
            result::device::get_attribute(device, MAJOR)?,
            result::device::get_attribute(device, MINOR)?,
        ))
    }
}

/// Freed memory stays with the process: by default the driver takes it back at every wait for the GPU, and a step would ask for
/// all of its memory anew.
fn keep_freed_memory(device: sys::CUdevice) -> Result<(), result::DriverError> {
    let mut all = u64::MAX;
    // SAFETY: the device is one the driver gave; the attribute is a 64-bit number, and lives during the call.
    unsafe {
        let pool = result::device::get_default_mem_pool(device)?;
        result::mem_pool::set_attribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut all).cast(),
        )
    }
}

fn reason(error: result::DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{error:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_gets_the_gpu_of_its_number_or_the_only_one() {
        for (name, count, expected) in [
            (DeviceName::Cuda(0), 1, Ok(0)),
            (DeviceName::Cuda(3), 4, Ok(3)),
            (DeviceName::Cuda(1), 1, Err("use --device cuda:0")),
            (DeviceName::Cuda(4), 4, Err("use --device cuda:0 to cuda:3")),
            (DeviceName::OwnCuda(0), 4, Ok(0)),
            (DeviceName::OwnCuda(3), 4, Ok(3)),
            (DeviceName::OwnCuda(3), 1, Ok(0)),
            (
                DeviceName::OwnCuda(2),
                2,
                Err("there are 2 GPUs, and this is process 3"),
            ),
            (DeviceName::OwnCuda(0), 0, Err("there is no GPU")),
        ] {
            match (number(name, count), expected) {
                (Ok(found), Ok(number)) => assert_eq!(found, number, "{name:?} of {count}"),
                (Err(said), Err(words)) => assert!(said.contains(words), "{said}"),
                (found, _) => panic!("{name:?} of {count}: {found:?}"),
            }
        }
    }
}
