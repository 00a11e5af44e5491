//! Writing a checkpoint: safetensors, tensor by tensor, so that no second copy of the whole is in memory.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufWriter, Seek, SeekFrom, Write},
};

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use super::seal;

/// Tensors begin at multiples of this.
const ALIGNMENT: usize = 8;

/// Writes f32 tensors, ordered by name, and metadata, to which the checksum is added. The same content gives the same bytes.
///
/// # Errors
/// A disk that fails or is full; tensors of another type.
pub(super) fn write(
    file: &mut File,
    tensors: &HashMap<String, Tensor>,
    metadata: &BTreeMap<&str, String>,
) -> io::Result<()> {
    let tensors: BTreeMap<&String, &Tensor> = tensors.iter().collect();
    let header = header(&tensors, metadata)?;
    let digits = seal::position(&header).ok_or_else(|| io::Error::other("its header has no place for the checksum"))?;
    let mut sealed = Sealed {
        file: BufWriter::new(&mut *file),
        sum: crc32fast::Hasher::new(),
    };
    sealed.put(&(header.len() as u64).to_le_bytes())?;
    sealed.put(&header)?;
    for tensor in tensors.values() {
        let values = tensor
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .map_err(io::Error::other)?;
        sealed.put(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    let sum = sealed.sum.clone().finalize();
    sealed.file.flush()?;
    drop(sealed);
    file.seek(SeekFrom::Start((8 + digits) as u64))?;
    file.write_all(seal::digits(sum).as_bytes())
}

/// The header with the checksum still open, padded so that the tensors are aligned.
fn header(tensors: &BTreeMap<&String, &Tensor>, metadata: &BTreeMap<&str, String>) -> io::Result<Vec<u8>> {
    let mut about: Map<String, Value> = metadata.iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
    about.insert(seal::KEY.into(), json!(seal::OPEN));
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), Value::Object(about));
    let mut end = 0;
    for (name, tensor) in tensors {
        let start = end;
        end += tensor.elem_count() * size_of::<f32>();
        let entry = json!({"dtype": "F32", "shape": tensor.dims(), "data_offsets": [start, end]});
        entries.insert(name.to_string(), entry);
    }
    let mut header = serde_json::to_vec(&entries)?;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    Ok(header)
}

/// A file whose bytes are summed on their way.
struct Sealed<'a> {
    file: BufWriter<&'a mut File>,
    sum: crc32fast::Hasher,
}

impl Sealed<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.file.write_all(bytes)
    }
}
