//! What the GPU side of every operation needs: pointers of tensors, new ones, and the launch of a kernel.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

use candle_core::{
    CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::cudarc::{
        driver::{CudaFunction, CudaModule, CudaSlice, DevicePtr, LaunchConfig, PushKernelArg, result, sys},
        nvrtc::Ptx,
    },
};
use half::bf16;

use crate::{
    cuda::{Arg, Float, Launch, elementwise},
    device::NO_ROOM,
};

mod product;
mod rounded;

pub use product::{Operand, Product, product};
pub use rounded::{Rounded, find as find_rounded, refresh};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The address of a contiguous f32 tensor's first value.
pub fn floats(op: &str, storage: &CudaStorage, layout: &Layout) -> Result<u64> {
    address::<f32>(op, storage, layout)
}

/// The address of a contiguous u32 tensor's first value.
pub fn indices(op: &str, storage: &CudaStorage, layout: &Layout) -> Result<u64> {
    address::<u32>(op, storage, layout)
}

/// The address of a contiguous u8 tensor's first value.
pub fn bytes(op: &str, storage: &CudaStorage, layout: &Layout) -> Result<u64> {
    address::<u8>(op, storage, layout)
}

/// Type and address of a contiguous tensor of f32 or bf16 values.
pub fn values(op: &str, storage: &CudaStorage, layout: &Layout) -> Result<(Float, u64)> {
    match storage.dtype() {
        DType::F32 => Ok((Float::F32, address::<f32>(op, storage, layout)?)),
        DType::BF16 => Ok((Float::Bf16, address::<bf16>(op, storage, layout)?)),
        other => bail!("{op}: a tensor has values of type {other:?}, which are neither f32 nor bf16"),
    }
}

/// The kernels' name of a tensor's type.
pub fn float(dtype: DType) -> Result<Float> {
    match dtype {
        DType::F32 => Ok(Float::F32),
        DType::BF16 => Ok(Float::Bf16),
        other => bail!("values of type {other:?} are neither f32 nor bf16"),
    }
}

fn address<T: candle_core::cuda_backend::CudaDType>(op: &str, storage: &CudaStorage, layout: &Layout) -> Result<u64> {
    let slice = storage.as_cuda_slice::<T>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) if end <= slice.len() => {
            let stream = storage.device().cuda_stream();
            Ok(slice.device_ptr(&stream).0 + (start * size_of::<T>()) as u64)
        }
        _ => bail!("{op}: a tensor {:?} is not contiguous", layout.dims()),
    }
}

/// What `f` makes of the address of a contiguous f32 tensor on the GPU that is no argument of the operation.
pub fn with_floats<T>(op: &str, x: &Tensor, f: impl FnOnce(u64) -> Result<T>) -> Result<T> {
    with_values(op, x, |(float, address)| match float {
        Float::F32 => f(address),
        Float::Bf16 => bail!("{op}: a tensor has bf16 values where f32 ones belong"),
    })
}

/// The address of a contiguous f32 tensor on the GPU, for as long as the tensor lives.
pub fn address_of(op: &str, x: &Tensor) -> Result<u64> {
    with_floats(op, x, Ok)
}

/// What `f` makes of type and address of a contiguous tensor on the GPU that is no argument of the operation.
pub fn with_values<T>(op: &str, x: &Tensor, f: impl FnOnce((Float, u64)) -> Result<T>) -> Result<T> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cuda(cuda) => f(values(op, cuda, layout)?),
        _ => bail!("{op}: a tensor is on another device than the others"),
    }
}

/// A new tensor's values, not written yet.
pub enum Output {
    F32(CudaSlice<f32>),
    Bf16(CudaSlice<bf16>),
    U32(CudaSlice<u32>),
}

impl Output {
    /// Room for `len` values.
    pub fn new(device: &CudaDevice, float: Float, len: usize) -> Result<Self> {
        // SAFETY: whoever makes an output writes all of it, on the device's one stream, before it becomes a tensor.
        let made = unsafe {
            match float {
                Float::F32 => device.alloc(len).map(Self::F32),
                Float::Bf16 => device.alloc(len).map(Self::Bf16),
            }
        };
        made.map_err(|e| no_room(e, len * float.bytes()))
    }

    /// Room for `len` f32 values.
    pub fn floats(device: &CudaDevice, len: usize) -> Result<Self> {
        Self::new(device, Float::F32, len)
    }

    /// Room for `len` u32 values.
    pub fn indices(device: &CudaDevice, len: usize) -> Result<Self> {
        // SAFETY: as in `new`.
        Ok(Self::U32(unsafe { device.alloc(len)? }))
    }

    /// The address of the first value.
    pub fn address(&self, device: &CudaDevice) -> u64 {
        let stream = device.cuda_stream();
        match self {
            Self::F32(slice) => slice.device_ptr(&stream).0,
            Self::Bf16(slice) => slice.device_ptr(&stream).0,
            Self::U32(slice) => slice.device_ptr(&stream).0,
        }
    }

    /// As what an operation gives.
    pub fn tensor(self, device: &CudaDevice, shape: impl Into<Shape>) -> Result<(CudaStorage, Shape)> {
        let device = device.clone();
        let storage = match self {
            Self::F32(slice) => CudaStorage::wrap_cuda_slice(slice, device),
            Self::Bf16(slice) => CudaStorage::wrap_cuda_slice(slice, device),
            Self::U32(slice) => CudaStorage::wrap_cuda_slice(slice, device),
        };
        Ok((storage, shape.into()))
    }
}

/// An allocation's error, with what was asked for and what there is.
fn no_room(error: candle_core::Error, bytes: usize) -> candle_core::Error {
    if !error.to_string().contains("OUT_OF_MEMORY") {
        return error;
    }
    let left = result::mem_get_info()
        .map(|(free, all)| format!("; {} of its {} MB are free", free / 1_000_000, all / 1_000_000))
        .unwrap_or_default();
    candle_core::Error::msg(format!("{NO_ROOM} for {} MB more{left}", bytes.div_ceil(1_000_000)))
}

/// Where a loss goes, with what its kernels keep behind it for its gradient; and `scratch` f32 values.
pub fn loss(device: &CudaDevice, scratch: usize) -> Result<(Output, Output)> {
    Ok((Output::floats(device, 2)?, Output::floats(device, scratch)?))
}

/// Values in the type that was asked for: those that are there, or converted ones.
pub struct Converted {
    address: u64,
    /// The converted ones, which live as long as this.
    _own: Option<Output>,
}

impl Converted {
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// The `n` f32 values at `address` as `float` says: of a weight whose rounded values are kept, those.
pub fn converted(device: &CudaDevice, address: u64, n: usize, float: Float) -> Result<Converted> {
    match float {
        Float::F32 => Ok(Converted { address, _own: None }),
        Float::Bf16 => {
            if let Some(address) = find_rounded(address, n) {
                return Ok(Converted { address, _own: None });
            }
            let own = Output::new(device, float, n)?;
            let to = own.address(device);
            launch(device, &elementwise::cast(Float::F32, address, to, n))?;
            Ok(Converted {
                address: to,
                _own: Some(own),
            })
        }
    }
}

/// The `n` values at an address as factors of a product: bf16 ones, or f32 ones where `float` says so.
pub fn factor(device: &CudaDevice, values: (Float, u64), n: usize, float: Float) -> Result<Converted> {
    match values {
        (Float::F32, address) => converted(device, address, n, float),
        (Float::Bf16, address) if float == Float::Bf16 => Ok(Converted { address, _own: None }),
        (Float::Bf16, _) => bail!("a product of f32 values was asked for, but a factor has bf16 values"),
    }
}

/// Puts a kernel on the device's stream.
///
/// # Errors
/// A kernel that the driver does not take.
pub fn launch(device: &CudaDevice, launch: &Launch) -> Result<()> {
    if launch.grid.contains(&0) {
        return Ok(());
    }
    let function = function(device, launch)?;
    let stream = device.cuda_stream();
    let mut builder = stream.launch_builder(&function);
    for arg in &launch.args {
        match arg {
            Arg::Pointer(value) | Arg::U64(value) => builder.arg(value),
            Arg::U32(value) => builder.arg(value),
            Arg::F32(value) => builder.arg(value),
        };
    }
    let triple = |[x, y, z]: [u32; 3]| (x, y, z);
    let config = LaunchConfig {
        grid_dim: triple(launch.grid),
        block_dim: triple(launch.block),
        shared_mem_bytes: launch.shared,
    };
    // SAFETY: launch plans pass what their kernels declare, over tensors as long as the sizes say; tests run the same plans
    // under an emulator that checks each access.
    let launched = unsafe { builder.launch(config) };
    match launched {
        Ok(_) => Ok(()),
        Err(e) => bail!("kernel {}: {e}", launch.kernel),
    }
}

/// More shared memory than this must be asked for.
const PLAIN_SHARED: u32 = 48 << 10;

/// The kernels found so far, by GPU and name.
type Functions = RwLock<HashMap<(usize, String), (CudaFunction, u32)>>;

fn function(device: &CudaDevice, launch: &Launch) -> Result<CudaFunction> {
    static FUNCTIONS: LazyLock<Functions> = LazyLock::new(Functions::default);
    let stream = device.cuda_stream();
    let key = (stream.context().ordinal(), launch.kernel.to_string());
    if let Some((function, shared)) = FUNCTIONS.read().unwrap_or_else(PoisonError::into_inner).get(&key)
        && *shared >= launch.shared
    {
        return Ok(function.clone());
    }
    let module = module(device, &launch.kernel)?;
    let Ok(function) = module.load_function(&launch.kernel) else {
        bail!("there is no kernel {}; please report it", launch.kernel)
    };
    if launch.shared > PLAIN_SHARED {
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        if let Err(e) = function.set_attribute(most, launch.shared as i32) {
            bail!(
                "kernel {} needs {} bytes of shared memory: {e}",
                launch.kernel,
                launch.shared
            )
        }
    }
    let mut functions = FUNCTIONS.write().unwrap_or_else(PoisonError::into_inner);
    functions.insert(key, (function.clone(), launch.shared.max(PLAIN_SHARED)));
    Ok(function)
}

/// The loaded module that has a kernel.
fn module(device: &CudaDevice, kernel: &str) -> Result<Arc<CudaModule>> {
    type Modules = RwLock<HashMap<(usize, usize), Arc<CudaModule>>>;
    static MODULES: LazyLock<Modules> = LazyLock::new(Modules::default);
    static KERNELS: LazyLock<HashMap<&'static str, usize>> = LazyLock::new(kernels);
    let Some(&number) = KERNELS.get(kernel) else {
        bail!("there is no kernel {kernel}; please report it")
    };
    let stream = device.cuda_stream();
    let key = (stream.context().ordinal(), number);
    let mut modules = MODULES.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = modules.get(&key) {
        return Ok(module.clone());
    }
    let text = PTX[number];
    let module = match stream.context().load_module(Ptx::from_src(text)) {
        Ok(module) => module,
        Err(e) => bail!(
            "the driver does not take the CUDA kernels of this build ({e}): update it, or build for this machine with \
             `cargo build --release --features cuda`"
        ),
    };
    modules.insert(key, module.clone());
    Ok(module)
}

/// Which of [`PTX`] has each kernel.
fn kernels() -> HashMap<&'static str, usize> {
    let mut found = HashMap::new();
    for (number, text) in PTX.iter().enumerate() {
        for line in text.lines() {
            if let Some((_, rest)) = line.split_once(".entry ") {
                let name = rest.split(|c: char| c == '(' || c.is_whitespace()).next();
                found.extend(name.map(|name| (name, number)));
            }
        }
    }
    found
}
