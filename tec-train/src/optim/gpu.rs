//! AdamW on a GPU: moments that stay there, and one launch for all parameters.

use candle_core::{CudaDevice, Result, Storage, Tensor, bail, cuda_backend::cudarc::driver::CudaSlice};

use super::{Parameter, Update};
use crate::{
    cuda::optimizer::{self as plans, Tables},
    ops::gpu::{Output, address_of, find_rounded, launch},
};

/// The moments of all parameters, one after the other, and what does not change from step to step.
#[derive(Debug)]
pub struct GpuMoments {
    firsts: CudaSlice<f32>,
    seconds: CudaSlice<f32>,
    /// Values of each parameter.
    lengths: Vec<usize>,
    lengths_there: CudaSlice<u64>,
    decays: CudaSlice<u32>,
    chunks: CudaSlice<u32>,
    /// How many chunks there are.
    count: usize,
}

impl GpuMoments {
    /// Takes the moments of the parameters to their GPU; absent where they are on the CPU.
    pub fn new(parameters: &[Parameter]) -> Result<Option<Self>> {
        let Some(device) = device(parameters)? else {
            return Ok(None);
        };
        let lengths: Vec<usize> = parameters.iter().map(|p| p.var.elem_count()).collect();
        let joined = |of: fn(&Parameter) -> &[f32]| parameters.iter().flat_map(of).copied().collect::<Vec<f32>>();
        let chunks = plans::chunks(&lengths);
        let numbers: Vec<u64> = lengths.iter().map(|&length| length as u64).collect();
        let decays: Vec<u32> = parameters.iter().map(|p| u32::from(p.decays)).collect();
        Ok(Some(Self {
            firsts: device.clone_htod(&joined(|p| &p.first))?,
            seconds: device.clone_htod(&joined(|p| &p.second))?,
            lengths_there: device.clone_htod(&numbers)?,
            decays: device.clone_htod(&decays)?,
            count: chunks.len(),
            chunks: device.clone_htod(&chunks.concat())?,
            lengths,
        }))
    }

    /// The moments back on the host: the first and the second of each parameter.
    pub fn fetch(&self, parameters: &[Parameter]) -> Result<Vec<[Vec<f32>; 2]>> {
        let Some(device) = device(parameters)? else {
            bail!("adamw: the parameters have left the GPU; please report it")
        };
        let (firsts, seconds) = (device.clone_dtoh(&self.firsts)?, device.clone_dtoh(&self.seconds)?);
        let mut start = 0;
        Ok(self
            .lengths
            .iter()
            .map(|&length| {
                let range = start..start + length;
                start += length;
                [firsts[range.clone()].to_vec(), seconds[range].to_vec()]
            })
            .collect())
    }

    /// The norm of all gradients, NaN where one of `losses` is not finite; and, if it is finite, the step of `update`, whose scale follows from norm and `clip`. The GPU
    /// decides, so that it need not wait for the host to know.
    pub fn step(
        &mut self,
        parameters: &[Parameter],
        gradients: &[&Tensor],
        losses: Option<&Tensor>,
        update: &Update,
        clip: Option<f64>,
    ) -> Result<f64> {
        let Some(device) = device(parameters)? else {
            bail!("adamw: the parameters have left the GPU; please report it")
        };
        let gradients: Vec<Tensor> = gradients.iter().map(|g| g.contiguous()).collect::<Result<_>>()?;
        let vars: Vec<u64> = parameters
            .iter()
            .map(|p| address_of("adamw", p.var.as_tensor()))
            .collect::<Result<_>>()?;
        let grads: Vec<u64> = gradients
            .iter()
            .map(|g| address_of("adamw", g))
            .collect::<Result<_>>()?;
        let moments = |slice: &CudaSlice<f32>| {
            let mut next = start_of(&device, slice);
            let step = |&length: &usize| {
                let this = next;
                next += 4 * length as u64;
                this
            };
            self.lengths.iter().map(step).collect::<Vec<u64>>()
        };
        let (firsts, seconds) = (moments(&self.firsts), moments(&self.seconds));
        // Weights in mixed precision are rounded with the update.
        let rounded = vars
            .iter()
            .zip(&self.lengths)
            .map(|(&address, &length)| find_rounded(address, length).unwrap_or(0))
            .collect();
        // One copy for the five tables.
        let addresses = device.clone_htod(&[vars, grads, firsts, seconds, rounded].concat())?;
        let table = |number: usize| start_of(&device, &addresses) + (8 * number * self.lengths.len()) as u64;
        let tables = Tables {
            parameters: table(0),
            gradients: table(1),
            firsts: table(2),
            seconds: table(3),
            rounded: table(4),
            lengths: start_of(&device, &self.lengths_there),
            decays: start_of(&device, &self.decays),
            chunks: start_of(&device, &self.chunks),
            count: self.count,
        };
        // f64 values, in room for twice as many f32 ones.
        let scratch = Output::floats(&device, 2 * self.count.max(1))?;
        let norm = device.alloc_zeros::<f64>(1)?;
        let losses = match losses {
            Some(losses) => (address_of("adamw", losses)?, losses.elem_count()),
            None => (0, 0),
        };
        let plans = plans::gradient_norm(&tables, losses, scratch.address(&device), start_of(&device, &norm));
        plans.iter().try_for_each(|plan| launch(&device, plan))?;
        let constants = plans::Update {
            beta1: update.beta1,
            beta2: update.beta2,
            decay: update.decay,
            step_size: update.step_size,
            correction: update.correction,
            eps: update.eps,
        };
        let clip = clip.unwrap_or(f64::INFINITY);
        launch(
            &device,
            &plans::adamw(&tables, start_of(&device, &norm), clip, &constants),
        )?;
        match device.clone_dtoh(&norm)?.first() {
            Some(&norm) => Ok(norm),
            None => bail!("adamw: the norm did not come back; please report it"),
        }
    }
}

fn start_of<T>(device: &CudaDevice, slice: &CudaSlice<T>) -> u64 {
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;
    slice.device_ptr(&device.cuda_stream()).0
}

/// The GPU that the parameters are on; absent for the CPU.
fn device(parameters: &[Parameter]) -> Result<Option<CudaDevice>> {
    let Some(first) = parameters.first() else {
        return Ok(None);
    };
    match &*first.var.storage_and_layout().0 {
        Storage::Cuda(_) => first.var.device().as_cuda_device().cloned().map(Some),
        _ => Ok(None),
    }
}
