//! NCCL between processes of one machine: what one sends really arrives in another, over sockets.
//!
//! Communicators behave as those that do not block: every call only begins, a thread does what was asked, and a call before that
//! is done is an error. A process that is waited for and gone is waited for until the communicator is aborted, as over a
//! network that says nothing; with `EMULATED_NCCL=kernel` it is the GPU that waits, not NCCL.

use std::{
    cell::RefCell,
    ffi::{c_char, c_int, c_void},
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    ptr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI32, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{memory, number, streams};

const SUCCESS: c_int = 0;
const SYSTEM_ERROR: c_int = 2;
const INVALID_ARGUMENT: c_int = 4;
const INVALID_USAGE: c_int = 5;
const IN_PROGRESS: c_int = 7;
/// The type f32.
const FLOAT: c_int = 7;
const CONFIG_MAGIC: u32 = 0xcafe_beef;
/// Of this version it behaves.
const VERSION: c_int = 22_703;
const PAUSE: Duration = Duration::from_millis(1);

/// Whether a kernel of NCCL's waits for a process that is gone: then so does everything behind it.
static STUCK: AtomicBool = AtomicBool::new(false);

/// Whether the GPU is busy for ever.
pub fn is_stuck() -> bool {
    STUCK.load(SeqCst)
}

#[repr(C)]
pub struct UniqueId([u8; 128]);

/// The part of the options that every version has.
#[repr(C)]
pub struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

pub struct Communicator {
    rank: usize,
    size: usize,
    state: Arc<AtomicI32>,
    aborted: Arc<AtomicBool>,
    /// Connections with the other ranks, by rank.
    peers: Arc<Mutex<Vec<Option<UnixStream>>>>,
    /// The same, to end them while they are in use.
    sockets: Arc<Mutex<Vec<UnixStream>>>,
    work: Option<JoinHandle<()>>,
}

/// A part of a call: addresses in this process.
#[derive(Clone, Copy)]
enum Part {
    Send { from: usize, bytes: usize, peer: usize },
    Receive { to: usize, bytes: usize, peer: usize },
}

thread_local! {
    /// The parts of the group that is being told, and of which communicator.
    static GROUP: RefCell<Option<(Vec<Part>, *mut Communicator)>> = const { RefCell::new(None) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: the caller gives room for a number.
    unsafe { *version = number("EMULATED_NCCL_VERSION").map_or(VERSION, |version| version as c_int) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> c_int {
    let mut bytes = [0; 128];
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let name = format!(
        "tec-nccl-{}-{}",
        std::process::id(),
        since.map_or(0, |since| since.as_nanos())
    );
    bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    // SAFETY: the caller gives room for an id.
    unsafe { *id = UniqueId(bytes) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    comm: *mut *mut Communicator,
    size: c_int,
    id: UniqueId,
    rank: c_int,
    config: *mut Config,
) -> c_int {
    // SAFETY: the caller gives options that begin like this.
    let config = unsafe { &*config };
    if config.magic != CONFIG_MAGIC || config.version < 21_400 || config.blocking != 0 || !(0..size).contains(&rank) {
        return INVALID_ARGUMENT;
    }
    let (rank, size) = (rank as usize, size as usize);
    let mut made = Communicator {
        rank,
        size,
        state: Arc::new(AtomicI32::new(IN_PROGRESS)),
        aborted: Arc::new(AtomicBool::new(false)),
        peers: Arc::default(),
        sockets: Arc::default(),
        work: None,
    };
    let (peers, sockets, aborted) = (made.peers.clone(), made.sockets.clone(), made.aborted.clone());
    made.begin(move || {
        let found = find(rank, size, &id.0, &aborted)?;
        let same: io::Result<Vec<UnixStream>> = found.iter().flatten().map(UnixStream::try_clone).collect();
        *sockets.lock().unwrap_or_else(PoisonError::into_inner) = same?;
        *peers.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    });
    // SAFETY: the caller gives room for a pointer.
    unsafe { *comm = Box::into_raw(Box::new(made)) };
    IN_PROGRESS
}

/// Connects with all other ranks: with those below by calling them, with those above by being called.
fn find(rank: usize, size: usize, id: &[u8], aborted: &AtomicBool) -> io::Result<Vec<Option<UnixStream>>> {
    let name = id.split(|byte| *byte == 0).next().unwrap_or_default();
    let address = |rank: usize| SocketAddr::from_abstract_name([name, b"-", rank.to_string().as_bytes()].concat());
    let listener = UnixListener::bind_addr(&address(rank)?)?;
    listener.set_nonblocking(true)?;
    let mut peers: Vec<Option<UnixStream>> = (0..size).map(|_| None).collect();
    let unfinished = || io::Error::from(io::ErrorKind::Interrupted);
    for (below, peer) in peers.iter_mut().enumerate().take(rank) {
        *peer = Some(loop {
            match UnixStream::connect_addr(&address(below)?) {
                Ok(mut stream) => {
                    stream.write_all(&(rank as u32).to_le_bytes())?;
                    break stream;
                }
                Err(_) if aborted.load(SeqCst) => return Err(unfinished()),
                Err(_) => thread::sleep(PAUSE),
            }
        });
    }
    while peers
        .iter()
        .enumerate()
        .any(|(other, peer)| other > rank && peer.is_none())
    {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false)?;
                let mut other = [0; 4];
                stream.read_exact(&mut other)?;
                peers[u32::from_le_bytes(other) as usize] = Some(stream);
            }
            Err(_) if aborted.load(SeqCst) => return Err(unfinished()),
            Err(_) => thread::sleep(PAUSE),
        }
    }
    Ok(peers)
}

impl Communicator {
    /// Has a thread do something. Where it fails, as it does where a process is gone, it has no end before the communicator's.
    fn begin(&mut self, work: impl FnOnce() -> io::Result<()> + Send + 'static) {
        self.state.store(IN_PROGRESS, SeqCst);
        let (state, aborted) = (self.state.clone(), self.aborted.clone());
        self.work = Some(thread::spawn(move || {
            if let Err(e) = work() {
                eprintln!("emulated NCCL: {e}");
                if std::env::var("EMULATED_NCCL").is_ok_and(|what| what == "kernel") {
                    STUCK.store(true, SeqCst);
                    state.store(SUCCESS, SeqCst);
                }
                while !aborted.load(SeqCst) {
                    thread::sleep(PAUSE);
                }
                STUCK.store(false, SeqCst);
            }
            state.store(SUCCESS, SeqCst);
        }));
    }

    fn run(&mut self, parts: Vec<Part>) -> c_int {
        if self.state.load(SeqCst) != SUCCESS {
            return INVALID_USAGE;
        }
        let peers = self.peers.clone();
        self.begin(move || {
            let peers = peers.lock().unwrap_or_else(PoisonError::into_inner);
            transfer(&parts, &peers)
        });
        IN_PROGRESS
    }
}

/// All sends at once, each on a thread of its own, so that none waits for a receiver that is sending itself.
fn transfer(parts: &[Part], peers: &[Option<UnixStream>]) -> io::Result<()> {
    let peer = |number: usize| {
        peers
            .get(number)
            .and_then(Option::as_ref)
            .ok_or(io::ErrorKind::NotConnected)
    };
    thread::scope(|scope| {
        let mut sends = Vec::new();
        for part in parts {
            if let Part::Send { from, bytes, peer: to } = *part {
                let mut stream = peer(to)?;
                sends.push(scope.spawn(move || {
                    // SAFETY: the range lies in device memory, as was looked when it was given, and nobody writes there
                    // before the call is done.
                    let values = unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(from), bytes) };
                    stream.write_all(values)
                }));
            }
        }
        for part in parts {
            if let Part::Receive { to, bytes, peer: from } = *part {
                let mut stream = peer(from)?;
                // SAFETY: as above, and nobody else reads or writes there before the call is done.
                let values =
                    unsafe { std::slice::from_raw_parts_mut(ptr::with_exposed_provenance_mut::<u8>(to), bytes) };
                stream.read_exact(values)?;
            }
        }
        let sent = sends
            .into_iter()
            .map(|send| send.join().unwrap_or(Err(io::ErrorKind::Other.into())));
        sent.collect()
    })
}

/// Bytes of a message, if it is one that is known and lies in device memory.
fn checked(address: usize, count: usize, kind: c_int) -> Option<usize> {
    let bytes = count.checked_mul(size_of::<f32>())?;
    (kind == FLOAT && memory::has(address, bytes)).then_some(bytes)
}

fn add(comm: *mut Communicator, part: Option<Part>) -> c_int {
    GROUP.with_borrow_mut(|group| match (group, part) {
        (_, None) => INVALID_ARGUMENT,
        // Alone it would wait for its counterpart.
        (None, _) => INVALID_USAGE,
        (Some((parts, of)), Some(part)) => {
            parts.push(part);
            *of = comm;
            SUCCESS
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> c_int {
    GROUP.set(Some((Vec::new(), ptr::null_mut())));
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> c_int {
    match GROUP.take() {
        // SAFETY: the communicator is one that was made here and is not ended yet.
        Some((parts, comm)) if !comm.is_null() => unsafe { (*comm).run(parts) },
        Some(_) => SUCCESS,
        None => INVALID_USAGE,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclSend(
    from: usize,
    count: usize,
    kind: c_int,
    peer: c_int,
    comm: *mut Communicator,
    stream: *mut c_void,
) -> c_int {
    streams::operation(stream, &[from]);
    let peer = peer as usize;
    add(
        comm,
        checked(from, count, kind).map(|bytes| Part::Send { from, bytes, peer }),
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclRecv(
    to: usize,
    count: usize,
    kind: c_int,
    peer: c_int,
    comm: *mut Communicator,
    stream: *mut c_void,
) -> c_int {
    streams::operation(stream, &[to]);
    let peer = peer as usize;
    add(
        comm,
        checked(to, count, kind).map(|bytes| Part::Receive { to, bytes, peer }),
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    from: usize,
    to: usize,
    count: usize,
    kind: c_int,
    comm: *mut Communicator,
    stream: *mut c_void,
) -> c_int {
    streams::operation(stream, &[from, to]);
    // SAFETY: the communicator is one that was made here and is not ended yet.
    let comm = unsafe { &mut *comm };
    let Some(bytes) = checked(from, count, kind).filter(|_| checked(to, count * comm.size, kind).is_some()) else {
        return INVALID_ARGUMENT;
    };
    if comm.state.load(SeqCst) != SUCCESS {
        return INVALID_USAGE;
    }
    let place = |rank: usize| to + rank * bytes;
    // SAFETY: both ranges lie in device memory.
    unsafe {
        let from: *const u8 = ptr::with_exposed_provenance(from);
        ptr::copy(from, ptr::with_exposed_provenance_mut(place(comm.rank)), bytes);
    }
    let others = (0..comm.size).filter(|rank| *rank != comm.rank);
    let parts = others.flat_map(|peer| {
        let to = place(peer);
        [Part::Send { from, bytes, peer }, Part::Receive { to, bytes, peer }]
    });
    let parts = parts.collect();
    comm.run(parts)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(comm: *mut Communicator, state: *mut c_int) -> c_int {
    // SAFETY: the communicator is one that was made here; the caller gives room for a number.
    unsafe { *state = (*comm).state.load(SeqCst) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommFinalize(comm: *mut Communicator) -> c_int {
    // SAFETY: the communicator is one that was made here and is not ended yet.
    match unsafe { (*comm).state.load(SeqCst) } {
        SUCCESS => SUCCESS,
        _ => INVALID_USAGE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(comm: *mut Communicator) -> c_int {
    // SAFETY: the communicator is one that was made here, and is not used after this.
    drop(unsafe { Box::from_raw(comm) });
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(comm: *mut Communicator) -> c_int {
    // SAFETY: the communicator is one that was made here, and is not used after this.
    let mut comm = unsafe { Box::from_raw(comm) };
    comm.aborted.store(true, SeqCst);
    for stream in comm.sockets.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // Ends what waits for a process that is alive.
        let _ = stream.shutdown(Shutdown::Both);
    }
    match comm.work.take().map(JoinHandle::join) {
        Some(Err(_)) => SYSTEM_ERROR,
        _ => SUCCESS,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(status: c_int) -> *const c_char {
    let words = match status {
        SUCCESS => c"no error",
        SYSTEM_ERROR => c"unhandled system error",
        INVALID_ARGUMENT => c"invalid argument",
        INVALID_USAGE => c"invalid usage",
        _ => c"internal error",
    };
    words.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_: *mut Communicator) -> *const c_char {
    c"emulated NCCL keeps no log".as_ptr()
}
