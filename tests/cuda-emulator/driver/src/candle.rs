//! candle's own kernels, as far as models use them: what they compute, written anew.
//!
//! Every value of a strided operation has a number; `info` holds the dimensions and one stride for each argument.

use std::{ffi::c_void, ops::Add};

/// Arguments of a launch.
struct Arguments(*mut *mut c_void);

impl Arguments {
    /// # Safety
    /// The kernel has that argument, of type `T`.
    unsafe fn get<T: Copy>(&self, number: usize) -> T {
        // SAFETY: as promised by the caller; CUDA gives the address of each argument.
        unsafe { *(*self.0.add(number)).cast::<T>() }
    }
}

/// Dimensions and strides of some arguments.
struct Strided<'a> {
    dims: &'a [usize],
    strides: Vec<&'a [usize]>,
}

impl<'a> Strided<'a> {
    /// # Safety
    /// `info` is null, or holds `rank` dimensions and as many strides for each of `tensors` tensors.
    unsafe fn new(rank: usize, info: *const usize, tensors: usize) -> Option<Self> {
        if info.is_null() {
            return None;
        }
        // SAFETY: as promised by the caller.
        let all: &'a [usize] = unsafe { std::slice::from_raw_parts(info, rank * (1 + tensors)) };
        let (dims, strides) = all.split_at(rank);
        let strides = (0..tensors)
            .map(|tensor| &strides[tensor * rank..(tensor + 1) * rank])
            .collect();
        Some(Self { dims, strides })
    }

    /// Where value `number` of a tensor lies.
    fn place(this: &Option<Self>, tensor: usize, mut number: usize) -> usize {
        let Some(this) = this else { return number };
        let mut place = 0;
        for (dim, stride) in this.dims.iter().zip(this.strides[tensor]).rev() {
            place += number % dim * stride;
            number /= dim;
        }
        place
    }
}

/// The kernels there are, by name without type.
const STEMS: [&str; 10] = [
    "ucopy",
    "badd",
    "bmul",
    "bsub",
    "affine",
    "copy2d",
    "const_set",
    "is_u32",
    "fast_sum",
    "fast_sum_small",
];

/// Whether a kernel is one of candle's that are known here.
pub fn has(name: &str) -> bool {
    name.rsplit_once('_').is_some_and(|(stem, kind)| {
        STEMS.contains(&stem)
            && (kind == "f32" || kind == "u32" && matches!(stem, "ucopy" | "badd" | "copy2d" | "const_set"))
            || stem == "ucopy" && kind == "bf16"
    })
}

/// Runs one of candle's kernels; `None` for others.
///
/// # Safety
/// The arguments are those that the kernel declares.
pub unsafe fn launch(name: &str, arguments: *mut *mut c_void) -> Option<Result<(), String>> {
    if !has(name) {
        return None;
    }
    let arguments = Arguments(arguments);
    let (stem, kind) = name.rsplit_once('_')?;
    // SAFETY: as promised by the caller.
    unsafe {
        match (stem, kind) {
            ("ucopy", "bf16") => copy::<u16>(&arguments),
            ("ucopy", _) => copy::<u32>(&arguments),
            ("badd", "u32") => binary::<u32>(&arguments, u32::add),
            ("badd", _) => binary::<f32>(&arguments, |x, y| x + y),
            ("bmul", _) => binary::<f32>(&arguments, |x, y| x * y),
            ("bsub", _) => binary::<f32>(&arguments, |x, y| x - y),
            ("affine", _) => affine(&arguments),
            ("copy2d", _) => copy_rows(&arguments),
            ("const_set", _) => const_set(&arguments),
            ("is_u32", _) => return Some(index_select(&arguments)),
            ("fast_sum", _) => sum(&arguments, false),
            _ => sum(&arguments, true),
        }
    }
    Some(Ok(()))
}

/// (values, rank, info, x, y)
///
/// # Safety
/// The launch was given these.
unsafe fn copy<T: Copy>(a: &Arguments) {
    // SAFETY: the arguments are the kernel's.
    unsafe {
        let (n, rank, info): (usize, usize, *const usize) = (a.get(0), a.get(1), a.get(2));
        let (x, y): (*const T, *mut T) = (a.get(3), a.get(4));
        let strided = Strided::new(rank, info, 1);
        for number in 0..n {
            *y.add(number) = *x.add(Strided::place(&strided, 0, number));
        }
    }
}

/// (values, rank, info, x, y, out)
///
/// # Safety
/// The launch was given these.
unsafe fn binary<T: Copy>(a: &Arguments, f: impl Fn(T, T) -> T) {
    // SAFETY: the arguments are the kernel's.
    unsafe {
        let (n, rank, info): (usize, usize, *const usize) = (a.get(0), a.get(1), a.get(2));
        let (x, y, out): (*const T, *const T, *mut T) = (a.get(3), a.get(4), a.get(5));
        let strided = Strided::new(rank, info, 2);
        for number in 0..n {
            let (x_at, y_at) = (Strided::place(&strided, 0, number), Strided::place(&strided, 1, number));
            *out.add(number) = f(*x.add(x_at), *y.add(y_at));
        }
    }
}

/// (values, rank, info, x, out, factor, summand)
///
/// # Safety
/// The launch was given these.
unsafe fn affine(a: &Arguments) {
    // SAFETY: the arguments are the kernel's.
    unsafe {
        let (n, rank, info): (usize, usize, *const usize) = (a.get(0), a.get(1), a.get(2));
        let (x, out): (*const f32, *mut f32) = (a.get(3), a.get(4));
        let (factor, summand): (f32, f32) = (a.get(5), a.get(6));
        let strided = Strided::new(rank, info, 1);
        for number in 0..n {
            *out.add(number) = *x.add(Strided::place(&strided, 0, number)) * factor + summand;
        }
    }
}

/// (x, out, rows, columns, x's row stride, out's row stride)
///
/// # Safety
/// The launch was given these.
unsafe fn copy_rows(a: &Arguments) {
    // SAFETY: the arguments are the kernel's.
    unsafe {
        let (x, out): (*const u32, *mut u32) = (a.get(0), a.get(1));
        let [rows, columns, x_stride, out_stride] = [a.get::<u32>(2), a.get(3), a.get(4), a.get(5)].map(|n| n as usize);
        for row in 0..rows {
            std::ptr::copy_nonoverlapping(x.add(row * x_stride), out.add(row * out_stride), columns);
        }
    }
}

/// (values, rank, info, value, out)
///
/// # Safety
/// The launch was given these.
unsafe fn const_set(a: &Arguments) {
    // SAFETY: the arguments are the kernel's.
    unsafe {
        let (n, rank, info): (usize, usize, *const usize) = (a.get(0), a.get(1), a.get(2));
        let (value, out): (u32, *mut u32) = (a.get(3), a.get(4));
        let strided = Strided::new(rank, info, 1);
        for number in 0..n {
            *out.add(Strided::place(&strided, 0, number)) = value;
        }
    }
}

/// (values, rank, info, indices, x, out, left, x's length, indices, right); `info` is of the indices, which lie side by side
/// here, as `x` does
///
/// # Safety
/// The launch was given these.
unsafe fn index_select(a: &Arguments) -> Result<(), String> {
    // SAFETY: the arguments are the kernel's.
    unsafe {
        let n: usize = a.get(0);
        let (indices, x, out): (*const u32, *const f32, *mut f32) = (a.get(3), a.get(4), a.get(5));
        let [length, count, right] = [a.get::<usize>(7), a.get(8), a.get(9)];
        for number in 0..n {
            let index = *indices.add(number / right % count) as usize;
            if index >= length {
                return Err(format!("index {index} is not below {length}"));
            }
            *out.add(number) = *x.add((number / (count * right) * length + index) * right + number % right);
        }
    }
    Ok(())
}

/// (values or sums, values of a sum, rank, info, x, out), the summed dimensions last
///
/// # Safety
/// The launch was given these.
unsafe fn sum(a: &Arguments, counts_sums: bool) {
    // SAFETY: the arguments are the kernel's.
    unsafe {
        let (n, each, rank, info): (usize, usize, usize, *const usize) = (a.get(0), a.get(1), a.get(2), a.get(3));
        let (x, out): (*const f32, *mut f32) = (a.get(4), a.get(5));
        let strided = Strided::new(rank, info, 1);
        let sums = if counts_sums { n } else { n / each.max(1) };
        for number in 0..sums {
            let values = (0..each).map(|value| f64::from(*x.add(Strided::place(&strided, 0, number * each + value))));
            *out.add(number) = values.sum::<f64>() as f32;
        }
    }
}
