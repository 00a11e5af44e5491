//! One provider on one group of vectors.

use std::sync::Arc;

use tec_device::Operation;

use crate::error::{Error, Result};
use crate::goldens::Goldens;
use crate::provider::{Answer, Failure, Provider};
use crate::record::{Record, Row};
use crate::tensor::Data;

pub(crate) struct Session<'s> {
    provider: &'s mut dyn Provider,
    reference: Option<&'s mut dyn Provider>,
    goldens: Option<Arc<Goldens>>,
    pub(crate) record: Record,
    gone: bool,
}

impl<'s> Session<'s> {
    pub(crate) fn new(
        group: &str,
        provider: &'s mut dyn Provider,
        reference: Option<&'s mut dyn Provider>,
        goldens: Option<Arc<Goldens>>,
    ) -> Self {
        let record = Record::new(provider.name(), group);
        Self {
            provider,
            reference,
            goldens,
            record,
            gone: false,
        }
    }

    /// The group's vectors.
    pub(crate) fn goldens(&self) -> Result<Arc<Goldens>> {
        self.goldens.clone().ok_or_else(|| Error::Vectors {
            file: "a group of checks".into(),
            reason: "needs a file of vectors".into(),
        })
    }

    /// Computes with integers, which the caller compares. Nothing where the provider did not compute; that is on record.
    pub(crate) fn integers(&mut self, case: &str, operation: Operation, arguments: &[Data]) -> Option<Answer> {
        match self.provider.run(operation, arguments) {
            Ok(answer) => {
                // Those of a trace went mostly into sending it.
                if let (Some(count), true) = (answer.instructions, operation != Operation::Trace) {
                    self.record.instructions(count);
                }
                Some(answer)
            }
            Err(failure) => {
                self.failed(case, operation, failure);
                None
            }
        }
    }

    /// Computes in f32 and compares every bit with the reference's, if there is one. What one refuses, the other must
    /// refuse for the same reason.
    pub(crate) fn floats(&mut self, case: &str, operation: Operation, arguments: &[Data]) -> Option<Vec<Data>> {
        let expected = self
            .reference
            .as_mut()
            .map(|reference| reference.run(operation, arguments));
        if let Some(Err(Failure::Refused(expected))) = &expected {
            match self.provider.run(operation, arguments) {
                Err(Failure::Refused(reason)) if reason == *expected => {}
                Err(Failure::Refused(reason)) => {
                    self.record
                        .fail(case, &format!("expected the refusal: {expected}; got: {reason}"));
                }
                Err(failure) => self.failed(case, operation, failure),
                Ok(_) => self
                    .record
                    .fail(case, &format!("expected the refusal: {expected}; got an answer")),
            }
            return None;
        }
        let results = self.integers(case, operation, arguments)?.results;
        if let Some(Ok(expected)) = expected {
            if expected.results.len() != results.len() {
                let (is, was) = (results.len(), expected.results.len());
                self.record.fail(case, &format!("{is} results, expected {was}"));
            }
            for (number, (actual, expected)) in results.iter().zip(&expected.results).enumerate() {
                let what = format!("{}, result {number}, beside the host's", operation.name());
                self.record.same(case, &what, actual, expected);
            }
        }
        Some(results)
    }

    /// As [`floats`](Self::floats) for a case of its own, which counts as compared unless it was not run.
    pub(crate) fn compare(&mut self, case: &str, operation: Operation, arguments: &[Data]) {
        let before = self.record.not_run_so_far();
        self.floats(case, operation, arguments);
        if self.record.not_run_so_far() == before && !self.gone {
            self.record.case();
        }
    }

    /// Puts on record that there is no answer: a device that is too small, or was lost before, is no failure of this case.
    fn failed(&mut self, case: &str, operation: Operation, failure: Failure) {
        match failure {
            Failure::DoesNotFit | Failure::Unknown => self.record.not_run(case, &failure.to_string()),
            // Once for all the cases that are left.
            Failure::Gone(_) => {
                if !std::mem::replace(&mut self.gone, true) {
                    self.record
                        .not_run(&format!("{case} and what follows"), &failure.to_string());
                }
            }
            Failure::Refused(reason) => {
                self.record
                    .fail(case, &format!("{} was refused: {reason}", operation.name()));
            }
            Failure::Lost(reason) => self.record.fail(case, &reason),
        }
    }

    pub(crate) fn finish(mut self, outcome: Result<()>) -> Row {
        if let Err(error) = outcome {
            self.record.fail("vectors", &error.to_string());
        }
        let mut row = self.record.finish();
        if row.cases == 0 && row.not_run.is_empty() && row.failures.is_empty() {
            row.failures.push("the file holds no case of this group".into());
        }
        row
    }
}

/// Results of known types, in their order.
pub(crate) struct Results<'r>(pub(crate) std::slice::Iter<'r, Data>);

impl Results<'_> {
    /// The next result; empty where there is none, which no comparison takes for right.
    pub(crate) fn next(&mut self) -> Data {
        self.0.next().cloned().unwrap_or(Data::U8(Vec::new()))
    }

    /// The next result's floats.
    pub(crate) fn floats(&mut self) -> Vec<f32> {
        match self.next() {
            Data::F32(values) => values,
            _ => Vec::new(),
        }
    }

    /// The next result's indices.
    pub(crate) fn indices(&mut self) -> Vec<u32> {
        match self.next() {
            Data::U32(values) => values,
            _ => Vec::new(),
        }
    }
}
