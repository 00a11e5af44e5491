//! The list of mutants.

use std::collections::BTreeSet;

use serde::Deserialize;

/// One rule broken on purpose.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// Its name in reports.
    pub name: String,
    /// What it does wrong, in words.
    pub what: String,
    /// The source file, from the project's root.
    pub file: String,
    /// Text that occurs once in the file, comments and tests apart; `from` is looked for in it, else in the whole file.
    pub within: Option<String>,
    /// The expression, or the statement with its semicolon, that is replaced; must occur once.
    pub from: String,
    /// What stands there instead.
    pub to: String,
    /// The groups of vectors that fail then, the most telling first.
    pub caught_by: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// The mutants of a list's text, in its order.
///
/// # Errors
/// What is wrong with the list, in words.
pub fn parse(text: &str) -> Result<Vec<Mutant>, String> {
    let list: List = toml::from_str(text).map_err(|e| e.to_string())?;
    let mut names = BTreeSet::new();
    for mutant in &list.mutant {
        let name = &mutant.name;
        if !names.insert(name) {
            return Err(format!("two mutants are named {name}"));
        }
        if mutant.caught_by.is_empty() {
            return Err(format!("{name}: caught_by names no group of vectors"));
        }
        if mutant.from == mutant.to || mutant.from.is_empty() {
            return Err(format!("{name}: replaces nothing"));
        }
    }
    Ok(list.mutant)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "[[mutant]]\nname = 'a'\nwhat = 'w'\nfile = 'f'\nfrom = '1'\nto = '2'\ncaught_by = ['g']\n";

    #[test]
    fn reads_a_list() {
        let mutants = parse(ONE).unwrap();
        assert_eq!((mutants.len(), mutants[0].name.as_str()), (1, "a"));
    }

    #[test]
    fn refuses_what_proves_nothing() {
        for (bad, complaint) in [
            (format!("{ONE}{ONE}"), "two mutants"),
            (ONE.replace("'g'", ""), "no group"),
            (ONE.replace("'2'", "'1'"), "replaces nothing"),
            (ONE.replace("what", "why"), "why"),
        ] {
            let error = parse(&bad).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
