//! Placeholder until the quantizer lands.
#![allow(missing_docs, clippy::all, unused)]
use crate::{Result, data::*, eval::Features, model::*};
use std::{path::Path, sync::Arc};
pub struct Geo { pub image_size: usize, pub patch_size: usize, pub channels: usize, pub dim: usize, pub depth: usize, pub heads: usize }
pub struct EdgeEncoder;
impl EdgeEncoder {
    pub fn open(p: &Path) -> Result<Self> { todo!() }
    pub fn geometry(&self) -> Geo { todo!() }
    pub fn embed(&self, pixels: &[u8], count: usize, pool: Pool) -> Result<Vec<f32>> { todo!() }
    pub fn file_bytes(&self) -> usize { todo!() }
    pub fn scratch_bytes(&self) -> usize { todo!() }
}
pub struct Fidelity { pub mean: f32, pub worst: f32 }
pub struct Made { pub bytes: Vec<u8>, pub scratch_bytes: usize, pub calibrated: usize, pub compared: usize, pub fresh: bool, pub mean: Fidelity, pub cls: Fidelity, pub skipped: Vec<Skipped> }
pub fn from_source(vit: &Vit, n: &Normalization, s: Arc<dyn Source>, images: usize, threads: usize) -> Result<Made> { todo!() }
pub fn cosines(a: &Features, b: &Features) -> Result<Fidelity> { todo!() }
