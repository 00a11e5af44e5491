//! Streams and events: what is ordered, and what only happens to come out right.
//!
//! Kernels run when they are launched. A copy out of page-locked memory waits as long as the program lets it: until its own
//! stream goes on, or somebody waits for it. Meanwhile its destination holds poison, which is what one reads who does not wait.
//! The page-locked memory must stay as it is until the host has waited for the copy: then it is looked at.
//!
//! The other way round, what a stream does late, is not acted out but checked: two streams may touch a piece of memory only if
//! an event, or the host, orders them. Of a kernel those pieces count that its arguments point into.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::{c_uint, c_void},
    ptr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{INVALID_VALUE, NOT_READY, SUCCESS, Status, memory, nccl};

/// How far each stream is known to be: a number of its operations.
type Known = BTreeMap<usize, u64>;

#[derive(Default)]
struct World {
    streams: BTreeMap<usize, Stream>,
    /// By handle; empty before they are recorded.
    events: BTreeMap<usize, Option<Event>>,
    handles: usize,
    /// By the address of a piece of memory: which operation of each stream was the last to touch it.
    touched: BTreeMap<usize, Known>,
    /// What the host has waited for.
    host: Known,
}

#[derive(Default)]
struct Stream {
    operations: u64,
    known: Known,
    /// Copies that have not happened yet.
    copies: VecDeque<Copy>,
    /// Those that the host does not know to have happened.
    read: VecDeque<Copy>,
}

struct Copy {
    operation: u64,
    to: usize,
    from: usize,
    bytes: usize,
    /// What was copied, once it was.
    copied: Vec<u8>,
}

#[derive(Clone)]
struct Event {
    stream: usize,
    operation: u64,
    known: Known,
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// Runs `f` on all there is.
fn with<T>(f: impl FnOnce(&mut World) -> T) -> T {
    let mut world: MutexGuard<Option<World>> = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    f(world.get_or_insert_default())
}

/// An operation of `stream` that touches the memory at `addresses` now, after everything before it in its stream.
pub fn operation(stream: *mut c_void, addresses: &[usize]) {
    with(|world| {
        let stream = stream.addr();
        world.catch_up(stream, u64::MAX);
        world.touch(stream, addresses);
    });
}

/// A copy from the host to the GPU, of `stream`: later where the host's memory is page-locked.
pub fn copy_there(stream: *mut c_void, to: usize, from: usize, bytes: usize) {
    let later = memory::is_page_locked(from);
    with(|world| {
        let stream = stream.addr();
        if !later {
            world.catch_up(stream, u64::MAX);
        }
        let operation = world.touch(stream, &[to]);
        let copy = Copy {
            operation,
            to,
            from,
            bytes,
            copied: Vec::new(),
        };
        match later {
            true => {
                memory::poison(to, bytes);
                world.streams.entry(stream).or_default().copies.push_back(copy);
            }
            false => copy.run(),
        }
    });
}

/// The host waits for everything in `stream`.
pub fn wait_for(stream: *mut c_void) {
    with(|world| {
        let stream = stream.addr();
        world.catch_up(stream, u64::MAX);
        let event = world.event(stream);
        world.host_knows(&event);
    });
}

/// Memory at `address` is no more.
pub fn forget(address: usize) {
    with(|world| drop(world.touched.remove(&address)));
}

/// Whether a copy out of page-locked memory from `start` on may still be to come, for all that the host knows.
pub fn is_copied_from(start: usize, bytes: usize) -> bool {
    let reads = |copy: &Copy| (start..start + bytes).contains(&copy.from);
    with(|world| {
        let mut copies = world
            .streams
            .values()
            .flat_map(|stream| stream.copies.iter().chain(&stream.read));
        copies.any(reads)
    })
}

impl Copy {
    fn run(&self) {
        let (from, to) = (self.source(), ptr::with_exposed_provenance_mut::<u8>(self.to));
        // SAFETY: whoever asked for the copy keeps as many bytes there until it has waited for it.
        unsafe { ptr::copy(from.as_ptr(), to, self.bytes) };
    }

    fn source(&self) -> &[u8] {
        // SAFETY: the same of the host's memory, page-locked or not; freeing the former is refused as long as this is listed.
        unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance(self.from), self.bytes) }
    }

    /// Now that the host may write the memory again, looks whether it has waited for that.
    fn confirm(&self) {
        if self.source() != self.copied {
            eprintln!("emulated CUDA: page-locked memory was written while a copy might still read it");
            std::process::abort();
        }
    }
}

impl World {
    fn handle(&mut self, first: usize) -> *mut c_void {
        self.handles += 1;
        ptr::without_provenance_mut(first + self.handles * 16)
    }

    /// Copies of `stream` up to an operation happen now.
    fn catch_up(&mut self, stream: usize, operation: u64) {
        let Stream { copies, read, .. } = self.streams.entry(stream).or_default();
        for mut copy in up_to(copies, operation) {
            copy.run();
            copy.copied = copy.source().to_vec();
            read.push_back(copy);
        }
    }

    /// Counts an operation and looks whether all that touched the same memory before is known to be done.
    fn touch(&mut self, stream: usize, addresses: &[usize]) -> u64 {
        let this = self.streams.entry(stream).or_default();
        this.operations += 1;
        let operation = this.operations;
        for piece in addresses.iter().filter_map(|&address| memory::piece(address)) {
            let touched = self.touched.entry(piece).or_default();
            for (other, last) in touched.iter().filter(|(other, _)| **other != stream) {
                if this.known.get(other).is_none_or(|known| known < last) {
                    eprintln!("emulated CUDA: two streams use the same memory, and neither waits for the other");
                    std::process::abort();
                }
            }
            touched.insert(stream, operation);
        }
        operation
    }

    /// Everything in `stream` so far.
    fn event(&mut self, stream: usize) -> Event {
        let found = self.streams.entry(stream).or_default();
        Event {
            stream,
            operation: found.operations,
            known: found.known.clone(),
        }
    }

    /// Whatever is asked for from now on comes after `event`.
    fn host_knows(&mut self, event: &Event) {
        learn(&mut self.host, event);
        for (stream, &operation) in &self.host {
            let Some(Stream { read, .. }) = self.streams.get_mut(stream) else {
                continue;
            };
            up_to(read, operation).iter().for_each(Copy::confirm);
        }
        self.streams
            .values_mut()
            .for_each(|stream| learn(&mut stream.known, event));
    }
}

/// Takes the copies up to an operation out of a list.
fn up_to(copies: &mut VecDeque<Copy>, operation: u64) -> Vec<Copy> {
    let count = copies.iter().take_while(|copy| copy.operation <= operation).count();
    copies.drain(..count).collect()
}

/// Adds what is done once `event` is.
fn learn(known: &mut Known, event: &Event) {
    let own = (&event.stream, &event.operation);
    for (stream, operation) in event.known.iter().chain([own]) {
        let known = known.entry(*stream).or_default();
        *known = (*known).max(*operation);
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _: c_uint) -> Status {
    with(|world| {
        let handle = world.handle(0x2000);
        let fresh = Stream {
            known: world.host.clone(),
            ..Stream::default()
        };
        world.streams.insert(handle.addr(), fresh);
        // SAFETY: the caller gives room for a pointer, which is never followed.
        unsafe { *stream = handle };
    });
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> Status {
    // What it was asked for is still done.
    wait_for(stream);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> Status {
    wait_for(stream);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Status {
    let all: Vec<usize> = with(|world| world.streams.keys().copied().collect());
    all.into_iter()
        .for_each(|stream| wait_for(ptr::without_provenance_mut(stream)));
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: *mut c_void, event: *mut c_void, _: c_uint) -> Status {
    with(|world| match world.events.get(&event.addr()).cloned() {
        None => INVALID_VALUE,
        // Nothing to wait for.
        Some(None) => SUCCESS,
        Some(Some(event)) => {
            world.catch_up(event.stream, event.operation);
            learn(&mut world.streams.entry(stream.addr()).or_default().known, &event);
            SUCCESS
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut c_void, _: c_uint) -> Status {
    with(|world| {
        let handle = world.handle(0x3000_0000);
        world.events.insert(handle.addr(), None);
        // SAFETY: the caller gives room for a pointer, which is never followed.
        unsafe { *event = handle };
    });
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> Status {
    with(|world| drop(world.events.remove(&event.addr())));
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> Status {
    with(|world| {
        let now = world.event(stream.addr());
        match world.events.get_mut(&event.addr()) {
            Some(place) => {
                *place = Some(now);
                SUCCESS
            }
            None => INVALID_VALUE,
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: *mut c_void) -> Status {
    with(|world| {
        if let Some(Some(event)) = world.events.get(&event.addr()).cloned() {
            world.catch_up(event.stream, event.operation);
            world.host_knows(&event);
        }
    });
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: *mut c_void) -> Status {
    if nccl::is_stuck() {
        return NOT_READY;
    }
    with(|world| {
        let Some(Some(event)) = world.events.get(&event.addr()) else {
            return SUCCESS;
        };
        let copies = world.streams.get(&event.stream).map(|stream| &stream.copies);
        match copies
            .and_then(VecDeque::front)
            .is_some_and(|copy| copy.operation <= event.operation)
        {
            true => NOT_READY,
            false => SUCCESS,
        }
    })
}
