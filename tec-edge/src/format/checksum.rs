//! CRC-32 as in zlib and PNG: polynomial 0x04C11DB7 reflected, initial value and final xor 0xFFFFFFFF. With `std` by the processor's instructions; otherwise
//! byte by byte, with a table of 1 kB instead of those 16 kB that faster ways take.

#[cfg(any(not(feature = "std"), test))]
static TABLE: [u32; 256] = table();

#[cfg(any(not(feature = "std"), test))]
const fn table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xEDB8_8320
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

/// Where the checksum lies in the file: four bytes that it does not cover.
pub(crate) const CHECKSUM_AT: usize = 16;

/// The checksum of a whole file: CRC-32 of all its bytes but the four that hold the checksum.
pub fn checksum(file: &[u8]) -> u32 {
    let before = file.get(..CHECKSUM_AT).unwrap_or(file);
    let after = file.get(CHECKSUM_AT + 4..).unwrap_or(&[]);
    !update(update(!0, before), after)
}

#[cfg(feature = "std")]
fn update(crc: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!crc);
    hasher.update(bytes);
    !hasher.finalize()
}

#[cfg(not(feature = "std"))]
use bytewise as update;

#[cfg(any(not(feature = "std"), test))]
fn bytewise(mut crc: u32, bytes: &[u8]) -> u32 {
    for &byte in bytes {
        // A u8 index into 256 entries: no bounds check remains.
        crc = TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answer() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(!update(!0, b"123456789"), 0xCBF4_3926);
        let bytes: [u8; 999] = core::array::from_fn(|i| (i * 89 % 251) as u8);
        for (start, len) in [(0, 0), (1, 1), (3, 64), (5, 994)] {
            let bytes = &bytes[start..start + len];
            assert_eq!(
                update(0x1234_5678, bytes),
                bytewise(0x1234_5678, bytes),
                "{start} {len}"
            );
        }
    }

    #[test]
    fn skips_its_own_bytes() {
        let mut file = [7u8; 40];
        let sum = checksum(&file);
        file[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(checksum(&file), sum);
        file[39] ^= 1;
        assert_ne!(checksum(&file), sum);
    }
}
