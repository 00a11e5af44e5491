//! Single operations of the integer encoder: every bit.

use tec_device::Operation;

use super::{Check, Session};
use crate::error::Result;
use crate::goldens::Goldens;
use crate::tensor::Data;

/// The operations of `integer.safetensors`, one group each.
pub(super) const CHECKS: &[(&str, Check)] = &[
    ("round", |session| {
        each(
            session,
            "round",
            Operation::IntegerRound,
            plain(&["product", "shift"]),
            &["rounded"],
        )
    }),
    ("scale", |session| {
        let arguments = plain(&["value", "multiplier", "shift"]);
        each(
            session,
            "scale",
            Operation::IntegerScale,
            arguments,
            &["scaled", "i8", "i16"],
        )
    }),
    ("sqrt", |session| {
        each(session, "sqrt", Operation::IntegerSqrt, plain(&["value"]), &["root"])
    }),
    ("reciprocal", |session| {
        each(
            session,
            "reciprocal",
            Operation::IntegerReciprocal,
            plain(&["divisor"]),
            &["mantissa", "shift"],
        )
    }),
    ("linear", |session| {
        each(session, "linear", Operation::IntegerLinear, linear, &["i8", "i16"])
    }),
    ("norm", |session| {
        let arguments = plain(&["tokens", "epsilon", "multiplier", "offset", "bits"]);
        each(
            session,
            "norm",
            Operation::IntegerNorm,
            arguments,
            &["normalized", "affine", "i8"],
        )
    }),
    ("softmax", |session| {
        each(
            session,
            "softmax",
            Operation::IntegerSoftmax,
            softmax,
            &["weights", "sum", "mean", "out"],
        )
    }),
    ("gelu", |session| {
        each(session, "gelu", Operation::IntegerGelu, plain(&["table", "x"]), &["y"])
    }),
    ("pixel", |session| {
        each(session, "pixel", Operation::IntegerPixel, pixel, &["pixel"])
    }),
    ("int4", |session| {
        each(session, "int4", Operation::IntegerInt4, int4, &["weight", "packed"])
    }),
];

/// The vectors of one case of an operation.
struct Case<'g> {
    goldens: &'g Goldens,
    prefix: String,
}

impl Case<'_> {
    fn tensor(&self, name: &str) -> Result<Data> {
        self.goldens.data(&format!("{}.{name}", self.prefix)).cloned()
    }

    /// The last axis of a tensor.
    fn last_axis(&self, name: &str) -> Result<u32> {
        let shape = self.goldens.shape(&format!("{}.{name}", self.prefix))?;
        Ok(shape.last().copied().unwrap_or(1) as u32)
    }

    /// Two one-element tensors as one, the second a size.
    fn with_size(&self, name: &str, size: u32) -> Result<Data> {
        match self.tensor(name)? {
            Data::U32(values) => Ok(Data::from([values, vec![size]].concat())),
            _ => Err(self.goldens.error(format!("{}.{name} is no u32", self.prefix))),
        }
    }
}

/// Arguments that are the vectors themselves, in this order.
fn plain(names: &'static [&'static str]) -> impl Fn(&Case<'_>) -> Result<Vec<Data>> {
    move |case| names.iter().map(|name| case.tensor(name)).collect()
}

fn linear(case: &Case<'_>) -> Result<Vec<Data>> {
    let mut arguments = plain(&["tokens", "weight", "bias", "multiplier"])(case)?;
    arguments.push(case.with_size("shift", case.last_axis("tokens")?)?);
    Ok(arguments)
}

fn softmax(case: &Case<'_>) -> Result<Vec<Data>> {
    let mut arguments = plain(&["scores", "multiplier", "shift", "values", "attention_multiplier"])(case)?;
    arguments.push(case.with_size("attention_shift", case.last_axis("scores")?)?);
    Ok(arguments)
}

fn int4(case: &Case<'_>) -> Result<Vec<Data>> {
    let mut arguments = plain(&["q", "scale"])(case)?;
    arguments.push(case.with_size("group", case.last_axis("q")?)?);
    Ok(arguments)
}

fn pixel(case: &Case<'_>) -> Result<Vec<Data>> {
    let constants = match (case.tensor("std")?, case.tensor("mean")?) {
        (Data::F32(std), Data::F32(mean)) => [std, mean].concat(),
        _ => return Err(case.goldens.error(format!("{}: std and mean are no f32", case.prefix))),
    };
    Ok(vec![case.tensor("value")?, Data::from(constants)])
}

/// Every case of an operation.
fn each(
    session: &mut Session<'_>,
    name: &str,
    operation: Operation,
    arguments: impl Fn(&Case<'_>) -> Result<Vec<Data>>,
    expected: &[&str],
) -> Result<()> {
    let goldens = session.goldens()?;
    for number in 0..goldens.cases(name) {
        let case = Case {
            goldens: &goldens,
            prefix: format!("{name}.{number}"),
        };
        let Some(answer) = session.integers(&case.prefix, operation, &arguments(&case)?) else {
            continue;
        };
        session.record.case();
        if answer.results.len() != expected.len() {
            session
                .record
                .fail(&case.prefix, &format!("{} results", answer.results.len()));
        }
        for (what, result) in expected.iter().zip(&answer.results) {
            session.record.same(&case.prefix, what, result, &case.tensor(what)?);
        }
    }
    Ok(())
}
