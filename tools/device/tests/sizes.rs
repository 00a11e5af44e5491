//! Sizes that no memory holds. Those of 2^30 and above would wrap around on the devices' 32 bits.

use tec_device::tensors::{ALIGNMENT, Element, Kind, Tensors, head, write_head, write_tensor_head};
use tec_device::{Operation, Status, answer};
use tec_edge::{Stage, Trace, TraceValues};

struct Ignore;

impl Trace for Ignore {
    fn record(&mut self, _: Stage, _: usize, _: usize, _: TraceValues<'_>) {}
}

fn tensor<T: Element>(payload: &mut Vec<u8>, values: &[T]) {
    payload.extend(write_tensor_head(T::KIND, values.len() as u32));
    payload.extend_from_slice(bytemuck::cast_slice(values));
    payload.resize(payload.len().next_multiple_of(ALIGNMENT), 0);
}

/// The status, and the bytes of each result.
fn ask(payload: &[u8]) -> (Status, Vec<(Kind, usize)>) {
    let mut memory = [0u128; 512];
    let memory: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
    memory[..payload.len()].copy_from_slice(payload);
    let range = answer(memory, payload.len(), &mut Ignore);
    let (status, _) = head(&memory[range.clone()]).unwrap();
    let mut results = Tensors::new(&memory[range]);
    let mut found = Vec::new();
    while !results.is_empty() {
        let (kind, bytes) = results.take_bytes().unwrap();
        found.push((kind, bytes.len()));
    }
    (Status::from_number(status).unwrap(), found)
}

#[test]
fn a_linear_layer_of_absurd_width_does_not_fit() {
    for inner in [1 << 30, (1 << 30) + 1, 1 << 31, u32::MAX] {
        let mut payload = write_head(Operation::IntegerLinear as u16, 0).to_vec();
        tensor(&mut payload, &[1i8; 6]);
        tensor(&mut payload, &[1i8; 6]);
        tensor(&mut payload, &[0i32; 2]);
        tensor(&mut payload, &[1i32; 2]);
        tensor(&mut payload, &[0, inner]);
        // Its weights would, packed.
        assert_eq!(ask(&payload).0, Status::DoesNotFit, "{inner}");
    }
}

#[test]
fn results_of_absurd_sizes_do_not_fit() {
    for (operation, sizes) in [
        (Operation::SinCos, vec![4, u32::MAX]),
        (Operation::SinCos, vec![1 << 31, 1 << 16]),
        (Operation::Noise, vec![0, 0, 0, u32::MAX]),
    ] {
        let mut payload = write_head(operation as u16, 0).to_vec();
        if operation == Operation::Noise {
            tensor(&mut payload, &[0u64]);
        }
        tensor(&mut payload, &sizes);
        assert_eq!(ask(&payload).0, Status::DoesNotFit, "{operation:?} {sizes:?}");
    }
}

#[test]
fn a_request_longer_than_the_memory_has_no_answer() {
    let mut memory = [0u128; 4];
    for len in [65, 1000, usize::MAX - 15, usize::MAX - 1, usize::MAX] {
        assert_eq!(answer(bytemuck::cast_slice_mut(&mut memory), len, &mut Ignore), 64..64);
    }
}
