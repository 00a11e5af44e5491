//! Which kernel computes: chosen at run time, the best that the processor has.

use crate::encoder::{Encoder, Image, Options, Output};
use crate::kernel::{Kernel, Scalar};
#[cfg(all(feature = "simd", target_arch = "x86_64"))]
use crate::kernel::x86::Avx2;
use crate::plan::Plan;
use crate::run::Run;
#[cfg(not(feature = "std"))]
use crate::team::Alone as Threads;
#[cfg(feature = "std")]
use crate::team::Rayon as Threads;
use crate::trace::Trace;
use crate::Error;

/// A way to compute. All give the same bits.
#[derive(Debug, Clone, Copy)]
pub struct BackEnd(Which);

#[derive(Debug, Clone, Copy)]
enum Which {
    Scalar,
    #[cfg(all(feature = "simd", target_arch = "x86_64"))]
    Avx2(Avx2),
}

/// Does something with the kernel of a back end.
macro_rules! with_kernel {
    ($back_end:expr, $kernel:ident => $do:expr) => {
        match $back_end.0 {
            Which::Scalar => {
                let $kernel = Scalar;
                $do
            }
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::Avx2($kernel) => $do,
        }
    };
}

impl BackEnd {
    /// Plain Rust, on every processor.
    pub const SCALAR: Self = Self(Which::Scalar);

    /// Those that this processor can execute, the best first.
    pub fn all() -> impl Iterator<Item = Self> {
        let all = [
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Avx2::new().map(Which::Avx2),
            Some(Which::Scalar),
        ];
        all.into_iter().flatten().map(Self)
    }

    /// The best that this processor can execute.
    pub fn best() -> Self {
        Self::all().next().unwrap_or(Self::SCALAR)
    }

    /// Its name: `scalar`, `avx2`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Which::Scalar => "scalar",
            #[cfg(all(feature = "simd", target_arch = "x86_64"))]
            Which::Avx2(_) => "avx2",
        }
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
