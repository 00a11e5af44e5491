//! Relations between tokens: the base's targets and the new model's logits.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use tec_core::relation;

use super::cpu::{floats, indices, refused, rows_per_piece, tensor};
use super::gemm::{Matrix, MatrixMut, Threads::One};
use super::simd;

/// Logits `scale * q k^T` of the class token and the selected patches against all patches: `qk` `[B, 1 + L, 2 T]` in the
/// layout `[2][heads][T / heads]`, `index` u32 `[B, K]`, gives `[B, 1 + K, heads, L]`. Differentiable in `qk`.
///
/// # Errors
/// Shapes that do not fit each other, an index not below L.
pub fn relation_logits(qk: &Tensor, index: &Tensor, heads: usize, scale: f32) -> crate::Result<Tensor> {
    let op = RelationLogits {
        parts: 2,
        prefix: 1,
        heads,
        scale,
    };
    Ok(qk.contiguous()?.apply_op2(&index.contiguous()?, op)?)
}

/// The base's relation targets: `qkv` `[B, prefix + L, 3 T]` of its last block in the layout `[3][heads][T / heads]`, where
/// `prefix` is 1 + the number of registers.
///
/// Gives the attention logits `[B, 1 + K, heads, L]` of the class token and of the `top_k` patches that it attends to most,
/// best first, and the numbers u32 `[B, K]` of those patches. Ranked in f32; of equal patches the lower number comes first.
/// No gradient.
///
/// # Errors
/// Shapes that do not fit each other, more queries than patches, a NaN among the logits.
pub fn base_relation(qkv: &Tensor, heads: usize, prefix: usize, top_k: usize) -> crate::Result<(Tensor, Tensor)> {
    let qkv = qkv.detach().contiguous()?;
    let head = qkv.dim(2)? / 3 / heads.max(1);
    let logits = RelationLogits {
        parts: 3,
        prefix,
        heads,
        scale: (1.0 / (head as f64).sqrt()) as f32,
    };
    let index = qkv.apply_op1_no_bwd(&TopQueries { logits, top_k })?;
    let picked = qkv.apply_op2_no_bwd(&index, &logits)?;
    Ok((picked, index))
}

/// `softmax(picked / tau)` over the last axis. No gradient.
///
/// # Errors
/// A temperature that is not positive and finite.
pub fn tempered_target(picked: &Tensor, tau: f32) -> crate::Result<Tensor> {
    Ok(picked.contiguous()?.apply_op1_no_bwd(&TemperedTarget { tau })?)
}

/// Normalizes `x` `[B, L, T]` over its patches, each image and channel by itself (unbiased variance, eps 1e-6). No gradient.
///
/// # Errors
/// Fewer than two patches.
pub fn normalize_features(x: &Tensor) -> crate::Result<Tensor> {
    Ok(x.contiguous()?.apply_op1_no_bwd(&NormalizeFeatures)?)
}

/// Logits of some tokens' queries against all patches' keys.
#[derive(Debug, Clone, Copy)]
struct RelationLogits {
    /// Parts of the projection: 2 for queries and keys, 3 with values.
    parts: usize,
    /// Tokens before the first patch, the class token first.
    prefix: usize,
    heads: usize,
    scale: f32,
}

/// The sizes of the relations of one batch.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    patches: usize,
    /// The width T of all heads together.
    width: usize,
    /// The width of one head.
    head: usize,
    /// From a token to the next in the projection: parts times T.
    stride: usize,
    /// Elements of one image's projection.
    image: usize,
}

impl RelationLogits {
    fn sizes(&self, projection: &Layout) -> Result<Sizes> {
        let (batch, tokens, stride) = projection.shape().dims3()?;
        let Self {
            parts, prefix, heads, ..
        } = *self;
        if heads == 0 || prefix == 0 || tokens <= prefix || stride == 0 || stride % (parts * heads) != 0 {
            bail!(
                "relation: [{batch}, {tokens}, {stride}] does not hold {parts} parts of {heads} heads for {prefix} \
                 tokens and at least one patch"
            );
        }
        let width = stride / parts;
        Ok(Sizes {
            batch,
            patches: tokens - prefix,
            width,
            head: width / heads,
            stride,
            image: tokens * stride,
        })
    }

    /// The first element of each query's token in an image's projection: the class token, then the patches in `index`.
    fn queries(&self, sizes: &Sizes, index: &[u32]) -> Result<Vec<usize>> {
        if let Some(patch) = index.iter().find(|&&patch| patch as usize >= sizes.patches) {
            bail!("relation: there is no patch {patch}, only {}", sizes.patches);
        }
        let patches = index.iter().map(|&patch| (self.prefix + patch as usize) * sizes.stride);
        Ok(std::iter::once(0).chain(patches).collect())
    }

    /// The queries' rows [1 + K, T], side by side.
    fn gather(&self, sizes: &Sizes, projection: &[f32], index: &[u32]) -> Result<Vec<f32>> {
        let starts = self.queries(sizes, index)?;
        Ok(starts
            .iter()
            .flat_map(|&start| &projection[start..start + sizes.width])
            .copied()
            .collect())
    }

    /// The keys `[L, head]` of one head, which starts at `start` in its token.
    fn keys<'a>(&self, sizes: &Sizes, projection: &'a [f32], start: usize) -> Result<Matrix<'a>> {
        let first = self.prefix * sizes.stride + sizes.width + start;
        Matrix::new(&projection[first..], sizes.patches, sizes.head, sizes.stride)
    }

    /// The logits [1 + K, heads, L] of one image.
    fn forward(&self, sizes: &Sizes, projection: &[f32], index: &[u32], out: &mut [f32]) -> Result<()> {
        let (queries, rows) = (self.gather(sizes, projection, index)?, 1 + index.len());
        for head in 0..self.heads {
            let q = Matrix::new(&queries[head * sizes.head..], rows, sizes.head, sizes.width)?;
            let k = self.keys(sizes, projection, head * sizes.head)?;
            let out = &mut out[head * sizes.patches..];
            MatrixMut::new(out, rows, sizes.patches, self.heads * sizes.patches)?.set_product(
                self.scale,
                q,
                k.t(),
                One,
            )?;
        }
        Ok(())
    }

    /// The gradient of one image's projection, which is zero before.
    fn backward(&self, sizes: &Sizes, projection: &[f32], index: &[u32], grad: &[f32], out: &mut [f32]) -> Result<()> {
        let (queries, rows) = (self.gather(sizes, projection, index)?, 1 + index.len());
        let mut grad_queries = vec![0.0; queries.len()];
        for start in (0..sizes.width).step_by(sizes.head) {
            let head = start / sizes.head;
            let grad = Matrix::new(
                &grad[head * sizes.patches..],
                rows,
                sizes.patches,
                self.heads * sizes.patches,
            )?;
            let q = Matrix::new(&queries[start..], rows, sizes.head, sizes.width)?;
            let k = self.keys(sizes, projection, start)?;
            MatrixMut::new(&mut grad_queries[start..], rows, sizes.head, sizes.width)?
                .set_product(self.scale, grad, k, One)?;
            let grad_keys = &mut out[self.prefix * sizes.stride + sizes.width + start..];
            MatrixMut::new(grad_keys, sizes.patches, sizes.head, sizes.stride)?.set_product(
                self.scale,
                grad.t(),
                q,
                One,
            )?;
        }
        for (start, grad) in self
            .queries(sizes, index)?
            .into_iter()
            .zip(grad_queries.chunks_exact(sizes.width))
        {
            out[start..start + sizes.width]
                .iter_mut()
                .zip(grad)
                .for_each(|(sum, grad)| *sum += grad);
        }
        Ok(())
    }
}

/// The patch numbers `[B, K]`, image by image.
fn images(index: &[u32], index_layout: &Layout, batch: usize) -> Result<Vec<Vec<u32>>> {
    let (batches, queries) = index_layout.shape().dims2()?;
    if batches != batch {
        bail!("relation: queries of {batches} images for {batch} images");
    }
    Ok((0..batch)
        .map(|image| index[image * queries..(image + 1) * queries].to_vec())
        .collect())
}

impl CustomOp2 for RelationLogits {
    fn name(&self) -> &'static str {
        "relation_logits"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(l1)?;
        let projection = floats(self.name(), s1, l1)?;
        let index = images(indices(self.name(), s2, l2)?, l2, sizes.batch)?;
        let rows = 1 + l2.shape().dims2()?.1;
        let image = rows * self.heads * sizes.patches;
        let mut out = vec![0.0; sizes.batch * image];
        out.par_chunks_mut(image)
            .zip(projection.par_chunks(sizes.image).zip(&index))
            .try_for_each(|(out, (projection, index))| self.forward(&sizes, projection, index, out))?;
        tensor(out, (sizes.batch, rows, self.heads, sizes.patches))
    }

    fn bwd(&self, qk: &Tensor, index: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((
            Some(qk.apply_op3_no_bwd(index, &grad.contiguous()?, &RelationLogitsGradient(*self))?),
            None,
        ))
    }
}

struct RelationLogitsGradient(RelationLogits);

impl CustomOp3 for RelationLogitsGradient {
    fn name(&self) -> &'static str {
        "relation_logits gradient"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = self.0.sizes(l1)?;
        let (projection, grad) = (floats(self.name(), s1, l1)?, floats(self.name(), s3, l3)?);
        let index = images(indices(self.name(), s2, l2)?, l2, sizes.batch)?;
        let image = l3.shape().elem_count() / sizes.batch.max(1);
        let mut out = vec![0.0; projection.len()];
        out.par_chunks_mut(sizes.image)
            .zip(
                projection
                    .par_chunks(sizes.image)
                    .zip(&index)
                    .zip(grad.par_chunks(image.max(1))),
            )
            .try_for_each(|(out, ((projection, index), grad))| self.0.backward(&sizes, projection, index, grad, out))?;
        tensor(out, l1.shape())
    }
}

/// The patches that the class token attends to most.
struct TopQueries {
    logits: RelationLogits,
    top_k: usize,
}

impl CustomOp1 for TopQueries {
    fn name(&self) -> &'static str {
        "base_relation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = self.logits.sizes(layout)?;
        let projection = floats(self.name(), storage, layout)?;
        let (patches, heads) = (sizes.patches, self.logits.heads);
        let index: Vec<Vec<u32>> = projection
            .par_chunks(sizes.image)
            .map(|projection| {
                let (mut class, mut scratch) = (vec![0.0; heads * patches], vec![0.0; patches]);
                self.logits.forward(&sizes, projection, &[], &mut class)?;
                let mut index = vec![0; self.top_k];
                relation::rank_queries(&class, heads, patches, &mut index, &mut scratch).map_err(refused)?;
                Ok(index)
            })
            .collect::<Result<_>>()?;
        Ok((CpuStorage::U32(index.concat()), (sizes.batch, self.top_k).into()))
    }
}

struct TemperedTarget {
    tau: f32,
}

impl CustomOp1 for TemperedTarget {
    fn name(&self) -> &'static str {
        "tempered_target"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let picked = floats(self.name(), storage, layout)?;
        let patches = layout.dims().last().copied().unwrap_or(1);
        let piece = rows_per_piece(patches) * patches.max(1);
        let mut out = vec![0.0; picked.len()];
        out.par_chunks_mut(piece)
            .zip(picked.par_chunks(piece))
            .try_for_each(|(out, picked)| simd::tempered_target(picked, patches, self.tau, out))
            .map_err(refused)?;
        tensor(out, layout.shape())
    }
}

struct NormalizeFeatures;

impl CustomOp1 for NormalizeFeatures {
    fn name(&self) -> &'static str {
        "normalize_features"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, patches, width) = layout.shape().dims3()?;
        let features = floats(self.name(), storage, layout)?;
        let image = (patches * width).max(1);
        let mut out = vec![0.0; features.len()];
        out.par_chunks_mut(image)
            .zip(features.par_chunks(image))
            .try_for_each(|(out, features)| simd::normalize_features(features, patches, width, out))
            .map_err(refused)?;
        tensor(out, layout.shape())
    }
}
