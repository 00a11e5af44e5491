//! From a file of weights to the encoder in it: whose names these are, its geometry, and what a loader would find.

use std::path::Path;

use super::assembly::Assembly;
use super::config::{EncoderMetadata, VitConfig};
use super::family::{self, Family, IMAGENET, View};
use super::geometry::{self, Common};
use super::load::{LoadOptions, LoadReport};
use super::sidecar::Sidecar;
use super::variant::{Activation, Variant};
use super::weights_file::WeightsFile;
use crate::data::Normalization;
use crate::{Error, Result};

/// Where an encoder comes from: what its file says, and what is known of its family.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The family's short name, such as `hf-dinov2`.
    pub family: &'static str,
    /// What people know the family as.
    pub title: &'static str,
    /// What the names of its parameters begin with in the file.
    pub prefix: String,
    /// Normalization of its input, if it is known.
    pub normalization: Option<Normalization>,
    /// Who says so.
    pub normalization_from: &'static str,
    /// What was assumed or left unused, in sentences.
    pub notes: Vec<String>,
}

/// An encoder that a file holds, before any of it is read.
pub(crate) struct Plan {
    pub(crate) config: VitConfig,
    pub(crate) variant: Variant,
    pub(crate) origin: Origin,
    pub(crate) metadata: Option<EncoderMetadata>,
    /// Everything in it must fit before the encoder can be loaded.
    pub(crate) report: LoadReport,
    pub(crate) assembly: Assembly,
}

impl Plan {
    /// Recognizes the encoder in `file`.
    ///
    /// # Errors
    /// [`Error::File`] for a model that cannot be a base, saying why; [`Error::Usage`] where the user must say more.
    pub(crate) fn new(file: &WeightsFile, options: &LoadOptions) -> Result<Self> {
        let source = file.path.as_path();
        let refused = |reason: String| Error::File {
            path: source.into(),
            reason,
        };
        let prefix = choose_prefix(file, options)?;
        let view = View {
            tensors: &file.tensors,
            prefix: &prefix,
        };
        if let Some(reason) = family::refusal(&view) {
            return Err(refused(format!("cannot be a base: {reason}")));
        }
        let Some(family) = Family::of(&view) else {
            return Err(refused(family::stranger(&file.tensors)));
        };
        let mut report = LoadReport::default();
        let tensors = sort(file, family, &prefix, &mut report);
        let (mut config, mut variant) = geometry::infer(&tensors).map_err(refused)?;

        let metadata = file.metadata.get(EncoderMetadata::KEY);
        let metadata = metadata.map(|json| parse_metadata(json, source)).transpose()?;
        let mut notes = Vec::new();
        let sidecar = sidecar(source, metadata.is_some(), &config, &mut notes);
        config.heads = heads(options, metadata.as_ref(), &sidecar, family, config.dim, source)?;
        if metadata.is_none() {
            variant.eps = sidecar.eps.unwrap_or(family.eps);
        }
        let openai = family.key == "openclip" && file.tensors.contains_key("input_resolution");
        if variant.activation != Activation::SwiGlu {
            variant.activation = match (options.activation, sidecar.activation.clone()) {
                (Some(Activation::SwiGlu), _) => {
                    return Err(Error::Usage(format!(
                        "{}: `--activation` (`base.activation`) is swiglu, but its MLPs have no gates; give another or none",
                        source.display()
                    )));
                }
                (Some(given), _) => given,
                (None, Some(said)) => said.map_err(|name| {
                    refused(format!(
                        "cannot be a base: its activation is `{name}`; gelu, quick_gelu and swiglu are supported"
                    ))
                })?,
                (None, None) if openai => Activation::QuickGelu,
                (None, None) => family.activation,
            };
        }
        config
            .validate()
            .map_err(|error| Error::Usage(format!("{}: {error}", source.display())))?;
        if let Some(said) = &metadata {
            let agreed = VitConfig {
                heads: config.heads,
                ..said.config.clone()
            };
            if agreed != config {
                return Err(refused(format!(
                    "its metadata describes {:?}, but its weights {config:?}",
                    said.config
                )));
            }
        }
        let (normalization, normalization_from) = normalization(family, &sidecar, metadata.as_ref(), config.channels);
        // Of CLIP's towers, the activation is in doubt too.
        let activation_said = sidecar.activation.is_some() || !family.key.contains("clip");
        let said = metadata.is_some() || sidecar.colors.is_some() && activation_said;
        if !said && !family.unsure.is_empty() && !openai {
            notes.push(format!("the file does not say: {}", family.unsure));
        }
        let parameters = geometry::parameters(&config, &variant);
        let assembly = Assembly::new(&tensors, family.naming, &prefix, parameters, &mut report);
        for list in [
            &mut report.matched,
            &mut report.ignored,
            &mut report.missing,
            &mut report.unexpected,
        ] {
            list.sort();
            // A LayerScale is asked for with the weight and with the bias.
            list.dedup();
        }
        let (family, title) = match metadata {
            Some(_) => ("tec-encoder", "encoder or checkpoint of this program"),
            None => (family.key, family.title),
        };
        Ok(Self {
            config,
            variant,
            origin: Origin {
                family,
                title,
                prefix,
                normalization,
                normalization_from,
                notes,
            },
            metadata,
            report,
            assembly,
        })
    }
}

/// The prefix of the model that is meant.
fn choose_prefix(file: &WeightsFile, options: &LoadOptions) -> Result<String> {
    if let Some(given) = &options.prefix {
        let dotted = format!("{}.", given.trim_end_matches('.'));
        return Ok(if given.is_empty() { String::new() } else { dotted });
    }
    let found = family::prefixes(&file.tensors);
    let Some(best) = found.iter().map(|prefix| family::rank(prefix)).min() else {
        return Err(Error::File {
            path: file.path.clone(),
            reason: family::stranger(&file.tensors),
        });
    };
    let mut meant: Vec<&String> = found.iter().filter(|prefix| family::rank(prefix) == best).collect();
    // One model under two names is one model.
    let name = |prefix: &str| {
        let mut names = file.tensors.range(prefix.to_string()..);
        names
            .next()
            .and_then(|(name, _)| Some(name.strip_prefix(prefix)?.to_string()))
    };
    if let Some((first, rest)) = meant.split_first() {
        let tensor = name(first).unwrap_or_default();
        let same = |other: &&&String| file.same(&format!("{first}{tensor}"), &format!("{other}{tensor}"));
        if rest.iter().all(|other| same(&other)) {
            meant.truncate(1);
        }
    }
    match meant.as_slice() {
        [one] => Ok((*one).clone()),
        several => Err(Error::Usage(format!(
            "{}: holds several models, under the prefixes {}; name the one that is meant with `--prefix`, for a \
             base of `tec pretrain` as `base.prefix`",
            file.path.display(),
            several
                .iter()
                .map(|prefix| format!("`{prefix}`"))
                .collect::<Vec<_>>()
                .join(", ")
        ))),
    }
}

/// The tensors under the prefix by their common names; what else there is goes into the report.
fn sort<'a>(file: &'a WeightsFile, family: &Family, prefix: &str, report: &mut LoadReport) -> Common<'a> {
    let mut tensors = Common::new();
    let (mut spare_norm, mut spare) = (None, Vec::new());
    for (name, stored) in &file.tensors {
        let Some(own) = name.strip_prefix(prefix) else {
            report.ignored.push(name.clone());
            continue;
        };
        match family.naming.common(own) {
            Some(common) if stored.float => drop(tensors.insert(common, (name.clone(), stored.shape.as_slice()))),
            // Counters and flags are no weights.
            _ if !stored.float => report.ignored.push(name.clone()),
            _ if own == "fc_norm.weight" => spare_norm = Some((name, stored)),
            _ if own == "fc_norm.bias" => spare.push((name, stored)),
            _ if family.naming.ignores(own) => report.ignored.push(name.clone()),
            _ => report.unexpected.push(name.clone()),
        }
    }
    // The norm of fine-tuned models, which stands for the final one where that is missing.
    let norms = spare_norm.map(|norm| ("fc_norm.weight", norm)).into_iter();
    for (common, (name, stored)) in norms.chain(spare.into_iter().map(|norm| ("fc_norm.bias", norm))) {
        match tensors.contains_key("norm.weight") {
            true => report.ignored.push(name.clone()),
            false => drop(tensors.insert(common.into(), (name.clone(), stored.shape.as_slice()))),
        }
    }
    tensors
}

/// What lies beside the file, if it is about this model.
fn sidecar(source: &Path, told: bool, config: &VitConfig, notes: &mut Vec<String>) -> Sidecar {
    // An encoder of this program says everything itself.
    if told {
        return Sidecar::default();
    }
    let found = Sidecar::beside(source);
    notes.extend(found.broken.iter().cloned());
    if found.fits(config.dim, config.depth, config.patch_size) {
        return found;
    }
    notes.push("the configuration beside it describes another model and was not used".into());
    Sidecar::default()
}

/// The heads: given, said by the file or beside it, or those of the published models.
fn heads(
    options: &LoadOptions,
    metadata: Option<&EncoderMetadata>,
    sidecar: &Sidecar,
    family: &Family,
    dim: usize,
    source: &Path,
) -> Result<usize> {
    let of_family = || {
        family
            .heads
            .iter()
            .find(|(width, _)| *width == dim)
            .map(|(_, heads)| *heads)
    };
    let known = options
        .heads
        .or_else(|| metadata.map(|m| m.config.heads))
        .or(sidecar.heads)
        .or_else(of_family)
        .or_else(|| family::heads(dim));
    known.ok_or_else(|| {
        Error::Usage(format!(
            "{}: weights do not show the number of attention heads, and a width of {dim} is no multiple of 64: give the number \
             with `--heads`, for a base of `tec pretrain` as `base.heads`",
            source.display()
        ))
    })
}

fn normalization(
    family: &Family,
    sidecar: &Sidecar,
    metadata: Option<&EncoderMetadata>,
    channels: usize,
) -> (Option<Normalization>, &'static str) {
    if let Some(metadata) = metadata {
        let (mean, std) = (metadata.mean.clone(), metadata.std.clone());
        return (Some(Normalization { mean, std }), "the file");
    }
    if let Some((mean, std, from)) = &sidecar.colors
        && mean.len() == channels
    {
        let (mean, std) = (mean.clone(), std.clone());
        return (Some(Normalization { mean, std }), from);
    }
    if channels != 3 {
        return (None, "nobody");
    }
    let imagenet = matches!(sidecar.kind.as_deref(), Some("vit_mae" | "vit_msn"));
    let (mean, std) = if imagenet { IMAGENET } else { family.colors };
    let (mean, std) = (mean.to_vec(), std.to_vec());
    (Some(Normalization { mean, std }), "the family's default")
}

/// The metadata of an encoder of this project.
fn parse_metadata(json: &str, source: &Path) -> Result<EncoderMetadata> {
    let refused = |reason: String| Error::File {
        path: source.into(),
        reason: format!("its metadata `{}` cannot be used: {reason}", EncoderMetadata::KEY),
    };
    let metadata: EncoderMetadata = serde_json::from_str(json).map_err(|error| refused(error.to_string()))?;
    metadata.validate().map_err(|error| refused(error.to_string()))?;
    Ok(metadata)
}
