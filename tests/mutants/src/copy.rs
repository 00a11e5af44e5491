//! A copy of the crates that the golden vectors check, small enough to compile in seconds.

use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::list::Mutant;
use crate::rewrite::{MODULE, rewrite};

/// The crate that checks the others.
const CONFORMANCE: &str = "tec-conformance";
/// The crate that every other one calls; it gets the module that says which mutant is alive.
const CORE: &str = "tec-core";
/// The name of the program made of the copy.
pub const PROGRAM: &str = "tec-mutated";

/// Copies [`CONFORMANCE`] and the project's crates that it needs from `root` to `copy`, with all mutants in them, and
/// adds the program that runs them. Files that would not change are left alone, so that cargo compiles only what is new.
///
/// # Errors
/// What is wrong, in words.
pub fn make(root: &Path, copy: &Path, mutants: &[Mutant]) -> Result<(), String> {
    let mut workspace = read_toml(&root.join("Cargo.toml"))?;
    let crates = needed(root, &workspace)?;
    let mut left: Vec<(u32, &Mutant)> = (1..).zip(mutants).collect();
    let mut members = Vec::new();
    for (name, folder) in &crates {
        let mut manifest = read_toml(&root.join(folder).join("Cargo.toml"))?;
        reduce(&mut manifest);
        write(&copy.join(folder).join("Cargo.toml"), &manifest.to_string())?;
        let core = if name == CORE { "crate" } else { "tec_core" };
        let files = sources(&root.join(folder).join("src"))?;
        remove_old(root, copy, &copy.join(folder).join("src"))?;
        for file in files {
            let path = file.strip_prefix(root).map_err(|e| e.to_string())?;
            let (here, others): (Vec<_>, Vec<_>) = left.into_iter().partition(|(_, m)| Path::new(&m.file) == path);
            left = others;
            let mut text = read(&file)?;
            if !here.is_empty() {
                text = rewrite(&text, &here, core)?;
            }
            if name == CORE && path.ends_with("src/lib.rs") {
                text += "\npub mod mutant;\n";
            }
            write(&copy.join(path), &text)?;
        }
        if name == CORE {
            write(&copy.join(folder).join("src/mutant.rs"), MODULE)?;
        }
        members.push(Value::from(folder.clone()));
    }
    if let Some((_, mutant)) = left.first() {
        let (name, file) = (&mutant.name, &mutant.file);
        return Err(format!(
            "the list is out of date: mutant {name} is in {file}, which the vectors do not check"
        ));
    }

    members.push("program".into());
    let table = workspace
        .get_mut("workspace")
        .and_then(Value::as_table_mut)
        .ok_or("Cargo.toml has no [workspace]")?;
    table.retain(|key, _| ["package", "dependencies", "resolver"].contains(&key));
    table.insert("members".into(), members.into());
    workspace.retain(|key, _| key == "workspace");
    write(&copy.join("Cargo.toml"), &workspace.to_string())?;
    write(&copy.join("Cargo.lock"), &read(&root.join("Cargo.lock"))?)?;
    let manifest = format!(
        "[package]\nname = \"{PROGRAM}\"\nedition.workspace = true\n\n\
         [dependencies]\n{CORE}.workspace = true\n{CONFORMANCE}.workspace = true\n"
    );
    write(&copy.join("program/Cargo.toml"), &manifest)?;
    write(&copy.join("program/src/main.rs"), include_str!("../program.rs"))
}

/// The project's crates that the checks need, with their folders.
fn needed(root: &Path, workspace: &Table) -> Result<Vec<(String, String)>, String> {
    let shared = workspace.get("workspace").and_then(|w| w.get("dependencies"));
    let folder = |name: &str| shared?.get(name)?.get("path")?.as_str().map(str::to_owned);
    let mut found: Vec<(String, String)> = Vec::new();
    let mut open = vec![CONFORMANCE.to_owned()];
    while let Some(name) = open.pop() {
        let Some(folder) = folder(&name).filter(|_| found.iter().all(|(known, _)| *known != name)) else {
            continue;
        };
        let mut manifest = read_toml(&root.join(&folder).join("Cargo.toml"))?;
        reduce(&mut manifest);
        open.extend(
            manifest
                .get("dependencies")
                .and_then(Value::as_table)
                .into_iter()
                .flat_map(Table::keys)
                .cloned(),
        );
        found.push((name, folder));
    }
    Ok(found)
}

/// Removes from a folder of the copy what the project no longer has.
fn remove_old(root: &Path, copy: &Path, folder: &Path) -> Result<(), String> {
    if !folder.exists() {
        return Ok(());
    }
    for file in sources(folder)? {
        let path = file.strip_prefix(copy).map_err(|e| e.to_string())?;
        if !root.join(path).exists() && !path.ends_with("mutant.rs") {
            fs::remove_file(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        }
    }
    Ok(())
}

/// Leaves of a manifest what its library needs.
fn reduce(manifest: &mut Table) {
    manifest.retain(|key, _| ["package", "lib", "dependencies"].contains(&key));
    if let Some(dependencies) = manifest.get_mut("dependencies").and_then(Value::as_table_mut) {
        dependencies.retain(|_, dependency| dependency.get("optional").and_then(Value::as_bool) != Some(true));
    }
}

/// All source files of a folder and the folders in it.
fn sources(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
        let path = entry.map_err(|e| format!("{}: {e}", folder.display()))?.path();
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a text file.
///
/// # Errors
/// Names the file.
pub fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn read_toml(path: &Path) -> Result<Table, String> {
    read(path)?.parse().map_err(|e| format!("{}: {e}", path.display()))
}

/// Writes a file unless it has this text already.
fn write(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, text))
        .map_err(|e| format!("{}: {e}", path.display()))
}
