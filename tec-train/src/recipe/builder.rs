//! Putting a recipe together: a file or nothing, then overrides, then one check.

use std::path::Path;

use super::{Recipe, Size};
use crate::{Error, Result};

/// The key that stands for others.
const SIZE: &str = "model.size";

/// A recipe being put together: a file or nothing, then overrides, then checked once.
#[derive(Debug, Clone, Default)]
pub struct RecipeBuilder {
    table: toml::Table,
    origin: String,
}

impl RecipeBuilder {
    /// Starts from the defaults.
    pub fn new() -> Self {
        Self {
            table: toml::Table::new(),
            origin: "the recipe".into(),
        }
    }

    /// Starts from TOML text; `origin` names it in messages.
    ///
    /// # Errors
    /// Text that is no TOML or has an unknown key: the message has the line and the key.
    pub fn from_text(text: &str, origin: &str) -> Result<Self> {
        // Deserialized from the text itself first, so that a message can show the line.
        toml::from_str::<Recipe>(text)
            .map_err(|e| Error::Usage(format!("recipe {origin}: {}", e.to_string().trim())))?;
        let table = text
            .parse()
            .map_err(|e: toml::de::Error| Error::Usage(format!("recipe {origin}: {e}")))?;
        Ok(Self {
            table,
            origin: origin.into(),
        })
    }

    /// Starts from a TOML file.
    ///
    /// # Errors
    /// As [`Self::from_text`], and a file that cannot be read.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::Usage(format!("recipe {}: {e}; give a TOML file", path.display())))?;
        Self::from_text(&text, &path.display().to_string())
    }

    /// Sets one key, `section.key`, to a value. `model.size` sets width, depth, heads and adapters as well, so that it overrides
    /// those of a file, and those given after it override the size's.
    pub fn set(&mut self, key: &str, value: impl Into<toml::Value>) -> &mut Self {
        let value = value.into();
        if let (SIZE, Some(size)) = (key, value.as_str().and_then(Size::named)) {
            let g = size.geometry();
            let adapters = tec_core::adapter::groups(g.depth);
            for (key, count) in [
                ("model.dim", g.dim),
                ("model.depth", g.depth),
                ("model.heads", g.heads),
                ("objective.adapters", adapters),
            ] {
                self.set(key, count as i64);
            }
        }
        let mut parts: Vec<&str> = key.split('.').collect();
        let leaf = parts.pop().unwrap_or_default();
        let mut table = &mut self.table;
        for part in parts {
            let entry = table
                .entry(part)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if !entry.is_table() {
                *entry = toml::Value::Table(toml::Table::new());
            }
            match entry.as_table_mut() {
                Some(next) => table = next,
                None => return self,
            }
        }
        table.insert(leaf.into(), value);
        self
    }

    /// Applies `section.key=value` as given to `--set`; the value is TOML, or else taken as a string.
    ///
    /// # Errors
    /// An argument without `=`, or a key that recipes do not have.
    pub fn set_argument(&mut self, argument: &str) -> Result<&mut Self> {
        let Some((key, value)) = argument.split_once('=') else {
            return Err(Error::Usage(format!(
                "--set {argument}: expected KEY=VALUE, such as optimizer.lr=1e-3"
            )));
        };
        let (key, value) = (key.trim(), value.trim());
        let parsed = format!("v = {value}")
            .parse::<toml::Table>()
            .ok()
            .and_then(|mut t| t.remove("v"));
        self.set(key, parsed.unwrap_or_else(|| toml::Value::String(value.into())));
        self.clone()
            .table
            .try_into::<Recipe>()
            .map_err(|e| Error::Usage(format!("--set {argument}: {}", one_line(&e))))?;
        Ok(self)
    }

    /// The recipe, its values checked.
    ///
    /// # Errors
    /// An unknown key, a value of the wrong type, or one out of range; the message names the key.
    pub fn build(self) -> Result<Recipe> {
        let origin = self.origin;
        let recipe: Recipe = self
            .table
            .try_into()
            .map_err(|e| Error::Usage(format!("{origin}: {}", one_line(&e))))?;
        recipe.check()?;
        Ok(recipe)
    }
}

fn one_line(error: &toml::de::Error) -> String {
    error
        .to_string()
        .split('\n')
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Amp;
    use crate::recipe::Method;

    fn message(result: Result<Recipe>) -> String {
        match result {
            Err(Error::Usage(text)) => text,
            other => panic!("expected a usage error, got {other:?}"),
        }
    }

    #[test]
    fn a_file_then_overrides_in_their_order() {
        let mut builder =
            RecipeBuilder::from_text("method = \"mae\"\n[optimizer]\nbatch = 32\nblr = 1e-3\n", "r.toml").unwrap();
        builder.set("seed", 7).set_argument("optimizer.lr=2e-3").unwrap();
        builder
            .set_argument("data.scale=[0.5, 1.0]")
            .unwrap()
            .set_argument("data.path=/some/where")
            .unwrap();
        let recipe = builder.build().unwrap();
        assert_eq!(
            (recipe.method, recipe.seed, recipe.optimizer.batch),
            (Method::Mae, 7, 32)
        );
        assert_eq!((recipe.optimizer.peak_lr(), recipe.data.scale), (2e-3, [0.5, 1.0]));
        assert_eq!(recipe.data.path.as_deref(), Some(Path::new("/some/where")));
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_named() {
        let unknown = RecipeBuilder::from_text("[optimizer]\nlearning = 1\n", "r.toml")
            .unwrap_err()
            .to_string();
        assert!(
            unknown.contains("r.toml") && unknown.contains("learning") && unknown.contains("line 2"),
            "{unknown}"
        );
        let mut builder = RecipeBuilder::new();
        for (argument, words) in [
            ("optimizer.learning=1", "learning"),
            ("seed", "KEY=VALUE"),
            ("seed=soon", "seed"),
            ("optimizer.amp=fp16", "`none` or `bf16`"),
        ] {
            let text = builder.clone().set_argument(argument).unwrap_err().to_string();
            assert!(text.contains(words), "{argument}: {text}");
        }
        builder.set_argument("optimizer.amp=bf16").unwrap();
        assert_eq!(builder.clone().build().unwrap().optimizer.amp, Amp::Bf16);
        assert_eq!(RecipeBuilder::new().build().unwrap().optimizer.amp, Amp::None);
        builder.set("objective.mask_ratio", 1.5);
        assert!(message(builder.build()).contains("objective.mask_ratio = 1.5"));
    }

    #[test]
    fn a_size_sets_what_comes_before_it_and_not_what_comes_after() {
        let resolved = |builder: RecipeBuilder| builder.build().unwrap().resolve(None).unwrap();
        for (name, dim, depth, heads, patch) in [
            ("tiny", 192, 12, 3, 16),
            ("small", 384, 12, 6, 16),
            ("base", 768, 12, 12, 16),
            ("large", 1024, 24, 16, 16),
            ("huge", 1280, 32, 16, 14),
        ] {
            // In a file, by a flag, and over a file's own keys.
            let file = RecipeBuilder::from_text(&format!("[model]\nsize = \"{name}\"\n"), "r.toml").unwrap();
            let mut flag = RecipeBuilder::from_text("[model]\ndim = 64\nheads = 2\ndepth = 3\n", "r.toml").unwrap();
            flag.set("model.size", name);
            for builder in [file, flag] {
                let c = resolved(builder);
                assert_eq!(
                    (c.dim, c.depth, c.heads, c.patch_size),
                    (dim, depth, heads, patch),
                    "{name}"
                );
            }
        }
        let mut narrow = RecipeBuilder::from_text("[model]\nsize = \"small\"\ndim = 128\n", "r.toml").unwrap();
        assert_eq!((resolved(narrow.clone()).dim, resolved(narrow.clone()).heads), (128, 2));
        narrow.set("model.size", "base").set_argument("model.depth=6").unwrap();
        let c = resolved(narrow);
        assert_eq!((c.dim, c.depth, c.heads), (768, 6, 12));
        let wrong = RecipeBuilder::new()
            .set_argument("model.size=giant")
            .unwrap_err()
            .to_string();
        assert!(wrong.contains("giant") && wrong.contains("huge"), "{wrong}");
    }

    #[test]
    fn a_resolved_recipe_reads_back_as_itself_and_shows_what_differs() {
        let mut recipe = RecipeBuilder::new().build().unwrap();
        recipe.resolve(None).unwrap();
        let text = recipe.to_toml().unwrap();
        let again = RecipeBuilder::from_text(&text, "stored").unwrap().build().unwrap();
        assert_eq!(again, recipe);
        let mut other = recipe.clone();
        other.optimizer.batch = 8;
        other.data.threads = 9;
        let differences = recipe.differences(&other).unwrap();
        assert_eq!(differences.len(), 1, "{differences:?}");
        assert!(
            differences[0].contains("optimizer.batch (256 in the run, 8 now)"),
            "{differences:?}"
        );
    }
}
