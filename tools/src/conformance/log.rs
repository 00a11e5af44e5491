//! What a device logs by defmt: decoded with the table in its firmware, shown on standard error.

use std::path::Path;

use defmt_decoder::{DecodeError, Table};
use tec_conformance::Log;
use tec_train::{Error, Result};

/// A decoder of what `device` logs; none where the firmware holds no table of log messages.
pub fn decoder(elf: Option<&Path>, device: &str) -> Result<Option<Log>> {
    let Some(elf) = elf else {
        return Ok(None);
    };
    let fail = |reason: String| Error::File {
        path: elf.to_path_buf(),
        reason,
    };
    let bytes = std::fs::read(elf).map_err(|e| fail(e.to_string()))?;
    let Some(table) = Table::parse(&bytes).map_err(|e| fail(format!("its defmt table cannot be read: {e}")))? else {
        return Ok(None);
    };
    let device = device.to_owned();
    // The decoder borrows the table for as long as it lives, which is until the process ends.
    let table: &'static Table = Box::leak(Box::new(table));
    let mut decoder = table.new_stream_decoder();
    Ok(Some(Box::new(move |bytes| {
        decoder.received(bytes);
        loop {
            match decoder.decode() {
                Ok(frame) => {
                    let level = frame.level().map_or("log", |level| level.as_str());
                    eprintln!("{device} {level}: {}", frame.display_message());
                }
                Err(DecodeError::UnexpectedEof) => return,
                Err(DecodeError::Malformed) => {
                    eprintln!("{device}: a log message cannot be decoded; is --elf the firmware that runs?");
                    return;
                }
            }
        }
    })))
}
