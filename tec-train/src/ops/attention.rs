//! Multi-head self-attention, straight out of and into the projections' layouts.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{floats, refused, tensor};
use super::gemm::{Matrix, MatrixMut, Threads::One};
use super::simd;

/// Multi-head self-attention, `softmax(q k^T / sqrt(D / heads)) v`: `qkv` `[B, N, 3 D]` in the layout `[3][heads][D / heads]`
/// gives `[B, N, D]` with the heads joined. The gradient recomputes the probabilities instead of keeping them.
///
/// # Errors
/// A width that is not 3 times a multiple of `heads`.
pub fn attention(qkv: &Tensor, heads: usize) -> crate::Result<Tensor> {
    Ok(qkv.contiguous()?.apply_op1(Attention { heads })?)
}

struct Attention {
    heads: usize,
}

/// The sizes of one attention.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    tokens: usize,
    /// The width D of all heads together.
    width: usize,
    /// The width of one head.
    head: usize,
    scale: f32,
}

impl Sizes {
    fn new(qkv: &Layout, heads: usize) -> Result<Self> {
        let (batch, tokens, width) = qkv.shape().dims3()?;
        if heads == 0 || width == 0 || tokens == 0 || width % (3 * heads) != 0 {
            bail!("attention: [{batch}, {tokens}, {width}] does not hold queries, keys and values of {heads} heads");
        }
        let head = width / 3 / heads;
        let scale = (1.0 / (head as f64).sqrt()) as f32;
        Ok(Self {
            batch,
            tokens,
            width: width / 3,
            head,
            scale,
        })
    }

    /// The queries, keys and values `[N, head]` of one head in an image's qkv.
    fn parts<'a>(&self, qkv: &'a [f32], start: usize) -> Result<[Matrix<'a>; 3]> {
        let part = |part| {
            Matrix::new(
                &qkv[part * self.width + start..],
                self.tokens,
                self.head,
                3 * self.width,
            )
        };
        Ok([part(0)?, part(1)?, part(2)?])
    }

    /// A square of one value for each pair of tokens.
    fn square(&self) -> Vec<f32> {
        vec![0.0; self.tokens * self.tokens]
    }

    fn pairs<'a>(&self, values: &'a [f32]) -> Result<Matrix<'a>> {
        Matrix::new(values, self.tokens, self.tokens, self.tokens)
    }

    fn pairs_mut<'a>(&self, values: &'a mut [f32]) -> Result<MatrixMut<'a>> {
        MatrixMut::new(values, self.tokens, self.tokens, self.tokens)
    }

    /// The probabilities of one head; `scores` is scratch.
    fn probabilities(&self, q: Matrix, k: Matrix, scores: &mut [f32], probabilities: &mut [f32]) -> Result<()> {
        self.pairs_mut(scores)?.set_product(1.0, q, k.t(), One)?;
        simd::softmax_rows(scores, self.tokens, self.scale, probabilities).map_err(refused)
    }

    /// The result `[N, D]` of one image.
    fn forward(&self, qkv: &[f32], scores: &mut [f32], probabilities: &mut [f32], out: &mut [f32]) -> Result<()> {
        for start in (0..self.width).step_by(self.head) {
            let [q, k, v] = self.parts(qkv, start)?;
            self.probabilities(q, k, scores, probabilities)?;
            MatrixMut::new(&mut out[start..], self.tokens, self.head, self.width)?.set_product(
                1.0,
                self.pairs(probabilities)?,
                v,
                One,
            )?;
        }
        Ok(())
    }

    /// The gradient `[N, 3 D]` of one image's qkv.
    fn backward(&self, qkv: &[f32], grad: &[f32], scratch: &mut [Vec<f32>; 3], grad_qkv: &mut [f32]) -> Result<()> {
        let [scores, probabilities, grad_probabilities] = scratch;
        for start in (0..self.width).step_by(self.head) {
            let [q, k, v] = self.parts(qkv, start)?;
            let grad = Matrix::new(&grad[start..], self.tokens, self.head, self.width)?;
            self.probabilities(q, k, scores, probabilities)?;
            self.pairs_mut(grad_probabilities)?.set_product(1.0, grad, v.t(), One)?;
            let grad_scores = &mut *scores;
            simd::softmax_backward_rows(probabilities, grad_probabilities, self.tokens, self.scale, grad_scores)
                .map_err(refused)?;
            let products = [
                (self.pairs(grad_scores)?, k),
                (self.pairs(grad_scores)?.t(), q),
                (self.pairs(probabilities)?.t(), grad),
            ];
            for (part, (pairs, tokens)) in products.into_iter().enumerate() {
                let out = &mut grad_qkv[part * self.width + start..];
                MatrixMut::new(out, self.tokens, self.head, 3 * self.width)?.set_product(1.0, pairs, tokens, One)?;
            }
        }
        Ok(())
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(layout, self.heads)?;
        let qkv = floats(self.name(), storage, layout)?;
        let image = sizes.tokens * sizes.width;
        let mut out = vec![0.0; sizes.batch * image];
        out.par_chunks_mut(image)
            .zip(qkv.par_chunks(3 * image))
            .try_for_each_init(
                || (sizes.square(), sizes.square()),
                |(scores, probabilities), (out, qkv)| sizes.forward(qkv, scores, probabilities, out),
            )?;
        tensor(out, (sizes.batch, sizes.tokens, sizes.width))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        qkv.apply_op2_no_bwd(&grad.contiguous()?, &AttentionGradient { heads: self.heads })
            .map(Some)
    }
}

struct AttentionGradient {
    heads: usize,
}

impl CustomOp2 for AttentionGradient {
    fn name(&self) -> &'static str {
        "attention gradient"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(l1, self.heads)?;
        let (qkv, grad) = (floats(self.name(), s1, l1)?, floats(self.name(), s2, l2)?);
        let image = sizes.tokens * sizes.width;
        let mut grad_qkv = vec![0.0; 3 * sizes.batch * image];
        grad_qkv
            .par_chunks_mut(3 * image)
            .zip(qkv.par_chunks(3 * image).zip(grad.par_chunks(image)))
            .try_for_each_init(
                || [sizes.square(), sizes.square(), sizes.square()],
                |scratch, (grad_qkv, (qkv, grad))| sizes.backward(qkv, grad, scratch, grad_qkv),
            )?;
        tensor(grad_qkv, l1.shape())
    }
}
