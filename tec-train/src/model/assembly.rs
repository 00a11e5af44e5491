//! How each parameter of an encoder is made of a file's tensors.

use std::collections::{BTreeSet, HashMap};

use candle_core::{Device, Tensor};

use super::family::Naming;
use super::geometry::Common;
use super::load::{LoadReport, MisShaped};
use super::weights_file::WeightsFile;
use crate::{Error, Result};

/// The layers of the input adapter of a TEC model, in the order they compute.
const ADAPTER: [&str; 4] = [
    "cls_token_mlp.fc1.weight",
    "cls_token_mlp.fc1.bias",
    "cls_token_mlp.fc2.weight",
    "cls_token_mlp.fc2.bias",
];

/// How one parameter is made; the names are the file's.
#[derive(Debug, Clone)]
enum Recipe {
    /// One tensor, perhaps with other axes of length one.
    Whole(String),
    /// Several, one below the other.
    Rows(Vec<String>),
    /// The rows of one, each multiplied by its LayerScale.
    Scaled(String, String),
    /// A table of patch positions, below a row of zeros for the class token.
    WithoutClass(String),
    /// The class token as a TEC model's input adapter makes it: token and adapter.
    Adapted(Vec<String>),
    /// Nothing in the file: zeros.
    Zeros,
}

/// The recipes of all parameters, with their shapes.
pub(crate) struct Assembly {
    recipes: HashMap<String, (Recipe, Vec<usize>)>,
}

impl Assembly {
    /// Finds the tensors of every parameter and writes down what is used, missing, mis-shaped and left over.
    pub(crate) fn new(
        tensors: &Common,
        naming: &Naming,
        prefix: &str,
        parameters: Vec<(String, Vec<usize>)>,
        report: &mut LoadReport,
    ) -> Self {
        let mut search = Search {
            tensors,
            naming,
            prefix,
            used: BTreeSet::new(),
            report,
        };
        let recipes = parameters
            .into_iter()
            .map(|(name, shape)| {
                let recipe = search.recipe(&name, &shape);
                (name, (recipe, shape))
            })
            .collect();
        let used = search.used;
        let all = tensors.values().map(|(own, _)| own.clone());
        let (matched, left): (Vec<String>, Vec<String>) = all.partition(|own| used.contains(own));
        let mis_shaped: BTreeSet<String> = report.mis_shaped.iter().map(|m| m.name.clone()).collect();
        report
            .matched
            .extend(matched.into_iter().filter(|name| !mis_shaped.contains(name)));
        report.unexpected.extend(left);
        Self { recipes }
    }

    /// Reads one parameter.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub(crate) fn make(&self, name: &str, file: &mut WeightsFile) -> Result<Tensor> {
        let Some((recipe, shape)) = self.recipes.get(name) else {
            return Err(Error::Data(format!("no parameter `{name}` was planned")));
        };
        let shape = shape.as_slice();
        Ok(match recipe {
            Recipe::Whole(own) => file.read(own)?.reshape(shape)?,
            Recipe::Rows(parts) => {
                let parts = parts.iter().map(|own| file.read(own)).collect::<Result<Vec<_>>>()?;
                Tensor::cat(&parts, 0)?.reshape(shape)?
            }
            Recipe::Scaled(own, gamma) => scaled(&file.read(own)?, &file.read(gamma)?)?.reshape(shape)?,
            Recipe::WithoutClass(own) => {
                let dim = shape.last().copied().unwrap_or(0);
                let mut values = vec![0.0; dim];
                values.extend(file.read(own)?.flatten_all()?.to_vec1::<f32>()?);
                Tensor::from_vec(values, shape, &Device::Cpu)?
            }
            Recipe::Adapted(parts) => adapted(parts, file)?.reshape(shape)?,
            Recipe::Zeros => Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu)?,
        })
    }
}

/// What finding the tensors of parameters needs.
struct Search<'a> {
    tensors: &'a Common<'a>,
    naming: &'a Naming,
    prefix: &'a str,
    used: BTreeSet<String>,
    report: &'a mut LoadReport,
}

impl Search<'_> {
    fn recipe(&mut self, name: &str, shape: &[usize]) -> Recipe {
        let has = |name: &str| self.tensors.contains_key(name);
        let (stem, kind) = name.rsplit_once('.').unwrap_or((name, ""));
        if let Some(stem) = stem.strip_suffix(".qkv")
            && has(&format!("{stem}.q.weight"))
        {
            return self.rows(
                ["q", "k", "v"].map(|part| format!("{stem}.{part}.{kind}")).to_vec(),
                shape,
            );
        }
        if let Some(stem) = stem.strip_suffix(".fc1")
            && has(&format!("{stem}.gate.weight"))
        {
            return self.rows(
                ["gate", "up"].map(|part| format!("{stem}.{part}.{kind}")).to_vec(),
                shape,
            );
        }
        if name == "patch_embed.proj.bias" && !has(name) && self.naming.patch_bias_optional {
            return Recipe::Zeros;
        }
        if name == "cls_token" && ADAPTER.iter().any(|part| has(part)) {
            return self.input_adapter(shape);
        }
        if name == "pos_embed" {
            let found = self.tensors.get(name).map_or(0, |(_, found)| found.iter().product());
            let (rows, dim) = (shape.get(1).copied().unwrap_or(0), shape.get(2).copied().unwrap_or(0));
            return match self.take(name, shape, found == (rows - 1) * dim) {
                Some(own) if found == (rows - 1) * dim => Recipe::WithoutClass(own),
                Some(own) => Recipe::Whole(own),
                None => Recipe::Zeros,
            };
        }
        let gamma = match stem.split_once(".attn.proj").map(|(block, _)| (block, "ls1")) {
            None => stem.split_once(".mlp.fc2").map(|(block, _)| (block, "ls2")),
            found => found,
        };
        let scaled = gamma.filter(|_| self.layer_scale());
        let own = self.take(name, shape, false);
        let Some((block, scale)) = scaled else {
            return own.map_or(Recipe::Zeros, Recipe::Whole);
        };
        let gamma = self.take(
            &format!("{block}.{scale}.gamma"),
            shape.get(..1).unwrap_or_default(),
            false,
        );
        match (own, gamma) {
            (Some(own), Some(gamma)) => Recipe::Scaled(own, gamma),
            _ => Recipe::Zeros,
        }
    }

    /// Whether any block has LayerScale: then all must.
    fn layer_scale(&self) -> bool {
        self.tensors.keys().any(|name| name.ends_with(".gamma"))
    }

    /// Equal parts of the rows.
    fn rows(&mut self, parts: Vec<String>, shape: &[usize]) -> Recipe {
        let mut part_shape = shape.to_vec();
        if let Some(first) = part_shape.first_mut() {
            *first /= parts.len();
        }
        let own: Vec<String> = parts
            .iter()
            .filter_map(|part| self.take(part, &part_shape, false))
            .collect();
        match own.len() == parts.len() {
            true => Recipe::Rows(own),
            false => Recipe::Zeros,
        }
    }

    fn input_adapter(&mut self, shape: &[usize]) -> Recipe {
        let dim = shape.last().copied().unwrap_or(0);
        let hidden = self
            .tensors
            .get("cls_token_mlp.fc1.weight")
            .and_then(|(_, shape)| shape.first().copied())
            .unwrap_or(4 * dim);
        let mut own: Vec<String> = self.take("cls_token", shape, false).into_iter().collect();
        for (name, shape) in ADAPTER
            .iter()
            .zip([&[hidden, dim][..], &[hidden], &[dim, hidden], &[dim]])
        {
            own.extend(self.take(name, shape, false));
        }
        match own.len() == 1 + ADAPTER.len() {
            true => Recipe::Adapted(own),
            false => Recipe::Zeros,
        }
    }

    /// The file's name of `name` if it is there with the shape that is needed; `fits` says that another is right too.
    fn take(&mut self, name: &str, shape: &[usize], fits: bool) -> Option<String> {
        let Some((own, found)) = self.tensors.get(name) else {
            let own = self.naming.own(name).unwrap_or_else(|| name.to_string());
            self.report.missing.push(format!("{}{own}", self.prefix));
            return None;
        };
        self.used.insert(own.clone());
        if fits || core_shape(found) == core_shape(shape) {
            return Some(own.clone());
        }
        self.report.mis_shaped.push(MisShaped {
            name: own.clone(),
            expected: shape.to_vec(),
            found: found.to_vec(),
        });
        None
    }
}

/// A shape without the ones before it: tokens and tables are stored with and without them.
fn core_shape(shape: &[usize]) -> &[usize] {
    match shape {
        [1, rest @ ..] if !rest.is_empty() => core_shape(rest),
        _ => shape,
    }
}

/// Every row of a matrix or element of a vector times its factor.
fn scaled(tensor: &Tensor, gamma: &Tensor) -> Result<Tensor> {
    let gamma = gamma.flatten_all()?;
    Ok(match tensor.rank() {
        1 => (tensor * gamma)?,
        _ => tensor.broadcast_mul(&gamma.unsqueeze(1)?)?,
    })
}

/// The class token as the input adapter makes it.
fn adapted(parts: &[String], file: &mut WeightsFile) -> Result<Tensor> {
    let mut values = Vec::with_capacity(parts.len());
    for own in parts {
        values.push(file.read(own)?.flatten_all()?.to_vec1::<f32>()?);
    }
    let [token, fc1_weight, fc1_bias, fc2_weight, fc2_bias] = values.as_slice() else {
        return Err(Error::Data("an input adapter has a token and two layers".into()));
    };
    let (mut hidden, mut folded) = (vec![0.0; fc1_bias.len()], vec![0.0; token.len()]);
    tec_core::adapter::input_adapter(
        token,
        fc1_weight,
        fc1_bias,
        fc2_weight,
        fc2_bias,
        &mut hidden,
        &mut folded,
    )?;
    let dim = folded.len();
    Ok(Tensor::from_vec(folded, dim, &Device::Cpu)?)
}
