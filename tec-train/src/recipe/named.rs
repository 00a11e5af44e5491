//! The recipes that ship with the program.

use std::path::Path;

use super::RecipeBuilder;
use crate::{Error, Result};

/// Names and texts: the published recipes first, then those of `tec quickstart`.
pub const ALL: [(&str, &str); 6] = [
    ("mae-300ep-b", include_str!("../../../recipes/mae-300ep-b.toml")),
    ("mae-b", include_str!("../../../recipes/mae-b.toml")),
    ("ibot-b", include_str!("../../../recipes/ibot-b.toml")),
    ("mae-l", include_str!("../../../recipes/mae-l.toml")),
    ("quickstart-base", include_str!("../../../recipes/quickstart-base.toml")),
    ("quickstart-tec", include_str!("../../../recipes/quickstart-tec.toml")),
];

/// The text of the recipe of that name.
pub fn text(name: &str) -> Option<&'static str> {
    ALL.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// A recipe by file or by name; a file of that path comes first.
///
/// # Errors
/// Neither, listing the names; a file that cannot be read or is no recipe.
pub fn find(given: &Path) -> Result<RecipeBuilder> {
    if given.exists() {
        return RecipeBuilder::from_file(given);
    }
    let name = given.to_string_lossy();
    match text(&name) {
        Some(text) => RecipeBuilder::from_text(text, &name),
        None => {
            let names: Vec<&str> = ALL.iter().map(|(n, _)| *n).collect();
            Err(Error::Usage(format!(
                "recipe {name}: no such file, and no recipe that ships with tec; give a TOML file or one of {}",
                names.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VitConfig;
    use crate::recipe::{Method, Recipe};

    /// A base of the new model's own geometry, as published.
    fn base(dim: usize, depth: usize) -> VitConfig {
        VitConfig {
            image_size: 224,
            patch_size: 16,
            channels: 3,
            dim,
            depth,
            heads: dim / 64,
            mlp_ratio: 4,
        }
    }

    fn built(name: &str) -> Recipe {
        find(Path::new(name)).unwrap().build().unwrap()
    }

    /// The published values: base, width, depth, adapters, K, τ, d, epochs.
    #[test]
    fn published_recipes_have_the_published_values() {
        for (name, dim, depth, adapters, top_k, tau, decoder, epochs) in [
            ("mae-300ep-b", 768, 12, 4, 15, 1.8, 512, 100),
            ("mae-b", 768, 12, 4, 15, 1.8, 512, 300),
            ("ibot-b", 768, 12, 4, 9, 1.0, 512, 300),
            ("mae-l", 1024, 24, 8, 15, 1.4, 768, 300),
        ] {
            let mut recipe = built(name);
            let config = recipe.resolve(Some(&base(dim, depth))).unwrap();
            assert_eq!(config, base(dim, depth), "{name}");
            assert_eq!(recipe.method, Method::Tec);
            let (j, o, d) = (&recipe.objective, &recipe.optimizer, &recipe.decoder);
            assert_eq!((j.top_k, j.att_tau, j.mask_ratio), (top_k, tau, 0.75), "{name}");
            assert_eq!((j.adapters, j.last_layers), (Some(adapters), 2), "{name}");
            assert_eq!((d.dim, d.depth, d.heads), (decoder, Some(2), 16), "{name}");
            assert_eq!(
                (o.batch, o.epochs, o.warmup_epochs),
                (4096, epochs, Some(40.0)),
                "{name}"
            );
            assert!((o.peak_lr() - 2.4e-3).abs() < 1e-12, "{name}");
            assert_eq!((o.betas, o.weight_decay, o.min_lr), ([0.9, 0.95], 0.05, 0.0), "{name}");
            assert_eq!((recipe.data.scale, recipe.data.flip), ([0.2, 1.0], true), "{name}");
            assert_eq!(recipe.data.mean.as_deref(), Some(&crate::data::IMAGENET_MEAN[..]));
            assert_eq!(recipe.data.std.as_deref(), Some(&crate::data::IMAGENET_STD[..]));
        }
    }

    /// Keys that have no value of their own: what only the user knows, what is off, and what follows from `blr` and the data.
    const LEFT_OUT: [&str; 1] = ["optimizer.lr"];

    #[test]
    fn published_recipes_spell_every_default_out() {
        let mut all = Recipe::default();
        all.resolve(Some(&base(768, 12))).unwrap();
        let wanted = crate::recipe::flatten(&all).unwrap();
        for (name, text) in ALL.iter().filter(|(name, _)| !name.starts_with("quickstart")) {
            let written = crate::recipe::flatten_table(&text.parse().unwrap());
            let missing: Vec<_> = wanted
                .keys()
                .filter(|k| !written.contains_key(*k) && !LEFT_OUT.contains(&k.as_str()))
                .collect();
            assert!(missing.is_empty(), "{name} lacks {missing:?}");
        }
    }

    #[test]
    fn a_file_comes_before_a_name_and_wrong_names_list_the_right_ones() {
        let error = find(Path::new("mae-xl")).unwrap_err().to_string();
        assert!(
            error.contains("mae-xl") && ALL.iter().all(|(name, _)| error.contains(name)),
            "{error}"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mae-b");
        std::fs::write(&path, "seed = 11\n").unwrap();
        assert_eq!(find(&path).unwrap().build().unwrap().seed, 11);
        assert_eq!(built("quickstart-base").method, Method::Mae);
    }
}
