//! A whole int8 encoder: its outputs, and every layer on the way to them.

use std::collections::BTreeMap;

use tec_device::Operation;

use super::Session;
use crate::error::Result;
use crate::goldens::Goldens;
use crate::provider::Part;
use crate::record::Record;
use crate::tensor::Data;

pub(super) fn check(session: &mut Session<'_>) -> Result<()> {
    let goldens = session.goldens()?;
    let encoder = goldens.data("encoder")?;
    for image in 0..goldens.cases("") {
        let case = format!("image {image}");
        let pixels = goldens.data(&format!("{image}.pixels"));
        let input = pixels.or_else(|_| goldens.data(&format!("{image}.normalized")))?;
        let arguments = [encoder.clone(), input.clone()];
        let Some(answer) = session.integers(&case, Operation::Trace, &arguments) else {
            continue;
        };
        session.record.case();
        layers(&mut session.record, &goldens, image, &answer.parts)?;
        outputs(&mut session.record, &goldens, &case, image, &answer.results)?;
        // The way without a trace is other machine code.
        if let Some(answer) = session.integers(&case, Operation::Encode, &arguments) {
            outputs(&mut session.record, &goldens, &case, image, &answer.results)?;
        }
    }
    Ok(())
}

fn outputs(record: &mut Record, goldens: &Goldens, case: &str, image: usize, results: &[Data]) -> Result<()> {
    let names = ["class", "mean", "patches"];
    if results.len() != 5 {
        record.fail(case, &format!("{} results, expected 5", results.len()));
    }
    for (name, result) in names.iter().zip(results) {
        record.same(case, name, result, goldens.data(&format!("{image}.{name}"))?);
    }
    // As f32, an output is its integers times one power of two: exactly, and the same one for all.
    for (integers, floats) in results.iter().take(2).zip(results.iter().skip(3)) {
        let (Data::I16(integers), Data::F32(floats)) = (integers, floats) else {
            record.fail(case, "the f32 view of an output is missing");
            continue;
        };
        let pairs = integers.iter().zip(floats);
        let steps: Vec<f32> = pairs
            .clone()
            .filter(|(i, _)| **i != 0)
            .map(|(&i, &f)| f / f32::from(i))
            .collect();
        let step = steps.first().copied().unwrap_or(1.0);
        let exact = step > 0.0 && step.to_bits() << 9 == 0;
        if !exact || integers.len() != floats.len() || pairs.clone().any(|(&i, &f)| f32::from(i) * step != f) {
            record.fail(
                case,
                "the f32 view of an output is not its integers times a power of two",
            );
        }
    }
    Ok(())
}

/// Puts the parts of a trace together and compares each layer.
fn layers(record: &mut Record, goldens: &Goldens, image: usize, parts: &[Part]) -> Result<()> {
    let prefix = format!("{image}.");
    let mut found: BTreeMap<String, (Data, usize)> = BTreeMap::new();
    for part in parts {
        let stage = part.stage.name();
        let name = match stage {
            "embedding" => stage.to_string(),
            _ => format!("block.{}.{stage}", part.block),
        };
        let golden = goldens.data(&format!("{prefix}{name}"))?;
        let (layer, values) = found
            .entry(name.clone())
            .or_insert_with(|| (Data::zeros(golden.kind(), golden.len()), 0));
        *values += part.values.len();
        if !layer.place(part.offset, &part.values) {
            record.fail(&name, "part of the trace lies outside the layer, or has another type");
        }
    }
    let not_layers = ["pixels", "normalized", "class", "mean", "patches"];
    for name in goldens
        .names()
        .filter_map(|name| name.strip_prefix(&prefix))
        .filter(|n| !not_layers.contains(n))
    {
        let golden = goldens.data(&format!("{prefix}{name}"))?;
        let case = format!("image {image}, {name}");
        match found.get(name) {
            Some((layer, values)) => {
                record.same(&case, "layer", layer, golden);
                // Each element once: a part that did not come would otherwise pass where the golden value is zero.
                if *values != golden.len() {
                    record.fail(&case, &format!("{values} values came, expected {}", golden.len()));
                }
            }
            None => record.fail(&case, "the trace does not have it"),
        }
    }
    Ok(())
}
