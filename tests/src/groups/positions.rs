//! Tables of positions.

use tec_device::Operation;

use super::Session;
use super::session::Results;
use crate::error::Result;
use crate::tensor::Data;

pub(super) fn check(session: &mut Session<'_>) -> Result<()> {
    let goldens = session.goldens()?;
    for name in goldens.names() {
        let size = |text: Option<&str>| text.and_then(|t| t.parse::<u32>().ok());
        let mut parts = name.split('x');
        let (Some(dim), Some(grid)) = (size(parts.next()), size(parts.next())) else {
            return Err(goldens.error(format!("{name}: expected a name such as 192x14")));
        };
        let Some(results) = session.floats(name, Operation::SinCos, &[Data::from(vec![dim, grid])]) else {
            continue;
        };
        session.record.case();
        let (table, golden) = (Results(results.iter()).floats(), goldens.f32(name)?);
        // Both sides round f64 to f32, so near zero the error is relative to the value as well.
        let pairs = table.iter().zip(golden);
        let error = match table.len() == golden.len() {
            true => pairs
                .map(|(a, b)| f64::from((a - b).abs()) / (f64::from(b.abs()) + 1e-6))
                .fold(0.0, f64::max),
            false => f64::INFINITY,
        };
        session.record.error(name, "table", error, golden.len(), 1e-6);
    }
    Ok(())
}
