//! Messages between the processes of a job over TCP, all by way of rank 0, and the watch over who is still there.
//!
//! A thread for each connection reads what comes and keeps it until it is asked for. So the end of a process shows at once,
//! whatever the others are doing: rank 0 tells everybody, and who waits stops waiting.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crate::{Error, Result};

/// A frame is its kind, the number of its bytes, and those.
const HEADER: usize = 1 + size_of::<u64>();
const MESSAGE: u8 = 1;
const HEARTBEAT: u8 = 2;
/// The sender is done; the connection's end means nothing any more.
const GOODBYE: u8 = 3;
/// The job is over, and why.
const OVER: u8 = 4;

/// The longest message in bytes: a bucket of gradients, or what some thousand ranks say of a step.
const LONGEST: u64 = 1 << 30;
/// How often a process says that it is there, and after how many such times without a word it counts as gone.
const BEAT: Duration = Duration::from_secs(5);
const SILENT_BEATS: u32 = 12;
/// How long it may take until what a peer said last has been read.
const SETTLE: Duration = Duration::from_secs(5);

/// This process's place in the star.
pub struct Star {
    rank: usize,
    size: usize,
    shared: Arc<Shared>,
}

struct Shared {
    /// On rank 0 the other ranks', in their order; else rank 0's.
    peers: Vec<Peer>,
    state: Mutex<State>,
    changed: Condvar,
}

struct Peer {
    rank: usize,
    /// To read from, and to end.
    stream: TcpStream,
    /// To write to, a whole frame at a time.
    writer: Mutex<TcpStream>,
}

#[derive(Default)]
struct State {
    /// Messages of each peer, the oldest first.
    inbox: Vec<VecDeque<Vec<u8>>>,
    /// Which peers have ended their parts, all being well.
    left: Vec<bool>,
    /// Why the job is over.
    over: Option<String>,
    /// The peers have been told so.
    told: bool,
    /// This process ends its part.
    closing: bool,
}

impl Star {
    /// Of the connections that [`super::rendezvous::meet`] makes.
    ///
    /// # Errors
    /// A connection that cannot be set up.
    pub fn new(rank: usize, size: usize, streams: Vec<TcpStream>) -> Result<Self> {
        let peer = |(at, stream): (usize, TcpStream)| {
            stream.set_read_timeout(Some(BEAT))?;
            stream.set_write_timeout(Some(BEAT * SILENT_BEATS))?;
            Ok(Peer {
                rank: if rank == 0 { at + 1 } else { 0 },
                writer: Mutex::new(stream.try_clone()?),
                stream,
            })
        };
        let peers: io::Result<Vec<Peer>> = streams.into_iter().enumerate().map(peer).collect();
        let peers = peers.map_err(|e| Error::Data(format!("a connection between processes cannot be set up: {e}")))?;
        let state = State {
            inbox: peers.iter().map(|_| VecDeque::new()).collect(),
            left: vec![false; peers.len()],
            ..State::default()
        };
        let shared = Arc::new(Shared {
            peers,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        for at in 0..shared.peers.len() {
            let shared = shared.clone();
            thread::spawn(move || shared.listen(at));
        }
        let beating = shared.clone();
        thread::spawn(move || beating.beat());
        Ok(Self { rank, size, shared })
    }

    /// This process's rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks in all.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Why the job is over, if it is: a rank is gone or has given up.
    #[cfg(any(feature = "cuda", test))]
    pub fn over(&self) -> Option<String> {
        self.shared.state().over.clone()
    }

    /// The bytes of every rank, by rank.
    ///
    /// # Errors
    /// A rank that is gone.
    pub fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let all = self.combine(bytes.to_vec(), |mut all| {
            let mut packed = Vec::with_capacity(all.iter().map(|said| said.len() + 8).sum());
            for said in all.drain(..) {
                packed.extend((said.len() as u64).to_le_bytes());
                packed.extend(said);
            }
            Ok(packed)
        })?;
        unpack(&all, self.size).ok_or_else(nonsense)
    }

    /// What rank 0 makes of the bytes of every rank, by rank; on every rank.
    ///
    /// # Errors
    /// A rank that is gone, and on rank 0 whatever `make` returns.
    pub fn combine(&self, bytes: Vec<u8>, make: impl FnOnce(Vec<Vec<u8>>) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        if self.rank > 0 {
            self.send(0, &bytes)?;
            return self.receive(0);
        }
        let mut all = vec![bytes];
        for peer in 0..self.shared.peers.len() {
            all.push(self.receive(peer)?);
        }
        let made = make(all)?;
        for peer in 0..self.shared.peers.len() {
            self.send(peer, &made)?;
        }
        Ok(made)
    }

    /// Ends this process's part: well, or with the whole job, because of `reason`.
    pub fn close(&self, reason: Option<&str>) {
        match reason {
            Some(reason) => self.shared.end(reason, None),
            None => self.shared.tell(GOODBYE, &[], None),
        }
        let mut state = self.shared.state();
        state.closing = true;
        self.shared.changed.notify_all();
        // Another thread may be telling them just now: what ends before it has, ends without a word.
        let told = self
            .shared
            .changed
            .wait_while(state, |state| state.over.is_some() && !state.told);
        drop(told);
        for peer in &self.shared.peers {
            // What was written still arrives.
            let _ = peer.stream.shutdown(Shutdown::Write);
        }
    }

    fn send(&self, peer: usize, bytes: &[u8]) -> Result<()> {
        let shared = &self.shared;
        let peer = &shared.peers[peer];
        if peer.write(MESSAGE, bytes).is_err() {
            // Whoever reads what it said last may know more.
            let wait = shared
                .changed
                .wait_timeout_while(shared.state(), SETTLE, |state| state.over.is_none());
            drop(wait);
            shared.end(&gone(peer.rank), Some(peer.rank));
        }
        shared.check(&shared.state())
    }

    fn receive(&self, peer: usize) -> Result<Vec<u8>> {
        let mut state = self.shared.state();
        loop {
            if let Some(message) = state.inbox[peer].pop_front() {
                return Ok(message);
            }
            self.shared.check(&state)?;
            if state.left[peer] {
                let rank = self.shared.peers[peer].rank;
                return Err(Error::Data(format!(
                    "rank {rank} has ended before this one; please report it"
                )));
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, state: &State) -> Result<()> {
        state.over.clone().map_or(Ok(()), |reason| Err(Error::Data(reason)))
    }

    /// The job is over: for this process, and for those that it speaks with.
    fn end(&self, reason: &str, except: Option<usize>) {
        {
            let mut state = self.state();
            if state.over.is_some() || state.closing {
                return;
            }
            state.over = Some(reason.into());
        }
        self.changed.notify_all();
        self.tell(OVER, reason.as_bytes(), except);
        self.state().told = true;
        self.changed.notify_all();
    }

    /// Says something to all peers but one; whether they hear it is their matter.
    fn tell(&self, kind: u8, bytes: &[u8], except: Option<usize>) {
        for peer in self.peers.iter().filter(|peer| Some(peer.rank) != except) {
            let _ = peer.write(kind, bytes);
        }
    }

    /// Says every few seconds that this process is there.
    fn beat(&self) {
        let mut state = self.state();
        while !state.closing && state.over.is_none() {
            let (after, waited) = self
                .changed
                .wait_timeout(state, BEAT)
                .unwrap_or_else(PoisonError::into_inner);
            if waited.timed_out() {
                drop(after);
                self.tell(HEARTBEAT, &[], None);
                state = self.state();
            } else {
                state = after;
            }
        }
    }

    /// Reads what a peer says until it ends.
    fn listen(&self, at: usize) {
        let peer = &self.peers[at];
        loop {
            match read_frame(&peer.stream) {
                Ok((MESSAGE, bytes)) => {
                    self.state().inbox[at].push_back(bytes);
                    self.changed.notify_all();
                }
                Ok((HEARTBEAT, _)) => {}
                Ok((GOODBYE, _)) => {
                    self.state().left[at] = true;
                    return self.changed.notify_all();
                }
                Ok((OVER, reason)) => return self.end(&String::from_utf8_lossy(&reason), Some(peer.rank)),
                Ok(_) => return self.end(&format!("rank {} says what makes no sense", peer.rank), None),
                Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                    let words = format!(
                        "rank {}: nothing was heard of it for {} s; its machine or the network is down",
                        peer.rank,
                        (BEAT * SILENT_BEATS).as_secs()
                    );
                    return self.end(&words, Some(peer.rank));
                }
                Err(_) => return self.end(&gone(peer.rank), Some(peer.rank)),
            }
        }
    }
}

impl Peer {
    fn write(&self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut header = [kind; HEADER];
        header[1..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        writer.write_all(&header)?;
        writer.write_all(bytes)
    }
}

/// What is known of a rank whose connection has ended.
fn gone(rank: usize) -> String {
    format!("rank {rank} has ended without a word: it was killed, or its machine is down; its launcher may say more")
}

fn nonsense() -> Error {
    Error::Data("a message between ranks makes no sense; start the same program on every machine".into())
}

fn unpack(mut rest: &[u8], size: usize) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::with_capacity(size);
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        all.push(after.get(..length)?.to_vec());
        rest = &after[length..];
    }
    (all.len() == size && rest.is_empty()).then_some(all)
}

fn read_frame(stream: &TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut header = Vec::new();
    read(stream, HEADER as u64, &mut header)?;
    let (kind, length) = match *header.as_slice() {
        [kind, ref length @ ..] => (kind, u64::from_le_bytes(length.try_into().unwrap_or_default())),
        [] => return Err(io::ErrorKind::UnexpectedEof.into()),
    };
    if length > LONGEST {
        return Err(io::Error::other("too long"));
    }
    let mut bytes = Vec::new();
    read(stream, length, &mut bytes)?;
    Ok((kind, bytes))
}

/// Reads `count` bytes. The memory grows with what comes, not with what is announced.
fn read(mut stream: &TcpStream, count: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut silent = 0;
    while (bytes.len() as u64) < count {
        let left = count - bytes.len() as u64;
        let before = bytes.len();
        match Read::take(&mut stream, left).read_to_end(bytes) {
            Ok(_) if (bytes.len() as u64) < count => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                // Counted in beats, so that a job which was suspended as a whole goes on.
                silent = if bytes.len() > before { 0 } else { silent + 1 };
                if silent >= SILENT_BEATS {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Instant};

    use super::{
        super::rendezvous::{
            meet,
            tests::{launch, port},
        },
        *,
    };

    /// Runs `rank` for each of `size` places of a star and returns what each gave, by rank.
    fn on_star<T: Send>(size: usize, rank: impl Fn(Star) -> T + Sync) -> Vec<T> {
        let port = port();
        thread::scope(|scope| {
            let ranks: Vec<_> = (0..size)
                .map(|number| {
                    let rank = &rank;
                    scope.spawn(move || {
                        let streams = meet(&launch(number, size, port), Duration::from_secs(20)).unwrap();
                        rank(Star::new(number, size, streams).unwrap())
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_rank_hears_every_rank() {
        let heard = on_star(3, |star| {
            let long = vec![star.rank() as u8; 3_000_000 * star.rank()];
            let first = star.gather(&long).unwrap();
            let second = star.gather(format!("rank {}", star.rank()).as_bytes()).unwrap();
            star.close(None);
            (
                first.iter().map(|all| all.len()).collect::<Vec<_>>(),
                first[2][7],
                second,
            )
        });
        let said = ["rank 0", "rank 1", "rank 2"].map(|said| said.as_bytes().to_vec());
        for end in heard {
            assert_eq!(end, (vec![0, 3_000_000, 6_000_000], 2, said.to_vec()));
        }
    }

    /// Rank 1 or 0 ends without a word while the others wait: for it, or for the other ones. All hear of it, however soon those
    /// who hear first have ended too.
    #[test]
    fn a_rank_that_ends_stops_all_that_wait() {
        for dead in [1, 0].repeat(20) {
            let clock = Instant::now();
            let ends = on_star(5, |star| {
                if star.rank() == dead {
                    // The dead say nothing, their threads neither.
                    star.shared.state().closing = true;
                    for peer in &star.shared.peers {
                        peer.stream.shutdown(Shutdown::Both).unwrap();
                    }
                    return None;
                }
                let error = star.gather(b"well").unwrap_err().to_string();
                assert_eq!(star.over(), Some(error.clone()));
                star.close(Some(&error));
                Some(error)
            });
            assert!(clock.elapsed() < Duration::from_secs(10));
            let words = format!("rank {dead} has ended without a word");
            for error in ends.into_iter().flatten() {
                assert!(error.starts_with(&words), "{error}");
            }
        }
    }

    /// Also one that waits for no message, but for something else meanwhile.
    #[test]
    fn a_rank_that_gives_up_says_why() {
        let (gave_up, seen) = (Mutex::new(None), mpsc::channel::<()>());
        *gave_up.lock().unwrap() = Some(seen.0);
        let seen = Mutex::new(seen.1);
        let ends = on_star(3, |star| match star.rank() {
            2 => {
                star.close(Some("rank 2 has failed"));
                drop(gave_up.lock().unwrap().take());
                star.over()
            }
            _ => {
                let _ = seen.lock().unwrap().recv();
                let clock = Instant::now();
                while star.over().is_none() && clock.elapsed() < Duration::from_secs(5) {
                    thread::sleep(Duration::from_millis(10));
                }
                star.over()
            }
        });
        assert_eq!(ends, vec![Some("rank 2 has failed".to_string()); 3]);
    }

    #[test]
    fn a_length_that_nobody_sends_takes_no_memory() {
        let ends = on_star(2, |star| {
            if star.rank() == 1 {
                let mut stream = &star.shared.peers[0].stream;
                let announced = [&[MESSAGE][..], &(LONGEST + 1).to_le_bytes()].concat();
                stream.write_all(&announced).unwrap();
            }
            star.gather(b"").is_err()
        });
        assert_eq!(ends, [true, true]);
    }
}
