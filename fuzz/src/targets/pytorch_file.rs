//! Any bytes as the pickle of a PyTorch checkpoint, and as the whole file.

use std::io::{Cursor, Read, Write};

use tec_pth::{TensorFile, pickle};
use zip::write::{SimpleFileOptions, ZipWriter};

/// Checkpoints that PyTorch wrote: nested with foreign objects, and with views of one storage.
const FILES: [&[u8]; 2] = [
    include_bytes!("../../../tests/goldens/bases/mae_full/mae_pretrain_vit_base_full.pth"),
    include_bytes!("../../../tests/goldens/bases/pth_views/views.pth"),
];

/// Bytes of the storage that forged checkpoints have.
const STORAGE: usize = 64;

/// Inputs to start from: pickles, the instructions of a small tensor, and a whole file of them.
pub fn seeds() -> Vec<Vec<u8>> {
    let pickles = FILES.iter().filter_map(|file| pickle_of(file));
    let small = b"\x80\x02}q\x00X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n\
        X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQK\x00K\x04K\x04\x86K\x01K\x04\x86\x89ccollections\nOrderedDict\n)RtRs."
        .to_vec();
    pickles
        .chain(FILES.iter().map(|file| file.to_vec()))
        .chain([small])
        .collect()
}

/// The pickle inside a checkpoint.
fn pickle_of(file: &[u8]) -> Option<Vec<u8>> {
    let mut archive = zip::ZipArchive::new(Cursor::new(file)).ok()?;
    let name = archive
        .file_names_raw()
        .find(|name| name.ends_with(b"data.pkl"))?
        .to_vec();
    let mut bytes = Vec::new();
    archive.by_name_raw(&name).ok()?.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Takes one input.
///
/// # Panics
/// Where something does not hold.
pub fn run(data: &[u8]) {
    exercise(data.to_vec());
    let Ok(pickle) = pickle::parse(data) else {
        return;
    };
    // One instruction makes one value, or none; a call of one that is known makes no more.
    assert!(
        pickle.len() <= data.len(),
        "{} values of {} bytes",
        pickle.len(),
        data.len()
    );
    if pickle.tensors().is_ok_and(|tensors| !tensors.is_empty()) {
        exercise(file(data));
    }
}

/// A checkpoint of that pickle.
fn file(pickle: &[u8]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default();
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", &[1; STORAGE])] {
        archive.start_file(name, stored).expect("a new entry");
        archive.write_all(bytes).expect("memory");
    }
    archive.finish().expect("memory").into_inner()
}

/// Opens a file and reads what can be read: every tensor has as many values as its shape says.
fn exercise(bytes: Vec<u8>) {
    let Ok(mut file) = TensorFile::new(Cursor::new(bytes)) else {
        return;
    };
    let names: Vec<String> = file.tensors().keys().cloned().collect();
    for name in names {
        let info = file.tensors().get(&name).expect("it was listed");
        let count = info.count();
        if let Ok(values) = file.read(&name) {
            assert_eq!(values.len(), count, "{name}");
        }
    }
}
