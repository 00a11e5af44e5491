//! What a group of checks found.

use crate::goldens::max_error;
use crate::tensor::Data;

/// One line of the matrix: a provider on a group of vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Who computed.
    pub provider: String,
    /// Which vectors.
    pub group: String,
    /// Cases compared.
    pub cases: usize,
    /// Values compared.
    pub values: u64,
    /// The largest error of a tensor that may differ from its golden one.
    pub max_error: Option<f64>,
    /// Bits that differ where none may.
    pub differing_bits: Option<u64>,
    /// Machine instructions that the device executed, where it counts them.
    pub instructions: Option<u64>,
    /// Cases that were not compared, each with its reason.
    pub not_run: Vec<String>,
    /// What is wrong: the case, where, what was expected and what came.
    pub failures: Vec<String>,
}

impl Row {
    /// A row of nothing yet.
    pub fn new(provider: &str, group: &str) -> Self {
        Self {
            provider: provider.into(),
            group: group.into(),
            cases: 0,
            values: 0,
            max_error: None,
            differing_bits: None,
            instructions: None,
            not_run: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Whether everything was compared and found right.
    pub fn passed(&self) -> bool {
        self.cases > 0 && self.failures.is_empty() && self.not_run.is_empty()
    }

    /// A row for a provider that cannot be asked.
    pub fn not_there(provider: &str, group: &str, reason: &str) -> Self {
        Self {
            not_run: vec![reason.into()],
            ..Self::new(provider, group)
        }
    }
}

/// Collects a row, case by case.
#[derive(Debug)]
pub struct Record {
    row: Row,
    failed: u64,
}

/// Failures that are described one by one; the rest is counted.
const MOST_FAILURES: u64 = 20;

impl Record {
    /// A record of nothing yet.
    pub fn new(provider: &str, group: &str) -> Self {
        Self {
            row: Row::new(provider, group),
            failed: 0,
        }
    }

    /// One more case was compared.
    pub fn case(&mut self) {
        self.row.cases += 1;
    }

    /// A case was not compared.
    pub fn not_run(&mut self, case: &str, reason: &str) {
        self.row.not_run.push(format!("{case}: {reason}"));
    }

    /// How many cases were not compared.
    pub fn not_run_so_far(&self) -> usize {
        self.row.not_run.len()
    }

    /// Something is wrong.
    pub fn fail(&mut self, case: &str, what: &str) {
        self.failed += 1;
        if self.failed <= MOST_FAILURES {
            self.row.failures.push(format!("{case}: {what}"));
        }
    }

    /// Every bit must be the golden one's.
    pub fn same(&mut self, case: &str, what: &str, actual: &Data, golden: &Data) {
        let (bits, first) = actual.difference(golden);
        self.row.values += golden.len() as u64;
        *self.row.differing_bits.get_or_insert(0) += bits;
        if let Some(index) = first {
            let (is, was) = (actual.show(index), golden.show(index));
            self.fail(
                case,
                &format!("{what}: {bits} bits differ; element {index} is {is}, expected {was}"),
            );
        }
    }

    /// The error must not exceed a bound.
    pub fn near(&mut self, case: &str, what: &str, actual: &[f32], golden: &[f32], bound: f64) {
        self.error(case, what, max_error(actual, golden), golden.len(), bound);
    }

    /// An error that was computed elsewhere must not exceed a bound.
    pub fn error(&mut self, case: &str, what: &str, error: f64, values: usize, bound: f64) {
        self.row.values += values as u64;
        self.row.max_error = Some(self.row.max_error.unwrap_or(0.0).max(error));
        // Not `error > bound`: a NaN fails.
        if !matches!(
            error.partial_cmp(&bound),
            Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)
        ) {
            self.fail(case, &format!("{what}: error {error:.1e}, at most {bound:.0e}"));
        }
    }

    /// Instructions that a device executed for a case.
    pub fn instructions(&mut self, count: u64) {
        *self.row.instructions.get_or_insert(0) += count;
    }

    /// The row.
    pub fn finish(mut self) -> Row {
        if self.failed > MOST_FAILURES {
            let more = self.failed - MOST_FAILURES;
            self.row.failures.push(format!("and {more} more"));
        }
        self.row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_bounds() {
        let mut record = Record::new("p", "g");
        record.same("0", "x", &Data::from(vec![1i8, 2]), &Data::from(vec![1i8, 3]));
        record.near("0", "y", &[1.0], &[1.0], 1e-5);
        record.near("1", "y", &[f32::NAN], &[1.0], 1e-5);
        let row = record.finish();
        assert_eq!((row.differing_bits, row.values), (Some(1), 4));
        assert_eq!(row.failures.len(), 2);
        assert!(
            row.failures[0].contains("element 1 is 2, expected 3"),
            "{}",
            row.failures[0]
        );
    }

    #[test]
    fn many_failures_are_counted() {
        let mut record = Record::new("p", "g");
        for case in 0..30 {
            record.fail(&case.to_string(), "wrong");
        }
        assert_eq!(record.finish().failures.last().unwrap(), "and 10 more");
    }
}
