//! Scalars as TensorBoard reads them.
//!
//! The crates that write event files bring a protobuf code generator or have not been kept; scalars need three small
//! messages, so they are encoded here: `Event` and `Summary` of TensorFlow's `event.proto` and `summary.proto`, framed
//! as TFRecord (length, masked CRC-32C of the length, bytes, masked CRC-32C of the bytes; little endian).

use crate::{Error, Result};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Writes one event file. A run that is resumed begins another one in the same folder, which TensorBoard reads after
/// the first.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventWriter {
    /// Begins a file `events.out.tfevents.SECONDS.HOST` in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        let now = seconds();
        let name = format!("events.out.tfevents.{:.0}.{}", now.floor(), host());
        let failed = |error: io::Error| unwritable(&folder.join(&name), &error);
        fs::create_dir_all(folder).map_err(failed)?;
        let (path, file) = create_new(folder, &name).map_err(failed)?;
        let mut writer = Self {
            path,
            file: BufWriter::new(file),
        };
        writer.write(&version_event(now))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Begins a file for a run that goes on at `step`: TensorBoard forgets what earlier files say about that step and
    /// later ones, which a run that was stopped between checkpoints does again.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn resume(folder: &Path, step: u64) -> Result<Self> {
        let mut writer = Self::create(folder)?;
        writer.write(&start_event(seconds(), step))?;
        writer.flush()?;
        Ok(writer)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a value (kept as f32) of the curve `tag`, such as `loss/total`; it may be NaN.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn scalar(&mut self, tag: &str, value: impl Into<f64>, step: u64) -> Result<()> {
        self.write(&scalar_event(seconds(), step, tag, value.into() as f32))
    }

    /// Hands everything to the operating system, for TensorBoard to see.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|error| unwritable(&self.path, &error))
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file
            .write_all(&record(event))
            .map_err(|error| unwritable(&self.path, &error))
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Error {
    Error::File {
        path: path.to_owned(),
        reason: format!("TensorBoard events cannot be written: {error}; free space or choose another --out"),
    }
}

/// `name`, or if there is such a file, with the first free number behind it, so that the order of names stays that of
/// beginning.
fn create_new(folder: &Path, name: &str) -> io::Result<(PathBuf, File)> {
    let mut path = folder.join(name);
    let mut number = 0;
    loop {
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 1000 => {
                number += 1;
                path = folder.join(format!("{name}.{number:03}"));
            }
            opened => return opened.map(|file| (path, file)),
        }
    }
}

/// Seconds since 1970.
fn seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("COMPUTERNAME").ok());
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let name: String = name.unwrap_or_default().trim().chars().filter(allowed).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// `Event { wall_time = 1, file_version = 3 }`.
fn version_event(wall_time: f64) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, wall_time).bytes(3, b"brain.Event:2");
    event.0
}

/// `Event { wall_time = 1, step = 2, session_log = 7 { status = 1: START } }`.
fn start_event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut session_log = Message::default();
    session_log.integer(1, 1);
    let mut event = Message::default();
    event.double(1, wall_time).integer(2, step).bytes(7, &session_log.0);
    event.0
}

/// `Event { wall_time = 1, step = 2, summary = 5 { value = 1 { tag = 1, simple_value = 2 } } }`.
fn scalar_event(wall_time: f64, step: u64, tag: &str, value: f32) -> Vec<u8> {
    let mut entry = Message::default();
    entry.bytes(1, tag.as_bytes()).float(2, value);
    let mut summary = Message::default();
    summary.bytes(1, &entry.0);
    let mut event = Message::default();
    event.double(1, wall_time).integer(2, step).bytes(5, &summary.0);
    event.0
}

/// A protobuf message being encoded, by field numbers.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u8, wire_type: u8) {
        self.0.push(field << 3 | wire_type);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Zero is the default, which is not written.
    fn integer(&mut self, field: u8, value: u64) -> &mut Self {
        if value != 0 {
            self.key(field, 0);
            self.varint(value);
        }
        self
    }

    fn double(&mut self, field: u8, value: f64) -> &mut Self {
        self.key(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Written even if zero: the field is one of several alternatives.
    fn float(&mut self, field: u8, value: f32) -> &mut Self {
        self.key(field, 5);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn bytes(&mut self, field: u8, value: &[u8]) -> &mut Self {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }
}

/// The TFRecord of `data`.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked_crc(data).to_le_bytes());
    record
}

/// TFRecord's checksum: CRC-32C, rotated and offset so that checksums of checksums stay useful.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// CRC-32C (Castagnoli), bit-reversed polynomial 82F63B78.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !data
        .iter()
        .fold(!0, |crc, &byte| TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: f64 = 1_700_000_000.25;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What TensorBoard 2.21.0's own `RecordWriter` writes for the same events.
    #[test]
    fn records_are_those_of_tensorboard() {
        assert_eq!(
            hex(&record(&version_event(TIME))),
            "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9"
        );
        assert_eq!(
            hex(&record(&start_event(TIME, 300))),
            "100000000000000095fbfe180900001040fc54d94110ac023a0208016b3b88f1"
        );
        assert_eq!(
            hex(&record(&scalar_event(TIME, 70_000, "loss/total", 1.5))),
            "220000000000000078113dfd0900001040fc54d94110f0a2042a130a110a0a6c6f73732f746f74616c150000c03fdcd8369f"
        );
        assert_eq!(
            hex(&record(&scalar_event(TIME, 0, "lr", 0.0))),
            "16000000000000004f61be280900001040fc54d9412a0b0a090a026c7215000000009b1e3f9e"
        );
        // Lengths of more than one byte, a tag that is not ASCII, a large step, NaN.
        let long = hex(&record(&scalar_event(TIME, 1 << 40, &"größe".repeat(40), f32::NAN)));
        assert!(long.starts_with("360100000000000049a71cb70900001040fc54d941108080808080202aa3020aa0020a98026772c3b6"));
        assert!(long.ends_with("6772c3b6c39f65150000c07f7c8f9603"));
        assert_eq!(long.len(), 2 * (0x136 + 16));
    }

    #[test]
    fn crc_is_castagnolis() {
        // RFC 3720, appendix B.4, and the common check value.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
    }

    #[test]
    fn a_resumed_run_begins_another_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let inside = folder.path().join("run");
        let mut first = EventWriter::create(&inside).expect("creates");
        first.scalar("loss", 1.5f32, 1).expect("writes");
        first.scalar("loss", 1.25f64, 2).expect("writes");
        first.flush().expect("flushes");
        let second = EventWriter::resume(&inside, 2).expect("resumes");
        assert!(first.path() < second.path(), "{:?} {:?}", first.path(), second.path());
        let name = first.path().file_name().and_then(|name| name.to_str()).expect("a name");
        let rest = name.strip_prefix("events.out.tfevents.").expect("TensorBoard's prefix");
        let (time, host) = rest.split_once('.').expect("time and host");
        assert!(
            time.len() == 10 && time.parse::<u64>().is_ok() && !host.is_empty(),
            "{name}"
        );
        // Version and two scalars; version and start.
        assert_eq!(lengths(&fs::read(first.path()).expect("reads")).len(), 3);
        assert_eq!(lengths(&fs::read(second.path()).expect("reads")).len(), 2);
    }

    /// The lengths of the records in `file`, whose frames must join.
    fn lengths(mut file: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
            assert_eq!(record(&file[12..12 + length]), file[..length + 16]);
            lengths.push(length);
            file = &file[length + 16..];
        }
        lengths
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let error = EventWriter::create(file.path())
            .expect_err("a file is no folder")
            .to_string();
        assert!(
            error.contains("events.out.tfevents") && error.contains("cannot be written"),
            "{error}"
        );
    }
}
