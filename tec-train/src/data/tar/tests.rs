//! Shards written by Python's tarfile (`tests/data/make.py`), and damaged ones.

use std::fs;
use std::io::Cursor;

use super::*;
use crate::data;

fn material(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn members(bytes: &[u8]) -> Result<Vec<Member>, String> {
    Members::new(Cursor::new(bytes), bytes.len() as u64)?.collect()
}

#[test]
fn shards_of_pythons_tarfile() {
    let source = data::open(material("shard-{00..01}.tar")).unwrap();
    assert_eq!(source.len(), 5);
    assert_eq!(source.classes(), ["2", "10"]);
    assert_eq!(
        (0..5).map(|i| source.label(i).unwrap()).collect::<Vec<_>>(),
        [1, 0, 1, 0, 0]
    );
    assert_eq!(source.name(0), "shard-00.tar: train/a.jpg");
    let long = source.name(3);
    assert!(
        long.starts_with("shard-01.tar: ") && long.ends_with("/d.png") && long.len() > 150,
        "{long}"
    );
    let sizes: Vec<_> = (0..5)
        .map(|i| source.load(i).map(|image| (image.width, image.height)).unwrap())
        .collect();
    assert_eq!(sizes, [(20, 12), (21, 13), (22, 14), (23, 15), (24, 16)]);
    assert_eq!(
        source.summary(),
        "5 images in 2 tar files, 2 classes, 2 other members ignored"
    );
    assert!(source.load(5).is_err());
    let gnu = data::open(material("gnu.tar")).unwrap();
    assert_eq!((gnu.len(), gnu.classes().len()), (1, 0));
    assert!(gnu.name(0).len() > 150);
    assert_eq!(gnu.load(0).unwrap(), source.load(3).unwrap());
}

#[test]
fn a_folder_of_shards() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["shard-01.tar", "shard-00.tar"] {
        fs::copy(material(name), dir.path().join(name)).unwrap();
    }
    let source = data::open(dir.path()).unwrap();
    assert_eq!(source.len(), 5);
    assert!(source.name(0).starts_with("shard-00.tar"));
}

#[test]
fn damaged_shards_are_named_with_the_last_good_member() {
    let bytes = fs::read(material("shard-00.tar")).unwrap();
    let all = members(&bytes).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.tar");
    let fails = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        data::open(&path).err().unwrap().to_string()
    };
    let last = all.last().unwrap();
    let cut = fails(&bytes[..(last.offset + last.len - 1) as usize]);
    assert!(
        cut.contains("cut.tar: is cut short") && cut.contains("the last good member is train/c.json"),
        "{cut}"
    );
    let header = fails(&bytes[..(last.offset - 100) as usize]);
    assert!(header.contains("a header is incomplete"), "{header}");
    let mut flipped = bytes.clone();
    flipped[(last.offset - 512) as usize] ^= 1;
    assert!(fails(&flipped).contains("there is no header"));
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &bytes).unwrap();
    let packed = fails(&packed.finish().unwrap());
    assert!(packed.contains("compressed") && packed.contains("gunzip"), "{packed}");
    // No image at all.
    let text = &all[1];
    let start = (text.offset - 512) as usize;
    let none = fails(&bytes[start..start + 1024]);
    assert!(none.contains("no .jpg, .jpeg or .png among 1 members"), "{none}");
}

#[test]
fn a_shard_that_vanishes_costs_its_images_alone() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["shard-00.tar", "shard-01.tar"] {
        fs::copy(material(name), dir.path().join(name)).unwrap();
    }
    let source = data::open(dir.path()).unwrap();
    fs::remove_file(dir.path().join("shard-00.tar")).unwrap();
    assert!(source.load(0).unwrap_err().contains("shard-00.tar"));
    assert!(source.load(4).is_ok());
}

#[test]
fn keys_end_at_the_first_dot() {
    assert_eq!(split(b"a.b/c.seg.png"), (&b"a.b/c"[..], &b"seg.png"[..]));
    assert_eq!(split(b"a.b/c"), (&b"a.b/c"[..], &b""[..]));
    assert_eq!(json_class(br#"{"label": 3}"#).as_deref(), Some("3"));
    assert_eq!(json_class(br#"{"class": "cat"}"#).as_deref(), Some("cat"));
    assert_eq!(json_class(br#"{"caption": "cat"}"#), None);
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(
        cut in 0_usize..12_000,
        changes in proptest::collection::vec((proptest::num::u16::ANY, proptest::num::u8::ANY), 0..6),
        sealed in proptest::bool::ANY,
    ) {
        let mut bytes = fs::read(material("gnu.tar")).unwrap();
        bytes.truncate(cut.max(512));
        for (at, value) in changes {
            // Mostly in the first headers, which hold lengths and a long name.
            let at = usize::from(at) % bytes.len().min(2048);
            bytes[at] = value;
        }
        if sealed {
            for block in bytes.chunks_exact_mut(512).take(4) {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        for member in members(&bytes).unwrap_or_default() {
            proptest::prop_assert!(member.offset + member.len <= bytes.len() as u64 && member.offset % 512 == 0);
        }
    }
}
