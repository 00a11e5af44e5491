//! The other processes of the job that this one is part of.

use tec_train::{
    Result,
    ranks::{Collective, Launch, OneProcess},
};

/// Joins the job that the environment's variables tell of; one process where they tell of none.
///
/// # Errors
/// Variables that make no sense, or more processes than this build can train with.
pub fn join() -> Result<Box<dyn Collective>> {
    let launch = Launch::from_variables(|name| std::env::var(name).ok())?;
    match launch.size {
        1 => Ok(Box::new(OneProcess)),
        _ => join_others(&launch),
    }
}

#[cfg(feature = "mpi")]
fn join_others(launch: &Launch) -> Result<Box<dyn Collective>> {
    Ok(Box::new(tec_train::ranks::Mpi::join(launch)?))
}

/// Each process would train the whole run for itself.
#[cfg(not(feature = "mpi"))]
fn join_others(launch: &Launch) -> Result<Box<dyn Collective>> {
    Err(tec_train::Error::Usage(format!(
        "{} started {} processes, but this tec cannot train by several: build it with the feature `mpi` \
         (cargo build --release --features mpi; it needs an MPI and libclang), or start one process",
        launch.launcher, launch.size
    )))
}
