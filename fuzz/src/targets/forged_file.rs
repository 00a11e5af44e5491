//! Valid encoder files with changes that the fuzzer chooses, after which length and checksum agree; and files with a header
//! that it chooses.

use tec_edge::format::{HEADER_LEN, Head, Header, Normalization, TABLE_ENTRY_LEN, file_len, sections, write};
use tec_edge::{Geometry, Pool, Precision};

use crate::encoder::{exercise, file, headers, seal};
use crate::input::{Bytes, Random, Source};

/// Inputs to start from.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut random = Random(1);
    let seed = |number: u8| {
        let mut seed: Vec<u8> = (0..4 + number).map(|_| random.next_u64() as u8).collect();
        seed[0] = number % 4;
        seed
    };
    (0..48).map(seed).collect()
}

/// Takes one input.
///
/// # Panics
/// Where something does not hold.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    match source.byte() % 4 {
        0 => drawn(&mut source),
        _ => mutated(&mut source),
    }
}

/// A file whose header the fuzzer draws.
fn drawn(source: &mut Source<'_>) {
    let patch_size = 1 + source.below(6);
    let dim = 1 + source.below(24);
    let mut header = Header {
        geometry: Geometry {
            image_size: patch_size * (1 + source.below(5)),
            patch_size,
            channels: if source.byte() < 128 { 1 } else { 3 },
            dim,
            depth: 1 + source.below(3),
            heads: [1, dim, 2, 3][source.below(4)],
            hidden: 1 + source.below(30),
        },
        pool: if source.byte() < 128 { Pool::Class } else { Pool::Mean },
        fc_norm: source.byte().is_multiple_of(4),
        head: source.one_in(3).then(|| Head {
            classes: 1 + source.below(40),
            norm_bits: 16 + source.byte() % 30,
            shift: source.byte() % 63,
            logit_bits: source.byte() as i8 % 46,
        }),
        precision: match source.byte() % 3 {
            0 => Precision::Int4 {
                group: 4 * (1 + source.below(10)),
            },
            _ => Precision::Int8,
        },
        name_len: source.byte() % 8,
        residual_bits: (source.byte() % 41) as i8 - 16,
        epsilon: source.long() >> (source.byte() % 64),
        patch_shift: source.byte() % 63,
        norm_bits: 16 + source.byte() % 30,
        class_bits: source.byte() as i8 % 46,
        mean_bits: source.byte() as i8 % 46,
        patch_bits: source.byte() as i8 % 46,
        normalization: Normalization {
            mean: [0; 3].map(|_| source.float()),
            std: [0; 3].map(|_| source.float().abs()),
        },
    };
    if header.geometry.channels == 1 {
        for unused in 1..3 {
            (header.normalization.mean[unused], header.normalization.std[unused]) = (0.0, 0.0);
        }
    }
    let valid = header.validate();
    let len = file_len(&header);
    assert_eq!(valid.is_ok(), len.is_ok());
    let Ok(len) = len else { return };

    // A valid file of this header, with scales that the fuzzer draws as well.
    let scales: [u8; 9] = source.bytes();
    let good = file(&header, source.byte().into());
    let mut bytes = Bytes::filled(len, 0xee);
    let mut placed = sections(&header);
    let written = write(&header, bytes.get_mut(), |section, _, slot| {
        let place = placed.next().unwrap();
        slot.copy_from_slice(&good[place.offset as usize..][..slot.len()]);
        if section == tec_edge::format::Section::Scales {
            for (i, (slot, &scale)) in slot.iter_mut().zip(&scales).enumerate() {
                *slot = match i {
                    0 | 5 => 16 + scale % 30,
                    8 => scale % 16,
                    _ => scale % 63,
                };
            }
        }
    });
    assert_eq!(written, Ok(()));
    assert!(exercise(&bytes, source), "what was written is not accepted");
}

fn mutated(source: &mut Source<'_>) {
    let headers = headers();
    let header = &headers[source.below(headers.len())];
    let mut bytes = file(header, u64::from(source.byte() % 4));
    let count = sections(header).count();
    loop {
        mutate(&mut bytes, count, source);
        if source.is_empty() {
            break;
        }
    }
    let sealed = !source.one_in(16);
    if sealed {
        seal(&mut bytes);
    }
    exercise(&Bytes::new(&bytes), source);
}

/// One change. `count` is the number of sections.
fn mutate(bytes: &mut Vec<u8>, count: usize, source: &mut Source<'_>) {
    let table_end = HEADER_LEN + count * TABLE_ENTRY_LEN;
    // A place in the header, the table or anywhere.
    let place = |source: &mut Source<'_>| match source.byte() % 4 {
        0 => source.below(HEADER_LEN),
        1 => HEADER_LEN + source.below(count * TABLE_ENTRY_LEN),
        _ => source.below(1 << 14),
    };
    let entry = |source: &mut Source<'_>| HEADER_LEN + source.below(count) * TABLE_ENTRY_LEN;
    match source.byte() % 11 {
        0 => {
            let at = place(source);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = source.byte();
            }
        }
        1 => {
            let at = place(source);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (source.byte() % 8);
            }
        }
        2 | 3 => {
            let at = place(source) & !3;
            put(bytes, at, source.extreme());
        }
        4 => bytes.truncate(source.below(1 << 14)),
        5 => bytes.resize(bytes.len() + source.below(64), 0),
        6 => {
            let (a, b) = (entry(source), entry(source));
            for i in 0..TABLE_ENTRY_LEN {
                if a.max(b) + i < bytes.len() {
                    bytes.swap(a + i, b + i);
                }
            }
        }
        7 => {
            // One section lies where another one does, or reaches into it.
            let (a, b) = (entry(source), entry(source));
            let word = word(bytes, b + 4).wrapping_add(u32::from(source.byte() % 3 * 16));
            put(bytes, a + 4, word);
        }
        8 => {
            // A section is longer or shorter.
            let at = entry(source) + 8;
            let word = word(bytes, at).wrapping_add_signed(i32::from(source.byte() as i8));
            put(bytes, at, word);
        }
        9 => {
            let (from, to, len) = (place(source), place(source), source.below(64));
            if from.max(to) + len <= bytes.len() {
                bytes.copy_within(from..from + len, to);
            }
        }
        _ => {
            // Other contents of a section, of which many are valid.
            let at = table_end + source.below(1 << 14);
            for slot in bytes.iter_mut().skip(at).take(16) {
                *slot = source.byte();
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(slot) = bytes.get_mut(at..at + 4) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
}
