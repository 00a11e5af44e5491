//! Operations on each element by itself. All sizes are numbers of elements; results may be written over arguments of the
//! same type.

use super::launch::size;
use super::{Arg, Float, Launch};

/// Elements of a block.
const PER_BLOCK: usize = 2048;

fn map(kernel: impl Into<std::borrow::Cow<'static, str>>, pointers: &[u64], n: usize) -> Launch {
    let args = pointers.iter().map(|&at| Arg::Pointer(at));
    let args = args.chain([Arg::U64(n as u64)]).collect();
    Launch::line(kernel, n.div_ceil(PER_BLOCK), args)
}

/// `y = x` in the other type: `from` says that of `x`.
pub(crate) fn cast(from: Float, x: u64, y: u64, n: usize) -> Launch {
    let kernel = match from {
        Float::F32 => "cast_f32_bf16",
        Float::Bf16 => "cast_bf16_f32",
    };
    map(kernel, &[x, y], n)
}

/// `y = a + b`, where `a` and `y` are f32 and `b` is as `dtype` says.
pub(crate) fn add(dtype: Float, a: u64, b: u64, y: u64, n: usize) -> Launch {
    let kernel = match dtype {
        Float::F32 => "add_f32",
        Float::Bf16 => "add_f32_bf16",
    };
    map(kernel, &[a, b, y], n)
}

/// `y = gelu(x)`, with the error function.
pub(crate) fn gelu(dtype: Float, x: u64, y: u64, n: usize) -> Launch {
    map(format!("gelu_{}", dtype.name()), &[x, y], n)
}

/// The gradient of `x` from `grad`, that of `gelu(x)`.
pub(crate) fn gelu_gradient(dtype: Float, x: u64, grad: u64, grad_x: u64, n: usize) -> Launch {
    map(format!("gelu_gradient_{}", dtype.name()), &[x, grad, grad_x], n)
}

/// `y = x · sigmoid(1.702 x)`.
pub(crate) fn quick_gelu(dtype: Float, x: u64, y: u64, n: usize) -> Launch {
    map(format!("quick_gelu_{}", dtype.name()), &[x, y], n)
}

/// `y = silu(gate) · value`: `x` `[rows, 2 hidden]`, gates first, `y` `[rows, hidden]`.
pub(crate) fn swiglu(dtype: Float, x: u64, y: u64, rows: usize, hidden: usize) -> Launch {
    let args = vec![Arg::Pointer(x), Arg::Pointer(y), size(hidden)];
    Launch::line(format!("swiglu_{}", dtype.name()), rows, args)
}
