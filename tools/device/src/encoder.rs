//! Whole encoders.

use tec_edge::{Encoder, Image, Output, OutputKind, Outputs, Trace};

use crate::refusal::Refusal;
use crate::tensors::{Kind, Results, Tensors};

pub(crate) fn encode(arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    run(arguments, results, |encoder, image, scratch, out| {
        encoder.encode(image, scratch, out)
    })
}

pub(crate) fn trace(arguments: Tensors<'_>, results: &mut Results<'_>, trace: &mut impl Trace) -> Result<(), Refusal> {
    run(arguments, results, |encoder, image, scratch, out| {
        encoder.encode_traced(image, scratch, out, trace)
    })
}

fn run(
    mut arguments: Tensors<'_>,
    results: &mut Results<'_>,
    encode: impl FnOnce(&Encoder<'_>, Image<'_>, &mut [u8], Output<'_>) -> Result<(), tec_edge::Error>,
) -> Result<(), Refusal> {
    let encoder = Encoder::from_bytes(arguments.take::<u8>()?)?;
    let (kind, bytes) = arguments.take_bytes()?;
    let image = match kind {
        Kind::U8 => Image::Pixels(bytes),
        Kind::F32 => Image::Normalized(
            bytemuck::try_cast_slice(bytes).map_err(|_| Refusal::Malformed("the image is not aligned"))?,
        ),
        _ => return Err(Refusal::Malformed("an image is u8 or f32")),
    };
    let scratch = results.scratch::<u8>(encoder.scratch_len(Outputs::ALL))?;
    let class = results.tensor::<i16>(encoder.output_len(OutputKind::Class))?;
    let mean = results.tensor::<i16>(encoder.output_len(OutputKind::Mean))?;
    let patches = results.tensor::<i16>(encoder.output_len(OutputKind::Patches))?;
    let out = Output {
        class: Some(&mut *class),
        mean: Some(&mut *mean),
        patches: Some(patches),
    };
    encode(&encoder, image, scratch, out)?;
    encoder.to_f32(OutputKind::Class, class, results.tensor(class.len())?);
    encoder.to_f32(OutputKind::Mean, mean, results.tensor(mean.len())?);
    Ok(())
}
