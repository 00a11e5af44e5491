//! Weights that enter products as bf16: rounded when they change, not when they are used.
//!
//! A product gets the address of f32 values. Where they are a weight's that is registered here, its rounded values are found by that
//! address: the weight lives as long as it is registered, so that nothing else can lie there.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use candle_core::{Result, Tensor};

use super::{Output, address_of, launch};
use crate::cuda::{Float, elementwise};

/// Rounded values lie at multiples of this, as if they had memory of their own: products do not depend on where they come from.
const ALIGNMENT: u64 = 256;

/// A weight on a GPU with its values in bf16. Who changes the weight calls [`refresh`], or writes both.
pub struct Rounded {
    weight: Tensor,
    start: u64,
    address: u64,
    _values: Output,
}

/// What is registered about a weight.
struct Entry {
    len: usize,
    /// Of the rounded values.
    address: u64,
}

/// By the address of the weight.
static WEIGHTS: LazyLock<Mutex<BTreeMap<u64, Entry>>> = LazyLock::new(Mutex::default);

fn weights() -> MutexGuard<'static, BTreeMap<u64, Entry>> {
    WEIGHTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rounded {
    /// Rounds an f32 weight; `None` where it is on the CPU, or not contiguous, so that it is copied before it is used.
    pub fn new(weight: &Tensor) -> Result<Option<Self>> {
        if !weight.device().is_cuda() || !weight.is_contiguous() {
            return Ok(None);
        }
        let (device, len) = (weight.device().as_cuda_device()?, weight.elem_count());
        let start = address_of("rounding", weight)?;
        let values = Output::new(device, Float::Bf16, len)?;
        let address = values.address(device);
        weights().insert(start, Entry { len, address });
        let this = Self {
            weight: weight.detach(),
            start,
            address,
            _values: values,
        };
        refresh(weight)?;
        Ok(Some(this))
    }
}

impl fmt::Debug for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rounded({:?})", self.weight.dims())
    }
}

impl Drop for Rounded {
    fn drop(&mut self) {
        let mut weights = weights();
        // The same weight may have been registered again.
        if weights
            .get(&self.start)
            .is_some_and(|entry| entry.address == self.address)
        {
            weights.remove(&self.start);
        }
    }
}

/// Rounds a weight anew that has changed, if its rounded values are kept.
pub fn refresh(weight: &Tensor) -> Result<()> {
    if !weight.device().is_cuda() {
        return Ok(());
    }
    let (device, len) = (weight.device().as_cuda_device()?, weight.elem_count());
    let start = address_of("rounding", weight)?;
    match find(start, len) {
        Some(address) => launch(device, &elementwise::cast(Float::F32, start, address, len)),
        None => Ok(()),
    }
}

/// Where the rounded values of the `len` f32 values at an address are, if they are kept.
pub fn find(address: u64, len: usize) -> Option<u64> {
    let weights = weights();
    let (start, entry) = weights.range(..=address).next_back()?;
    let skipped = (address - start) / size_of::<f32>() as u64;
    let offset = skipped * size_of::<u16>() as u64;
    let fits = skipped + len as u64 <= entry.len as u64 && offset.is_multiple_of(ALIGNMENT);
    fits.then_some(entry.address + offset)
}
