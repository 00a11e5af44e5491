//! What lies beside a file of weights and says what weights do not show: the JSON files of Hugging Face, timm and OpenCLIP.

use std::path::Path;

use serde_json::Value;

use super::variant::Activation;

/// Facts from JSON files.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sidecar {
    /// The kind of model that the file names.
    pub(crate) kind: Option<String>,
    pub(crate) heads: Option<usize>,
    pub(crate) eps: Option<f32>,
    /// The activation, or the name of one that is not supported.
    pub(crate) activation: Option<Result<Activation, String>>,
    /// Mean and deviation, and the file that says them.
    pub(crate) colors: Option<(Vec<f32>, Vec<f32>, &'static str)>,
    dim: Option<usize>,
    depth: Option<usize>,
    patch_size: Option<usize>,
    /// Files that are there but cannot be understood.
    pub(crate) broken: Vec<String>,
}

impl Sidecar {
    /// Reads what lies beside `path`.
    pub(crate) fn beside(path: &Path) -> Self {
        let mut all = Self::default();
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut read = |name: &str| -> Option<Value> {
            let text = std::fs::read_to_string(folder.join(name)).ok()?;
            match serde_json::from_str(&text) {
                Ok(value) => Some(value),
                Err(error) => {
                    all.broken.push(format!("{name} beside it cannot be used: {error}"));
                    None
                }
            }
        };
        let (config, open_clip) = (read("config.json"), read("open_clip_config.json"));
        let preprocessor = read("preprocessor_config.json");
        if let Some(config) = &config {
            all.hugging_face(config);
        }
        if let Some(config) = &open_clip {
            all.open_clip(config);
        }
        if let Some(colors) = preprocessor.as_ref().and_then(|p| colors(p, "image_mean", "image_std")) {
            all.colors = Some((colors.0, colors.1, "preprocessor_config.json"));
        }
        all
    }

    /// Whether it can be about a model of this geometry.
    pub(crate) fn fits(&self, dim: usize, depth: usize, patch_size: usize) -> bool {
        [(self.dim, dim), (self.depth, depth), (self.patch_size, patch_size)]
            .iter()
            .all(|(said, is)| said.is_none_or(|said| said == *is))
    }

    fn hugging_face(&mut self, config: &Value) {
        let text = |value: &Value, key: &str| value.get(key)?.as_str().map(str::to_string);
        self.kind = text(config, "model_type").or_else(|| text(config, "architecture"));
        // timm: everything but the normalization follows from the architecture's name.
        if let Some(architecture) = text(config, "architecture") {
            self.dim = config.get("num_features").and_then(Value::as_u64).map(|n| n as usize);
            self.activation = if architecture.contains("quickgelu") {
                Some(Ok(Activation::QuickGelu))
            } else {
                architecture.contains("clip").then_some(Ok(Activation::Gelu))
            };
            let pretrained = config.get("pretrained_cfg").unwrap_or(config);
            if let Some((mean, std)) = colors(pretrained, "mean", "std") {
                self.colors = Some((mean, std, "config.json"));
            }
            return;
        }
        // A model of images and text has its image tower's facts apart.
        let config = config.get("vision_config").unwrap_or(config);
        let number = |key: &str| config.get(key)?.as_u64().map(|n| n as usize);
        self.heads = number("num_attention_heads");
        self.dim = number("hidden_size");
        self.depth = number("num_hidden_layers");
        self.patch_size = number("patch_size");
        self.eps = config
            .get("layer_norm_eps")
            .and_then(Value::as_f64)
            .map(|eps| eps as f32);
        let gated = config.get("use_swiglu_ffn").and_then(Value::as_bool) == Some(true);
        self.activation = text(config, "hidden_act")
            .filter(|_| !gated)
            .map(|name| match name.as_str() {
                "gelu" => Ok(Activation::Gelu),
                "quick_gelu" => Ok(Activation::QuickGelu),
                _ => Err(name),
            });
    }

    fn open_clip(&mut self, config: &Value) {
        let model = config.get("model_cfg").unwrap_or(config);
        let vision = model.get("vision_cfg").unwrap_or(&Value::Null);
        let number = |key: &str| vision.get(key)?.as_u64().map(|n| n as usize);
        self.kind = Some("open_clip".into());
        self.dim = number("width");
        self.depth = number("layers");
        self.patch_size = number("patch_size");
        let head_width = number("head_width").unwrap_or(64);
        self.heads = self.dim.and_then(|dim| dim.checked_div(head_width));
        let quick = model.get("quick_gelu").and_then(Value::as_bool) == Some(true);
        self.activation = Some(Ok(if quick { Activation::QuickGelu } else { Activation::Gelu }));
        if let Some((mean, std)) = config.get("preprocess_cfg").and_then(|p| colors(p, "mean", "std")) {
            self.colors = Some((mean, std, "open_clip_config.json"));
        }
    }
}

fn colors(config: &Value, mean: &str, std: &str) -> Option<(Vec<f32>, Vec<f32>)> {
    let values = |key: &str| -> Option<Vec<f32>> {
        let values = config.get(key)?.as_array()?;
        values
            .iter()
            .map(|value| value.as_f64().map(|value| value as f32))
            .collect()
    };
    let (mean, std) = (values(mean)?, values(std)?);
    let usable = mean.iter().all(|m| m.is_finite()) && std.iter().all(|s| s.is_finite() && *s > 0.0);
    (usable && mean.len() == std.len()).then_some((mean, std))
}
