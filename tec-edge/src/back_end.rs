//! Which kernel computes: chosen at run time, the best that the processor has.

use crate::encoder::{Encoder, Image, Options, Output};
use crate::kernel::{Kernel, Scalar};
use crate::plan::Plan;
use crate::run::Run;
#[cfg(not(feature = "std"))]
use crate::team::Alone as Threads;
#[cfg(feature = "std")]
use crate::team::Rayon as Threads;
use crate::trace::Trace;
use crate::Error;

/// A way to compute. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackEnd(Which);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Scalar,
}

impl BackEnd {
    /// Plain Rust, on every processor.
    pub const SCALAR: Self = Self(Which::Scalar);

    /// Those that this processor can execute, the best first.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::SCALAR].into_iter()
    }

    /// The best that this processor can execute.
    pub fn best() -> Self {
        Self::all().next().unwrap_or(Self::SCALAR)
    }

    /// Its name: `scalar`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Which::Scalar => "scalar",
        }
    }

    pub(crate) fn scratch_len(self, plan: &Plan, rows: usize) -> usize {
        match self.0 {
            Which::Scalar => plan.len::<Scalar>(rows),
        }
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
        match self.0 {
            Which::Scalar => run(encoder, Scalar, options, image, scratch, out, trace),
        }
    }
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
