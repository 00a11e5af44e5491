//! The other processes of the job that this one is part of.

use tec_train::{
    Result,
    device::DeviceName,
    ranks::{Collective, Launch, OneProcess},
};

/// The job that the environment's variables tell of, joined to train on `device`, and this process's place in it; one process
/// where they tell of none.
///
/// # Errors
/// Variables that make no sense, or processes that do not find each other.
pub fn join(device: DeviceName) -> Result<(Box<dyn Collective>, Launch)> {
    let launch = Launch::from_variables(|name| std::env::var(name).ok())?;
    let job = match launch.size {
        1 => Box::new(OneProcess),
        _ => join_others(&launch, device)?,
    };
    Ok((job, launch))
}

fn join_others(launch: &Launch, device: DeviceName) -> Result<Box<dyn Collective>> {
    if device != DeviceName::Cpu {
        return on_gpus(launch);
    }
    #[cfg(feature = "mpi")]
    if launch.launcher != tec_train::ranks::Launcher::Torchrun {
        return Ok(Box::new(tec_train::ranks::Mpi::join(launch)?));
    }
    Ok(Box::new(tec_train::ranks::Tcp::join(launch)?))
}

#[cfg(feature = "cuda")]
fn on_gpus(launch: &Launch) -> Result<Box<dyn Collective>> {
    Ok(Box::new(tec_train::ranks::Nccl::join(launch)?))
}

/// Opening the GPU says, in each process, what this build lacks.
#[cfg(not(feature = "cuda"))]
fn on_gpus(launch: &Launch) -> Result<Box<dyn Collective>> {
    Ok(Box::new(tec_train::ranks::Tcp::join(launch)?))
}
