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

/// Where a file's header says which power of two class output, mean and logits are multiples of (`docs/encoder-file.md`); which result
/// has their integers, and which their real values.
const VIEWS: [(usize, usize, usize); 3] = [(69, 0, 4), (70, 1, 5), (75, 3, 6)];

fn outputs(record: &mut Record, goldens: &Goldens, case: &str, image: usize, results: &[Data]) -> Result<()> {
    let names = ["class", "mean", "patches", "logits"];
    if results.len() != 7 {
        record.fail(case, &format!("{} results, expected 7", results.len()));
    }
    for (name, result) in names.iter().zip(results) {
        match goldens.data(&format!("{image}.{name}")) {
            Ok(golden) => record.same(case, name, result, golden),
            Err(_) if *name == "logits" && result.is_empty() => {}
            Err(error) => return Err(error),
        }
    }
    // As f32, an output is its integers times the power of two that the file's header says: exactly.
    let Data::U8(file) = goldens.data("encoder")? else {
        return Err(goldens.error("encoder is no u8".into()));
    };
    for (at, integers, floats) in VIEWS {
        let &bits = file
            .get(at)
            .ok_or_else(|| goldens.error("encoder is too short".into()))?;
        let (Some(Data::I16(integers)), Some(Data::F32(floats))) = (results.get(integers), results.get(floats)) else {
            record.fail(case, "the f32 view of an output is missing");
            continue;
        };
        let step = 2f32.powi(-i32::from(bits as i8));
        let mut pairs = integers.iter().zip(floats);
        if integers.len() != floats.len() || pairs.any(|(&i, &f)| f32::from(i) * step != f) {
            record.fail(
                case,
                "the f32 view of an output is not its integers times the header's power of two",
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
    let not_layers = ["pixels", "normalized", "class", "mean", "patches", "logits"];
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
