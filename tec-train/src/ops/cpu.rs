//! What the CPU side of every operation needs: slices of tensors, and pieces of work that do not depend on the thread count.

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, bail};

/// The values of a contiguous f32 tensor.
pub fn floats<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    contiguous(op, storage.as_slice()?, layout)
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

/// A tensor operation's error for one of `tec-core`.
pub fn refused(error: tec_core::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// How many rows of `width` elements are one piece of work: a function of the width only, so that sums over pieces have one
/// order whatever the number of threads; about 64 kB, so that a piece stays in the cache.
pub fn rows_per_piece(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}
