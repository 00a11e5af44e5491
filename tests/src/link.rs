//! Links to devices: frames over any stream of bytes, with a limit on waiting.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tec_device::frame::{FrameKind, HEADER_LEN, Header, MAGIC};

use crate::error::{Error, Result};
use crate::provider::Failure;

/// A frame from a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What it carries.
    pub kind: FrameKind,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Frames to and from a device.
pub trait Link {
    /// Sends a frame.
    ///
    /// # Errors
    /// [`Failure::Lost`].
    fn send(&mut self, kind: FrameKind, payload: &[u8]) -> std::result::Result<(), Failure>;

    /// Waits for a frame; log frames go elsewhere.
    ///
    /// # Errors
    /// [`Failure::Lost`] when none comes in time, or the stream has ended.
    fn receive(&mut self) -> std::result::Result<Reply, Failure>;
}

/// Takes what a device logs, as bytes.
pub type Log = Box<dyn FnMut(&[u8]) + Send>;

/// A link over two halves of a stream, such as a serial port's.
pub struct Stream {
    output: Box<dyn Write + Send>,
    frames: Receiver<std::result::Result<Reply, String>>,
    patience: Duration,
    log: Option<Log>,
}

impl Stream {
    /// A link that waits up to `patience` for each frame.
    pub fn new(
        input: impl Read + Send + 'static,
        output: impl Write + Send + 'static,
        patience: Duration,
        log: Option<Log>,
    ) -> Self {
        let (sender, frames) = channel();
        // The thread ends with the stream, or when nobody listens any more.
        thread::spawn(move || {
            let mut input = input;
            loop {
                let frame = read_frame(&mut input);
                let ended = frame.is_err();
                if sender.send(frame).is_err() || ended {
                    return;
                }
            }
        });
        Self {
            output: Box::new(output),
            frames,
            patience,
            log,
        }
    }
}

/// The longest frame a device sends: a trace's values come in parts, results are of one image.
const MOST_BYTES: u32 = 1 << 28;

/// Reads up to the end of the next frame. What a device or its boot loader prints between frames is passed over.
fn read_frame(input: &mut impl Read) -> std::result::Result<Reply, String> {
    let ended = |_| "the device does not answer any more: its stream has ended".to_string();
    let mut bytes = [0; HEADER_LEN];
    input.read_exact(&mut bytes).map_err(ended)?;
    while !bytes.starts_with(&MAGIC.to_le_bytes()) {
        bytes.rotate_left(1);
        let [.., last] = &mut bytes;
        input.read_exact(std::slice::from_mut(last)).map_err(ended)?;
    }
    let header = Header::from_bytes(&bytes).filter(|header| header.len <= MOST_BYTES);
    let header = header.ok_or("a frame's header came damaged")?;
    let mut payload = vec![0; header.len as usize];
    input.read_exact(&mut payload).map_err(ended)?;
    if !header.matches(&payload) {
        return Err("a frame came damaged".into());
    }
    Ok(Reply {
        kind: header.kind,
        payload,
    })
}

impl Link for Stream {
    fn send(&mut self, kind: FrameKind, payload: &[u8]) -> std::result::Result<(), Failure> {
        let header = Header::of(kind, &[payload]).to_bytes();
        let sent = self
            .output
            .write_all(&header)
            .and_then(|()| self.output.write_all(payload));
        sent.and_then(|()| self.output.flush())
            .map_err(|e| Failure::Lost(format!("the device does not listen any more: {e}")))
    }

    fn receive(&mut self) -> std::result::Result<Reply, Failure> {
        loop {
            match self.frames.recv_timeout(self.patience) {
                Ok(Ok(reply)) if reply.kind == FrameKind::Log => {
                    if let Some(log) = &mut self.log {
                        log(&reply.payload);
                    }
                }
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(reason)) => return Err(Failure::Lost(reason)),
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = self.patience.as_secs();
                    return Err(Failure::Lost(format!("the device has not answered for {seconds} s")));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::Lost("the device does not answer any more".into()));
                }
            }
        }
    }
}

/// A link to a program, such as an emulator, by its standard input and output.
pub struct Command {
    stream: Stream,
    child: Child,
    complaints: Arc<Mutex<String>>,
}

impl Command {
    /// Starts the program. It is stopped when the link is dropped.
    ///
    /// # Errors
    /// [`Error::Device`] when it cannot be started.
    pub fn start(words: &[String], patience: Duration, log: Option<Log>) -> Result<Self> {
        let fail = |reason: String| Error::Device {
            device: words.first().cloned().unwrap_or_else(|| "no command".into()),
            reason,
        };
        let (program, arguments) = words
            .split_first()
            .ok_or_else(|| fail("give a command to run".into()))?;
        let mut child = std::process::Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| fail(format!("cannot be started: {e}")))?;
        let (Some(output), Some(input), Some(mut errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(fail("has no standard input and output".into()));
        };
        let complaints = Arc::new(Mutex::new(String::new()));
        let shared = complaints.clone();
        thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(read @ 1..) = errors.read(&mut bytes) {
                if let (Ok(mut text), Some(new)) = (shared.lock(), bytes.get(..read)) {
                    text.push_str(&String::from_utf8_lossy(new));
                }
            }
        });
        Ok(Self {
            stream: Stream::new(input, output, patience, log),
            child,
            complaints,
        })
    }

    /// A failure with what the program itself had to say.
    fn explain(&mut self, failure: Failure) -> Failure {
        let Failure::Lost(reason) = failure else {
            return failure;
        };
        // It ends just after its stream does.
        thread::sleep(Duration::from_millis(100));
        let end = match self.child.try_wait() {
            Ok(Some(status)) => format!(" ({status})"),
            _ => String::new(),
        };
        let complaints = self
            .complaints
            .lock()
            .map(|text| text.trim().to_string())
            .unwrap_or_default();
        let last = complaints
            .lines()
            .next_back()
            .map(|line| format!(": {line}"))
            .unwrap_or_default();
        Failure::Lost(format!("{reason}{end}{last}"))
    }
}

impl Link for Command {
    fn send(&mut self, kind: FrameKind, payload: &[u8]) -> std::result::Result<(), Failure> {
        self.stream.send(kind, payload).map_err(|e| self.explain(e))
    }

    fn receive(&mut self) -> std::result::Result<Reply, Failure> {
        self.stream.receive().map_err(|e| self.explain(e))
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
