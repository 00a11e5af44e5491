//! Matrix products on the GPU, by cuBLASLt: with a bias, and onto rows that are there, in the product itself.

use std::{
    collections::HashMap,
    ffi::c_void,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use candle_core::{
    CudaDevice, bail,
    cuda_backend::cudarc::{
        cublaslt::{result, result::CublasError, sys},
        driver::{CudaSlice, CudaStream, DevicePtr},
    },
};

use crate::cuda::Float;

/// A matrix whose rows lie side by side.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    pub address: u64,
    pub float: Float,
    /// Whether its transposed enters the product.
    pub transposed: bool,
}

impl Operand {
    pub fn new((float, address): (Float, u64)) -> Self {
        Self {
            address,
            float,
            transposed: false,
        }
    }

    /// The transposed matrix, without moving a value.
    pub fn t(self) -> Self {
        Self {
            transposed: !self.transposed,
            ..self
        }
    }
}

/// `out = a b + bias + add`: `a` `[rows, inner]` and `b` `[inner, columns]` of one type, sums in f32.
#[derive(Debug)]
pub struct Product {
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
    pub a: Operand,
    pub b: Operand,
    /// Type and address of `[rows, columns]`.
    pub out: (Float, u64),
    /// One value a column, of `out`'s type.
    pub bias: Option<u64>,
    /// `[rows, columns]` of `out`'s type.
    pub add: Option<u64>,
}

/// Bytes of scratch memory, as NVIDIA recommends for its newest GPUs.
const WORKSPACE: usize = 32 << 20;

/// Sums over parts of the inner axis that are added in a fixed order: those through a buffer, not those in place.
const REDUCTIONS: u32 = 2 | 4;

/// Puts a product on the device's stream.
///
/// # Errors
/// cuBLASLt has no algorithm for it, or does not start.
pub fn product(device: &CudaDevice, product: &Product) -> candle_core::Result<()> {
    if product.rows == 0 || product.columns == 0 {
        return Ok(());
    }
    let stream = device.cuda_stream();
    match run(&stream, product) {
        Ok(()) => Ok(()),
        Err(Refusal::Memory(e)) => bail!("cuBLASLt gets no scratch memory: {e}"),
        Err(Refusal::Product(e)) => bail!(
            "cuBLASLt refuses a product [{}, {}] [{}, {}] of {:?} to {:?}: {e}",
            product.rows,
            product.inner,
            product.inner,
            product.columns,
            product.a.float,
            product.out.0
        ),
    }
}

enum Refusal {
    Memory(candle_core::cuda_backend::cudarc::driver::DriverError),
    Product(CublasError),
}

impl From<CublasError> for Refusal {
    fn from(error: CublasError) -> Self {
        Self::Product(error)
    }
}

/// What decides how a product is computed. Addresses count by their alignment alone.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 3],
    transposed: [bool; 2],
    floats: [Float; 2],
    bias: bool,
    add: bool,
    aligned: [u32; 4],
}

/// One GPU's handle, scratch memory and the products planned so far.
struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    plans: HashMap<Key, Plan>,
}

struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    /// Of cuBLASLt's a, b, c and d.
    layouts: [sys::cublasLtMatrixLayout_t; 4],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: handles and descriptions may be used by any thread, one at a time: they are behind a mutex.
unsafe impl Send for Library {}

fn run(stream: &Arc<CudaStream>, product: &Product) -> Result<(), Refusal> {
    static LIBRARIES: LazyLock<Mutex<HashMap<usize, Library>>> = LazyLock::new(Mutex::default);
    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let library = match libraries.entry(stream.context().ordinal()) {
        std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
        std::collections::hash_map::Entry::Vacant(free) => free.insert(Library {
            handle: result::create_handle()?,
            // SAFETY: cuBLASLt writes what it reads there.
            workspace: unsafe { stream.alloc(WORKSPACE) }.map_err(Refusal::Memory)?,
            plans: HashMap::new(),
        }),
    };
    let key = product.key();
    if !library.plans.contains_key(&key) {
        let plan = Plan::new(library.handle, product, &key)?;
        library.plans.insert(product.key(), plan);
    }
    let Some(plan) = library.plans.get(&key) else {
        return Ok(());
    };
    let (one, beta) = (1f32, if product.add.is_some() { 1f32 } else { 0.0 });
    let [a, b, c, d] = plan.layouts;
    let (_, out) = product.out;
    let pointer = |address: u64| address as *const c_void;
    // SAFETY: the plan was made for matrices of these sizes, types and alignments; whoever calls `product` has allocated
    // them on this stream. The scalars live until the call returns, which has read them by then.
    unsafe {
        if let Some(bias) = product.bias {
            plan.set(
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                &bias,
            )?;
        }
        result::matmul(
            library.handle,
            plan.description,
            (&raw const one).cast(),
            (&raw const beta).cast(),
            // Columns first is how cuBLASLt sees matrices: ours are its transposed ones, so the factors change places.
            pointer(product.b.address),
            a,
            pointer(product.a.address),
            b,
            pointer(product.add.unwrap_or(out)),
            c,
            out as *mut c_void,
            d,
            &raw const plan.algorithm,
            library.workspace.device_ptr(stream).0 as *mut c_void,
            WORKSPACE,
            stream.cu_stream().cast(),
        )?;
    }
    Ok(())
}

impl Product {
    fn key(&self) -> Key {
        let aligned = |address: u64| 1 << address.trailing_zeros().min(8);
        Key {
            sizes: [self.rows, self.columns, self.inner],
            transposed: [self.a.transposed, self.b.transposed],
            floats: [self.a.float, self.out.0],
            bias: self.bias.is_some(),
            add: self.add.is_some(),
            aligned: [
                self.b.address,
                self.a.address,
                self.add.unwrap_or(self.out.1),
                self.out.1,
            ]
            .map(aligned),
        }
    }
}

fn data_type(float: Float) -> sys::cudaDataType_t {
    match float {
        Float::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Float::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, product: &Product, key: &Key) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t::{
            CUBLASLT_MATMUL_DESC_EPILOGUE as EPILOGUE, CUBLASLT_MATMUL_DESC_TRANSA as TRANS_A,
            CUBLASLT_MATMUL_DESC_TRANSB as TRANS_B,
        };
        let &Product {
            rows, columns, inner, ..
        } = product;
        let (float, out) = (data_type(product.a.float), data_type(product.out.0));
        // A matrix [r, c] with rows side by side is cuBLASLt's [c, r].
        let stored = |transposed: bool, r: usize, c: usize| if transposed { (r, c) } else { (c, r) };
        let layout = |float, (rows, columns): (usize, usize)| {
            result::create_matrix_layout(float, rows as u64, columns as u64, rows as i64)
        };
        let plan = Self {
            description: result::create_matmul_desc(
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cudaDataType_t::CUDA_R_32F,
            )?,
            layouts: [
                layout(float, stored(product.b.transposed, inner, columns))?,
                layout(float, stored(product.a.transposed, rows, inner))?,
                layout(out, (columns, rows))?,
                layout(out, (columns, rows))?,
            ],
            // SAFETY: plain numbers; replaced below before anything reads them.
            algorithm: unsafe { std::mem::zeroed() },
        };
        let operation = |operand: Operand| i32::from(operand.transposed);
        // SAFETY: each attribute has the type its documentation says and lives during the call; preferences and results are
        // cuBLASLt's own.
        unsafe {
            plan.set(TRANS_A, &operation(product.b))?;
            plan.set(TRANS_B, &operation(product.a))?;
            if product.bias.is_some() {
                plan.set(EPILOGUE, &(sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32))?;
            }
            let preference = result::create_matmul_pref()?;
            let chosen = plan.choose(handle, preference, key);
            result::destroy_matmul_pref(preference)?;
            Ok(Self {
                algorithm: chosen?.algo,
                ..plan
            })
        }
    }

    /// # Safety
    /// `T` is the attribute's type.
    unsafe fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), CublasError> {
        // SAFETY: as promised by the caller; the description lives as long as the plan.
        unsafe {
            result::set_matmul_desc_attribute(
                self.description,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }
    }

    /// # Safety
    /// `preference` is cuBLASLt's and not destroyed.
    unsafe fn choose(
        &self,
        handle: sys::cublasLtHandle_t,
        preference: sys::cublasLtMatmulPreference_t,
        key: &Key,
    ) -> Result<sys::cublasLtMatmulHeuristicResult_t, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t::{
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES as ALIGNED_A,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES as ALIGNED_B,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES as ALIGNED_C,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES as ALIGNED_D,
            CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK as REDUCTION,
        };
        let bytes = WORKSPACE as u64;
        let numbers = [ALIGNED_A, ALIGNED_B, ALIGNED_C, ALIGNED_D]
            .into_iter()
            .zip(key.aligned)
            .chain([(REDUCTION, REDUCTIONS)]);
        // SAFETY: the workspace is a 64-bit number, the others 32-bit ones; all live during the calls.
        unsafe {
            result::set_matmul_pref_attribute(preference, BYTES, (&raw const bytes).cast(), size_of::<u64>())?;
            for (attribute, number) in numbers {
                result::set_matmul_pref_attribute(preference, attribute, (&raw const number).cast(), size_of::<u32>())?;
            }
            let [a, b, c, d] = self.layouts;
            result::get_matmul_algo_heuristic(handle, self.description, a, b, c, d, preference)
        }
    }
}
