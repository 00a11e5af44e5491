//! The members of a tar file.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::BLOCK;

/// Extended headers and long names above this are refused.
const MAX_EXTENDED: u64 = 1 << 20;

/// A file within a tar file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its path.
    pub name: Vec<u8>,
    /// Where its data begin in the tar file: a multiple of 512.
    pub offset: u64,
    /// Bytes of its data.
    pub len: u64,
}

impl Member {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}

/// The regular files of a tar file in their order. Ends after an error.
pub(super) struct Members<R> {
    reader: R,
    /// Bytes of the tar file.
    size: u64,
    /// Where the next header begins.
    at: u64,
    last: String,
    done: bool,
}

impl Members<BufReader<File>> {
    pub fn open(path: &Path) -> Result<Self, String> {
        let read = || {
            let file = File::open(path)?;
            let size = file.metadata()?.len();
            Ok((file, size))
        };
        let (file, size) = read().map_err(|error: std::io::Error| error.to_string())?;
        // Large enough for a header and a small member, small enough not to read images on the way.
        Self::new(BufReader::with_capacity(4096, file), size)
    }
}

impl<R: Read + Seek> Members<R> {
    /// The members of a tar file of `size` bytes.
    pub fn new(mut reader: R, size: u64) -> Result<Self, String> {
        let mut head = Vec::new();
        let read = reader.by_ref().take(BLOCK).read_to_end(&mut head);
        read.map_err(|error| error.to_string())?;
        if let Some(program) = compression(&head) {
            return Err(format!(
                "is compressed: its images could not be read in any order; unpack it first with `{program}`"
            ));
        }
        Ok(Self {
            reader,
            size,
            at: 0,
            last: String::new(),
            done: false,
        })
    }

    fn member(&mut self) -> Result<Option<Member>, String> {
        let (mut long_name, mut long_size) = (None, None);
        loop {
            if self.at >= self.size {
                // Some programs leave out the two empty blocks at the end.
                return Ok(None);
            }
            let header: [u8; BLOCK as usize] = self.bytes(self.at, BLOCK)?.try_into().map_err(|_| self.cut())?;
            if header.iter().all(|&byte| byte == 0) {
                return Ok(None);
            }
            if !is_header(&header) {
                return Err(format!(
                    "is damaged or no tar file: at byte {} there is no header{}",
                    self.at,
                    self.after()
                ));
            }
            let damaged = format!("is damaged: a header at byte {} has no length{}", self.at, self.after());
            let written = number(&header[124..136]).ok_or(damaged)?;
            let kind = header[156];
            let len = match kind {
                b'x' | b'g' | b'L' | b'K' => written,
                _ => long_size.unwrap_or(written),
            };
            let offset = self.at + BLOCK;
            let end = offset.checked_add(len).filter(|&end| end <= self.size);
            let name = long_name.clone().unwrap_or_else(|| plain_name(&header));
            let Some(end) = end else {
                return Err(format!(
                    "is cut short: {} needs {len} bytes from byte {offset} on and the file has {}{}; fetch it again or remove it",
                    String::from_utf8_lossy(&name),
                    self.size,
                    self.after()
                ));
            };
            self.at = end.div_ceil(BLOCK) * BLOCK;
            match kind {
                b'L' => long_name = Some(until_zero(&self.extended(offset, len)?).to_vec()),
                b'x' => {
                    let records = self.extended(offset, len)?;
                    for (key, value) in pax(&records) {
                        match key {
                            b"path" => long_name = Some(value.to_vec()),
                            b"size" => long_size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
                            _ => {}
                        }
                    }
                }
                0 | b'0' | b'7' if !name.is_empty() => {
                    self.last = String::from_utf8_lossy(&name).into_owned();
                    return Ok(Some(Member { name, offset, len }));
                }
                // Folders, links and the like.
                b'g' | b'K' => {}
                _ => (long_name, long_size) = (None, None),
            }
        }
    }

    fn extended(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, String> {
        match len > MAX_EXTENDED {
            true => Err(format!("is damaged: a name of {len} bytes{}", self.after())),
            false => self.bytes(offset, len),
        }
    }

    fn bytes(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let moved = self.reader.seek(SeekFrom::Start(offset));
        let read = moved.and_then(|_| self.reader.by_ref().take(len).read_to_end(&mut bytes));
        read.map_err(|error| error.to_string())?;
        match bytes.len() as u64 == len {
            true => Ok(bytes),
            false => Err(self.cut()),
        }
    }

    fn cut(&self) -> String {
        format!(
            "is cut short: a header is incomplete{}; fetch it again or remove it",
            self.after()
        )
    }

    /// Where in the file an error is, for people.
    fn after(&self) -> String {
        match self.last.is_empty() {
            true => String::new(),
            false => format!(" (the last good member is {})", self.last),
        }
    }
}

impl<R: Read + Seek> Iterator for Members<R> {
    type Item = Result<Member, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let member = self.member().transpose();
        self.done = !matches!(member, Some(Ok(_)));
        member
    }
}

/// Whether a block is a tar header: the sum of its bytes, with spaces for the sum itself, is written in it.
pub(in crate::data) fn is_header(block: &[u8]) -> bool {
    let Some(block) = block.get(..BLOCK as usize) else {
        return false;
    };
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    let own: u64 = block[148..156].iter().map(|&byte| u64::from(byte)).sum();
    number(&block[148..156]) == Some(sum - own + 8 * u64::from(b' '))
}

/// The command that unpacks a compressed file which begins so.
pub(in crate::data) fn compression(head: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 4] = [
        (b"\x1F\x8B", "gunzip"),
        (b"\x28\xB5\x2F\xFD", "unzstd"),
        (b"\xFD7zXZ\0", "unxz"),
        (b"BZh", "bunzip2"),
    ];
    known
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map(|&(_, program)| program)
}

/// A number in octal digits, or in binary where the first bit says so.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((&first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        let start = u64::from(first & 0x7F);
        return rest
            .iter()
            .try_fold(start, |value, &byte| Some(value.checked_mul(256)? + u64::from(byte)));
    }
    let text = std::str::from_utf8(until_zero(field)).ok()?.trim();
    u64::from_str_radix(text, 8).ok()
}

fn plain_name(header: &[u8; BLOCK as usize]) -> Vec<u8> {
    let (name, prefix) = (until_zero(&header[..100]), until_zero(&header[345..500]));
    // GNU's own format uses the place of the prefix for other things.
    match header[257..263] == *b"ustar\0" && !prefix.is_empty() {
        true => [prefix, b"/", name].concat(),
        false => name.to_vec(),
    }
}

fn until_zero(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The records of an extended header: each "LENGTH KEY=VALUE\n".
fn pax(mut records: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let space = records.iter().position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(records.get(..space)?).ok()?.parse().ok()?;
        let record = records.get(space + 1..length.checked_sub(1)?)?;
        records = records.get(length..)?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        Some((&record[..equals], &record[equals + 1..]))
    })
}
