//! From the last block's tokens to what is put out: the final norm, the mean, the classification head.

use bytemuck::Zeroable;
use tec_core::integer::{norm_affine, reciprocal, round_shift, saturate_i8, saturate_i16};

use crate::encoder::{Encoder, Output};
use crate::format::{Header, Pool, Precision, Section};
use crate::kernel::Kernel;
use crate::layers::{Linear, Norm, stride};
use crate::panel::{PANEL, QUAD};
use crate::plan::Rest;
use crate::views::{I32s, part_mut};

/// Writes the outputs that are wanted; `tokens` has the class token first. `None` where the memory does not suffice.
#[cfg_attr(target_arch = "x86_64", inline(always))]
pub(crate) fn write<K: Kernel>(
    encoder: &Encoder<'_>,
    kernel: K,
    tokens: &[i16],
    memory: &mut [u8],
    out: Output<'_>,
) -> Option<()> {
    let header = encoder.header();
    let dim = header.geometry.dim.max(1);
    let (class, patches) = tokens.split_at_checked(dim)?;
    let last = Last { encoder, header };
    let mut memory = Rest(memory);
    let Output {
        class: class_out,
        mut mean,
        patches: patches_out,
        logits,
    } = out;
    if let Some(out) = class_out {
        last.token(class, header.class_bits, out);
    }
    if let Some(out) = patches_out {
        for (token, out) in patches.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
            last.token(token, header.patch_bits, out);
        }
    }
    if let Some(out) = &mut mean {
        last.mean(patches, &mut memory, out)?;
    }
    if let Some(out) = logits {
        let mut memory = memory;
        let pooled = memory.take::<i16>(dim)?;
        match (header.pool, mean) {
            (Pool::Class, _) => last.token(class, header.class_bits, pooled),
            (Pool::Mean, Some(mean)) => mean.iter().zip(&mut *pooled).for_each(|(&from, to)| *to = from),
            (Pool::Mean, None) => last.mean(patches, &mut memory, pooled)?,
        }
        last.logits(kernel, pooled, memory, out)?;
    }
    Some(())
}

struct Last<'e, 'a> {
    encoder: &'e Encoder<'a>,
    header: &'e Header,
}

impl<'a> Last<'_, 'a> {
    fn section(&self, section: Section) -> &'a [u8] {
        self.encoder.file().outside(section)
    }

    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn norm(&self) -> Norm<'a> {
        Norm {
            multiplier: I32s(self.section(Section::NormMultiplier)),
            offset: I32s(self.section(Section::NormOffset)),
            bits: self.header.norm_bits.into(),
            epsilon: self.header.epsilon,
        }
    }

    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn normalized(&self, token: &[i16], bits: i8, out: &mut [i16]) {
        let norm = self.norm();
        norm.output(token, norm.bits.saturating_add_signed(-i32::from(bits)), out);
    }

    /// A class or patch token.
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn token(&self, token: &[i16], bits: i8, out: &mut [i16]) {
        match self.header.fc_norm {
            true => out.iter_mut().zip(token).for_each(|(slot, &value)| *slot = value),
            false => self.normalized(token, bits, out),
        }
    }

    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn mean(&self, patches: &[i16], memory: &mut Rest<'_>, out: &mut [i16]) -> Option<()> {
        let dim = self.header.geometry.dim.max(1);
        let mut memory = Rest(memory.0);
        let sums = memory.take::<i32>(dim)?;
        let mean = memory.take::<i16>(dim)?;
        sums.fill(0);
        let rows = patches.chunks_exact(dim);
        let count = rows.len();
        for row in rows {
            self.token(row, self.header.patch_bits, mean);
            let values = sums.iter_mut().zip(&*mean);
            values.for_each(|(sum, &value)| *sum = sum.wrapping_add(value.into()));
        }
        let inverse = reciprocal(u32::try_from(count).ok()?);
        let shift = self.header.mean_shift(count)?;
        for (slot, &sum) in mean.iter_mut().zip(&*sums) {
            *slot = saturate_i16(round_shift(i64::from(sum).wrapping_mul(inverse.mantissa), shift));
        }
        match self.header.fc_norm {
            true => self.normalized(mean, self.header.mean_bits, out),
            false => out.iter_mut().zip(&*mean).for_each(|(slot, &value)| *slot = value),
        }
        Some(())
    }

    /// The head's outputs for an embedding.
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn logits<K: Kernel>(&self, kernel: K, embedding: &[i16], memory: Rest<'_>, out: &mut [i16]) -> Option<()> {
        let mut memory = memory;
        let head = self.header.head?;
        let dim = self.header.geometry.dim;
        let factors = memory.take::<K::Factor>(stride::<K>(dim))?;
        part_mut(factors, dim / QUAD * QUAD, QUAD).fill(K::Factor::zeroed());
        let multipliers = I32s(self.section(Section::HeadNormMultiplier));
        let offsets = I32s(self.section(Section::HeadNormOffset));
        let bits = u32::from(head.norm_bits);
        let constants = multipliers.iter().zip(offsets.iter());
        for (input, (&value, (multiplier, offset))) in embedding.iter().zip(constants).enumerate() {
            let value = round_shift(norm_affine(value.into(), multiplier, offset, bits), bits);
            if let Some(slot) = factors.get_mut(kernel.at(input)) {
                *slot = kernel.factor(saturate_i8(value));
            }
        }
        kernel.finish(factors);
        let layer = Linear {
            weight: self.section(Section::HeadWeight),
            precision: Precision::Int8,
            inner: dim,
            bias: I32s(self.section(Section::HeadBias)),
            multiplier: I32s(self.section(Section::HeadMultiplier)),
            shift: head.shift.into(),
        };
        layer.apply(
            kernel,
            factors,
            1,
            0..head.classes.div_ceil(PANEL),
            &mut [],
            |_, class, values| {
                let values = values.iter().flatten();
                part_mut(out, class, PANEL)
                    .iter_mut()
                    .zip(values)
                    .for_each(|(slot, &value)| *slot = value);
            },
        );
        Some(())
    }
}
