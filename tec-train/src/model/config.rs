//! The geometry of models, and which geometries are possible.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// No published vision transformer comes near this in any dimension; it keeps typing errors from asking for terabytes.
const LARGEST: usize = 1 << 16;

/// The geometry of a plain vision transformer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Height and width of the images, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, in pixels.
    pub patch_size: usize,
    /// Channels of the images: 3 for colour, 1 for grey.
    pub channels: usize,
    /// Width `D` of a token.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Hidden width of a block's MLP, as a multiple of `dim`.
    pub mlp_ratio: usize,
}

impl VitConfig {
    /// Patches along one side of an image.
    pub fn grid(&self) -> usize {
        self.image_size.checked_div(self.patch_size).unwrap_or(0)
    }

    /// Patches `L` of an image.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Values of one patch: `patch_size² · channels`.
    pub fn patch_values(&self) -> usize {
        self.patch_size * self.patch_size * self.channels
    }

    /// Hidden width of a block's MLP.
    pub fn hidden(&self) -> usize {
        self.dim * self.mlp_ratio
    }

    /// Checks that such a model can exist.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the first impossible key and its value.
    pub fn validate(&self) -> Result<()> {
        within("image_size", self.image_size)?;
        within("patch_size", self.patch_size)?;
        within("channels", self.channels)?;
        within("depth", self.depth)?;
        within("mlp_ratio", self.mlp_ratio)?;
        width("dim", self.dim, "heads", self.heads)?;
        if !self.image_size.is_multiple_of(self.patch_size) {
            return Err(Error::Usage(format!(
                "`image_size` {} is not a multiple of `patch_size` {}: choose sizes that divide",
                self.image_size, self.patch_size
            )));
        }
        if self.patches() < 2 {
            return Err(Error::Usage(format!(
                "`image_size` {} and `patch_size` {} make one patch an image, and nothing could be masked: choose a smaller \
                 `patch_size`",
                self.image_size, self.patch_size
            )));
        }
        Ok(())
    }
}

/// The geometry of a decoder, used in pretraining only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Width `d` of a token.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub heads: usize,
}

impl DecoderConfig {
    /// Checks that such a decoder can exist.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the first impossible key and its value.
    pub fn validate(&self) -> Result<()> {
        within("decoder.depth", self.depth)?;
        width("decoder.dim", self.dim, "decoder.heads", self.heads)
    }
}

/// What of the base enters the new model: the widths of its targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseConfig {
    /// Width `T` of the base's tokens.
    pub dim: usize,
    /// Attention heads `H` of the base.
    pub heads: usize,
}

/// The geometry of a new model and of everything it is trained with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TecConfig {
    /// The new model; it may be narrower or shallower than the base.
    pub encoder: VitConfig,
    /// The widths of the base's targets.
    pub base: BaseConfig,
    /// The decoder both heads share.
    pub decoder: DecoderConfig,
    /// Groups of the encoder adapter; `None` is the largest divisor of `encoder.depth` not above a third of it.
    pub adapters: Option<usize>,
    /// Temperature τ of the base's attention targets.
    pub temperature: f64,
}

impl TecConfig {
    /// Groups of the encoder adapter: [`TecConfig::adapters`], or the published rule.
    pub fn groups(&self) -> usize {
        self.adapters
            .unwrap_or_else(|| tec_core::adapter::groups(self.encoder.depth))
    }

    /// Checks that such a model can be trained.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the first impossible key and its value.
    pub fn validate(&self) -> Result<()> {
        self.encoder.validate()?;
        self.decoder.validate()?;
        within("base.dim", self.base.dim)?;
        within("base.heads", self.base.heads)?;
        divides("base.dim", self.base.dim, "base.heads", self.base.heads)?;
        within("adapters", self.groups())?;
        divides("depth", self.encoder.depth, "adapters", self.groups())?;
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(Error::Usage(format!(
                "`temperature` {} must be a number above 0 (published recipes: 1.0 to 1.8)",
                self.temperature
            )));
        }
        Ok(())
    }
}

/// The geometry of a masked autoencoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaeConfig {
    /// The encoder.
    pub encoder: VitConfig,
    /// The decoder.
    pub decoder: DecoderConfig,
    /// Whether the pixels to predict are normalized within each patch.
    pub norm_pix: bool,
}

impl MaeConfig {
    /// Checks that such a model can be trained.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the first impossible key and its value.
    pub fn validate(&self) -> Result<()> {
        self.encoder.validate()?;
        self.decoder.validate()?;
        if self.norm_pix && self.encoder.patch_values() < 2 {
            return Err(Error::Usage(
                "`norm_pix` needs patches of more than one value: choose `patch_size` 2 or more".into(),
            ));
        }
        Ok(())
    }
}

/// What the metadata key `tec` of an encoder file holds, as JSON.
///
/// Training checkpoints carry the same key, so that a run can be the base of another; keys not named here are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncoderMetadata {
    /// The encoder's geometry.
    pub config: VitConfig,
    /// Mean of each channel, in units of 0 to 1, subtracted from the pixels.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, in units of 0 to 1, that the difference is divided by.
    pub std: Vec<f32>,
    /// How tokens become one embedding.
    pub pool: Pool,
}

impl EncoderMetadata {
    /// The metadata key.
    pub const KEY: &'static str = "tec";

    /// Checks the geometry and that there is one usable mean and deviation a channel.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the first impossible key and its value.
    pub fn validate(&self) -> Result<()> {
        self.config.validate()?;
        let channels = self.config.channels;
        let usable = self.mean.iter().all(|m| m.is_finite()) && self.std.iter().all(|s| s.is_finite() && *s > 0.0);
        if self.mean.len() != channels || self.std.len() != channels || !usable {
            return Err(Error::Usage(format!(
                "`mean` {:?} and `std` {:?} must be finite, one a channel ({channels}), and `std` above 0",
                self.mean, self.std
            )));
        }
        Ok(())
    }
}

/// How an encoder's tokens become one embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// The mean of the patch tokens.
    Mean,
    /// The class token.
    Cls,
}

fn within(key: &str, value: usize) -> Result<()> {
    if (1..=LARGEST).contains(&value) {
        return Ok(());
    }
    Err(Error::Usage(format!("`{key}` {value} must be between 1 and {LARGEST}")))
}

fn divides(key: &str, value: usize, by_key: &str, by: usize) -> Result<()> {
    if value.is_multiple_of(by) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "`{key}` {value} is not a multiple of `{by_key}` {by}: choose sizes that divide"
    )))
}

/// Sin-cos positions split a token into sines and cosines of two axes, attention into heads.
fn width(key: &str, dim: usize, heads_key: &str, heads: usize) -> Result<()> {
    within(key, dim)?;
    within(heads_key, heads)?;
    if !dim.is_multiple_of(4) {
        return Err(Error::Usage(format!(
            "`{key}` {dim} is not a multiple of 4, which the sin-cos position table needs"
        )));
    }
    divides(key, dim, heads_key, heads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder() -> VitConfig {
        VitConfig {
            image_size: 32,
            patch_size: 4,
            channels: 3,
            dim: 48,
            depth: 6,
            heads: 4,
            mlp_ratio: 4,
        }
    }

    fn tec() -> TecConfig {
        TecConfig {
            encoder: encoder(),
            base: BaseConfig { dim: 64, heads: 4 },
            decoder: DecoderConfig {
                dim: 32,
                depth: 2,
                heads: 4,
            },
            adapters: None,
            temperature: 1.8,
        }
    }

    fn message(result: Result<()>) -> String {
        match result {
            Err(Error::Usage(message)) => message,
            other => panic!("expected a usage error, got {other:?}"),
        }
    }

    #[test]
    fn possible_geometries_pass() {
        encoder().validate().unwrap();
        tec().validate().unwrap();
        assert_eq!(encoder().patches(), 64);
        assert_eq!(tec().groups(), 2);
    }

    #[test]
    fn errors_name_key_and_value() {
        for (change, words) in [
            (
                (|c| c.image_size = 30) as fn(&mut VitConfig),
                ["`image_size` 30", "`patch_size` 4"],
            ),
            (|c| c.patch_size = 0, ["`patch_size` 0", "between"]),
            (|c| c.patch_size = 32, ["`patch_size` 32", "one patch"]),
            (|c| c.dim = 50, ["`dim` 50", "multiple of 4"]),
            (|c| c.heads = 5, ["`dim` 48", "`heads` 5"]),
            (|c| c.dim = usize::MAX, ["`dim`", "65536"]),
            (|c| c.depth = 0, ["`depth` 0", "between"]),
        ] {
            let mut config = encoder();
            change(&mut config);
            let message = message(config.validate());
            assert!(words.iter().all(|w| message.contains(w)), "{message}");
        }
        let uneven = TecConfig {
            adapters: Some(4),
            ..tec()
        };
        assert!(message(uneven.validate()).contains("`adapters` 4"));
        let none = TecConfig {
            adapters: Some(0),
            ..tec()
        };
        assert!(message(none.validate()).contains("`adapters` 0"));
        let cold = TecConfig {
            temperature: 0.0,
            ..tec()
        };
        assert!(message(cold.validate()).contains("`temperature` 0"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let json =
            r#"{"image_size":32,"patch_size":4,"channels":3,"dim":48,"depth":6,"heads":4,"mlp_ratio":4,"hedas":4}"#;
        let error = serde_json::from_str::<VitConfig>(json).unwrap_err().to_string();
        assert!(error.contains("hedas"), "{error}");
    }
}
