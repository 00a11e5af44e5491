//! The input adapter and the encoder adapter.

use tec_device::Operation;

use super::session::Results;
use super::{Session, VALUES};
use crate::error::Result;
use crate::tensor::Data;

pub(super) fn check(session: &mut Session<'_>) -> Result<()> {
    let goldens = session.goldens()?;
    let collect = |names: &[String]| {
        names
            .iter()
            .map(|name| goldens.data(name).cloned())
            .collect::<Result<Vec<Data>>>()
    };
    let mlp =
        |prefix: &str| ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"].map(|name| format!("{prefix}.{name}"));

    let mut names = vec!["token".to_string()];
    names.extend(mlp("input"));
    if let Some(results) = session.floats("input", Operation::InputAdapter, &collect(&names)?) {
        session.record.case();
        let token = Results(results.iter()).floats();
        session
            .record
            .near("input", "merged_token", &token, goldens.f32("merged_token")?, VALUES);
    }

    // As many groups as the depth asks for, which follows from the widths of the two norms.
    let widths = ["before", "after"].map(|norm| goldens.data(&format!("encoder.adap_{norm}.weight")).map(Data::len));
    let [joined, width] = widths;
    let depth = joined? / width?.max(1);
    let (groups, expected) = (tec_core::adapter::groups(depth), goldens.count(&["adapters"])?);
    let as_data = |count: usize| Data::from(vec![count as u32]);
    session
        .record
        .same("encoder", "number of groups", &as_data(groups), &as_data(expected));

    let mut names = vec!["levels".to_string()];
    let norms = [
        "adap_before.weight",
        "adap_before.bias",
        "adap_after.weight",
        "adap_after.bias",
    ];
    names.extend(norms.map(|name| format!("encoder.{name}")));
    for group in 0..expected {
        names.extend(["weight", "bias"].map(|name| format!("encoder.fuse_fcs.{group}.{name}")));
        names.extend(mlp(&format!("encoder.adap_mlps.{group}")));
    }
    if let Some(results) = session.floats("encoder", Operation::EncoderAdapter, &collect(&names)?) {
        session.record.case();
        let adapted = Results(results.iter()).floats();
        session
            .record
            .near("encoder", "adapted", &adapted, goldens.f32("adapted")?, VALUES);
    }
    Ok(())
}
