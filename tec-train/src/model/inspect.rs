//! What a file of weights is, without reading its values.

use std::path::Path;

use super::config::{EncoderMetadata, VitConfig};
use super::geometry;
use super::load::{LoadOptions, LoadReport};
use super::plan::{Origin, Plan};
use super::variant::Variant;
use super::weights_file::WeightsFile;
use crate::{Error, Result};

/// What a file of weights is.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// Tensors in the file.
    pub tensors: usize,
    /// The encoder in it, as far as there is one.
    pub encoder: Option<EncoderFacts>,
    /// Why it cannot be a base; `None` if it can.
    pub refusal: Option<String>,
}

/// What is known of an encoder before it is loaded.
#[derive(Debug, Clone)]
pub struct EncoderFacts {
    /// Its geometry.
    pub config: VitConfig,
    /// Its variant.
    pub variant: Variant,
    /// Where it comes from.
    pub origin: Origin,
    /// What an encoder of this program says about itself.
    pub metadata: Option<EncoderMetadata>,
    /// Values of its parameters.
    pub parameters: usize,
    /// Which tensors would be used, are missing, of another shape, or left over.
    pub report: LoadReport,
}

/// Looks at names and shapes of a file that [`super::Vit::load`] takes.
///
/// # Errors
/// [`Error::File`] if it cannot be read; a model that cannot be a base is no error.
pub fn inspect(path: &Path, options: &LoadOptions) -> Result<Inspection> {
    let file = WeightsFile::open(path)?;
    let tensors = file.tensors.len();
    let plan = match Plan::new(&file, options) {
        Ok(plan) => plan,
        Err(Error::File { reason, .. } | Error::Usage(reason)) => {
            return Ok(Inspection {
                tensors,
                encoder: None,
                refusal: Some(reason),
            });
        }
        Err(other) => return Err(other),
    };
    let refusal = match plan.report.require_match(&file.path) {
        Err(Error::File { reason, .. }) => Some(reason),
        _ => None,
    };
    let parameters = geometry::parameters(&plan.config, &plan.variant);
    Ok(Inspection {
        tensors,
        refusal,
        encoder: Some(EncoderFacts {
            parameters: parameters
                .iter()
                .map(|(_, shape)| shape.iter().product::<usize>())
                .sum(),
            config: plan.config,
            variant: plan.variant,
            origin: plan.origin,
            metadata: plan.metadata,
            report: plan.report,
        }),
    })
}
