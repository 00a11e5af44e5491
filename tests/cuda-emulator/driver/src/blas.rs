//! cuBLASLt: descriptions kept as they are given, products by the `gemm` crate.

use std::{
    ffi::{c_int, c_void},
    ptr,
};

use half::bf16;

use super::{SUCCESS, Status, streams};

const INVALID_VALUE: Status = 7;
const NOT_SUPPORTED: Status = 15;

/// CUDA_R_32F and CUDA_R_16BF.
const F32: c_int = 0;
const BF16: c_int = 14;

/// A matrix, columns first.
#[derive(Clone, Copy)]
struct Matrix {
    kind: c_int,
    rows: u64,
    columns: u64,
    stride: i64,
}

/// A product; attributes by their numbers.
struct Description {
    transposed: [c_int; 2],
    epilogue: u32,
    bias: usize,
}

/// What is asked of an algorithm.
#[derive(Default)]
struct Preference {
    /// Of a, b, c and d, in bytes.
    alignment: [u32; 4],
}

const TRANS_A: c_int = 3;
const TRANS_B: c_int = 4;
const EPILOGUE: c_int = 7;
const BIAS_POINTER: c_int = 8;
const EPILOGUE_BIAS: u32 = 4;
const ALIGNMENT_A: c_int = 5;
const ALIGNMENT_D: c_int = 8;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtCreate(handle: *mut *mut c_void) -> Status {
    // SAFETY: the caller gives room for a pointer, which is never followed.
    unsafe { *handle = ptr::without_provenance_mut(0x8000) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtDestroy(_: *mut c_void) -> Status {
    SUCCESS
}

/// Hands an object out.
///
/// # Safety
/// There is room for a pointer.
unsafe fn give<T>(place: *mut *mut c_void, object: T) -> Status {
    // SAFETY: as promised by the caller.
    unsafe { *place = Box::into_raw(Box::new(object)).cast() };
    SUCCESS
}

/// Takes one back.
///
/// # Safety
/// It was given out by [`give`] as a `T`.
unsafe fn drop_given<T>(object: *mut c_void) -> Status {
    // SAFETY: as promised by the caller.
    drop(unsafe { Box::from_raw(object.cast::<T>()) });
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    layout: *mut *mut c_void,
    kind: c_int,
    rows: u64,
    columns: u64,
    stride: i64,
) -> Status {
    // SAFETY: as cuBLASLt's documentation asks.
    unsafe {
        give(
            layout,
            Matrix {
                kind,
                rows,
                columns,
                stride,
            },
        )
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutDestroy(layout: *mut c_void) -> Status {
    // SAFETY: as cuBLASLt's documentation asks.
    unsafe { drop_given::<Matrix>(layout) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescCreate(description: *mut *mut c_void, _: c_int, scale: c_int) -> Status {
    if scale != F32 {
        return NOT_SUPPORTED;
    }
    let fresh = Description {
        transposed: [0; 2],
        epilogue: 1,
        bias: 0,
    };
    // SAFETY: as cuBLASLt's documentation asks.
    unsafe { give(description, fresh) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescDestroy(description: *mut c_void) -> Status {
    // SAFETY: as cuBLASLt's documentation asks.
    unsafe { drop_given::<Description>(description) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    description: *mut c_void,
    attribute: c_int,
    value: *const c_void,
    bytes: usize,
) -> Status {
    // SAFETY: as cuBLASLt's documentation asks; each attribute is read as its type.
    unsafe {
        let description = &mut *description.cast::<Description>();
        match (attribute, bytes) {
            (TRANS_A, 4) => description.transposed[0] = *value.cast(),
            (TRANS_B, 4) => description.transposed[1] = *value.cast(),
            (EPILOGUE, 4) => description.epilogue = *value.cast(),
            (BIAS_POINTER, 8) => description.bias = *value.cast(),
            _ => return INVALID_VALUE,
        }
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceCreate(preference: *mut *mut c_void) -> Status {
    // SAFETY: as cuBLASLt's documentation asks.
    unsafe { give(preference, Preference::default()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceDestroy(preference: *mut c_void) -> Status {
    // SAFETY: as cuBLASLt's documentation asks.
    unsafe { drop_given::<Preference>(preference) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: *mut c_void,
    attribute: c_int,
    value: *const c_void,
    bytes: usize,
) -> Status {
    if let (ALIGNMENT_A..=ALIGNMENT_D, 4) = (attribute, bytes) {
        // SAFETY: as cuBLASLt's documentation asks.
        unsafe { (*preference.cast::<Preference>()).alignment[(attribute - ALIGNMENT_A) as usize] = *value.cast() };
    }
    SUCCESS
}

/// An algorithm is what alignment it was chosen for: the first of its eight numbers holds them.
#[repr(C)]
struct Algorithm {
    alignment: [u32; 4],
    rest: [u64; 6],
}

#[repr(C)]
pub struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    _: *mut c_void,
    _: *mut c_void,
    a: *mut c_void,
    b: *mut c_void,
    c: *mut c_void,
    d: *mut c_void,
    preference: *mut c_void,
    _: c_int,
    found: *mut Heuristic,
    count: *mut c_int,
) -> Status {
    // SAFETY: as cuBLASLt's documentation asks.
    unsafe {
        let [a, b, c, d] = [a, b, c, d].map(|layout| (*layout.cast::<Matrix>()).kind);
        // The combinations of types that cuBLASLt documents for f32 sums of these types.
        if !matches!((a, b, d), (F32, F32, F32) | (BF16, BF16, F32 | BF16)) || c != d {
            return NOT_SUPPORTED;
        }
        *found = Heuristic {
            algorithm: Algorithm {
                alignment: (*preference.cast::<Preference>()).alignment,
                rest: [0; 6],
            },
            workspace: 0,
            state: SUCCESS,
            waves: 1.0,
            reserved: [0; 4],
        };
        *count = 1;
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    _: *mut c_void,
    description: *mut c_void,
    alpha: *const f32,
    a: usize,
    a_layout: *mut c_void,
    b: usize,
    b_layout: *mut c_void,
    beta: *const f32,
    c: usize,
    c_layout: *mut c_void,
    d: usize,
    d_layout: *mut c_void,
    algorithm: *const Heuristic,
    _: *mut c_void,
    _: usize,
    stream: *mut c_void,
) -> Status {
    streams::operation(stream, &[a, b, c, d]);
    // SAFETY: as cuBLASLt's documentation asks: what was given out, and matrices as their layouts say.
    unsafe {
        let description = &*description.cast::<Description>();
        let aligned = (*algorithm.cast::<Algorithm>()).alignment;
        let [a_layout, b_layout, c_layout, d_layout] =
            [a_layout, b_layout, c_layout, d_layout].map(|layout| *layout.cast::<Matrix>());
        if [a, b, c, d]
            .iter()
            .zip(aligned)
            .any(|(address, aligned)| address % aligned.max(1) as usize != 0)
        {
            eprintln!("emulated CUDA: a product's matrix is not aligned as its algorithm wants");
            return INVALID_VALUE;
        }
        let sides = |layout: Matrix, transposed: c_int| match transposed {
            0 => (layout.rows as usize, layout.columns as usize, 1, layout.stride as isize),
            _ => (layout.columns as usize, layout.rows as usize, layout.stride as isize, 1),
        };
        let (m, k, a_row, a_column) = sides(a_layout, description.transposed[0]);
        let (inner, n, b_row, b_column) = sides(b_layout, description.transposed[1]);
        let d_sides = (d_layout.rows as usize, d_layout.columns as usize);
        if inner != k || d_sides != (m, n) {
            eprintln!("emulated CUDA: a product [{m}, {k}] [{inner}, {n}] does not give {d_sides:?}");
            return INVALID_VALUE;
        }
        let (a, b) = (values(a, a_layout), values(b, b_layout));
        let mut out = if *beta == 0.0 {
            vec![0.0; m * n]
        } else {
            columns(&values(c, c_layout), c_layout)
        };
        if description.epilogue == EPILOGUE_BIAS {
            let bias = values(
                description.bias,
                Matrix {
                    kind: d_layout.kind,
                    rows: m as u64,
                    columns: 1,
                    stride: m as i64,
                },
            );
            out.chunks_mut(m.max(1))
                .for_each(|column| column.iter_mut().zip(&bias).for_each(|(out, bias)| *out += bias));
        }
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            m as isize,
            1,
            true,
            a.as_ptr(),
            a_column,
            a_row,
            b.as_ptr(),
            b_column,
            b_row,
            1.0,
            *alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
        for (number, value) in out.iter().enumerate() {
            let place = number / m * d_layout.stride as usize + number % m;
            match d_layout.kind {
                F32 => *ptr::with_exposed_provenance_mut::<f32>(d).add(place) = *value,
                _ => *ptr::with_exposed_provenance_mut::<bf16>(d).add(place) = bf16::from_f32(*value),
            }
        }
    }
    SUCCESS
}

/// All values of a matrix as f32, its stride kept.
///
/// # Safety
/// The matrix lies at `address`.
unsafe fn values(address: usize, layout: Matrix) -> Vec<f32> {
    if layout.columns == 0 {
        return Vec::new();
    }
    let len = layout.stride as usize * (layout.columns as usize - 1) + layout.rows as usize;
    // SAFETY: as promised by the caller.
    unsafe {
        match layout.kind {
            F32 => std::slice::from_raw_parts(ptr::with_exposed_provenance::<f32>(address), len).to_vec(),
            _ => std::slice::from_raw_parts(ptr::with_exposed_provenance::<bf16>(address), len)
                .iter()
                .map(|value| value.to_f32())
                .collect(),
        }
    }
}

/// A matrix's columns side by side.
fn columns(values: &[f32], layout: Matrix) -> Vec<f32> {
    let column = |number: usize| number * layout.stride as usize;
    (0..layout.columns as usize)
        .flat_map(|number| &values[column(number)..column(number) + layout.rows as usize])
        .copied()
        .collect()
}
