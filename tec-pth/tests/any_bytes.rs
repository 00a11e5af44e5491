//! No bytes make the reader panic, hang or take much memory.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use proptest::prelude::*;
use tec_pth::{TensorFile, pickle};
use zip::write::{SimpleFileOptions, ZipWriter};
use zip::{CompressionMethod, ZipArchive};

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/goldens/bases")
            .join(name),
    )
    .unwrap()
}

/// The pickle inside a checkpoint.
fn inner(name: &str) -> Vec<u8> {
    let mut archive = ZipArchive::new(Cursor::new(golden(name))).unwrap();
    let pickle = archive
        .file_names_raw()
        .find(|name| name.ends_with(b"data.pkl"))
        .unwrap()
        .to_vec();
    let mut bytes = Vec::new();
    archive.by_name_raw(&pickle).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// A checkpoint with that pickle and a storage `0` of 64 bytes.
fn outer(pickle: &[u8]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", &[0; 64])] {
        archive.start_file(name, stored).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// Opens and reads everything; errors are as good as values.
fn exercise(bytes: Vec<u8>) {
    if let Ok(mut file) = TensorFile::new(Cursor::new(bytes)) {
        let names: Vec<String> = file.tensors().keys().cloned().collect();
        for name in names {
            let count = file.tensors()[&name].count();
            if let Ok(values) = file.read(&name) {
                assert_eq!(values.len(), count);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changed_pickles(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>()) {
        for name in ["ibot_full/checkpoint.pth", "pth_views/views.pth"] {
            let mut bytes = inner(name);
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            exercise(outer(&bytes));
            bytes.truncate(cut.index(bytes.len()));
            exercise(outer(&bytes));
        }
    }

    #[test]
    fn changed_files(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = golden("pth_views/views.pth");
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        exercise(bytes);
    }

    #[test]
    fn instructions(body in prop::collection::vec(prop::sample::select(&b"(0129.NqhK\x00\x01)]}\x85\x86\x87tlaedsu\x81bRQX\x80\x02"[..]), 0..200)) {
        let mut bytes = vec![0x80, 2];
        bytes.extend(body);
        bytes.push(b'.');
        exercise(outer(&bytes));
    }
}

#[test]
fn bombs_are_refused() {
    let bytes = |parts: &[&[u8]]| [&[0x80, 2][..], &parts.concat(), b"."].concat();
    let tensors = |bytes: &[u8]| pickle::parse(bytes).and_then(|pickle| pickle.tensors());
    // Lists inside each other, a million deep: no recursion in parsing, walking or dropping.
    let deep = bytes(&[&vec![b']'; 1_000_000], &vec![b'a'; 999_999]]);
    assert!(tensors(&deep).unwrap_err().to_string().contains("deep"));
    // A dictionary that holds itself.
    let itself = bytes(&[b"}q\x00X\x01\x00\x00\x00ah\x00s"]);
    assert!(tensors(&itself).unwrap_err().to_string().contains("deep"));
    // Each list holds the one before 200 times: 200^10 paths.
    let mut wide = b"]q\x00".to_vec();
    for level in 1..=10u8 {
        wide.extend([b']', b'q', level, b'(']);
        wide.extend([b'h', level - 1].repeat(200));
        wide.push(b'e');
    }
    assert!(tensors(&bytes(&[&wide])).unwrap_err().to_string().contains("too often"));
    // One value an instruction.
    let many = bytes(&[&vec![b'N'; 3_000_000]]);
    assert!(pickle::parse(&many).unwrap_err().to_string().contains("values"));
    // A long text that is not there, a memo that is not there, a stack that is empty.
    for (short, words) in [
        (&b"X\xff\xff\xff\x7f"[..], "ends early"),
        (b"h\x07", "has not made"),
        (b"0", "not there"),
        (b"t", "mark"),
    ] {
        let message = pickle::parse(&bytes(&[short])).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
    // Protocols by number.
    for protocol in [4, 5] {
        let message = pickle::parse(&[0x80, protocol, b'N', b'.']).unwrap_err().to_string();
        assert!(message.contains(&format!("protocol {protocol}")), "{message}");
    }
}
