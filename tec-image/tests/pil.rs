//! JPEG files that PIL wrote, and the pixels it sees in them: all are to be equal.

use std::fs;
use std::path::Path;

use tec_image::{Decoder, Pixels, Region, decode};

const NAMES: [&str; 11] = [
    "full",
    "half",
    "quarter",
    "narrow",
    "grey",
    "cmyk",
    "progressive",
    "progressive-grey",
    "restarts",
    "stops",
    "gap",
];

fn file(name: &str, extension: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    fs::read(folder.join(format!("{name}.{extension}"))).unwrap()
}

#[test]
fn pixels_are_pils() {
    for name in NAMES {
        let found = decode(&file(name, "jpg")).unwrap();
        let found = found.into_channels(3).unwrap();
        let expected = decode(&file(name, "png")).unwrap();
        assert_eq!((found.width, found.height), (expected.width, expected.height), "{name}");
        let off = found.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count();
        assert_eq!(off, 0, "{name}: {off} of {} values differ", found.data.len());
    }
}

/// A part of an image is that part of the whole, in every bit, wherever it lies.
#[test]
fn parts_are_those_of_the_whole() {
    let mut decoder = Decoder::new();
    for name in NAMES {
        let bytes = file(name, "jpg");
        let whole = decode(&bytes).unwrap();
        let (columns, rows) = (whole.width, whole.height);
        for (left, top) in [
            (0, 0),
            (1, 0),
            (columns / 2, rows / 3),
            (columns - 1, rows - 1),
            (columns * 2 / 3, 1),
        ] {
            for (width, height) in [
                (1, 1),
                (columns - left, 2),
                (9, rows - top),
                (columns - left, rows - top),
            ] {
                let (width, height) = (width.min(columns - left), height.min(rows - top));
                let region = Region::Cut {
                    left,
                    top,
                    width,
                    height,
                };
                let (part, placed) = decoder.part(&bytes, 8, |_, _| region).unwrap();
                assert_eq!(placed, Region::whole(&part), "{name}");
                assert_eq!(part, cut(&whole, left, top, width, height), "{name}: {region:?}");
            }
        }
    }
}

fn cut(whole: &Pixels, left: usize, top: usize, width: usize, height: usize) -> Pixels {
    let rows = whole
        .data
        .chunks_exact(whole.width * whole.channels)
        .skip(top)
        .take(height);
    let data = rows
        .flat_map(|row| row[left * whole.channels..(left + width) * whole.channels].to_vec())
        .collect();
    Pixels::new(width, height, whole.channels, data).unwrap()
}

#[test]
fn damage_is_noticed_where_it_is_decoded() {
    let mut decoder = Decoder::new();
    for name in NAMES {
        decoder
            .part(&file(name, "jpg"), 1, |width, height| Region::Cut {
                left: 0,
                top: 0,
                width,
                height,
            })
            .unwrap();
        assert_eq!(decoder.damaged(), ["stops", "gap"].contains(&name), "{name}");
    }
}

#[test]
fn impossible_regions_are_refused() {
    let bytes = file("full", "jpg");
    for (left, width) in [(0, 0), (0, 38), (38, 1), (usize::MAX, 2)] {
        let region = Region::Cut {
            left,
            top: 0,
            width,
            height: 1,
        };
        assert!(Decoder::new().part(&bytes, 1, |_, _| region).is_err(), "{region:?}");
    }
}

/// Damage anywhere gives pixels or a reason, the same for a part as for the whole where that is refused outright.
#[test]
fn no_damage_panics() {
    for name in ["half", "progressive", "restarts", "cmyk"] {
        let bytes = file(name, "jpg");
        for at in 2..bytes.len() {
            for value in [0, 0xFF, bytes[at] ^ 0x10] {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Err(reason) = decode(&changed) {
                    assert!(!reason.contains("gave up"), "{name}: byte {at} = {value}: {reason}");
                }
            }
        }
    }
}
