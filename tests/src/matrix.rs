//! The matrix: every group on a provider.

use crate::groups::Group;
use crate::provider::{Failure, Provider};
use crate::record::Row;

/// Checks a provider on all groups, one row each; `each` sees a row as soon as it is done. With a `reference`, whatever is
/// computed in f32 must also have the reference's bits; without one, groups that have nothing else to compare with are
/// left out.
pub fn run(
    provider: &mut dyn Provider,
    mut reference: Option<&mut dyn Provider>,
    groups: &[Group],
    mut each: impl FnMut(&Row),
) -> Vec<Row> {
    let has_reference = reference.is_some();
    let check = |group: &Group| {
        let gone = provider.lost().map(|reason| Failure::Gone(reason.into()).to_string());
        let row = match (gone, &mut reference) {
            (Some(reason), _) => Row::not_there(provider.name(), group.name(), &reason),
            (None, Some(reference)) => group.check(provider, Some(&mut **reference)),
            (None, None) => group.check(provider, None),
        };
        each(&row);
        row
    };
    groups
        .iter()
        .filter(|group| has_reference || !group.needs_reference())
        .map(check)
        .collect()
}
