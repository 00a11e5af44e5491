//! Activations made of the logistic function, as some frozen bases have them. No gradients: nothing trained uses them.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};
use rayon::prelude::*;
use tec_core::activation::exp;

use super::cpu::{floats, rows_per_piece, tensor};
#[cfg(feature = "cuda")]
use super::gpu;
#[cfg(feature = "cuda")]
use crate::cuda::elementwise;

/// QuickGELU, `x · sigmoid(1.702 x)`, element by element (OpenAI's CLIP). No gradient.
///
/// # Errors
/// None for f32 tensors on the CPU.
pub fn quick_gelu(x: &Tensor) -> crate::Result<Tensor> {
    Ok(x.contiguous()?.apply_op1_no_bwd(&QuickGelu)?)
}

/// SwiGLU (Shazeer, 2020): `[.., 2 H]`, gates first, gives `silu(gate) · value` `[.., H]`. No gradient.
///
/// # Errors
/// An odd last dimension.
pub fn swiglu(x: &Tensor) -> crate::Result<Tensor> {
    Ok(x.contiguous()?.apply_op1_no_bwd(&SwiGlu)?)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

struct QuickGelu;

impl CustomOp1 for QuickGelu {
    fn name(&self) -> &'static str {
        "quick_gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(self.name(), storage, layout)?;
        let (mut y, piece) = (vec![0.0; x.len()], rows_per_piece(1));
        y.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(y, x)| {
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * sigmoid(1.702 * x));
        });
        tensor(y, layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (float, x) = gpu::values(self.name(), storage, layout)?;
        let (device, n) = (storage.device(), layout.shape().elem_count());
        let y = gpu::Output::new(device, float, n)?;
        gpu::launch(device, &elementwise::quick_gelu(float, x, y.address(device), n))?;
        y.tensor(device, layout.shape())
    }
}

struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (hidden, shape) = gated(layout)?;
        let x = floats(self.name(), storage, layout)?;
        let mut y = vec![0.0; x.len() / 2];
        y.par_chunks_mut(hidden)
            .zip(x.par_chunks(2 * hidden))
            .for_each(|(y, x)| {
                let (gates, values) = x.split_at(hidden);
                for ((y, &gate), value) in y.iter_mut().zip(gates).zip(values) {
                    *y = gate * sigmoid(gate) * value;
                }
            });
        tensor(y, shape)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (hidden, shape) = gated(layout)?;
        let (float, x) = gpu::values(self.name(), storage, layout)?;
        let (device, n) = (storage.device(), layout.shape().elem_count() / 2);
        let y = gpu::Output::new(device, float, n)?;
        let plan = elementwise::swiglu(float, x, y.address(device), n / hidden, hidden);
        gpu::launch(device, &plan)?;
        y.tensor(device, shape)
    }
}

/// H and the shape `[.., H]` of what [`swiglu`] makes of `[.., 2 H]`.
fn gated(layout: &Layout) -> Result<(usize, Vec<usize>)> {
    let mut shape = layout.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last > 0 && last.is_multiple_of(2) => {
            *last /= 2;
            Ok((*last, shape))
        }
        _ => bail!("swiglu: {:?} does not end with gates and as many values", layout.dims()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn both_follow_their_definitions() {
        let values: Vec<f32> = (-40..40).map(|n| n as f32 * 0.31).collect();
        let x = Tensor::from_vec(values.clone(), (4, 20), &Device::Cpu).unwrap();
        let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
        let y: Vec<f32> = quick_gelu(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (&x, y) in values.iter().zip(y) {
            let expected = f64::from(x) * logistic(1.702 * f64::from(x));
            assert!((f64::from(y) - expected).abs() < 1e-6, "{x}: {y} {expected}");
        }
        let gated = swiglu(&x).unwrap();
        assert_eq!(gated.dims(), [4, 10]);
        let gated = gated.to_vec2::<f32>().unwrap();
        for (row, gated) in values.chunks(20).zip(gated) {
            for (n, y) in gated.into_iter().enumerate() {
                let (gate, value) = (f64::from(row[n]), f64::from(row[10 + n]));
                let expected = gate * logistic(gate) * value;
                assert!((f64::from(y) - expected).abs() < 1e-5, "{y} {expected}");
            }
        }
        assert!(swiglu(&x.narrow(1, 0, 5).unwrap()).is_err());
    }
}
