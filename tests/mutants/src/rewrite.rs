//! A source file with all of its mutants in it; which one is alive is decided when the program runs.

use std::ops::Range;

use crate::list::Mutant;

/// The module that says which mutant is alive; it is put beside the others of `tec-core`.
pub const MODULE: &str = r#"//! Which mutant is alive; 0 for none.
use core::sync::atomic::{AtomicU32, Ordering};

static ALIVE: AtomicU32 = AtomicU32::new(0);

/// The number of the one that is alive.
#[inline(always)]
pub fn alive() -> u32 {
    ALIVE.load(Ordering::Relaxed)
}

/// Brings one to life.
pub fn set(number: u32) {
    ALIVE.store(number, Ordering::Relaxed);
}
"#;

/// A place in a file and the mutants that replace it.
type Place<'m> = (Range<usize>, Vec<(u32, &'m Mutant)>);

/// The text of a file in which each mutated place is a `match` on the number of the mutant that is alive. `mutants` are
/// those of the file with their numbers, `core` the path by which the file calls `tec-core`.
///
/// Public functions of the file are no longer `const`: which mutant is alive is not known when it is compiled. Tests are
/// left out.
///
/// # Errors
/// Names the mutant whose text is not there, or there more than once, or overlaps with another's.
pub fn rewrite(source: &str, mutants: &[(u32, &Mutant)], core: &str) -> Result<String, String> {
    let source = without_tests(source);
    let code = without_comments(source);
    let mut places: Vec<Place<'_>> = Vec::new();
    for &(number, mutant) in mutants {
        let place = place(&code, mutant)?;
        match places.iter_mut().find(|(other, _)| *other == place) {
            Some((_, here)) => here.push((number, mutant)),
            None => places.push((place, vec![(number, mutant)])),
        }
    }
    places.sort_by_key(|(place, _)| place.start);
    let mut text = String::new();
    let mut end = 0;
    for (place, here) in places {
        if place.start < end {
            let name = &here[0].1.name;
            return Err(format!(
                "{name}: its text overlaps with another mutant's; give both the same text"
            ));
        }
        let from = &source[place.clone()];
        let arms: String = here
            .iter()
            .map(|(number, mutant)| format!("{number} => {{ {} }} ", mutant.to))
            .collect();
        let choice = format!("match {core}::mutant::alive() {{ {arms}_ => {{ {from} }} }}");
        text += &source[end..place.start];
        text += &if from.ends_with(';') {
            choice
        } else {
            format!("({choice})")
        };
        end = place.end;
    }
    text += &source[end..];
    Ok(text
        .replace("pub const fn ", "pub fn ")
        .replace("pub(crate) const fn ", "pub(crate) fn "))
}

/// A file up to the tests at its end.
fn without_tests(source: &str) -> &str {
    source
        .find("\n#[cfg(test)]\nmod tests {")
        .map_or(source, |end| &source[..end])
}

/// The same text with lines of comments blanked, each byte at its place: they may say what the code does.
fn without_comments(source: &str) -> String {
    let blank = |line: &str| match line.trim_start().starts_with("//") {
        true => " ".repeat(line.len() - 1) + "\n",
        false => line.to_owned(),
    };
    source.split_inclusive('\n').map(blank).collect()
}

/// Where a mutant's text is.
fn place(source: &str, mutant: &Mutant) -> Result<Range<usize>, String> {
    let outer = match &mutant.within {
        Some(within) => once(source, within, mutant, &mutant.file)?,
        None => 0..source.len(),
    };
    let inside = if mutant.within.is_some() {
        "the text of `within`"
    } else {
        &mutant.file
    };
    let inner = once(&source[outer.clone()], &mutant.from, mutant, inside)?;
    Ok(outer.start + inner.start..outer.start + inner.end)
}

/// Where a text is that occurs once.
fn once(all: &str, text: &str, mutant: &Mutant, place: &str) -> Result<Range<usize>, String> {
    let count = all.matches(text).count();
    match all.find(text) {
        Some(start) if count == 1 => Ok(start..start + text.len()),
        _ => Err(format!(
            "the list is out of date: mutant {} replaces this text, which is {count} times in {place}, not once:\n    \
             {text}",
            mutant.name
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "// x + 1 ·\npub const fn f(x: i32) -> i32 {\n    x + 1\n}\nfn g() {\n    h();\n}\n\n#[cfg(test)]\nmod tests {\n    // x + 1\n}\n";

    fn mutant(within: Option<&str>, from: &str, to: &str) -> Mutant {
        Mutant {
            name: "m".into(),
            what: "w".into(),
            file: "f.rs".into(),
            within: within.map(str::to_owned),
            from: from.into(),
            to: to.into(),
            caught_by: vec!["g".into()],
        }
    }

    #[test]
    fn places_become_choices() {
        let (a, b, c) = (
            mutant(None, "x + 1", "x"),
            mutant(None, "x + 1", "x + 2"),
            mutant(Some("h();\n"), "h();", ""),
        );
        let text = rewrite(SOURCE, &[(3, &a), (1, &c), (7, &b)], "crate").unwrap();
        let expected = "// x + 1 ·\npub fn f(x: i32) -> i32 {\n    \
            (match crate::mutant::alive() { 3 => { x } 7 => { x + 2 } _ => { x + 1 } })\n}\nfn g() {\n    \
            match crate::mutant::alive() { 1 => {  } _ => { h(); } }\n}\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn says_when_the_list_is_out_of_date() {
        let error = |mutants: &[(u32, &Mutant)]| rewrite(SOURCE, mutants, "crate").unwrap_err();
        let (gone, twice) = (mutant(None, "x - 1", "x"), mutant(None, "fn ", "x"));
        assert!(error(&[(1, &gone)]).contains("out of date: mutant m replaces this text, which is 0 times in f.rs"));
        assert!(error(&[(1, &twice)]).contains("which is 2 times in f.rs"));
        assert!(error(&[(1, &mutant(Some("h()"), "g()", "x"))]).contains("0 times in the text of `within`"));
        let overlap = [(1, &mutant(None, "x + 1", "x")), (2, &mutant(None, "+ 1", "+ 2"))];
        assert!(error(&overlap).contains("overlaps"));
    }
}
