//! The f32 functions that training is made of, and their gradients.

use tec_device::Operation;

use super::session::Results;
use super::{Check, GRADIENTS, Session, VALUES};
use crate::error::Result;
use crate::tensor::Data;

/// The functions of `functions.safetensors`, one group each.
pub(super) const CHECKS: &[(&str, Check)] = &[
    ("layer_norm", |session| {
        let results = [
            ("out", VALUES),
            ("grad_x", GRADIENTS),
            ("grad_weight", GRADIENTS),
            ("grad_bias", GRADIENTS),
        ];
        let arguments = ["x", "weight", "bias", "epsilon", "grad_out"];
        each(session, "layer_norm", Operation::LayerNorm, &arguments, &results)
    }),
    ("softmax", |session| {
        let results = [("out", VALUES), ("grad_x", GRADIENTS), ("log_sum", VALUES)];
        each(
            session,
            "softmax",
            Operation::Softmax,
            &["x", "width", "scale", "grad_out"],
            &results,
        )
    }),
    ("gelu", |session| {
        let results = [("out", VALUES), ("grad_x", GRADIENTS), ("exp", VALUES), ("erf", VALUES)];
        each(session, "gelu", Operation::Gelu, &["x", "grad_out"], &results)
    }),
    ("linear", |session| {
        let results = [
            ("out", VALUES),
            ("grad_x", GRADIENTS),
            ("grad_weight", GRADIENTS),
            ("grad_bias", GRADIENTS),
        ];
        let arguments = ["x", "width", "weight", "bias", "grad_out"];
        each(session, "linear", Operation::Linear, &arguments, &results)
    }),
    ("resize", |session| {
        each(
            session,
            "resize",
            Operation::Resize,
            &["table", "sizes"],
            &[("out", VALUES)],
        )
    }),
];

/// Every case of a function: the tensors it takes, and those it gives with the error that each may have.
fn each(
    session: &mut Session<'_>,
    name: &str,
    operation: Operation,
    arguments: &[&str],
    results: &[(&str, f64)],
) -> Result<()> {
    let goldens = session.goldens()?;
    for number in 0..goldens.cases(name) {
        let case = format!("{name}.{number}");
        let tensor = |name: &&str| goldens.data(&format!("{case}.{name}")).cloned();
        let arguments = arguments.iter().map(tensor).collect::<Result<Vec<Data>>>()?;
        let Some(computed) = session.floats(&case, operation, &arguments) else {
            continue;
        };
        session.record.case();
        let mut computed = Results(computed.iter());
        for &(name, bound) in results {
            let golden = goldens.f32(&format!("{case}.{name}"))?;
            session.record.near(&case, name, &computed.floats(), golden, bound);
        }
    }
    Ok(())
}
