//! The kernels on the emulator, against `tec-core` and the operations of the CPU.

mod attention;
mod elementwise;
mod loss;
mod norm;
mod optimizer;
mod relation;
mod tokens;

use candle_core::{Device, Tensor as Cpu, Var};
use half::bf16;
use tec_core::philox::{Noise, Stream};
use tec_cuda_emulator::{Argument, Buffer, launch, run_backwards};

use super::{Arg, Float, Launch};

/// Largest error of f32 arithmetic in another order, relative to the largest value.
const F32: f32 = 1e-5;
/// The same where values are rounded to bf16, with 8 bits, on the way.
const BF16: f32 = 2e-2;

/// Largest error of results that are stored as `dtype`.
fn tolerance(dtype: Float) -> f32 {
    match dtype {
        Float::F32 => F32,
        Float::Bf16 => BF16,
    }
}

/// `n` values in -1..1 that depend on the seed only.
fn values(seed: u64, n: usize) -> Vec<f32> {
    let noise = Noise {
        seed,
        epoch: 0,
        sample: 0,
        stream: Stream::Init,
    };
    (0..n as u32).map(|i| 2.0 * noise.uniform(i) - 1.0).collect()
}

/// Runs a launch on the emulator.
fn run(plan: &Launch) {
    let args: Vec<Argument> = plan.args.iter().map(|&arg| argument(arg)).collect();
    launch(&plan.kernel, plan.grid, plan.block, plan.shared, &args).unwrap();
}

/// Runs launches twice, the emulator's threads in opposite orders, and returns what the tensors hold: the same bits.
fn twice<const N: usize>(launches: &[Launch], results: [&Tensor; N]) -> [Vec<f32>; N] {
    let once = |backwards| {
        run_backwards(backwards);
        launches.iter().for_each(run);
        run_backwards(false);
        results.map(|tensor| tensor.values())
    };
    let (first, again) = (once(false), once(true));
    assert_eq!(first.each_ref().map(|v| bits(v)), again.each_ref().map(|v| bits(v)));
    first
}

fn argument(arg: Arg) -> Argument {
    match arg {
        Arg::Pointer(at) => Argument::Pointer(at),
        Arg::U32(value) => Argument::U32(value),
        Arg::U64(value) => Argument::U64(value),
        Arg::F32(value) => Argument::F32(value),
    }
}

/// A tensor in the emulator's memory, some elements behind where an allocation begins.
enum Tensor {
    F32(Buffer<f32>, usize),
    Bf16(Buffer<u16>, usize),
}

impl Tensor {
    /// `values`, rounded to `dtype`, from element `skip` of an allocation on.
    fn new(dtype: Float, values: &[f32], skip: usize) -> Self {
        let padded = vec![f32::NAN; skip].into_iter().chain(values.iter().copied());
        match dtype {
            Float::F32 => Self::F32(Buffer::new(&padded.collect::<Vec<_>>()), skip),
            Float::Bf16 => {
                let bits: Vec<u16> = padded.map(|v| bf16::from_f32(v).to_bits()).collect();
                Self::Bf16(Buffer::new(&bits), skip)
            }
        }
    }

    fn f32(values: &[f32]) -> Self {
        Self::new(Float::F32, values, 0)
    }

    /// A result, NaNs until it is written.
    fn out(dtype: Float, n: usize, skip: usize) -> Self {
        match dtype {
            Float::F32 => Self::F32(Buffer::poisoned(skip + n), skip),
            Float::Bf16 => Self::Bf16(Buffer::poisoned(skip + n), skip),
        }
    }

    fn at(&self) -> u64 {
        match self {
            Self::F32(buffer, skip) => buffer.address(*skip),
            Self::Bf16(buffer, skip) => buffer.address(*skip),
        }
    }

    /// What it holds; what lies before it in its allocation must be NaNs as they were.
    fn values(&self) -> Vec<f32> {
        let (all, skip): (Vec<f32>, usize) = match self {
            Self::F32(buffer, skip) => (buffer.values(), *skip),
            Self::Bf16(buffer, skip) => {
                let bits = buffer.values().into_iter();
                (bits.map(|bits| bf16::from_bits(bits).to_f32()).collect(), *skip)
            }
        };
        assert!(all[..skip].iter().all(|v| v.is_nan()), "written before the tensor");
        all[skip..].to_vec()
    }
}

/// A tensor of the CPU.
fn cpu(values: &[f32], shape: impl Into<candle_core::Shape>) -> Cpu {
    Cpu::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// The elements of a tensor of the CPU.
fn flat(tensor: &Cpu) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The gradients of the variables in the sum of `y · grad`.
fn gradients(y: &Cpu, grad: &[f32], vars: &[&Var]) -> Vec<Vec<f32>> {
    let grad = cpu(grad, y.dims());
    let grads = (y * grad).unwrap().sum_all().unwrap().backward().unwrap();
    vars.iter().map(|var| flat(grads.get(var).unwrap())).collect()
}

/// max|a - b| / max|b| is at most `tolerance`; NaNs are no match.
#[track_caller]
fn close(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(largest > 0.0, "{what}: everything expected is zero");
    for (at, (a, b)) in actual.iter().zip(expected).enumerate() {
        let good = (a - b).abs() <= tolerance * largest;
        assert!(good, "{what}: {a} at {at}, expected {b}; the largest is {largest}");
    }
}

/// The bits, so that NaNs and signs of zero are compared too.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
