//! The sections of a recipe and their defaults.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Size;
use crate::{model::Activation, ops::Amp};

/// `[base]`: the frozen base model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BaseSection {
    /// A checkpoint file, a run directory, or the name of a run under `runs/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Attention heads, where the checkpoint does not say (default: those of published models of its width).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// What the names of the base's parameters begin with, where a file holds several models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Nonlinearity of its MLPs, where the checkpoint does not say (default: its family's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
}

/// `[init]`: weights to start from instead of random ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InitSection {
    /// A run directory or one of its checkpoints. Every parameter of the encoder must be there in the same shape; decoder
    /// and adapters are taken where name and shape agree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// `[data]`: images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// A folder of JPEG and PNG images, or an IDX file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Side of the square crop the new model sees, in pixels; absent: the base's, else 224.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// 3 for RGB, 1 for grey; absent: the base's, else 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// Random resized crop: smallest and largest share of the image's area.
    pub scale: [f64; 2],
    /// Horizontal flip with probability one half.
    pub flip: bool,
    /// Per-channel mean of pixels in 0..1 subtracted from the input; absent: the base's, else ImageNet's (grey: measured on the data).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f32>>,
    /// Per-channel standard deviation the input is divided by; goes with `mean`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f32>>,
    /// Decode threads. Changes speed only.
    pub threads: usize,
    /// Share of the images that may be unreadable before the run stops; 1 for no limit.
    pub max_unreadable: f64,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            path: None,
            image_size: None,
            channels: None,
            scale: [0.2, 1.0],
            flip: true,
            mean: None,
            std: None,
            threads: 2,
            max_unreadable: 0.05,
        }
    }
}

/// `[model]`: the new model's encoder; an absent key is taken from the base (method `tec`) or from ViT-Tiny (method `mae`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// A named size: sets width, depth and heads where those keys are absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Side of a patch in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_size: Option<usize>,
    /// Width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim: Option<usize>,
    /// Blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Attention heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Hidden width of the MLPs over the width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_ratio: Option<usize>,
}

/// `[decoder]`: dropped after pretraining. Absent keys take the published values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecoderSection {
    /// Width.
    pub dim: usize,
    /// Blocks; absent: 2 for `tec`, 8 for `mae`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Attention heads.
    pub heads: usize,
}

impl Default for DecoderSection {
    fn default() -> Self {
        Self {
            dim: 512,
            depth: None,
            heads: 16,
        }
    }
}

/// `[objective]`: what is removed and what is predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveSection {
    /// Share of the patches removed.
    pub mask_ratio: f64,
    /// TEC: base blocks averaged into the feature target (n).
    pub last_layers: usize,
    /// TEC: patches whose attention rows become targets (K).
    pub top_k: usize,
    /// TEC: temperature on the base's attention logits (τ).
    pub att_tau: f32,
    /// TEC: groups of the encoder adapter; absent: the largest divisor of the depth not above depth/3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapters: Option<usize>,
    /// MAE: predict pixels normalized within each patch.
    pub norm_pix_loss: bool,
}

impl Default for ObjectiveSection {
    fn default() -> Self {
        Self {
            mask_ratio: 0.75,
            last_layers: 2,
            top_k: 15,
            att_tau: 1.8,
            adapters: None,
            norm_pix_loss: true,
        }
    }
}

/// `[optimizer]`: AdamW with linear warm-up and cosine decay, both per step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSection {
    /// Images a step: the effective batch, by which the learning rate goes.
    pub batch: usize,
    /// Equal parts in which a step's images are computed one after the other, their gradients summed: less memory for the
    /// same step.
    pub accumulate: usize,
    /// Gradients compute again what blocks computed, instead of keeping it: less memory, more time, the same numbers.
    pub grad_checkpointing: bool,
    /// Mixed precision: the arithmetic of the products and the type of what is inside residual branches.
    pub amp: Amp,
    /// Passes over the data.
    pub epochs: usize,
    /// Base learning rate: the peak is `blr · batch / 256`.
    pub blr: f64,
    /// Peak learning rate; absent: from `blr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Learning rate at the end of the schedule.
    pub min_lr: f64,
    /// Epochs of linear warm-up from 0; absent: a tenth of `epochs`, at most 40.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_epochs: Option<f64>,
    /// Decay of matrices and tokens; vectors and biases have none.
    pub weight_decay: f64,
    /// AdamW's β₁ and β₂.
    pub betas: [f64; 2],
    /// AdamW's ε.
    pub eps: f64,
    /// Largest L2 norm of all gradients together; longer ones are scaled down to it. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_grad: Option<f64>,
    /// Decay of a moving average of the encoder's weights, which is then what is exported and measured. Absent: no average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
}

impl Default for OptimizerSection {
    fn default() -> Self {
        Self {
            batch: 256,
            accumulate: 1,
            grad_checkpointing: false,
            amp: Amp::None,
            epochs: 100,
            blr: 1.5e-4,
            lr: None,
            min_lr: 0.0,
            warmup_epochs: None,
            weight_decay: 0.05,
            betas: [0.9, 0.95],
            eps: 1e-8,
            clip_grad: None,
            ema: None,
        }
    }
}

impl OptimizerSection {
    /// The peak learning rate.
    pub fn peak_lr(&self) -> f64 {
        self.lr.unwrap_or(self.blr * self.batch as f64 / 256.0)
    }

    /// Epochs of warm-up.
    pub fn warmup(&self) -> f64 {
        self.warmup_epochs.unwrap_or((self.epochs as f64 / 10.0).min(40.0))
    }
}

/// `[checkpoint]`: training state on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Steps between two checkpoints; 0: one an epoch. The last step always writes one.
    pub every_steps: usize,
    /// How many of the newest are kept, besides the best.
    pub keep: usize,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self {
            every_steps: 0,
            keep: 2,
        }
    }
}

/// `[probe]`: k-NN accuracy of the encoder during training, on images with classes; nothing else of the run depends on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeSection {
    /// Labelled images; absent: those trained on, where they have classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Epochs between two probes, the last epoch has one in any case; 0: none at all; absent: so many that a probe embeds at most
    /// a tenth as many images as were trained on since the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_epochs: Option<usize>,
    /// Images whose classes are known to the probe.
    pub train_images: usize,
    /// Other images whose classes it finds.
    pub test_images: usize,
    /// Neighbors that vote.
    pub k: usize,
}

impl Default for ProbeSection {
    fn default() -> Self {
        Self {
            path: None,
            every_epochs: None,
            train_images: 1000,
            test_images: 250,
            k: 20,
        }
    }
}
