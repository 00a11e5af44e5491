//! What the CPU side of every operation needs: slices of tensors, and pieces of work that do not depend on the thread count.

use std::borrow::Cow;

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use super::Amp;

/// The values of a contiguous f32 tensor.
pub fn floats<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    contiguous(op, storage.as_slice()?, layout)
}

/// The values of a contiguous tensor of f32 or bf16 values: f32 ones as they lie there, bf16 ones as f32.
pub fn values<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<Cow<'a, [f32]>> {
    match storage {
        CpuStorage::BF16(values) => {
            let values = contiguous(op, values, layout)?;
            Ok(Cow::Owned(values.par_iter().map(|value| value.to_f32()).collect()))
        }
        _ => Ok(Cow::Borrowed(floats(op, storage, layout)?)),
    }
}

/// As [`values`], in the precision of a product's factor.
pub fn factor<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout, amp: Amp) -> Result<Cow<'a, [f32]>> {
    let values = values(op, storage, layout)?;
    Ok(match (amp, storage) {
        (Amp::None, _) | (_, CpuStorage::BF16(_)) => values,
        (Amp::Bf16, _) => {
            let mut values = values.into_owned();
            round(&mut values);
            Cow::Owned(values)
        }
    })
}

/// Rounds each value to bf16: to the nearest, of two equally near ones to the even one.
pub fn round(values: &mut [f32]) {
    values
        .iter_mut()
        .for_each(|value| *value = bf16::from_f32(*value).to_f32());
}

/// The values of a contiguous u32 tensor.
pub fn indices<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [u32]> {
    contiguous(op, storage.as_slice()?, layout)
}

/// What `f` makes of the values of a contiguous f32 tensor on the CPU that is no argument of the operation.
pub fn with_floats<T>(op: &str, x: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => f(floats(op, cpu, layout)?),
        _ => bail!("{op}: a tensor is on another device than the others"),
    }
}

/// As [`with_floats`], of a product's [`factor`].
pub fn with_factor<T>(op: &str, x: &Tensor, amp: Amp, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => f(&factor(op, cpu, layout, amp)?),
        _ => bail!("{op}: a tensor is on another device than the others"),
    }
}

fn contiguous<'a, T>(op: &str, values: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout
        .contiguous_offsets()
        .and_then(|(start, end)| values.get(start..end))
    {
        Some(values) => Ok(values),
        None => bail!("{op}: a tensor {:?} is not contiguous", layout.dims()),
    }
}

/// A new f32 tensor's storage and shape.
pub fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.into()))
}

/// A new tensor's storage and shape, its values rounded to `dtype`, which is f32 or bf16.
pub fn tensor_of(dtype: DType, values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    match dtype {
        DType::F32 => tensor(values, shape),
        DType::BF16 => {
            let rounded = values.into_par_iter().map(bf16::from_f32).collect();
            Ok((CpuStorage::BF16(rounded), shape.into()))
        }
        other => bail!("values of type {other:?} are neither f32 nor bf16"),
    }
}

/// A tensor operation's error for one of `tec-core`.
pub fn refused(error: tec_core::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// How many rows of `width` elements are one piece of work: a function of the width only, so that sums over pieces have one
/// order whatever the number of threads; about 64 kB, so that a piece stays in the cache.
pub fn rows_per_piece(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}
