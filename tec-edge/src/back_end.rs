//! Which kernel computes: chosen at run time, the best that the processor has.

use crate::Error;
use crate::encoder::{Encoder, Image, Options, Output};
#[cfg(all(feature = "simd", tec_dsp))]
use crate::kernel::Dsp;
#[cfg(all(feature = "simd", tec_mve))]
use crate::kernel::Helium;
#[cfg(not(tec_no_scalar))]
use crate::kernel::Scalar;
#[cfg(all(feature = "simd", tec_neon))]
use crate::kernel::aarch64::{Dotprod, I8mm, Neon, Vectors};
#[cfg(all(feature = "simd", target_arch = "wasm32", target_feature = "simd128"))]
use crate::kernel::wasm::Simd128;
#[cfg(tec_amx)]
use crate::kernel::x86::Amx;
#[cfg(all(feature = "simd", target_arch = "x86_64"))]
use crate::kernel::x86::{Avx2, Avx512, AvxVnni};
use crate::kernel::{Kernel, Needs};
use crate::layers::{self, Linear, Norm};
use crate::run::Run;
#[cfg(not(feature = "std"))]
use crate::team::Alone as Threads;
#[cfg(feature = "std")]
use crate::team::Rayon as Threads;
use crate::trace::Trace;

/// A way to compute. All give the same bits.
#[derive(Debug, Clone, Copy)]
pub struct BackEnd(Which);

// Where DSP instructions or Helium are certain, the scalar code would only take flash.
#[derive(Debug, Clone, Copy)]
enum Which {
    #[cfg(not(tec_no_scalar))]
    Scalar,
    #[cfg(tec_amx)]
    Amx(Amx),
    #[cfg(all(feature = "simd", target_arch = "x86_64"))]
    Avx512(Avx512),
    #[cfg(all(feature = "simd", target_arch = "x86_64"))]
    AvxVnni(AvxVnni),
    #[cfg(all(feature = "simd", target_arch = "x86_64"))]
    Avx2(Avx2),
    #[cfg(all(feature = "simd", tec_neon))]
    I8mm(Vectors<I8mm>),
    #[cfg(all(feature = "simd", tec_neon))]
    Dotprod(Vectors<Dotprod>),
    #[cfg(all(feature = "simd", tec_neon))]
    Neon(Vectors<Neon>),
    #[cfg(all(feature = "simd", target_arch = "wasm32", target_feature = "simd128"))]
    Simd128(Simd128),
    #[cfg(all(feature = "simd", tec_dsp))]
    Dsp(Dsp),
    #[cfg(all(feature = "simd", tec_mve))]
    Helium(Helium),
}

/// Does something with the kernel of a back end.
macro_rules! with_kernel {
    ($back_end:expr, $kernel:ident => $do:expr) => {
        match $back_end.0 {
            #[cfg(not(tec_no_scalar))]
            Which::Scalar => {
                let $kernel = Scalar;
                $do
            }
            #[cfg(tec_amx)]
            Which::Amx($kernel) => $do,
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::Avx512($kernel) => $do,
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::AvxVnni($kernel) => $do,
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::Avx2($kernel) => $do,
            #[cfg(all(feature = "simd", tec_neon))]
            Which::I8mm($kernel) => $do,
            #[cfg(all(feature = "simd", tec_neon))]
            Which::Dotprod($kernel) => $do,
            #[cfg(all(feature = "simd", tec_neon))]
            Which::Neon($kernel) => $do,
            #[cfg(all(feature = "simd", target_arch = "wasm32", target_feature = "simd128"))]
            Which::Simd128($kernel) => $do,
            #[cfg(all(feature = "simd", tec_dsp))]
            Which::Dsp($kernel) => $do,
            #[cfg(all(feature = "simd", tec_mve))]
            Which::Helium($kernel) => $do,
        }
    };
}

impl BackEnd {
    /// Plain Rust, on every processor; left out of programs for processors whose DSP instructions or Helium are certain.
    #[cfg(not(tec_no_scalar))]
    pub const SCALAR: Self = Self(Which::Scalar);

    /// Those that this processor can execute, the best first.
    pub fn all() -> impl Iterator<Item = Self> {
        let all = [
            #[cfg(tec_amx)]
            Amx::new().map(Which::Amx),
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Avx512::new().map(Which::Avx512),
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            AvxVnni::new().map(Which::AvxVnni),
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Avx2::new().map(Which::Avx2),
            #[cfg(all(feature = "simd", tec_neon))]
            I8mm::new().map(Vectors).map(Which::I8mm),
            #[cfg(all(feature = "simd", tec_neon))]
            Dotprod::new().map(Vectors).map(Which::Dotprod),
            #[cfg(all(feature = "simd", tec_neon))]
            Some(Which::Neon(Vectors(Neon))),
            #[cfg(all(feature = "simd", target_arch = "wasm32", target_feature = "simd128"))]
            Some(Which::Simd128(Simd128)),
            #[cfg(all(feature = "simd", tec_dsp))]
            Some(Which::Dsp(Dsp)),
            #[cfg(all(feature = "simd", tec_mve))]
            Some(Which::Helium(Helium)),
            #[cfg(not(tec_no_scalar))]
            Some(Which::Scalar),
        ];
        all.into_iter().flatten().map(Self)
    }

    /// The names of all that this program holds, the best first, whether this processor can execute them or not.
    pub const NAMES: &[&str] = &[
        #[cfg(tec_amx)]
        "amx",
        #[cfg(all(feature = "simd", target_arch = "x86_64"))]
        "avx512-vnni",
        #[cfg(all(feature = "simd", target_arch = "x86_64"))]
        "avx-vnni",
        #[cfg(all(feature = "simd", target_arch = "x86_64"))]
        "avx2",
        #[cfg(all(feature = "simd", tec_neon))]
        "neon-i8mm",
        #[cfg(all(feature = "simd", tec_neon))]
        "neon-dotprod",
        #[cfg(all(feature = "simd", tec_neon))]
        "neon",
        #[cfg(all(feature = "simd", target_arch = "wasm32", target_feature = "simd128"))]
        "wasm-simd128",
        #[cfg(all(feature = "simd", tec_mve))]
        "helium",
        #[cfg(all(feature = "simd", tec_dsp))]
        "dsp",
        #[cfg(not(tec_no_scalar))]
        "scalar",
    ];

    /// The names of all there are, for any processor.
    pub const ALL_NAMES: &[&str] = &crate::kernel::NAMES;

    /// The best that this processor can execute.
    pub fn best() -> Self {
        #[cfg(not(tec_no_scalar))]
        let least = Self::SCALAR;
        #[cfg(all(feature = "simd", tec_dsp))]
        let least = Self(Which::Dsp(Dsp));
        #[cfg(all(feature = "simd", tec_mve))]
        let least = Self(Which::Helium(Helium));
        Self::all().next().unwrap_or(least)
    }

    /// Its name: `scalar`, `avx2`, `avx-vnni`, `avx512-vnni`, `amx`, `neon`, `neon-dotprod`, `neon-i8mm`, `wasm-simd128`, `dsp` or
    /// `helium`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            #[cfg(not(tec_no_scalar))]
            Which::Scalar => "scalar",
            #[cfg(tec_amx)]
            Which::Amx(_) => "amx",
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::Avx512(_) => "avx512-vnni",
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::AvxVnni(_) => "avx-vnni",
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::Avx2(_) => "avx2",
            #[cfg(all(feature = "simd", tec_neon))]
            Which::I8mm(_) => "neon-i8mm",
            #[cfg(all(feature = "simd", tec_neon))]
            Which::Dotprod(_) => "neon-dotprod",
            #[cfg(all(feature = "simd", tec_neon))]
            Which::Neon(_) => "neon",
            #[cfg(all(feature = "simd", target_arch = "wasm32", target_feature = "simd128"))]
            Which::Simd128(_) => "wasm-simd128",
            #[cfg(all(feature = "simd", tec_dsp))]
            Which::Dsp(_) => "dsp",
            #[cfg(all(feature = "simd", tec_mve))]
            Which::Helium(_) => "helium",
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

    /// The products of rows of softmax weights, 0 to 4,095, `[rows, tokens]` with each row filled up to whole quads by zeros, with values, whose channels
    /// are the outputs and tokens the inputs ([`panel`](crate::panel)). `out` gets the sums, `[rows, channels]`. Weights may change places.
    pub fn weighted(self, weights: &mut [i16], tokens: usize, values: &[i8], out: &mut [i32]) {
        with_kernel!(self, kernel => layers::weighted(kernel, weights, tokens, values, out));
    }

    /// What it needs of the scratch memory.
    pub(crate) fn needs(self) -> Needs {
        with_kernel!(self, kernel => needs_of(kernel))
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

fn needs_of<K: Kernel>(_: K) -> Needs {
    K::NEEDS
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
    fn every_back_end_is_among_the_names() {
        let names = BackEnd::all().map(BackEnd::name);
        let mut left = BackEnd::NAMES.iter();
        for name in names {
            assert!(
                left.any(|&other| other == name),
                "{name} is missing, or not in its place"
            );
        }
        assert_eq!(BackEnd::best().name(), BackEnd::all().next().unwrap().name());
        for back_end in BackEnd::all() {
            assert_eq!(
                Needs::of(back_end.name()),
                Some(back_end.needs()),
                "{}",
                back_end.name()
            );
        }
        assert!(BackEnd::NAMES.iter().all(|name| BackEnd::ALL_NAMES.contains(name)));
    }

    #[test]
    fn what_no_public_call_shows() {
        for back_end in BackEnd::all() {
            std::println!("{}", back_end.name());
            with_kernel!(back_end, kernel => {
                crate::kernel::tests::check_scores(kernel);
                crate::kernel::tests::check_weighted(kernel);
                crate::kernel::tests::check_means(kernel);
                crate::kernel::tests::check_gelu(kernel);
            });
        }
    }
}
