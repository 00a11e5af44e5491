//! The range of every value of a recipe.

use super::Recipe;
use crate::{Error, Result};

impl Recipe {
    /// Checks every value's range; shapes are checked when the models are built.
    pub(super) fn check(&self) -> Result<()> {
        let require = |ok: bool, key: &str, value: &dyn std::fmt::Display, what: &str| {
            if ok {
                Ok(())
            } else {
                Err(Error::Usage(format!("{key} = {value}: must be {what}")))
            }
        };
        let (d, o, j) = (&self.data, &self.optimizer, &self.objective);
        if let Some(size) = d.image_size {
            require(
                (1..=4096).contains(&size),
                "data.image_size",
                &size,
                "between 1 and 4096",
            )?;
        }
        if let Some(channels) = d.channels {
            require(
                channels == 1 || channels == 3,
                "data.channels",
                &channels,
                "1 (grey) or 3 (RGB)",
            )?;
        }
        let scale = format!("[{}, {}]", d.scale[0], d.scale[1]);
        require(
            0.0 < d.scale[0] && d.scale[0] <= d.scale[1] && d.scale[1] <= 1.0,
            "data.scale",
            &scale,
            "two rising numbers in (0, 1]",
        )?;
        require(
            (0.0..=1.0).contains(&d.max_unreadable),
            "data.max_unreadable",
            &d.max_unreadable,
            "between 0 and 1",
        )?;
        require(
            (1..=256).contains(&d.threads),
            "data.threads",
            &d.threads,
            "between 1 and 256",
        )?;
        require(
            d.mean.is_some() == d.std.is_some(),
            "data.mean and data.std",
            &"only one of them",
            "given together or not at all",
        )?;
        for (key, values) in [("data.mean", &d.mean), ("data.std", &d.std)] {
            let Some(values) = values else { continue };
            let fits = values.len() == d.channels.unwrap_or(values.len());
            require(fits, key, &format!("{values:?}"), "one number a channel")?;
            let positive = key == "data.mean" || values.iter().all(|v| *v > 0.0);
            require(
                positive && values.iter().all(|v| v.is_finite()),
                key,
                &format!("{values:?}"),
                "finite (std: above 0)",
            )?;
        }
        require(
            0.0 < j.mask_ratio && j.mask_ratio < 1.0,
            "objective.mask_ratio",
            &j.mask_ratio,
            "above 0 and below 1",
        )?;
        require(
            j.last_layers >= 1,
            "objective.last_layers",
            &j.last_layers,
            "at least 1",
        )?;
        require(j.top_k >= 1, "objective.top_k", &j.top_k, "at least 1")?;
        require(
            j.att_tau > 0.0 && j.att_tau.is_finite(),
            "objective.att_tau",
            &j.att_tau,
            "above 0",
        )?;
        require(o.batch >= 1, "optimizer.batch", &o.batch, "at least 1")?;
        require(
            o.accumulate >= 1 && o.batch.is_multiple_of(o.accumulate),
            "optimizer.accumulate",
            &o.accumulate,
            &format!("a divisor of optimizer.batch = {}", o.batch),
        )?;
        if let Some(clip) = o.clip_grad {
            let usable = clip > 0.0 && clip.is_finite();
            require(usable, "optimizer.clip_grad", &clip, "above 0, or absent")?;
        }
        if let Some(decay) = o.ema {
            require(
                0.0 < decay && decay < 1.0,
                "optimizer.ema",
                &decay,
                "above 0 and below 1, or absent",
            )?;
        }
        let p = &self.probe;
        require(p.train_images >= 2, "probe.train_images", &p.train_images, "at least 2")?;
        require(p.test_images >= 1, "probe.test_images", &p.test_images, "at least 1")?;
        require(
            (1..=p.train_images).contains(&p.k),
            "probe.k",
            &p.k,
            "between 1 and probe.train_images",
        )?;
        require(o.epochs >= 1, "optimizer.epochs", &o.epochs, "at least 1")?;
        let peak = o.peak_lr();
        require(peak > 0.0 && peak.is_finite(), "optimizer.lr", &peak, "above 0")?;
        require(
            (0.0..=peak).contains(&o.min_lr),
            "optimizer.min_lr",
            &o.min_lr,
            "between 0 and the peak learning rate",
        )?;
        require(
            (0.0..=o.epochs as f64).contains(&o.warmup()),
            "optimizer.warmup_epochs",
            &o.warmup(),
            "between 0 and optimizer.epochs",
        )?;
        require(
            (0.0..1.0).contains(&o.weight_decay),
            "optimizer.weight_decay",
            &o.weight_decay,
            "in [0, 1)",
        )?;
        for beta in o.betas {
            require((0.0..1.0).contains(&beta), "optimizer.betas", &beta, "in [0, 1)")?;
        }
        require(o.eps > 0.0, "optimizer.eps", &o.eps, "above 0")?;
        require(
            self.checkpoint.keep >= 1,
            "checkpoint.keep",
            &self.checkpoint.keep,
            "at least 1",
        )
    }
}
