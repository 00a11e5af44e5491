//! The reader on files that are damaged, forged or foreign.

mod common;

use common::{Bytes, Random, file, geometry, header, seal};
use proptest::prelude::*;
use tec_edge::format::{HEADER_LEN, Section, file_len, sections};
use tec_edge::{Aligned, Encoder, Error, Geometry, Image, Output, Outputs};

fn small() -> Vec<u8> {
    let geometry = Geometry {
        image_size: 4,
        patch_size: 2,
        channels: 1,
        dim: 4,
        depth: 1,
        heads: 2,
        hidden: 3,
    };
    file(&header(geometry), 0, false)
}

fn open(bytes: &[u8]) -> Result<(), Error> {
    Encoder::from_bytes(Bytes::new(bytes).get()).map(|_| ())
}

#[test]
fn a_good_file_says_what_it_is() {
    let header = header(geometry());
    let bytes = Bytes::new(&file(&header, 0, false));
    let encoder = Encoder::from_bytes(bytes.get()).unwrap();
    assert_eq!(encoder.header(), &header);
    assert_eq!(encoder.name(), "tin\u{e9}");
}

#[test]
fn every_truncation_is_refused() {
    let file = small();
    for len in 0..file.len() {
        assert!(open(&file[..len]).is_err(), "{len} of {} bytes", file.len());
        // Even when its length and checksum are made to agree.
        if len >= 20 {
            let mut cut = file[..len].to_vec();
            cut[12..16].copy_from_slice(&(len as u32).to_le_bytes());
            seal(&mut cut);
            assert!(open(&cut).is_err(), "forged {len} of {} bytes", file.len());
        }
    }
    let mut longer = file.clone();
    longer.extend([0; 16]);
    assert!(open(&longer).is_err());
    let len = longer.len() as u32;
    longer[12..16].copy_from_slice(&len.to_le_bytes());
    seal(&mut longer);
    assert_eq!(
        open(&longer),
        Err(Error::Header {
            what: "total length",
            value: len.into()
        })
    );
}

#[test]
fn every_flipped_byte_is_refused() {
    let file = small();
    for at in 0..file.len() {
        for flip in [1u8, 0x80, 0xff] {
            let mut damaged = file.clone();
            damaged[at] ^= flip;
            assert!(open(&damaged).is_err(), "byte {at} ^ {flip:#x}");
        }
    }
}

#[test]
fn misaligned_bytes_are_refused() {
    let file = small();
    for by in 1..16 {
        let mut shifted = vec![0; by];
        shifted.extend(&file);
        let bytes = Bytes::new(&shifted);
        let error = Encoder::from_bytes(&bytes.get()[by..]).map(|_| ());
        assert_eq!(
            error,
            Err(Error::Misaligned {
                what: "encoder file",
                by
            })
        );
    }
    let aligned = Aligned([0u8; 64]);
    assert_eq!(Encoder::from_bytes(&aligned.0).map(|_| ()), Err(Error::NotAnEncoder));
    let unsized_reference: &Aligned<[u8]> = &aligned;
    assert_eq!(unsized_reference.0.as_ptr().addr() % 16, 0);
}

/// Sets a word of the header or table and makes the checksum agree.
fn forged(at: usize, value: u32) -> Result<(), Error> {
    let mut file = small();
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    if at != 16 {
        seal(&mut file);
    }
    open(&file)
}

#[test]
fn forged_headers_are_named() {
    let header = |what, value| Err(Error::Header { what, value });
    let unsupported = |what, value| Err(Error::Unsupported { what, value });
    assert_eq!(forged(8, 2), Err(Error::Version { expected: 1, actual: 2 }));
    assert!(matches!(forged(16, 0), Err(Error::Checksum { expected: 0, .. })));
    assert_eq!(forged(20, 1), unsupported("flags", 1));
    assert_eq!(forged(24, 3), header("image_size", 3));
    assert_eq!(forged(24, 0), header("image_size", 0));
    assert_eq!(forged(24, u32::MAX - 1), header("image_size", u64::from(u32::MAX) - 1));
    assert_eq!(forged(28, 0), header("patch_size", 0));
    assert_eq!(forged(28, u32::MAX), header("patch_size", u32::MAX.into()));
    assert_eq!(forged(32, 2), header("channels", 2));
    assert_eq!(forged(36, 0), header("dim", 0));
    assert_eq!(forged(36, 24_577), header("dim", 24_577));
    assert_eq!(forged(40, u32::MAX), header("depth", u32::MAX.into()));
    assert_eq!(forged(44, 3), header("heads", 3));
    assert_eq!(forged(48, 65_537), header("hidden", 65_537));
    assert_eq!(forged(52, 2), unsupported("pool", 2));
    assert_eq!(forged(56, 1), unsupported("mean kind", 1));
    assert_eq!(
        forged(64, u32::MAX),
        header("epsilon", (u64::from(u32::MAX) << 32) | 1000)
    );
    assert_eq!(forged(68, 0x0c0d_0b7f), header("residual_bits", 127));
    assert_eq!(forged(72, 0x0005_ff2a), header("norm_bits", 255));
    assert_eq!(
        forged(76, f32::NAN.to_bits()),
        header("mean", f32::NAN.to_bits().into())
    );
    assert_eq!(forged(88, 0), header("std", 0));
    assert_eq!(forged(100, 29), header("number of sections", 29));
    assert_eq!(forged(140, 1), unsupported("reserved bytes", 1));
    for at in (HEADER_LEN..HEADER_LEN + 28 * 16).step_by(4) {
        assert!(
            matches!(forged(at, 0xffff_fff0), Err(Error::Section { .. })),
            "table word at {at}"
        );
    }
}

#[test]
fn forged_sections_are_named() {
    let geometry = Geometry {
        image_size: 4,
        patch_size: 2,
        channels: 1,
        dim: 4,
        depth: 1,
        heads: 2,
        hidden: 3,
    };
    for placed in sections(&geometry, 5) {
        let values: &[(u64, &[u8])] = match placed.section {
            Section::PatchWeight | Section::QkvWeight | Section::Fc2Weight => &[(placed.len - 1, &[0x80])],
            Section::PatchBias | Section::Fc1Bias => &[(0, &[1, 0, 0, 0x40]), (4, &[0xff, 0xff, 0xff, 0xbf])],
            Section::SoftmaxMultiplier => &[(4, &[0, 0, 0, 0x80])],
            Section::Scales => &[
                (0, &[15]),
                (0, &[46]),
                (1, &[63]),
                (7, &[255]),
                (8, &[16]),
                (9, &[1]),
                (16, &[0; 8]),
                (23, &[8]),
                (31, &[1]),
            ],
            Section::Name => &[(0, &[0xff])],
            _ => &[],
        };
        for (at, value) in values {
            let mut file = small();
            let at = (placed.offset + at) as usize;
            file[at..at + value.len()].copy_from_slice(value);
            seal(&mut file);
            let error = open(&file);
            assert!(
                matches!(error, Err(Error::Section { section, .. }) if section == placed.section),
                "{:?} {value:x?}: {error:?}",
                placed.section
            );
        }
        // Fc1Weight has 12 bytes: the 4 after it must be zero.
        if placed.section == Section::Fc1Weight {
            let mut file = small();
            file[(placed.offset + placed.len) as usize] = 1;
            seal(&mut file);
            assert!(matches!(
                open(&file),
                Err(Error::Section {
                    section: Section::Fc1Bias,
                    ..
                })
            ));
        }
    }
}

#[test]
fn sizes_near_the_caps_do_not_overflow() {
    let widest = Geometry {
        image_size: 64 * 147,
        patch_size: 147,
        channels: 3,
        dim: 24_576,
        depth: 1,
        heads: 1,
        hidden: 65_536,
    };
    assert_eq!(widest.validate(), Ok(()));
    assert_eq!(widest.tokens(), 4097);
    // 7.4 GB: an error here, not a wrapped number.
    assert!(matches!(
        file_len(&header(widest)),
        Err(Error::Header {
            what: "total length",
            ..
        })
    ));
    let deepest = Geometry {
        image_size: 1,
        patch_size: 1,
        channels: 1,
        dim: 1,
        depth: 24_576,
        heads: 1,
        hidden: 1,
    };
    let bytes = Bytes::new(&file(&header(deepest), 1, false));
    assert!(Encoder::from_bytes(bytes.get()).is_ok());
}

/// Opens, and encodes if it opens.
fn use_it(bytes: &[u8]) {
    let bytes = Bytes::new(bytes);
    let Ok(encoder) = Encoder::from_bytes(bytes.get()) else {
        return;
    };
    let image = vec![200; encoder.geometry().image_len()];
    let mut scratch = Bytes::filled(encoder.scratch_len(Outputs::MEAN), 1);
    let mut out = vec![0; encoder.geometry().dim];
    let output = Output {
        mean: Some(&mut out),
        ..Output::default()
    };
    encoder
        .encode(Image::Pixels(&image), scratch.get_mut(), output)
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn forged_bytes_never_panic(seed: u64, changes in 1usize..6) {
        let mut file = small();
        let mut random = Random(seed);
        for _ in 0..changes {
            // Half of the changes hit the header and the table.
            let end = if random.next().is_multiple_of(2) { HEADER_LEN + 28 * 16 } else { file.len() };
            let at = random.range(20, end as i64 - 1) as usize;
            file[at] = random.next() as u8;
        }
        seal(&mut file);
        use_it(&file);
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 20..2000)) {
        use_it(&bytes);
        let good = small();
        let head = bytes.len().min(16);
        bytes[..head].copy_from_slice(&good[..head]);
        let len = bytes.len() as u32;
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        seal(&mut bytes);
        use_it(&bytes);
    }
}
