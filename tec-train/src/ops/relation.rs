//! Relations between tokens: the base's targets and the new model's logits.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};
use rayon::prelude::*;
use tec_core::relation;

use super::cpu::{floats, indices, refused, rows_per_piece, tensor};
use super::gemm::{Matrix, MatrixMut};
#[cfg(feature = "cuda")]
use super::gpu;
use super::simd;
#[cfg(feature = "cuda")]
use crate::cuda::{Float, relation as plans};

/// Logits `scale * q k^T` of some tokens against all patches: queries `q` `[B, 1 + K, T]`, keys `k` `[B, 1 + L, T]` (the class
/// token's first; it is left out), both in the layout `[heads][T / heads]`, gives `[B, 1 + K, heads, L]`. Differentiable in both.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn relation_logits(q: &Tensor, k: &Tensor, heads: usize, scale: f32) -> crate::Result<Tensor> {
    Ok(q.contiguous()?
        .apply_op2(&k.contiguous()?, RelationLogits { heads, scale })?)
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
    let base = Base { heads, prefix };
    let index = qkv.apply_op1_no_bwd(&TopQueries { base, top_k })?;
    let picked = qkv.apply_op2_no_bwd(&index, &PickedLogits(base))?;
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

/// The sizes of the relations of one image.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Rows of queries.
    queries: usize,
    patches: usize,
    /// The width T of all heads together.
    width: usize,
    heads: usize,
    scale: f32,
}

impl Sizes {
    /// The width of one head.
    fn head(&self) -> usize {
        self.width / self.heads
    }

    /// Elements of one image's logits.
    fn logits(&self) -> usize {
        self.queries * self.heads * self.patches
    }

    /// What launches of relation kernels take; queries and keys as [`relation_logits`] has them.
    #[cfg(feature = "cuda")]
    fn plan(&self, batch: usize, q: u64, k: u64) -> plans::Relation {
        plans::Relation {
            dtype: Float::F32,
            q,
            k,
            batch,
            queries: self.queries,
            patches: self.patches,
            width: self.width,
            heads: self.heads,
            scale: self.scale,
        }
    }

    /// The logits `[queries, heads, L]` of one image: queries side by side, the patches' keys `stride` elements apart.
    fn forward(&self, queries: &[f32], keys: &[f32], stride: usize, out: &mut [f32]) -> Result<()> {
        for head in 0..self.heads {
            let start = head * self.head();
            let q = Matrix::new(&queries[start..], self.queries, self.head(), self.width)?;
            let k = Matrix::new(&keys[start..], self.patches, self.head(), stride)?;
            MatrixMut::new(
                &mut out[head * self.patches..],
                self.queries,
                self.patches,
                self.heads * self.patches,
            )?
            .set_product(self.scale, q, k.t())?;
        }
        Ok(())
    }

    /// The gradients of the queries and of the patches' keys of one image, all side by side.
    fn backward(
        &self,
        (queries, keys): (&[f32], &[f32]),
        grad: &[f32],
        (grad_queries, grad_keys): (&mut [f32], &mut [f32]),
    ) -> Result<()> {
        for head in 0..self.heads {
            let start = head * self.head();
            let grad = Matrix::new(
                &grad[head * self.patches..],
                self.queries,
                self.patches,
                self.heads * self.patches,
            )?;
            let q = Matrix::new(&queries[start..], self.queries, self.head(), self.width)?;
            let k = Matrix::new(&keys[start..], self.patches, self.head(), self.width)?;
            MatrixMut::new(&mut grad_queries[start..], self.queries, self.head(), self.width)?
                .set_product(self.scale, grad, k)?;
            MatrixMut::new(&mut grad_keys[start..], self.patches, self.head(), self.width)?.set_product(
                self.scale,
                grad.t(),
                q,
            )?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
struct RelationLogits {
    heads: usize,
    scale: f32,
}

impl RelationLogits {
    /// Images and sizes from queries `[B, 1 + K, T]` and keys `[B, 1 + L, T]`.
    fn sizes(&self, q: &Layout, k: &Layout) -> Result<(usize, Sizes)> {
        let ((batch, queries, width), (batches, tokens, widths)) = (q.shape().dims3()?, k.shape().dims3()?);
        let heads = self.heads;
        if batch != batches || width != widths || queries == 0 || tokens < 2 {
            bail!(
                "relation_logits: queries {:?} and keys {:?} do not fit each other",
                q.dims(),
                k.dims()
            );
        }
        if heads == 0 || width == 0 || width % heads != 0 {
            bail!("relation_logits: a width of {width} cannot be split into {heads} heads");
        }
        let sizes = Sizes {
            queries,
            patches: tokens - 1,
            width,
            heads,
            scale: self.scale,
        };
        Ok((batch, sizes))
    }
}

impl CustomOp2 for RelationLogits {
    fn name(&self) -> &'static str {
        "relation_logits"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, sizes) = self.sizes(l1, l2)?;
        let (q, k) = (floats(self.name(), s1, l1)?, floats(self.name(), s2, l2)?);
        let mut out = vec![0.0; batch * sizes.logits()];
        out.par_chunks_mut(sizes.logits())
            .zip(q.par_chunks(sizes.queries * sizes.width))
            .zip(k.par_chunks((1 + sizes.patches) * sizes.width))
            .try_for_each(|((out, q), k)| sizes.forward(q, &k[sizes.width..], sizes.width, out))?;
        tensor(out, (batch, sizes.queries, sizes.heads, sizes.patches))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let (batch, sizes) = self.sizes(l1, l2)?;
        let (q, k) = (gpu::floats(self.name(), s1, l1)?, gpu::floats(self.name(), s2, l2)?);
        let device = s1.device();
        let out = gpu::Output::floats(device, batch * sizes.logits())?;
        let plan = plans::relation_logits(&sizes.plan(batch, q, k), out.address(device));
        gpu::launch(device, &plan)?;
        out.tensor(device, (batch, sizes.queries, sizes.heads, sizes.patches))
    }

    fn bwd(&self, q: &Tensor, k: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grads = q.apply_op3_no_bwd(k, &grad.contiguous()?, &RelationLogitsGradient(*self))?;
        let (queries, keys) = (q.elem_count(), k.elem_count());
        Ok((
            Some(grads.narrow(0, 0, queries)?.reshape(q.shape())?),
            Some(grads.narrow(0, queries, keys)?.reshape(k.shape())?),
        ))
    }
}

/// The gradients of queries and keys, one after the other in one tensor, from (queries, keys, gradient of the result).
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
        let (_, sizes) = self.0.sizes(l1, l2)?;
        let (q, k) = (floats(self.name(), s1, l1)?, floats(self.name(), s2, l2)?);
        let grad = floats(self.name(), s3, l3)?;
        let (queries, keys) = (sizes.queries * sizes.width, (1 + sizes.patches) * sizes.width);
        let mut grads = vec![0.0; q.len() + k.len()];
        let (grad_q, grad_k) = grads.split_at_mut(q.len());
        grad_q
            .par_chunks_mut(queries)
            .zip(grad_k.par_chunks_mut(keys))
            .zip(q.par_chunks(queries).zip(k.par_chunks(keys)))
            .zip(grad.par_chunks(sizes.logits()))
            .try_for_each(|(((grad_q, grad_k), (q, k)), grad)| {
                // The class token's key stays without a gradient: no logit is its own.
                let patches = sizes.width..;
                sizes.backward((q, &k[patches.clone()]), grad, (grad_q, &mut grad_k[patches]))
            })?;
        let len = grads.len();
        tensor(grads, len)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (batch, sizes) = self.0.sizes(l1, l2)?;
        let (q, k) = (gpu::floats(self.name(), s1, l1)?, gpu::floats(self.name(), s2, l2)?);
        let grad = gpu::floats(self.name(), s3, l3)?;
        let (device, queries, keys) = (s1.device(), l1.shape().elem_count(), l2.shape().elem_count());
        let grads = gpu::Output::floats(device, queries + keys)?;
        let to = grads.address(device);
        let plans = plans::relation_gradients(&sizes.plan(batch, q, k), grad, to, to + 4 * queries as u64);
        plans.iter().try_for_each(|plan| gpu::launch(device, plan))?;
        grads.tensor(device, queries + keys)
    }
}

/// The base's queries, keys and values.
#[derive(Debug, Clone, Copy)]
struct Base {
    heads: usize,
    /// Tokens before the first patch, the class token first.
    prefix: usize,
}

impl Base {
    /// Images and sizes from qkv `[B, prefix + L, 3 T]`, for the class token and `top_k` patches.
    fn sizes(&self, qkv: &Layout, top_k: usize) -> Result<(usize, Sizes)> {
        let (batch, tokens, stride) = qkv.shape().dims3()?;
        let &Self { heads, prefix } = self;
        if heads == 0 || prefix == 0 || tokens <= prefix || stride == 0 || stride % (3 * heads) != 0 {
            bail!(
                "base_relation: [{batch}, {tokens}, {stride}] does not hold queries, keys and values of {heads} heads for \
                 {prefix} tokens and at least one patch"
            );
        }
        let width = stride / 3;
        let sizes = Sizes {
            queries: 1 + top_k,
            patches: tokens - prefix,
            width,
            heads,
            scale: (1.0 / ((width / heads) as f64).sqrt()) as f32,
        };
        Ok((batch, sizes))
    }

    /// What launches of the base's kernels take.
    #[cfg(feature = "cuda")]
    fn plan(&self, batch: usize, sizes: &Sizes, (dtype, qkv): (Float, u64)) -> plans::Base {
        plans::Base {
            dtype,
            qkv,
            batch,
            prefix: self.prefix,
            patches: sizes.patches,
            width: sizes.width,
            heads: sizes.heads,
        }
    }

    /// The logits of one image's class token and of the patches in `index`.
    fn logits(&self, sizes: &Sizes, qkv: &[f32], index: &[u32], out: &mut [f32]) -> Result<()> {
        if let Some(patch) = index.iter().find(|&&patch| patch as usize >= sizes.patches) {
            bail!("base_relation: there is no patch {patch}, only {}", sizes.patches);
        }
        let stride = 3 * sizes.width;
        let rows = std::iter::once(0).chain(index.iter().map(|&patch| self.prefix + patch as usize));
        let queries: Vec<f32> = rows
            .flat_map(|row| &qkv[row * stride..row * stride + sizes.width])
            .copied()
            .collect();
        sizes.forward(&queries, &qkv[self.prefix * stride + sizes.width..], stride, out)
    }
}

/// The patches that the class token attends to most.
struct TopQueries {
    base: Base,
    top_k: usize,
}

impl CustomOp1 for TopQueries {
    fn name(&self) -> &'static str {
        "base_relation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, sizes) = self.base.sizes(layout, 0)?;
        let qkv = floats(self.name(), storage, layout)?;
        let (patches, heads) = (sizes.patches, sizes.heads);
        let index: Vec<Vec<u32>> = qkv
            .par_chunks((self.base.prefix + patches) * 3 * sizes.width)
            .map(|qkv| {
                let (mut class, mut scratch) = (vec![0.0; heads * patches], vec![0.0; patches]);
                self.base.logits(&sizes, qkv, &[], &mut class)?;
                let mut index = vec![0; self.top_k];
                relation::rank_queries(&class, heads, patches, &mut index, &mut scratch).map_err(refused)?;
                Ok(index)
            })
            .collect::<Result<_>>()?;
        Ok((CpuStorage::U32(index.concat()), (batch, self.top_k).into()))
    }

    /// A NaN among the logits is no error here, since to look would be to wait for the GPU: the patches are then none that
    /// exist, and the loss is NaN.
    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (batch, sizes) = self.base.sizes(layout, 0)?;
        if self.top_k > sizes.patches {
            bail!("{}: {} queries of {} patches", self.name(), self.top_k, sizes.patches);
        }
        let device = storage.device();
        let plan = self
            .base
            .plan(batch, &sizes, gpu::values(self.name(), storage, layout)?);
        let index = gpu::Output::indices(device, batch * self.top_k)?;
        gpu::launch(device, &plans::rank_queries(&plan, index.address(device), self.top_k))?;
        index.tensor(device, (batch, self.top_k))
    }
}

/// The logits of the class token and the patches picked.
struct PickedLogits(Base);

impl CustomOp2 for PickedLogits {
    fn name(&self) -> &'static str {
        "base_relation"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let top_k = l2.shape().dims2()?.1;
        let (batch, sizes) = self.0.sizes(l1, top_k)?;
        let (qkv, index) = (floats(self.name(), s1, l1)?, indices(self.name(), s2, l2)?);
        let mut out = vec![0.0; batch * sizes.logits()];
        out.par_chunks_mut(sizes.logits())
            .zip(qkv.par_chunks((self.0.prefix + sizes.patches) * 3 * sizes.width))
            .enumerate()
            .try_for_each(|(image, (out, qkv))| {
                // Not by chunks, of which there are none where nothing but the class token is asked for.
                let index = &index[image * top_k..(image + 1) * top_k];
                self.0.logits(&sizes, qkv, index, out)
            })?;
        tensor(out, (batch, sizes.queries, sizes.heads, sizes.patches))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let top_k = l2.shape().dims2()?.1;
        let (batch, sizes) = self.0.sizes(l1, top_k)?;
        let device = s1.device();
        let plan = self.0.plan(batch, &sizes, gpu::values(self.name(), s1, l1)?);
        let index = gpu::indices(self.name(), s2, l2)?;
        let out = gpu::Output::floats(device, batch * sizes.logits())?;
        gpu::launch(device, &plans::picked_logits(&plan, index, out.address(device), top_k))?;
        out.tensor(device, (batch, sizes.queries, sizes.heads, sizes.patches))
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

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        if !(self.tau > 0.0 && self.tau.is_finite()) {
            bail!("{}: the temperature {} is not above 0", self.name(), self.tau);
        }
        let (device, n) = (storage.device(), layout.shape().elem_count());
        let patches = layout.dims().last().copied().unwrap_or(1).max(1);
        let picked = gpu::floats(self.name(), storage, layout)?;
        let out = gpu::Output::floats(device, n)?;
        let plan = plans::tempered_target(picked, out.address(device), n / patches, patches, self.tau);
        gpu::launch(device, &plan)?;
        out.tensor(device, layout.shape())
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

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let sizes = layout.shape().dims3()?;
        if sizes.1 < 2 {
            bail!("{}: {} patches have no variance", self.name(), sizes.1);
        }
        let device = storage.device();
        let features = gpu::floats(self.name(), storage, layout)?;
        let out = gpu::Output::floats(device, layout.shape().elem_count())?;
        let plan = plans::normalize_features(features, out.address(device), sizes.into());
        gpu::launch(device, &plan)?;
        out.tensor(device, layout.shape())
    }
}
