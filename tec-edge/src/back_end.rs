//! Which kernel computes: chosen at run time, the best that the processor has.

use crate::Error;
use crate::encoder::{Encoder, Image, Options, Output};
#[cfg(all(feature = "simd", tec_dsp))]
use crate::kernel::Dsp;
use crate::kernel::Kernel;
#[cfg(not(all(feature = "simd", tec_dsp)))]
use crate::kernel::Scalar;
#[cfg(all(feature = "simd", tec_neon))]
use crate::kernel::aarch64::{Dotprod, Neon};
#[cfg(all(feature = "simd", target_arch = "wasm32", target_feature = "simd128"))]
use crate::kernel::wasm::Simd128;
#[cfg(all(feature = "simd", target_arch = "x86_64"))]
use crate::kernel::x86::{Avx2, Avx512, AvxVnni};
use crate::layers::{self, Linear, Norm};
use crate::plan::Plan;
use crate::run::Run;
#[cfg(not(feature = "std"))]
use crate::team::Alone as Threads;
#[cfg(feature = "std")]
use crate::team::Rayon as Threads;
use crate::trace::Trace;

/// A way to compute. All give the same bits.
#[derive(Debug, Clone, Copy)]
pub struct BackEnd(Which);

// Where DSP instructions are certain, the scalar code would only take flash.
#[derive(Debug, Clone, Copy)]
enum Which {
    #[cfg(not(all(feature = "simd", tec_dsp)))]
    Scalar,
    #[cfg(all(feature = "simd", target_arch = "x86_64"))]
    Avx512(Avx512),
    #[cfg(all(feature = "simd", target_arch = "x86_64"))]
    AvxVnni(AvxVnni),
    #[cfg(all(feature = "simd", target_arch = "x86_64"))]
    Avx2(Avx2),
    #[cfg(all(feature = "simd", tec_neon))]
    Dotprod(Dotprod),
    #[cfg(all(feature = "simd", tec_neon))]
    Neon(Neon),
    #[cfg(all(feature = "simd", target_arch = "wasm32", target_feature = "simd128"))]
    Simd128(Simd128),
    #[cfg(all(feature = "simd", tec_dsp))]
    Dsp(Dsp),
}

/// Does something with the kernel of a back end.
macro_rules! with_kernel {
    ($back_end:expr, $kernel:ident => $do:expr) => {
        match $back_end.0 {
            #[cfg(not(all(feature = "simd", tec_dsp)))]
            Which::Scalar => {
                let $kernel = Scalar;
                $do
            }
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::Avx512($kernel) => $do,
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::AvxVnni($kernel) => $do,
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::Avx2($kernel) => $do,
            #[cfg(all(feature = "simd", tec_neon))]
            Which::Dotprod($kernel) => $do,
            #[cfg(all(feature = "simd", tec_neon))]
            Which::Neon($kernel) => $do,
            #[cfg(all(feature = "simd", target_arch = "wasm32", target_feature = "simd128"))]
            Which::Simd128($kernel) => $do,
            #[cfg(all(feature = "simd", tec_dsp))]
            Which::Dsp($kernel) => $do,
        }
    };
}

impl BackEnd {
    /// Plain Rust, on every processor; left out of programs for processors whose DSP instructions are certain.
    #[cfg(not(all(feature = "simd", tec_dsp)))]
    pub const SCALAR: Self = Self(Which::Scalar);

    /// Those that this processor can execute, the best first.
    pub fn all() -> impl Iterator<Item = Self> {
        let all = [
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Avx512::new().map(Which::Avx512),
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            AvxVnni::new().map(Which::AvxVnni),
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Avx2::new().map(Which::Avx2),
            #[cfg(all(feature = "simd", tec_neon))]
            Dotprod::new().map(Which::Dotprod),
            #[cfg(all(feature = "simd", tec_neon))]
            Some(Which::Neon(Neon)),
            #[cfg(all(feature = "simd", target_arch = "wasm32", target_feature = "simd128"))]
            Some(Which::Simd128(Simd128)),
            #[cfg(all(feature = "simd", tec_dsp))]
            Some(Which::Dsp(Dsp)),
            #[cfg(not(all(feature = "simd", tec_dsp)))]
            Some(Which::Scalar),
        ];
        all.into_iter().flatten().map(Self)
    }

    /// The best that this processor can execute.
    pub fn best() -> Self {
        #[cfg(not(all(feature = "simd", tec_dsp)))]
        let least = Self::SCALAR;
        #[cfg(all(feature = "simd", tec_dsp))]
        let least = Self(Which::Dsp(Dsp));
        Self::all().next().unwrap_or(least)
    }

    /// Its name: `scalar`, `avx2`, `avx-vnni`, `avx512-vnni`, `neon`, `neon-dotprod`, `wasm-simd128` or `dsp`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            #[cfg(not(all(feature = "simd", tec_dsp)))]
            Which::Scalar => "scalar",
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::Avx512(_) => "avx512-vnni",
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::AvxVnni(_) => "avx-vnni",
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::Avx2(_) => "avx2",
            #[cfg(all(feature = "simd", tec_neon))]
            Which::Dotprod(_) => "neon-dotprod",
            #[cfg(all(feature = "simd", tec_neon))]
            Which::Neon(_) => "neon",
            #[cfg(all(feature = "simd", target_arch = "wasm32", target_feature = "simd128"))]
            Which::Simd128(_) => "wasm-simd128",
            #[cfg(all(feature = "simd", tec_dsp))]
            Which::Dsp(_) => "dsp",
        }
    }

    /// Applies a layer to rows of activations, `[rows, inner]`, as an encoder does: `out` gets its outputs, limited to i16,
    /// `[rows, outputs]`. `memory` has [`Linear::memory`] bytes from a 16-byte boundary on.
    ///
    /// # Errors
    /// [`Error::Length`] where the memory does not suffice.
    pub fn linear(self, layer: &Linear<'_>, rows: &[i8], memory: &mut [u8], out: &mut [i16]) -> Result<(), Error> {
        with_kernel!(self, kernel => layers::linear(kernel, layer, rows, memory, out))
    }

    /// Normalizes a token, as an encoder does before its linear layers. `memory` has [`Norm::memory`] bytes from a 16-byte
    /// boundary on.
    ///
    /// # Errors
    /// [`Error::Length`] where the memory does not suffice.
    pub fn norm(self, norm: &Norm<'_>, token: &[i16], memory: &mut [u8], out: &mut [i8]) -> Result<(), Error> {
        with_kernel!(self, kernel => layers::normalize(kernel, norm, token, memory, out))
    }

    /// Softmax weights of a row of scores, `[tokens]`; returns their sum.
    pub fn softmax(self, scores: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
        with_kernel!(self, kernel => kernel.softmax(scores, multiplier, shift, weights))
    }

    /// The products of a row of softmax weights, as many as whole quads have, with values; the weights may change places: channels are the outputs of `values`, tokens
    /// the inputs ([`panel`](crate::panel)). `out` gets one sum for each channel.
    pub fn weighted(self, weights: &mut [i16], values: &[i8], out: &mut [i32]) {
        with_kernel!(self, kernel => layers::weighted(kernel, weights, values, out));
    }

    pub(crate) fn scratch_len(self, plan: &Plan, rows: usize) -> usize {
        with_kernel!(self, kernel => least(kernel, plan, rows))
    }

    pub(crate) fn encode(
        self,
        encoder: &Encoder<'_>,
        options: &Options<'_>,
        image: Image<'_>,
        scratch: &mut [u8],
        out: Output<'_>,
        trace: &mut impl Trace,
    ) -> Result<(), Error> {
        with_kernel!(self, kernel => run(encoder, kernel, options, image, scratch, out, trace))
    }
}

fn least<K: Kernel>(_: K, plan: &Plan, rows: usize) -> usize {
    plan.len::<K>(rows)
}

fn run<K: Kernel>(
    encoder: &Encoder<'_>,
    kernel: K,
    options: &Options<'_>,
    image: Image<'_>,
    scratch: &mut [u8],
    out: Output<'_>,
    trace: &mut impl Trace,
) -> Result<(), Error> {
    let run = Run {
        encoder,
        kernel,
        team: Threads,
        options: *options,
        image,
    };
    run.run(scratch, out, trace)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn every_kernel_computes_what_is_defined() {
        for back_end in BackEnd::all() {
            std::println!("{}", back_end.name());
            with_kernel!(back_end, kernel => crate::kernel::tests::check(kernel));
        }
    }
}
