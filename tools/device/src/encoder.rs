//! Whole encoders.

use tec_edge::{BackEnd, Encoder, Image, Output, OutputKind, Outputs, Trace};

use crate::refusal::Refusal;
use crate::tensors::{Kind, Results, Tensors};

pub(crate) fn encode(back_end: BackEnd, arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    run(back_end, arguments, results, |encoder, image, scratch, out| {
        encoder.encode(image, scratch, out)
    })
}

pub(crate) fn trace(
    back_end: BackEnd,
    arguments: Tensors<'_>,
    results: &mut Results<'_>,
    trace: &mut impl Trace,
) -> Result<(), Refusal> {
    run(back_end, arguments, results, |encoder, image, scratch, out| {
        encoder.encode_traced(image, scratch, out, trace)
    })
}

fn run(
    back_end: BackEnd,
    mut arguments: Tensors<'_>,
    results: &mut Results<'_>,
    encode: impl FnOnce(&Encoder<'_>, Image<'_>, &mut [u8], Output<'_>) -> Result<(), tec_edge::Error>,
) -> Result<(), Refusal> {
    let encoder = Encoder::from_bytes(arguments.take::<u8>()?)?.with_back_end(back_end);
    let (kind, bytes) = arguments.take_bytes()?;
    let image = match kind {
        Kind::U8 => Image::Pixels(bytes),
        Kind::F32 => Image::Normalized(
            bytemuck::try_cast_slice(bytes).map_err(|_| Refusal::Malformed("the image is not aligned"))?,
        ),
        _ => return Err(Refusal::Malformed("an image is u8 or f32")),
    };
    let outputs = Outputs {
        logits: encoder.header().head.is_some(),
        ..Outputs::ALL
    };
    let scratch = results.scratch::<u8>(encoder.scratch_len(outputs))?;
    let class = results.tensor::<i16>(encoder.output_len(OutputKind::Class))?;
    let mean = results.tensor::<i16>(encoder.output_len(OutputKind::Mean))?;
    let patches = results.tensor::<i16>(encoder.output_len(OutputKind::Patches))?;
    let logits = results.tensor::<i16>(encoder.output_len(OutputKind::Logits))?;
    let out = Output {
        class: Some(&mut *class),
        mean: Some(&mut *mean),
        patches: Some(patches),
        logits: Some(&mut *logits).filter(|_| outputs.logits),
    };
    encode(&encoder, image, scratch, out)?;
    encoder.to_f32(OutputKind::Class, class, results.tensor(class.len())?);
    encoder.to_f32(OutputKind::Mean, mean, results.tensor(mean.len())?);
    encoder.to_f32(OutputKind::Logits, logits, results.tensor(logits.len())?);
    Ok(())
}
