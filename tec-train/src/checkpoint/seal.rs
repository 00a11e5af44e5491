//! The checksum of a safetensors file inside its own header: the CRC-32 of all bytes, the digits themselves taken as zeros.

/// The metadata key.
pub(super) const KEY: &str = "tec_checksum";
/// Its value while the sum is not known.
pub(super) const OPEN: &str = "00000000";

/// Where the digits are in a header whose value of [`KEY`] is [`OPEN`].
pub(super) fn position(header: &[u8]) -> Option<usize> {
    find(header, OPEN)
}

/// Checks a file against the value of its [`KEY`].
///
/// # Errors
/// What differs, in words.
pub(super) fn verify(bytes: &[u8], stored: &str) -> Result<(), String> {
    let changed = |found: &str| {
        format!(
            "its content has changed since it was written (checksum {found}, stored {stored}): the checkpoint is damaged"
        )
    };
    let at = find(bytes, stored).filter(|_| stored.len() == OPEN.len());
    let at = at.ok_or_else(|| changed("not to be found"))?;
    let (before, rest) = bytes.split_at(at);
    let mut sum = crc32fast::Hasher::new();
    sum.update(before);
    sum.update(OPEN.as_bytes());
    sum.update(rest.get(OPEN.len()..).unwrap_or_default());
    let found = digits(sum.finalize());
    if found == stored { Ok(()) } else { Err(changed(&found)) }
}

/// A checksum as it is written.
pub(super) fn digits(sum: u32) -> String {
    format!("{sum:08x}")
}

/// Where the value of the entry is. The header comes first and names of tensors are ours, so the first place is the entry.
fn find(bytes: &[u8], value: &str) -> Option<usize> {
    let entry = format!("\"{KEY}\":\"{value}\"");
    let at = bytes
        .windows(entry.len())
        .position(|window| window == entry.as_bytes())?;
    Some(at + entry.len() - 1 - value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_crc_32_of_the_open_file() {
        // zlib.crc32 of the file with its digits as zeros.
        let closed = b"abc{\"tec_checksum\":\"ade20fe4\"}data";
        verify(closed, "ade20fe4").unwrap();
        assert!(verify(closed, "00000000").is_err());
        assert!(verify(b"abc{\"tec_checksum\":\"00000000\"}data", "00000000").is_err());
        assert!(verify(b"no entry", "ade20fe4").is_err());
    }
}
