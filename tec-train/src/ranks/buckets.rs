//! Tensors packed into buckets of contiguous values, so that ranks exchange few large messages instead of many small ones.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// Values of a bucket: 25 MB of f32. A larger tensor is a bucket of its own.
const BUCKET: usize = 25_000_000 / size_of::<f32>();

/// Has `sum` replace the values of each bucket by their sums over ranks; tensors in, tensors of the same shapes and devices out.
/// Memory for the sums and one bucket is needed besides.
///
/// # Errors
/// [`Error::Data`] for a tensor that is not f32, and whatever `sum` returns.
pub fn sum(tensors: Vec<Tensor>, sum: impl FnMut(&mut [f32]) -> Result<()>) -> Result<Vec<Tensor>> {
    in_buckets(tensors, BUCKET, sum)
}

fn in_buckets(
    tensors: Vec<Tensor>,
    limit: usize,
    mut sum: impl FnMut(&mut [f32]) -> Result<()>,
) -> Result<Vec<Tensor>> {
    let mut sums = Vec::with_capacity(tensors.len());
    let mut bucket: Vec<f32> = Vec::new();
    let mut packed = Vec::new();
    let mut tensors = tensors.into_iter().peekable();
    while let Some(tensor) = tensors.next() {
        if tensor.dtype() != DType::F32 {
            return Err(Error::Data(format!(
                "a {:?} tensor cannot be summed over ranks, which is done in f32; please report it",
                tensor.dtype()
            )));
        }
        bucket.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
        packed.push((tensor.shape().clone(), tensor.device().clone()));
        let room = tensors
            .peek()
            .is_some_and(|next| bucket.len() + next.elem_count() <= limit);
        if room {
            continue;
        }
        sum(&mut bucket)?;
        let mut from = 0;
        for (shape, device) in packed.drain(..) {
            let count = shape.elem_count();
            sums.push(Tensor::from_slice(&bucket[from..from + count], shape, &device)?);
            from += count;
        }
        bucket.clear();
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn tensors_come_back_in_their_shapes_whatever_the_bucket() {
        let shapes = [vec![2, 3], vec![5], vec![], vec![0], vec![1, 7, 1]];
        let tensors: Vec<Tensor> = (0..shapes.len())
            .map(|number| {
                let count: usize = shapes[number].iter().product();
                let values: Vec<f32> = (0..count).map(|at| (100 * number + at) as f32).collect();
                Tensor::from_vec(values, shapes[number].as_slice(), &Device::Cpu).unwrap()
            })
            .collect();
        for (limit, expected) in [
            (1, vec![6, 5, 1, 7]),
            (11, vec![11, 8]),
            (12, vec![12, 7]),
            (100, vec![19]),
        ] {
            let mut lengths = Vec::new();
            let doubled = in_buckets(tensors.clone(), limit, |bucket| {
                lengths.push(bucket.len());
                bucket.iter_mut().for_each(|v| *v *= 2.0);
                Ok(())
            });
            lengths.retain(|length| *length > 0);
            assert_eq!(lengths, expected, "{limit}");
            for (before, after) in tensors.iter().zip(doubled.unwrap()) {
                assert_eq!(before.dims(), after.dims());
                let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let twice: Vec<f32> = values(before).iter().map(|v| v * 2.0).collect();
                assert_eq!(values(&after), twice);
            }
        }
        let wrong = Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap();
        assert!(sum(vec![wrong], |_| Ok(())).unwrap_err().to_string().contains("F64"));
        assert!(sum(Vec::new(), |_| unreachable!("no bucket")).unwrap().is_empty());
    }
}
