//! An f32 encoder and what it was quantized to, on the same images: embeddings, nearest neighbors, logits.

use super::samples::{Images, Samples};
use super::{EdgeEncoder, Embedded, Fidelity};
use crate::data::Normalization;
use crate::eval::{Features, knn};
use crate::model::{Head, Pool, Vit};
use crate::{Error, Result};

/// How good an encoder is on the images that are compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Quality {
    /// Cosines of the class tokens with f32's.
    pub class: Fidelity,
    /// Cosines of the means of patches with f32's.
    pub mean: Fidelity,
    /// Share of images whose nearest neighbor among the images of the calibration is f32's, by the embedding.
    pub neighbors: f64,
    /// Share of images whose class a vote of nearest neighbors finds, if the images have classes.
    pub knn_top1: Option<f64>,
    /// Share of images whose largest logit is f32's, with a head.
    pub top1: Option<f64>,
}

/// What f32 makes of the images.
pub struct Reference<'s> {
    samples: &'s Samples,
    pool: Pool,
    calibration: Embedded,
    compared: Embedded,
}

impl<'s> Reference<'s> {
    /// Encodes the images in f32; `pool` is the embedding that neighbors are looked for with.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn new(
        vit: &Vit,
        normalization: &Normalization,
        head: Option<&Head>,
        pool: Pool,
        samples: &'s Samples,
    ) -> Result<Self> {
        let outputs = |images: &Images| -> Result<Embedded> {
            let mut all = Embedded {
                class: Vec::new(),
                mean: Vec::new(),
                logits: Vec::new(),
            };
            for images in samples.batches(images, normalization) {
                let tokens = vit.tokens(&images?)?;
                let pooled = |pool| -> Result<Vec<f32>> { Ok(vit.pool(&tokens, pool)?.flatten_all()?.to_vec1()?) };
                all.class.extend(pooled(Pool::Cls)?);
                all.mean.extend(pooled(Pool::Mean)?);
                if let Some(head) = head {
                    let embeddings = pooled(pool)?;
                    let rows = embeddings.chunks_exact(vit.config().dim);
                    all.logits.extend(rows.flat_map(|row| head.logits(row)));
                }
            }
            Ok(all)
        };
        Ok(Self {
            samples,
            pool,
            calibration: outputs(&samples.calibration)?,
            compared: outputs(samples.to_compare())?,
        })
    }

    /// What nearest neighbors find by f32, if the images have classes.
    ///
    /// # Errors
    /// Those of [`knn::knn`].
    pub fn knn_top1(&self) -> Result<Option<f64>> {
        self.vote(&self.calibration, &self.compared)
    }

    /// Compares a quantized encoder.
    ///
    /// # Errors
    /// [`Error::Data`] for one of another shape; those of the encoder.
    pub fn compare(&self, edge: &EdgeEncoder) -> Result<Quality> {
        let dim = edge.geometry().dim;
        let images = self.samples.to_compare();
        let calibration = edge.outputs(&self.samples.calibration.pixels, self.samples.calibrated())?;
        let compared = edge.outputs(&images.pixels, images.count())?;
        let nearest = |calibration: &Embedded, compared: &Embedded| {
            knn::nearest_one(
                &self.features(calibration, &self.samples.calibration),
                &self.features(compared, images),
            )
        };
        let pairs = nearest(&self.calibration, &self.compared)?
            .into_iter()
            .zip(nearest(&calibration, &compared)?);
        Ok(Quality {
            class: Fidelity::of(&self.compared.class, &compared.class, dim)?,
            mean: Fidelity::of(&self.compared.mean, &compared.mean, dim)?,
            neighbors: share(pairs.map(|(a, b)| a == b)),
            knn_top1: self.vote(&calibration, &compared)?,
            top1: self.same_class(&compared, images.count())?,
        })
    }

    fn same_class(&self, compared: &Embedded, images: usize) -> Result<Option<f64>> {
        let classes = self.compared.logits.len() / images.max(1);
        if classes == 0 {
            return Ok(None);
        }
        if compared.logits.len() != self.compared.logits.len() {
            return Err(Error::Data(
                "the quantized encoder has another head than the f32 one".into(),
            ));
        }
        let rows = |logits: &[f32]| -> Vec<usize> { logits.chunks_exact(classes).map(largest).collect() };
        let (a, b) = (rows(&self.compared.logits), rows(&compared.logits));
        Ok(Some(share(a.iter().zip(&b).map(|(a, b)| a == b))))
    }

    fn vote(&self, calibration: &Embedded, compared: &Embedded) -> Result<Option<f64>> {
        let train = self.features(calibration, &self.samples.calibration);
        let test = self.features(compared, self.samples.to_compare());
        let labeled = |features: &Features| features.labels.iter().all(Option::is_some);
        let several = train.labels.iter().any(|label| Some(label) != train.labels.first());
        // On the very images that vote, everything is right.
        if !(labeled(&train) && labeled(&test) && several && self.samples.fresh()) {
            return Ok(None);
        }
        let config = knn::KnnConfig {
            k: knn::KnnConfig::default().k.min(train.len()),
            ..knn::KnnConfig::default()
        };
        Ok(Some(knn::knn(&train, &test, &config)?.accuracy))
    }

    fn features(&self, embedded: &Embedded, images: &Images) -> Features {
        let data = match self.pool {
            Pool::Cls => &embedded.class,
            Pool::Mean => &embedded.mean,
        };
        Features {
            dim: data.len() / images.count().max(1),
            data: data.clone(),
            labels: images.labels.clone(),
            classes: self.samples.classes.clone(),
        }
    }
}

fn share(found: impl Iterator<Item = bool>) -> f64 {
    let (mut yes, mut all) = (0usize, 0usize);
    found.for_each(|found| (yes, all) = (yes + usize::from(found), all + 1));
    yes as f64 / all.max(1) as f64
}

/// Where the largest value is; of equals the first.
fn largest(values: &[f32]) -> usize {
    let order = |a: &(usize, &f32), b: &(usize, &f32)| a.1.total_cmp(b.1).then(b.0.cmp(&a.0));
    values.iter().enumerate().max_by(order).map_or(0, |(at, _)| at)
}
