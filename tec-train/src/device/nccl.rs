//! The functions of NCCL that are called, and a communicator that never blocks.
//!
//! Declared here by hand after NCCL's header: there are few, and an unknown status must stay a number.

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr,
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::{
    CudaDevice,
    cuda_backend::cudarc::driver::{CudaStream, result},
};

use super::libraries;

/// The oldest version taken: the first for CUDA 12, and the first whose communicators that do not block are reliable.
const OLDEST: c_int = 21_800;

/// Bytes of what a communicator is known by.
pub const ID: usize = 128;

/// Statuses.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// The type f32.
const FLOAT: c_int = 7;

/// How long a wait looks without a pause, and its pauses after that.
const SPIN: Duration = Duration::from_millis(2);
const PAUSE: Duration = Duration::from_micros(50);
/// How long it may take until all GPUs are connected.
const CONNECT: Duration = Duration::from_secs(300);
/// How long it may take to hear that a process has ended.
const NEWS: Duration = Duration::from_secs(2);
/// How long NCCL may take to end.
const END: Duration = Duration::from_secs(10);

#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; ID]);

/// The options of version 2.14, which every later one takes.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

unsafe extern "C" {
    fn ncclGetVersion(version: *mut c_int) -> c_int;
    fn ncclGetUniqueId(id: *mut UniqueId) -> c_int;
    fn ncclCommInitRankConfig(
        comm: *mut *mut c_void,
        ranks: c_int,
        id: UniqueId,
        rank: c_int,
        config: *mut Config,
    ) -> c_int;
    fn ncclCommGetAsyncError(comm: *mut c_void, state: *mut c_int) -> c_int;
    fn ncclCommFinalize(comm: *mut c_void) -> c_int;
    fn ncclCommDestroy(comm: *mut c_void) -> c_int;
    fn ncclCommAbort(comm: *mut c_void) -> c_int;
    fn ncclGroupStart() -> c_int;
    fn ncclGroupEnd() -> c_int;
    fn ncclSend(from: u64, count: usize, kind: c_int, peer: c_int, comm: *mut c_void, stream: *mut c_void) -> c_int;
    fn ncclRecv(to: u64, count: usize, kind: c_int, peer: c_int, comm: *mut c_void, stream: *mut c_void) -> c_int;
    fn ncclAllGather(from: u64, to: u64, count: usize, kind: c_int, comm: *mut c_void, stream: *mut c_void) -> c_int;
    fn ncclGetErrorString(status: c_int) -> *const c_char;
    fn ncclGetLastError(comm: *mut c_void) -> *const c_char;
}

/// Finds NCCL; its version, such as 22703 for 2.27.3.
///
/// # Errors
/// That it is missing or too old, in words.
pub fn load() -> Result<i32, String> {
    libraries::load_nccl()?;
    let mut version = 0;
    // SAFETY: the function writes one number.
    checked(unsafe { ncclGetVersion(&mut version) }, ptr::null_mut())?;
    if version < OLDEST {
        return Err(format!(
            "NCCL {} is too old: use {} or newer (libnccl.so.2; PyTorch's wheels bring it as nvidia/nccl/lib)",
            name(version),
            name(OLDEST)
        ));
    }
    Ok(version)
}

/// A version as people write it.
pub fn name(version: i32) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// What tells the GPU of `device` from all others: its UUID in hexadecimal digits.
///
/// # Errors
/// The driver's reason.
pub fn gpu(device: &CudaDevice) -> Result<String, String> {
    let found =
        result::device::get(device.cuda_stream().context().ordinal() as c_int).and_then(result::device::get_uuid);
    let uuid = found.map_err(|e| format!("the GPU does not say which it is: {e}"))?;
    Ok(uuid.bytes.iter().map(|byte| format!("{:02x}", *byte as u8)).collect())
}

/// A new communicator's name, for rank 0 to hand out.
///
/// # Errors
/// NCCL's reason, such as no network.
pub fn unique_id() -> Result<Vec<u8>, String> {
    let mut id = UniqueId([0; ID]);
    // SAFETY: the function fills the id.
    checked(unsafe { ncclGetUniqueId(&mut id) }, ptr::null_mut())?;
    Ok(id.0.to_vec())
}

/// GPUs of several processes, each of which sends and receives on its device's one stream.
///
/// No call waits for other processes without asking `over`, given to each, whether to go on: it says why the job has ended.
pub struct Communicator {
    handle: *mut c_void,
    stream: Arc<CudaStream>,
    aborted: Cell<bool>,
}

/// Values on the GPU: an address and how many f32 lie there.
#[derive(Debug, Clone, Copy)]
pub struct Values {
    pub address: u64,
    pub count: usize,
}

impl Communicator {
    /// Connects the GPU of `device`, as rank `rank` of `size`, with those of all others that were given the same `id`.
    ///
    /// # Errors
    /// NCCL's reason, or what `over` says.
    pub fn connect(
        device: &CudaDevice,
        id: &[u8],
        rank: usize,
        size: usize,
        over: &dyn Fn() -> Option<String>,
    ) -> Result<Self, String> {
        let id = UniqueId(id.try_into().map_err(|_| "rank 0 sent no name of a communicator")?);
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().map_err(|e| e.to_string())?;
        let mut config = Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 21_400,
            blocking: 0,
        };
        let mut handle = ptr::null_mut();
        // SAFETY: handle and options live during the call; the thread's GPU is the device's.
        let status = unsafe { ncclCommInitRankConfig(&mut handle, size as c_int, id, rank as c_int, &mut config) };
        started(status, handle)?;
        if handle.is_null() {
            return Err("NCCL made no communicator".into());
        }
        let communicator = Self {
            handle,
            stream,
            aborted: Cell::new(false),
        };
        let clock = Instant::now();
        let late = || {
            let reason = format!(
                "nothing has come of it for {} s (NCCL_DEBUG=INFO says more)",
                CONNECT.as_secs()
            );
            over().or_else(|| (clock.elapsed() > CONNECT).then_some(reason))
        };
        match communicator.settle(&late) {
            Ok(()) => Ok(communicator),
            Err(reason) => {
                communicator.abort();
                Err(reason)
            }
        }
    }

    /// Sends `parts[rank]` to each other rank, and receives `to[rank]` from it. The values must stay where they are until
    /// [`Communicator::wait`] has returned.
    ///
    /// # Errors
    /// NCCL's reason, or what `over` says.
    pub fn exchange(
        &self,
        parts: &[Values],
        to: &[Values],
        rank: usize,
        over: &dyn Fn() -> Option<String>,
    ) -> Result<(), String> {
        let (stream, comm) = (self.stream.cu_stream().cast(), self.handle);
        // SAFETY: addresses of tensors of the communicator's device with as many values; all that is sent and received lies
        // on the device's one stream, before whatever follows there.
        let status = unsafe {
            checked(ncclGroupStart(), comm)?;
            let calls = parts.iter().zip(to).enumerate().filter(|(peer, _)| *peer != rank);
            let all = calls.map(|(peer, (from, to))| {
                let peer = peer as c_int;
                let sent = ncclSend(from.address, from.count, FLOAT, peer, comm, stream);
                started(sent, comm)?;
                started(ncclRecv(to.address, to.count, FLOAT, peer, comm, stream), comm)
            });
            let all = all.collect::<Result<Vec<()>, String>>();
            let ended = ncclGroupEnd();
            all?;
            ended
        };
        started(status, self.handle)?;
        self.settle(over)
    }

    /// Puts the values `from` of every rank, by rank, at `to`. As for [`Communicator::exchange`].
    ///
    /// # Errors
    /// NCCL's reason, or what `over` says.
    pub fn all_gather(&self, from: Values, to: u64, over: &dyn Fn() -> Option<String>) -> Result<(), String> {
        let stream = self.stream.cu_stream().cast();
        // SAFETY: as in `exchange`; at `to` there is room for the values of all ranks.
        let status = unsafe { ncclAllGather(from.address, to, from.count, FLOAT, self.handle, stream) };
        started(status, self.handle)?;
        self.settle(over)
    }

    /// Waits until everything on the stream is done.
    ///
    /// # Errors
    /// NCCL's or the driver's reason, or what `over` says.
    pub fn wait(&self, over: &dyn Fn() -> Option<String>) -> Result<(), String> {
        let event = self.stream.record_event(None).map_err(|e| e.to_string())?;
        wait(over, || {
            self.state()?;
            event.try_is_complete().map_err(|e| e.to_string())
        })
    }

    /// Ends what is under way, also where it waits for another process. Nothing else may follow.
    pub fn abort(&self) {
        /// A communicator that nothing else uses any more.
        struct Left(*mut c_void);
        // SAFETY: NCCL's communicators may be ended by any thread.
        unsafe impl Send for Left {}
        impl Left {
            fn abort(&self) {
                // SAFETY: made by NCCL, and ended here alone.
                let _ = unsafe { ncclCommAbort(self.0) };
            }
        }
        if self.aborted.replace(true) {
            return;
        }
        let (left, stream) = (Left(self.handle), self.stream.clone());
        let aborting = std::thread::spawn(move || {
            let _ = stream.context().bind_to_thread();
            left.abort();
        });
        // A process that is about to end waits no longer than this.
        let clock = Instant::now();
        while !aborting.is_finished() && clock.elapsed() < END {
            std::thread::sleep(PAUSE);
        }
    }

    /// Ends it when all processes are done.
    pub fn finish(&self) {
        let clock = Instant::now();
        let late = || (clock.elapsed() > END).then(String::new);
        // SAFETY: made by NCCL, and not used after this. An error here changes nothing any more.
        unsafe {
            if started(ncclCommFinalize(self.handle), self.handle).is_ok() && self.settle(&late).is_ok() {
                let _ = ncclCommDestroy(self.handle);
            }
        }
    }

    /// Waits until NCCL has taken what it was told.
    fn settle(&self, over: &dyn Fn() -> Option<String>) -> Result<(), String> {
        wait(over, || self.state().map(|state| state != IN_PROGRESS))
    }

    fn state(&self) -> Result<c_int, String> {
        let mut state = SUCCESS;
        // SAFETY: the communicator is alive; the function writes one number.
        checked(unsafe { ncclCommGetAsyncError(self.handle, &mut state) }, self.handle)?;
        started(state, self.handle)?;
        Ok(state)
    }
}

/// Waits until `is_done`, unless the job is over.
fn wait(over: &dyn Fn() -> Option<String>, is_done: impl Fn() -> Result<bool, String>) -> Result<(), String> {
    let clock = Instant::now();
    while !is_done().map_err(|reason| first_reason(over, reason))? {
        if let Some(reason) = over() {
            return Err(reason);
        }
        match clock.elapsed() < SPIN {
            true => std::thread::yield_now(),
            false => std::thread::sleep(PAUSE),
        }
    }
    Ok(())
}

/// Why a wait has failed: where a process has ended, NCCL's reason is a consequence of it, though it may be known before.
fn first_reason(over: &dyn Fn() -> Option<String>, reason: String) -> String {
    let clock = Instant::now();
    loop {
        match over() {
            Some(first) => return first,
            None if clock.elapsed() > NEWS => return reason,
            None => std::thread::sleep(PAUSE),
        }
    }
}

fn started(status: c_int, comm: *mut c_void) -> Result<(), String> {
    match status {
        IN_PROGRESS => Ok(()),
        _ => checked(status, comm),
    }
}

fn checked(status: c_int, comm: *mut c_void) -> Result<(), String> {
    if status == SUCCESS {
        return Ok(());
    }
    // SAFETY: both functions give texts that stay, or null.
    let (what, more) = unsafe { (text(ncclGetErrorString(status)), text(ncclGetLastError(comm))) };
    let what = what.unwrap_or_else(|| format!("status {status}"));
    Err(match more {
        Some(more) => format!("NCCL: {what}: {more} (NCCL_DEBUG=INFO says more)"),
        None => format!("NCCL: {what} (NCCL_DEBUG=INFO says more)"),
    })
}

/// # Safety
/// Null, or a string that ends with a zero.
unsafe fn text(found: *const c_char) -> Option<String> {
    if found.is_null() {
        return None;
    }
    // SAFETY: as promised by the caller.
    let text = unsafe { CStr::from_ptr(found) }.to_string_lossy();
    let line = text.trim().replace('\n', "; ");
    (!line.is_empty()).then_some(line)
}
