//! How the processes of a job find each other over TCP: rank 0 listens, the others connect and say who they are.
//!
//! Anything may connect to a port. Of a stranger [`HELLO`] bytes are read, for a few seconds at most, before it is let go; only
//! who names this job, this version of the program and a rank that is missing takes part. Nothing is encrypted or proven: the
//! processes of a job belong in a network that others cannot reach.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::mpsc::{self, Sender},
    thread,
    time::{Duration, Instant},
};

use super::{Launch, Launcher};
use crate::{Error, Result};

/// How long the processes of a job may take until all have started.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// What every connection begins with, in both directions.
const MAGIC: [u8; 8] = *b"tecranks";
/// The version of the program, cut or filled up to as many bytes.
const VERSION: usize = 16;
/// Bytes of what a process says first: the magic, the version, ranks in all, its own, and the CRC-32 of the job's name.
const HELLO: usize = MAGIC.len() + VERSION + 3 * size_of::<u32>();
/// The longest refusal, in bytes.
const REFUSAL: usize = 1024;
/// Strangers that may be listened to at once.
const STRANGERS: usize = 64;
/// How long a connection may be silent before it says who it is.
const SILENCE: Duration = Duration::from_secs(5);
/// Between two looks at the listener, and two attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// Connects this process with the others: on rank 0 a connection with each of the other ranks, in their order; else one with
/// rank 0. All have come when this returns.
///
/// # Errors
/// [`Error::Usage`] where `launch` does not say where to meet, or a port is taken; [`Error::Data`] where not all came in time, or
/// what came is of another job or version.
pub fn meet(launch: &Launch, patience: Duration) -> Result<Vec<TcpStream>> {
    let Some((host, port)) = &launch.rendezvous else {
        return Err(nowhere(launch.launcher, launch.size));
    };
    let me = Hello::of(launch);
    let streams = match launch.rank {
        0 => wait_for_all(&listen(host, *port)?, &me, launch, patience)?,
        _ => vec![reach(host, *port, &me, launch.rank, patience)?],
    };
    for stream in &streams {
        // Messages are short, and somebody waits for each.
        stream.set_nodelay(true).map_err(refused)?;
    }
    Ok(streams)
}

fn nowhere(launcher: Launcher, size: usize) -> Error {
    let how = match launcher {
        Launcher::OpenMpi => {
            "start with `mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=PORT …` (on CPUs a build with the feature `mpi` needs neither)"
        }
        _ => "set MASTER_ADDR and MASTER_PORT in every process",
    };
    Error::Usage(format!(
        "{launcher} started {size} processes, but nothing says where they can meet: {how}, with the host of rank 0 and a port \
         that is free there, such as 29500"
    ))
}

fn refused(error: io::Error) -> Error {
    Error::Data(format!("a connection between processes cannot be set up: {error}"))
}

/// What a process says first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hello {
    version: [u8; VERSION],
    size: u32,
    rank: u32,
    job: u32,
}

impl Hello {
    fn of(launch: &Launch) -> Self {
        let mut version = [0; VERSION];
        version
            .iter_mut()
            .zip(env!("CARGO_PKG_VERSION").bytes())
            .for_each(|(to, from)| *to = from);
        Self {
            version,
            size: launch.size as u32,
            rank: launch.rank as u32,
            job: crc32fast::hash(launch.job.as_deref().unwrap_or_default().as_bytes()),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let numbers = [self.size, self.rank, self.job].map(u32::to_le_bytes);
        [&MAGIC[..], &self.version, numbers.as_flattened()].concat()
    }

    fn from_bytes(bytes: &[u8; HELLO]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (version, numbers) = rest.split_first_chunk()?;
        let number = |at: usize| {
            let bytes = numbers.get(4 * at..4 * at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        Some(Self {
            version: *version,
            size: number(0)?,
            rank: number(1)?,
            job: number(2)?,
        })
    }

    fn version(&self) -> String {
        let text = self.version.iter().take_while(|byte| byte.is_ascii_graphic());
        text.map(|byte| char::from(*byte)).collect()
    }

    /// Why a process that says this is not of the job of rank 0, which says `first`.
    fn objection(&self, first: &Self) -> Option<String> {
        if self.job != first.job {
            return Some("another job meets at this port; choose another MASTER_PORT for one of them".into());
        }
        if self.version != first.version {
            return Some(format!(
                "rank {} is tec {}, and rank 0 is tec {}; start the same program on every machine",
                self.rank,
                self.version(),
                first.version()
            ));
        }
        (self.size != first.size || self.rank == 0 || self.rank >= first.size).then(|| {
            format!(
                "a process says that it is rank {} of {}, but rank 0 waits for {} processes; start all by one launcher",
                self.rank, self.size, first.size
            )
        })
    }
}

/// On all addresses, so that others find it whatever the host's name means here; on this machine's own alone where they are all
/// here.
fn listen(host: &str, port: u16) -> Result<TcpListener> {
    let own: Option<IpAddr> = match host {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        _ => host.parse().ok().filter(IpAddr::is_loopback),
    };
    let addresses = match own {
        Some(own) => vec![SocketAddr::new(own, port)],
        None => vec![
            (Ipv6Addr::UNSPECIFIED, port).into(),
            (Ipv4Addr::UNSPECIFIED, port).into(),
        ],
    };
    TcpListener::bind(addresses.as_slice()).map_err(|e| {
        Error::Usage(format!(
            "rank 0 cannot listen at port {port} ({e}): another job may use it; choose another MASTER_PORT"
        ))
    })
}

/// Rank 0's side: a connection with each other rank, in their order.
fn wait_for_all(listener: &TcpListener, me: &Hello, launch: &Launch, patience: Duration) -> Result<Vec<TcpStream>> {
    listener.set_nonblocking(true).map_err(refused)?;
    let deadline = Instant::now() + patience;
    let mut seats: Vec<Option<TcpStream>> = (1..launch.size).map(|_| None).collect();
    let (heard, hears) = mpsc::channel();
    let mut strangers = 0;
    while seats.iter().any(Option::is_none) {
        if Instant::now() > deadline {
            return Err(too_few(seats, launch.size, patience));
        }
        match listener.accept() {
            // Each on a thread of its own: one that is silent keeps nobody waiting.
            Ok((stream, _)) if strangers < STRANGERS => {
                strangers += 1;
                let heard = heard.clone();
                thread::spawn(move || hear(stream, &heard));
            }
            Ok(_) => {}
            Err(_) => thread::sleep(PAUSE),
        }
        for (hello, stream) in hears.try_iter() {
            strangers -= 1;
            let (Some(hello), Some(mut stream)): (Option<Hello>, Option<TcpStream>) = (hello, stream) else {
                continue;
            };
            let seat = hello.rank.checked_sub(1).and_then(|at| seats.get_mut(at as usize));
            let answer = match (hello.objection(me), seat) {
                (None, Some(seat @ None)) => {
                    *seat = Some(stream);
                    continue;
                }
                (None, _) => format!(
                    "rank {} is there twice; choose another MASTER_PORT for one job",
                    hello.rank
                ),
                (Some(objection), _) => objection,
            };
            refuse(&mut stream, &answer);
        }
    }
    let mut streams: Vec<TcpStream> = seats.into_iter().flatten().collect();
    for stream in &mut streams {
        // One that is gone already shows as soon as it is spoken with.
        let _ = stream.write_all(&[WELCOME]);
    }
    Ok(streams)
}

const WELCOME: u8 = 1;
const REFUSED: u8 = 2;

/// Reads what a connection says first, and answers with the magic.
fn hear(mut stream: TcpStream, heard: &Sender<(Option<Hello>, Option<TcpStream>)>) {
    let mut bytes = [0; HELLO];
    let hello = (|| {
        stream.set_nonblocking(false).ok()?;
        stream.set_write_timeout(Some(SILENCE)).ok()?;
        read_until(&mut stream, &mut bytes, Instant::now() + SILENCE).ok()?;
        let hello = Hello::from_bytes(&bytes)?;
        stream.write_all(&MAGIC).ok()?;
        Some(hello)
    })();
    let stream = hello.is_some().then_some(stream);
    // Nobody hears once all have come.
    let _ = heard.send((hello, stream));
}

fn refuse(stream: &mut TcpStream, words: &str) {
    let words = &words.as_bytes()[..words.len().min(REFUSAL)];
    let answer = [&[REFUSED], &(words.len() as u16).to_le_bytes()[..], words].concat();
    let _ = stream.write_all(&answer);
}

fn too_few(seats: Vec<Option<TcpStream>>, size: usize, patience: Duration) -> Error {
    let missing: Vec<String> = (1..size)
        .zip(&seats)
        .filter(|(_, seat)| seat.is_none())
        .map(|(rank, _)| rank.to_string())
        .take(8)
        .collect();
    let words = format!(
        "of {size} processes {} did not come within {} s (rank {}…); look for their messages, and whether MASTER_ADDR and \
         MASTER_PORT are the same everywhere",
        seats.iter().filter(|seat| seat.is_none()).count(),
        patience.as_secs(),
        missing.join(", ")
    );
    for mut stream in seats.into_iter().flatten() {
        refuse(&mut stream, &words);
    }
    Error::Data(words)
}

/// The others' side: a connection with rank 0.
fn reach(host: &str, port: u16, me: &Hello, rank: usize, patience: Duration) -> Result<TcpStream> {
    let deadline = Instant::now() + patience;
    loop {
        let reason = match greet(host, port, me) {
            Ok(stream) => return admitted(stream, deadline + SILENCE),
            Err(reason) => reason,
        };
        if Instant::now() > deadline {
            return Err(Error::Data(format!(
                "rank {rank} could not reach rank 0 at {host}:{port} within {} s ({reason}); check that MASTER_ADDR and \
                 MASTER_PORT are the same in every process, that rank 0 has started on that host, and that no firewall closes \
                 the port",
                patience.as_secs()
            )));
        }
        // Rank 0 may not listen yet.
        thread::sleep(2 * PAUSE);
    }
}

/// A connection with rank 0, which has heard who this is.
fn greet(host: &str, port: u16, me: &Hello) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, SILENCE) {
            Ok(mut stream) => {
                stream.set_write_timeout(Some(SILENCE))?;
                stream.write_all(&me.to_bytes())?;
                let mut magic = [0; MAGIC.len()];
                let answer = read_until(&mut stream, &mut magic, Instant::now() + 2 * SILENCE);
                match answer {
                    Ok(()) if magic == MAGIC => return Ok(stream),
                    Ok(()) => last = io::Error::other("something that is not tec answers there"),
                    Err(e) => last = e,
                }
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Waits until rank 0 says that all have come.
fn admitted(mut stream: TcpStream, deadline: Instant) -> Result<TcpStream> {
    let lost = |e: io::Error| {
        Error::Data(format!(
            "rank 0 ended before all processes had come ({e}); see its message"
        ))
    };
    let mut answer = [0];
    read_until(&mut stream, &mut answer, deadline).map_err(lost)?;
    if answer == [WELCOME] {
        return Ok(stream);
    }
    let mut length = [0; 2];
    read_until(&mut stream, &mut length, deadline).map_err(lost)?;
    let mut words = vec![0; usize::from(u16::from_le_bytes(length)).min(REFUSAL)];
    read_until(&mut stream, &mut words, deadline).map_err(lost)?;
    Err(Error::Data(String::from_utf8_lossy(&words).into_owned()))
}

/// Fills `bytes` before `deadline`, however slowly they come.
fn read_until(stream: &mut TcpStream, bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    stream.set_read_timeout(None)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A port that was free a moment ago.
    pub fn port() -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.local_addr().unwrap().port()
    }

    pub fn launch(rank: usize, size: usize, port: u16) -> Launch {
        Launch {
            rank,
            size,
            rendezvous: Some(("127.0.0.1".into(), port)),
            job: Some("a job".into()),
            launcher: Launcher::Torchrun,
            ..Launch::alone()
        }
    }

    /// What each of some processes came to: its connections or the message.
    fn all_meet(launches: Vec<Launch>, patience: f32) -> Vec<Result<usize, String>> {
        let patience = Duration::from_secs_f32(patience);
        let meet = |launch: &Launch| {
            let streams = meet(launch, patience).map_err(|e| e.to_string())?;
            Ok(streams.len())
        };
        thread::scope(|scope| {
            let all: Vec<_> = launches
                .iter()
                .map(|launch| scope.spawn(move || meet(launch)))
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        })
    }

    #[test]
    fn all_find_each_other_though_strangers_knock() {
        let port = port();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let ends = thread::scope(|scope| {
            // Ones that say nothing, too little, something else, and something long.
            scope.spawn(|| {
                let mut kept = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for said in [&b""[..], b"tecranks", &[b'x'; HELLO], &[0xff; 4096]] {
                        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
                            let _ = stream.write_all(said);
                            kept.push(stream);
                        }
                    }
                    thread::sleep(Duration::from_millis(100));
                }
            });
            thread::sleep(Duration::from_millis(50));
            let late = scope.spawn(|| {
                thread::sleep(Duration::from_millis(400));
                all_meet(vec![launch(3, 4, port)], 20.0)
            });
            let mut ends = all_meet((0..3).map(|rank| launch(rank, 4, port)).collect(), 20.0);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            ends.extend(late.join().unwrap());
            ends
        });
        assert_eq!(ends, [Ok(3), Ok(1), Ok(1), Ok(1)]);
    }

    #[test]
    fn who_is_missing_is_named_to_all() {
        let port = port();
        let ends = all_meet(vec![launch(0, 3, port), launch(2, 3, port)], 1.0);
        for end in ends {
            let error = end.unwrap_err();
            assert!(
                error.contains("of 3 processes 1 did not come within 1 s (rank 1…)"),
                "{error}"
            );
        }
        let alone = all_meet(vec![launch(1, 3, port)], 0.3).remove(0).unwrap_err();
        for words in ["rank 1 could not reach rank 0 at 127.0.0.1:", "refused", "firewall"] {
            assert!(alone.contains(words), "{alone}");
        }
    }

    #[test]
    fn processes_that_are_not_of_this_job_are_refused_and_it_goes_on() {
        let port = port();
        let stranger = |change: fn(&mut Launch)| {
            let mut other = launch(1, 2, port);
            change(&mut other);
            other
        };
        thread::scope(|scope| {
            let first = scope.spawn(|| all_meet(vec![launch(0, 2, port)], 20.0));
            for (change, words) in [
                (
                    (|l: &mut Launch| l.job = None) as fn(&mut Launch),
                    "another job meets at this port",
                ),
                (|l| l.size = 3, "rank 1 of 3, but rank 0 waits for 2 processes"),
                (|l| l.rank = 7, "rank 7 of 2"),
            ] {
                let error = all_meet(vec![stranger(change)], 20.0).remove(0).unwrap_err();
                assert!(error.contains(words), "{error}");
            }
            assert_eq!(all_meet(vec![launch(1, 2, port)], 20.0), [Ok(1)]);
            assert_eq!(first.join().unwrap(), [Ok(1)]);
        });
        let mine = Hello::of(&launch(1, 2, port));
        let mut other = mine.clone();
        other.version[0] = b'9';
        let objection = other.objection(&mine).unwrap();
        assert!(objection.contains("rank 1 is tec 9"), "{objection}");
        assert_eq!(mine.objection(&Hello::of(&launch(0, 2, port))), None);
    }

    #[test]
    fn a_port_that_is_taken_and_no_place_to_meet_are_said() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = meet(&launch(0, 2, port), PATIENCE).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("MASTER_PORT"), "{error}");
        let mut nowhere = launch(0, 2, port);
        nowhere.rendezvous = None;
        for (launcher, words) in [
            (Launcher::OpenMpi, "mpirun -x MASTER_ADDR"),
            (Launcher::Torchrun, "set MASTER_ADDR"),
        ] {
            nowhere.launcher = launcher;
            let error = meet(&nowhere, PATIENCE).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(words), "{error}");
        }
    }
}
