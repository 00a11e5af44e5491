//! Multi-head attention, straight out of and into the projections' layouts.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, backend::BackendStorage, bail,
};
use rayon::prelude::*;

use super::cpu::{factor, refused, round, tensor, tensor_of};
use super::gemm::{Matrix, MatrixMut};
#[cfg(feature = "cuda")]
use super::gpu;
use super::{Amp, simd};
#[cfg(feature = "cuda")]
use crate::cuda::{
    Float,
    attention::{self as plans, MAX_HEAD_WIDTH, Projections},
};

/// Multi-head self-attention, `softmax(q k^T / sqrt(D / heads)) v`: `qkv` `[B, N, 3 D]` in the layout `[3][heads][D / heads]`
/// gives `[B, N, D]` with the heads joined, in the type of `qkv`, f32 or bf16. The gradient recomputes the probabilities instead
/// of keeping them.
///
/// With mixed precision, and where `qkv` is bf16, the products' factors are rounded to bf16; sums and softmax are f32.
///
/// # Errors
/// A width that is not 3 times a multiple of `heads`.
pub fn attention(qkv: &Tensor, heads: usize, amp: Amp) -> crate::Result<Tensor> {
    Ok(qkv.contiguous()?.apply_op1(Attention { heads, amp })?)
}

/// Attention of some queries only: f32 `q` `[B, R, D]` over keys and values `kv` `[B, N, 2 D]` gives `[B, R, D]`; else as
/// [`attention`]. Differentiable in both.
///
/// # Errors
/// Shapes that do not fit each other, a width that is not a multiple of `heads`.
pub fn attention_of(q: &Tensor, kv: &Tensor, heads: usize, amp: Amp) -> crate::Result<Tensor> {
    Ok(q.contiguous()?
        .apply_op2(&kv.contiguous()?, AttentionOf { heads, amp })?)
}

/// The gradient of `qkv` in [`attention`], from that of its result, both of one type.
pub fn gradient(qkv: &Tensor, grad: &Tensor, heads: usize, amp: Amp) -> Result<Tensor> {
    qkv.apply_op2_no_bwd(grad, &AttentionGradient { heads, amp })
}

/// The sizes of the attention of one image.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    queries: usize,
    tokens: usize,
    /// The width D of all heads together.
    width: usize,
    /// The width of one head.
    head: usize,
    scale: f32,
    /// Of the products.
    amp: Amp,
}

impl Sizes {
    fn new(queries: usize, tokens: usize, width: usize, heads: usize, amp: Amp) -> Result<Self> {
        if heads == 0 || width == 0 || queries == 0 || tokens == 0 || !width.is_multiple_of(heads) {
            bail!("attention: {queries} queries and {tokens} tokens of width {width} are nothing for {heads} heads");
        }
        let head = width / heads;
        Ok(Self {
            queries,
            tokens,
            width,
            head,
            scale: (1.0 / (head as f64).sqrt()) as f32,
            amp,
        })
    }

    /// Images and sizes from joined queries, keys and values `[B, N, 3 D]`.
    fn joined(qkv: &Layout, heads: usize, amp: Amp) -> Result<(usize, Self)> {
        let (batch, tokens, width) = qkv.shape().dims3()?;
        if width % 3 != 0 {
            bail!("attention: a width of {width} does not hold queries, keys and values");
        }
        Ok((batch, Self::new(tokens, tokens, width / 3, heads, amp)?))
    }

    /// Images and sizes from queries `[B, R, D]` and keys and values `[B, N, 2 D]`.
    fn apart(q: &Layout, kv: &Layout, heads: usize, amp: Amp) -> Result<(usize, Self)> {
        let ((batch, queries, width), (batches, tokens, double)) = (q.shape().dims3()?, kv.shape().dims3()?);
        if batch != batches || double != 2 * width {
            bail!(
                "attention: queries {:?} do not fit keys and values {:?}",
                q.dims(),
                kv.dims()
            );
        }
        Ok((batch, Self::new(queries, tokens, width, heads, amp)?))
    }

    /// What launches of the attention kernels take, for values stored as `dtype` says.
    #[cfg(feature = "cuda")]
    fn plan(&self, batch: usize, dtype: Float) -> Result<plans::Attention> {
        if self.head > MAX_HEAD_WIDTH {
            bail!(
                "attention: heads {} wide are wider than {MAX_HEAD_WIDTH}, the GPU's kernels' limit",
                self.head
            );
        }
        Ok(plans::Attention {
            dtype,
            compute: self.amp.float(),
            batch,
            heads: self.width / self.head,
            queries: self.queries,
            tokens: self.tokens,
            head_width: self.head,
        })
    }

    /// One value for each pair of query and token.
    fn square(&self) -> Vec<f32> {
        vec![0.0; self.queries * self.tokens]
    }

    fn pairs<'a>(&self, values: &'a [f32]) -> Result<Matrix<'a>> {
        Matrix::new(values, self.queries, self.tokens, self.tokens)
    }

    fn pairs_mut<'a>(&self, values: &'a mut [f32]) -> Result<MatrixMut<'a>> {
        MatrixMut::new(values, self.queries, self.tokens, self.tokens)
    }

    /// Makes values that were computed the factor of a product.
    fn as_factor(&self, values: &mut [f32]) {
        if self.amp == Amp::Bf16 {
            round(values);
        }
    }

    /// The probabilities of one head; `scores` is scratch.
    fn probabilities(&self, q: Matrix, k: Matrix, scores: &mut [f32], probabilities: &mut [f32]) -> Result<()> {
        self.pairs_mut(scores)?.set_product(1.0, q, k.t())?;
        simd::softmax_rows(scores, self.tokens, self.scale, probabilities).map_err(refused)
    }

    /// The result `[R, D]` of one image.
    fn forward(&self, input: Input, scores: &mut [f32], probabilities: &mut [f32], out: &mut [f32]) -> Result<()> {
        for start in (0..self.width).step_by(self.head) {
            let [q, k, v] = input.head(self, start)?;
            self.probabilities(q, k, scores, probabilities)?;
            self.as_factor(probabilities);
            MatrixMut::new(&mut out[start..], self.queries, self.head, self.width)?.set_product(
                1.0,
                self.pairs(probabilities)?,
                v,
            )?;
        }
        Ok(())
    }

    /// The gradients of one image's queries, keys and values.
    fn backward(&self, input: Input, grad: &[f32], scratch: &mut [Vec<f32>; 3], mut out: Gradients) -> Result<()> {
        let [scores, probabilities, grad_probabilities] = scratch;
        for start in (0..self.width).step_by(self.head) {
            let [q, k, v] = input.head(self, start)?;
            let grad = Matrix::new(&grad[start..], self.queries, self.head, self.width)?;
            self.probabilities(q, k, scores, probabilities)?;
            self.pairs_mut(grad_probabilities)?.set_product(1.0, grad, v.t())?;
            let grad_scores = &mut *scores;
            simd::softmax_backward_rows(probabilities, grad_probabilities, self.tokens, self.scale, grad_scores)
                .map_err(refused)?;
            self.as_factor(grad_scores);
            self.as_factor(probabilities);
            let products = [
                (self.queries, self.pairs(grad_scores)?, k),
                (self.tokens, self.pairs(grad_scores)?.t(), q),
                (self.tokens, self.pairs(probabilities)?.t(), grad),
            ];
            for (part, (rows, pairs, tokens)) in products.into_iter().enumerate() {
                let (out, stride) = out.part(self, part);
                MatrixMut::new(&mut out[start..], rows, self.head, stride)?.set_product(1.0, pairs, tokens)?;
            }
        }
        Ok(())
    }
}

/// One image's queries, keys and values, where they lie.
#[derive(Debug, Clone, Copy)]
enum Input<'a> {
    /// `[N, 3 D]`
    Joined(&'a [f32]),
    /// `[R, D]` and `[N, 2 D]`
    Apart(&'a [f32], &'a [f32]),
}

impl<'a> Input<'a> {
    /// Queries `[R, head]`, keys and values `[N, head]` of the head that begins at channel `start`.
    fn head(self, sizes: &Sizes, start: usize) -> Result<[Matrix<'a>; 3]> {
        let (width, head) = (sizes.width, sizes.head);
        let (q, q_stride, kv, stride) = match self {
            Self::Joined(qkv) => (qkv, 3 * width, &qkv[width..], 3 * width),
            Self::Apart(q, kv) => (q, width, kv, 2 * width),
        };
        Ok([
            Matrix::new(&q[start..], sizes.queries, head, q_stride)?,
            Matrix::new(&kv[start..], sizes.tokens, head, stride)?,
            Matrix::new(&kv[width + start..], sizes.tokens, head, stride)?,
        ])
    }
}

/// Where one image's gradients go, in the layouts of [`Input`].
enum Gradients<'a> {
    Joined(&'a mut [f32]),
    Apart(&'a mut [f32], &'a mut [f32]),
}

impl Gradients<'_> {
    /// The place of the queries' (0), keys' (1) or values' (2) gradients and the elements from one token's to the next.
    fn part(&mut self, sizes: &Sizes, part: usize) -> (&mut [f32], usize) {
        let width = sizes.width;
        match self {
            Self::Joined(qkv) => (&mut qkv[part * width..], 3 * width),
            Self::Apart(q, _) if part == 0 => (q, width),
            Self::Apart(_, kv) => (&mut kv[(part - 1) * width..], 2 * width),
        }
    }
}

struct Attention {
    heads: usize,
    amp: Amp,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, sizes) = Sizes::joined(layout, self.heads, self.amp.of(storage.dtype()))?;
        let qkv = factor(self.name(), storage, layout, sizes.amp)?;
        let image = sizes.tokens * sizes.width;
        let mut out = vec![0.0; batch * image];
        out.par_chunks_mut(image)
            .zip(qkv.par_chunks(3 * image))
            .try_for_each_init(
                || (sizes.square(), sizes.square()),
                |(scores, probabilities), (out, qkv)| sizes.forward(Input::Joined(qkv), scores, probabilities, out),
            )?;
        tensor_of(storage.dtype(), out, (batch, sizes.tokens, sizes.width))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (batch, sizes) = Sizes::joined(layout, self.heads, self.amp.of(storage.dtype()))?;
        let (float, qkv) = gpu::values(self.name(), storage, layout)?;
        let device = storage.device();
        let out = gpu::Output::new(device, float, batch * sizes.tokens * sizes.width)?;
        let plan = sizes.plan(batch, float)?;
        gpu::launch(
            device,
            &plans::attention(&plan, Projections::Joined(qkv), out.address(device)),
        )?;
        out.tensor(device, (batch, sizes.tokens, sizes.width))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        gradient(qkv, &grad.contiguous()?, self.heads, self.amp).map(Some)
    }
}

struct AttentionGradient {
    heads: usize,
    amp: Amp,
}

impl CustomOp2 for AttentionGradient {
    fn name(&self) -> &'static str {
        "attention gradient"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, sizes) = Sizes::joined(l1, self.heads, self.amp.of(s1.dtype()))?;
        let (qkv, grad) = (
            factor(self.name(), s1, l1, sizes.amp)?,
            factor(self.name(), s2, l2, sizes.amp)?,
        );
        let image = sizes.tokens * sizes.width;
        let mut grad_qkv = vec![0.0; 3 * batch * image];
        grad_qkv
            .par_chunks_mut(3 * image)
            .zip(qkv.par_chunks(3 * image).zip(grad.par_chunks(image)))
            .try_for_each_init(
                || [sizes.square(), sizes.square(), sizes.square()],
                |scratch, (grad_qkv, (qkv, grad))| {
                    sizes.backward(Input::Joined(qkv), grad, scratch, Gradients::Joined(grad_qkv))
                },
            )?;
        tensor_of(s1.dtype(), grad_qkv, l1.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let (batch, sizes) = Sizes::joined(l1, self.heads, self.amp.of(s1.dtype()))?;
        let ((float, qkv), (of_grad, grad)) = (gpu::values(self.name(), s1, l1)?, gpu::values(self.name(), s2, l2)?);
        if float != of_grad || l2.dims() != [batch, sizes.tokens, sizes.width] {
            bail!(
                "{}: {:?} {of_grad:?} is no gradient for {:?} {float:?}",
                self.name(),
                l2.dims(),
                l1.dims()
            );
        }
        let (device, plan) = (s1.device(), sizes.plan(batch, float)?);
        let grad_qkv = gpu::Output::new(device, float, l1.shape().elem_count())?;
        let scratch = gpu::Output::floats(device, plans::attention_gradient_scratch(&plan))?;
        let into = Projections::Joined(grad_qkv.address(device));
        let plans = plans::attention_gradient(&plan, Projections::Joined(qkv), grad, into, scratch.address(device));
        plans.iter().try_for_each(|plan| gpu::launch(device, plan))?;
        grad_qkv.tensor(device, l1.shape())
    }
}

#[derive(Clone, Copy)]
struct AttentionOf {
    heads: usize,
    amp: Amp,
}

impl CustomOp2 for AttentionOf {
    fn name(&self) -> &'static str {
        "attention_of"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, sizes) = Sizes::apart(l1, l2, self.heads, self.amp)?;
        let (q, kv) = (
            factor(self.name(), s1, l1, sizes.amp)?,
            factor(self.name(), s2, l2, sizes.amp)?,
        );
        let (rows, image) = (sizes.queries * sizes.width, 2 * sizes.tokens * sizes.width);
        let mut out = vec![0.0; batch * rows];
        out.par_chunks_mut(rows)
            .zip(q.par_chunks(rows).zip(kv.par_chunks(image)))
            .try_for_each_init(
                || (sizes.square(), sizes.square()),
                |(scores, probabilities), (out, (q, kv))| {
                    sizes.forward(Input::Apart(q, kv), scores, probabilities, out)
                },
            )?;
        tensor(out, (batch, sizes.queries, sizes.width))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let (batch, sizes) = Sizes::apart(l1, l2, self.heads, self.amp)?;
        let (q, kv) = (gpu::floats(self.name(), s1, l1)?, gpu::floats(self.name(), s2, l2)?);
        let (device, plan) = (s1.device(), sizes.plan(batch, Float::F32)?);
        let out = gpu::Output::floats(device, batch * sizes.queries * sizes.width)?;
        let inputs = Projections::Apart { q, kv };
        gpu::launch(device, &plans::attention(&plan, inputs, out.address(device)))?;
        out.tensor(device, (batch, sizes.queries, sizes.width))
    }

    fn bwd(&self, q: &Tensor, kv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grads = q.apply_op3_no_bwd(kv, &grad.contiguous()?, &AttentionOfGradient(*self))?;
        let (queries, others) = (q.elem_count(), kv.elem_count());
        Ok((
            Some(grads.narrow(0, 0, queries)?.reshape(q.shape())?),
            Some(grads.narrow(0, queries, others)?.reshape(kv.shape())?),
        ))
    }
}

/// The gradients of `q` and `kv`, one after the other in one tensor, from (`q`, `kv`, gradient of the result).
struct AttentionOfGradient(AttentionOf);

impl CustomOp3 for AttentionOfGradient {
    fn name(&self) -> &'static str {
        "attention_of gradient"
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
        let (_, sizes) = Sizes::apart(l1, l2, self.0.heads, self.0.amp)?;
        let (q, kv) = (
            factor(self.name(), s1, l1, sizes.amp)?,
            factor(self.name(), s2, l2, sizes.amp)?,
        );
        let grad = factor(self.name(), s3, l3, sizes.amp)?;
        let (rows, image) = (sizes.queries * sizes.width, 2 * sizes.tokens * sizes.width);
        let mut grads = vec![0.0; q.len() + kv.len()];
        let (grad_q, grad_kv) = grads.split_at_mut(q.len());
        grad_q
            .par_chunks_mut(rows)
            .zip(grad_kv.par_chunks_mut(image))
            .zip(q.par_chunks(rows).zip(kv.par_chunks(image)))
            .zip(grad.par_chunks(rows))
            .try_for_each_init(
                || [sizes.square(), sizes.square(), sizes.square()],
                |scratch, (((grad_q, grad_kv), (q, kv)), grad)| {
                    sizes.backward(Input::Apart(q, kv), grad, scratch, Gradients::Apart(grad_q, grad_kv))
                },
            )?;
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
        let (batch, sizes) = Sizes::apart(l1, l2, self.0.heads, self.0.amp)?;
        let (q, kv) = (gpu::floats(self.name(), s1, l1)?, gpu::floats(self.name(), s2, l2)?);
        let grad = gpu::floats(self.name(), s3, l3)?;
        let (device, plan) = (s1.device(), sizes.plan(batch, Float::F32)?);
        let (queries, others) = (l1.shape().elem_count(), l2.shape().elem_count());
        let grads = gpu::Output::floats(device, queries + others)?;
        let scratch = gpu::Output::floats(device, plans::attention_gradient_scratch(&plan))?;
        let to = grads.address(device);
        let into = Projections::Apart {
            q: to,
            kv: to + 4 * queries as u64,
        };
        let inputs = Projections::Apart { q, kv };
        let plans = plans::attention_gradient(&plan, inputs, grad, into, scratch.address(device));
        plans.iter().try_for_each(|plan| gpu::launch(device, plan))?;
        grads.tensor(device, queries + others)
    }
}
