//! Masks from noise, and noise from seeds.

use tec_device::Operation;

use super::Session;
use super::session::Results;
use crate::error::Result;
use crate::tensor::Data;

pub(super) fn check(session: &mut Session<'_>) -> Result<()> {
    let goldens = session.goldens()?;
    for number in 0..goldens.cases("") {
        let case = number.to_string();
        let field = |key| ["cases", case.as_str(), key];
        let (patches, keep) = (goldens.count(&field("patches"))?, goldens.count(&field("keep"))?);
        let ratio = goldens.number(&field("mask_ratio"))?;
        let arguments = [Data::from(vec![ratio]), Data::from(vec![patches as u32])];
        if let Some(answer) = session.integers(&case, Operation::Kept, &arguments) {
            let kept = Results(answer.results.iter()).next();
            session
                .record
                .same(&case, "visible patches", &kept, &Data::from(vec![keep as u32]));
        }
        let restore = goldens.u32(&format!("{number}.ids_restore"))?;
        let visible = goldens.u32(&format!("{number}.ids_keep"))?;
        let removed = goldens.f32(&format!("{number}.mask"))?;
        let images = goldens.f32(&format!("{number}.noise"))?.chunks_exact(patches.max(1));
        for (image, noise) in images.enumerate() {
            let name = format!("{number}, image {image}");
            let arguments = [Data::from(noise), Data::from(vec![keep as u32])];
            let Some(answer) = session.integers(&name, Operation::Mask, &arguments) else {
                continue;
            };
            session.record.case();
            let mut results = Results(answer.results.iter());
            let mut order = results.indices();
            order.truncate(keep);
            let part = |all: &[u32], len| {
                all.get(image * len..(image + 1) * len)
                    .map_or(Data::U8(vec![]), Data::from)
            };
            session
                .record
                .same(&name, "ids_keep", &Data::from(order), &part(&visible, keep));
            session
                .record
                .same(&name, "ids_restore", &results.next(), &part(&restore, patches));
            let expected = removed.get(image * patches..(image + 1) * patches).unwrap_or_default();
            session
                .record
                .same(&name, "mask", &results.next(), &Data::from(expected));
        }
    }
    Ok(())
}

/// Noise of samples, and the masks that follow from it.
pub(super) fn noise(session: &mut Session<'_>) -> Result<()> {
    let goldens = session.goldens()?;
    for number in 0..goldens.cases("") {
        let case = number.to_string();
        let tensor = |name: &str| goldens.data(&format!("{number}.{name}"));
        let (Data::U32(place), Data::U32(patches)) = (tensor("place")?, tensor("patches")?) else {
            return Err(goldens.error(format!("{number}.place and {number}.patches must be u32")));
        };
        let place = Data::from([place.as_slice(), patches.as_slice()].concat());
        let Some(answer) = session.integers(&case, Operation::Noise, &[tensor("seed")?.clone(), place]) else {
            continue;
        };
        session.record.case();
        let mut results = Results(answer.results.iter());
        session.record.same(&case, "words", &results.next(), tensor("words")?);
        let uniform = results.next();
        session.record.same(&case, "uniform", &uniform, tensor("uniform")?);
        let arguments = [uniform, tensor("keep")?.clone()];
        if let Some(answer) = session.integers(&case, Operation::Mask, &arguments) {
            let mut results = Results(answer.results.iter());
            for name in ["order", "restore", "removed"] {
                session.record.same(&case, name, &results.next(), tensor(name)?);
            }
        }
    }
    Ok(())
}

/// `patches` u32, `ratio` f64, `kept` u32: numbers of visible patches.
pub(super) fn kept(session: &mut Session<'_>) -> Result<()> {
    let goldens = session.goldens()?;
    let tensors = ["patches", "ratio", "kept"].map(|name| goldens.data(name));
    let [Ok(Data::U32(patches)), Ok(Data::F64(ratios)), Ok(Data::U32(kept))] = tensors else {
        return Err(goldens.error("expected patches and kept as u32, ratio as f64".into()));
    };
    for ((&patches, &ratio), &kept) in patches.iter().zip(ratios).zip(kept) {
        let case = format!("{patches} patches at {ratio}");
        let arguments = [Data::from(vec![ratio]), Data::from(vec![patches])];
        if let Some(answer) = session.integers(&case, Operation::Kept, &arguments) {
            session.record.case();
            let result = Results(answer.results.iter()).next();
            session.record.same(&case, "kept", &result, &Data::from(vec![kept]));
        }
    }
    Ok(())
}
