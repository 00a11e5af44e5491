//! The integer operations.

use tec_core::integer;
use tec_edge::layers::{I32s, Linear, Norm};
use tec_edge::{BackEnd, Precision, int4, panel};

use crate::operation::Operation;
use crate::refusal::Refusal;
use crate::tensors::{Results, Tensors, product};

pub(crate) fn run(
    back_end: BackEnd,
    operation: Operation,
    arguments: Tensors<'_>,
    results: &mut Results<'_>,
) -> Result<(), Refusal> {
    match operation {
        Operation::IntegerRound => round(arguments, results),
        Operation::IntegerScale => scale(arguments, results),
        Operation::IntegerSqrt => sqrt(arguments, results),
        Operation::IntegerReciprocal => reciprocal(arguments, results),
        Operation::IntegerLinear => linear(back_end, arguments, results),
        Operation::IntegerNorm => norm(back_end, arguments, results),
        Operation::IntegerSoftmax => softmax(back_end, arguments, results),
        Operation::IntegerGelu => gelu(arguments, results),
        Operation::IntegerPixel => pixel(arguments, results),
        Operation::IntegerInt4 => int4(arguments, results),
        _ => Err(Refusal::Unknown),
    }
}

fn round(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let (products, shifts) = (arguments.take::<i64>()?, arguments.take::<u32>()?);
    let rounded = results.tensor(products.len())?;
    for ((slot, &product), &shift) in rounded.iter_mut().zip(products).zip(shifts) {
        *slot = integer::round_shift(product, shift);
    }
    Ok(())
}

fn scale(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let (values, multipliers) = (arguments.take::<i32>()?, arguments.take::<i32>()?);
    let shifts = arguments.take::<u32>()?;
    let scaled = results.tensor(values.len())?;
    for (((slot, &value), &multiplier), &shift) in scaled.iter_mut().zip(values).zip(multipliers).zip(shifts) {
        *slot = integer::scale(value, multiplier, shift);
    }
    limit(scaled, results.tensor(scaled.len())?, integer::saturate_i8);
    limit(scaled, results.tensor(scaled.len())?, integer::saturate_i16);
    Ok(())
}

fn limit<T>(values: &[i64], out: &mut [T], saturate: impl Fn(i64) -> T) {
    for (slot, &value) in out.iter_mut().zip(values) {
        *slot = saturate(value);
    }
}

fn sqrt(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let values = arguments.take::<u64>()?;
    for (slot, &value) in results.tensor(values.len())?.iter_mut().zip(values) {
        *slot = integer::sqrt(value);
    }
    Ok(())
}

fn reciprocal(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let divisors = arguments.take::<u32>()?;
    let (mantissas, shifts) = (results.tensor(divisors.len())?, results.tensor(divisors.len())?);
    for ((mantissa, shift), &divisor) in mantissas.iter_mut().zip(shifts).zip(divisors) {
        let inverse = integer::reciprocal(divisor);
        (*mantissa, *shift) = (inverse.mantissa, inverse.shift);
    }
    Ok(())
}

fn linear(back_end: BackEnd, mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let (tokens, weight) = (arguments.take::<i8>()?, arguments.take::<i8>()?);
    let (bias, multiplier) = (arguments.take::<i32>()?, arguments.take::<i32>()?);
    let [shift, inner] = arguments.sizes()?;
    let outputs = bias.len();
    let values = product(&[tokens.len() / inner.max(1), outputs]);
    let (narrow, wide) = (results.tensor::<i8>(values)?, results.tensor::<i16>(values)?);
    let panels = results.scratch::<i8>(panel::panels_len(outputs, inner))?;
    panels.fill(0);
    panel::pack(weight, inner, panels);
    let layer = Linear {
        weight: bytemuck::cast_slice(panels),
        precision: Precision::Int8,
        inner,
        bias: I32s::from_bytes(bytemuck::cast_slice(bias)),
        multiplier: I32s::from_bytes(bytemuck::cast_slice(multiplier)),
        shift: shift as u32,
    };
    let memory = results.scratch::<u8>(layer.memory(tokens.len() / inner.max(1)))?;
    back_end.linear(&layer, tokens, memory, wide)?;
    for (narrow, &wide) in narrow.iter_mut().zip(&*wide) {
        *narrow = integer::saturate_i8(wide.into());
    }
    Ok(())
}

fn norm(back_end: BackEnd, mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let tokens = arguments.take::<i16>()?;
    let [epsilon] = arguments.numbers::<u64, 1>()?;
    let (multiplier, offset) = (arguments.take::<i32>()?, arguments.take::<i32>()?);
    let [bits] = arguments.sizes()?;
    let dim = multiplier.len().max(1);
    let norm = Norm {
        multiplier: I32s::from_bytes(bytemuck::cast_slice(multiplier)),
        offset: I32s::from_bytes(bytemuck::cast_slice(offset)),
        bits: bits as u32,
        epsilon,
    };
    let (normalized, affine) = (
        results.tensor::<i32>(tokens.len())?,
        results.tensor::<i64>(tokens.len())?,
    );
    let narrow = results.tensor::<i8>(tokens.len())?;
    for (token, out) in tokens.chunks_exact(dim).zip(normalized.chunks_exact_mut(dim)) {
        let row = integer::NormRow::new(token, epsilon);
        for (slot, &x) in out.iter_mut().zip(token) {
            *slot = row.normalize(x);
        }
    }
    for (token, out) in tokens.chunks_exact(dim).zip(affine.chunks_exact_mut(dim)) {
        norm.row(token, out, |slot, value| *slot = value);
    }
    let memory = results.scratch::<u8>(norm.memory(dim))?;
    for (token, out) in tokens.chunks_exact(dim).zip(narrow.chunks_exact_mut(dim)) {
        back_end.norm(&norm, token, memory, out)?;
    }
    Ok(())
}

fn softmax(back_end: BackEnd, mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let scores = arguments.take::<i32>()?;
    let [multiplier] = arguments.numbers::<i32, 1>()?;
    let [shift] = arguments.sizes()?;
    let (values, multipliers) = (arguments.take::<i8>()?, arguments.take::<i32>()?);
    let [out_shift, count] = arguments.sizes()?;
    let (rows, width) = (scores.len() / count.max(1), multipliers.len());
    let (weights, sums) = (
        results.tensor::<i16>(product(&[rows, count]))?,
        results.tensor::<u32>(rows)?,
    );
    let (means, out) = (
        results.tensor::<i32>(product(&[rows, width]))?,
        results.tensor::<i8>(product(&[rows, width]))?,
    );
    let padded = panel::padded(count);
    // Channels are the outputs, tokens the inputs.
    let panels = results.scratch::<i8>(panel::panels_len(width, count))?;
    panels.fill(0);
    panel::pack(values, count, panels);
    let (row, totals) = (results.scratch::<i16>(padded)?, results.scratch::<i32>(width)?);
    let mut slots = means.iter_mut().zip(out);
    let each = scores
        .chunks_exact(count.max(1))
        .zip(weights.chunks_exact_mut(count.max(1)));
    for ((scores, weights), sum) in each.zip(sums) {
        row.fill(0);
        let row_weights = row.get_mut(..count).ok_or(Refusal::DoesNotFit)?;
        *sum = back_end.softmax(scores, multiplier, shift as u32, row_weights);
        weights.copy_from_slice(row_weights);
        back_end.weighted(row, count, panels, totals);
        let mean = integer::WeightedMean::new(*sum);
        for ((slot, out), (&total, &multiplier)) in slots.by_ref().take(width).zip(totals.iter().zip(multipliers)) {
            *slot = mean.of(total);
            *out = integer::saturate_i8(integer::scale(*slot, multiplier, out_shift as u32));
        }
    }
    Ok(())
}

fn gelu(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let table = arguments.numbers::<i8, { integer::GELU_TABLE_LEN }>()?;
    let x = arguments.take::<i8>()?;
    for (slot, &x) in results.tensor(x.len())?.iter_mut().zip(x) {
        *slot = integer::gelu(&table, x);
    }
    Ok(())
}

fn pixel(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let values = arguments.take::<f32>()?;
    let [std, mean] = arguments.numbers::<f32, 2>()?;
    let (multiplier, offset) = integer::pixel_constants(mean, std);
    for (slot, &value) in results.tensor(values.len())?.iter_mut().zip(values) {
        *slot = integer::pixel_from_f32(value, multiplier, offset).map_or(-1, i16::from);
    }
    Ok(())
}

fn int4(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let (q, scales) = (arguments.take::<i8>()?, arguments.take::<u8>()?);
    let [group, inner] = arguments.sizes()?;
    let (inner, group) = (inner.max(1), group.max(1));
    let outputs = q.len() / inner;
    let groups = inner.div_ceil(group);
    for (i, (slot, &q)) in results.tensor::<i8>(q.len())?.iter_mut().zip(q).enumerate() {
        let scale = scales.get(i / inner * groups + i % inner / group).copied();
        *slot = int4::weight(q, scale.unwrap_or(0));
    }
    let packed = results.tensor::<u8>(int4::panels_len(outputs, inner, group))?;
    packed.fill(0);
    int4::pack(q, scales, inner, group, packed);
    Ok(())
}
