use candle_core::Var;

use super::super::{Float, tokens as plan};
use super::*;
use crate::data::{Normalization, to_tensor};
use crate::ops::{self, PatchOrder};

#[test]
fn images_have_the_hosts_bits() {
    for (batch, size, channels) in [(1, 1, 3), (3, 9, 1), (2, 17, 3)] {
        let n = batch * size * size * channels;
        let pixels: Vec<u8> = (0..n).map(|i| (i * 89 + i / 7) as u8).collect();
        let normalization = Normalization::imagenet(channels).unwrap();
        let (from, images) = (Buffer::new(&pixels), Tensor::out(Float::F32, n, 0));
        run(&plan::images_from_pixels(
            from.address(0),
            images.at(),
            batch,
            size * size,
            &normalization,
        ));
        let expected = to_tensor(&pixels, batch, size, channels, &normalization, &Device::Cpu).unwrap();
        assert_eq!(bits(&images.values()), bits(&flat(&expected)));
    }
}

#[test]
fn patches_in_both_orders() {
    for (shape, patch) in [
        ([2, 3, 8, 12], 4),
        ([1, 1, 5, 10], 5),
        ([3, 3, 14, 14], 7),
        ([2, 3, 32, 16], 16),
    ] {
        let x = values(1, shape.iter().product());
        let (images, patches) = (Tensor::new(Float::F32, &x, 1), Tensor::out(Float::F32, x.len(), 3));
        for order in [PatchOrder::ChannelsFirst, PatchOrder::ChannelsLast] {
            run(&plan::patchify(images.at(), patches.at(), shape, patch, order));
            let expected = ops::patchify(&cpu(&x, shape.to_vec()), patch, order).unwrap();
            assert_eq!(patches.values(), flat(&expected), "{shape:?} {patch} {order:?}");
        }
    }
}

#[test]
fn gathered_tokens_and_their_gradient() {
    // The second has tokens that are gathered twice, and some that are not.
    for (batch, tokens, n, width, skip) in [(2, 7, 3, 12, 0), (3, 5, 6, 10, 0), (2, 9, 9, 1028, 0), (1, 4, 2, 8, 1)] {
        let x = values(1, batch * tokens * width);
        let index: Vec<u32> = (0..batch * n).map(|i| ((i * 5 + i / n) % tokens) as u32).collect();
        let sizes = [batch, tokens, n, width];
        let (dx, dindex) = (Tensor::new(Float::F32, &x, skip), Buffer::new(&index));
        let y = Tensor::out(Float::F32, batch * n * width, skip);
        run(&plan::gather_tokens(dx.at(), dindex.address(0), y.at(), sizes));
        let var = Var::from_tensor(&cpu(&x, (batch, tokens, width))).unwrap();
        let index = Cpu::from_vec(index, (batch, n), &Device::Cpu).unwrap();
        let expected = ops::gather_tokens(&var, &index).unwrap();
        assert_eq!(y.values(), flat(&expected));

        let grad = values(2, batch * n * width);
        let (dgrad, grad_x) = (
            Tensor::new(Float::F32, &grad, skip),
            Tensor::out(Float::F32, x.len(), skip),
        );
        run(&plan::gather_tokens_gradient(
            dgrad.at(),
            dindex.address(0),
            grad_x.at(),
            sizes,
        ));
        assert_eq!(grad_x.values(), gradients(&expected, &grad, &[&var])[0]);
    }
}

#[test]
fn an_index_out_of_range_touches_nothing_outside() {
    let (x, index) = (Tensor::f32(&values(1, 4 * 8)), Buffer::new(&[3u32, 4, u32::MAX]));
    let y = Tensor::out(Float::F32, 3 * 8, 0);
    run(&plan::gather_tokens(x.at(), index.address(0), y.at(), [1, 4, 3, 8]));
    assert_eq!(y.values()[..8], x.values()[24..]);
    assert!(y.values()[8..].iter().all(|&v| v == 0.0));
    let sizes = plan::UnmaskSizes {
        batch: 1,
        visible: 4,
        patches: 3,
        width: 8,
    };
    let (tokens, out) = (Tensor::f32(&values(2, 3 * 8)), Tensor::out(Float::F32, 4 * 8, 0));
    run(&plan::unmask(x.at(), tokens.at(), index.address(0), out.at(), sizes));
    assert_eq!(out.values()[8..], tokens.values());
    run(&plan::unmask_gradient_visible(
        out.at(),
        index.address(0),
        x.at(),
        sizes,
    ));
    x.values();
}

#[test]
fn unmasking_and_its_gradients() {
    for (batch, patches, visible, width, skip) in
        [(2, 9, 4, 12, 0), (3, 4, 5, 9, 0), (5, 16, 1, 260, 0), (2, 6, 3, 8, 2)]
    {
        let sizes = plan::UnmaskSizes {
            batch,
            visible,
            patches,
            width,
        };
        let (x, tokens) = (values(1, batch * visible * width), values(2, patches * width));
        let restore: Vec<u32> = (0..batch)
            .flat_map(|b| (0..patches).map(move |p| ((p * 5 + b) % patches) as u32))
            .collect();
        // 5 and 9, 4, 16, 6 have no common factor: each place once.
        let (dx, dtokens) = (
            Tensor::new(Float::F32, &x, skip),
            Tensor::new(Float::F32, &tokens, skip),
        );
        let (drestore, n) = (Buffer::new(&restore), batch * (1 + patches) * width);
        let y = Tensor::out(Float::F32, n, skip);
        run(&plan::unmask(dx.at(), dtokens.at(), drestore.address(0), y.at(), sizes));
        let x = Var::from_tensor(&cpu(&x, (batch, visible, width))).unwrap();
        let tokens = Var::from_tensor(&cpu(&tokens, (patches, width))).unwrap();
        let restore = Cpu::from_vec(restore, (batch, patches), &Device::Cpu).unwrap();
        let expected = ops::unmask(&x, &tokens, &restore).unwrap();
        assert_eq!(y.values(), flat(&expected));

        let grad = values(3, n);
        let dgrad = Tensor::new(Float::F32, &grad, skip);
        let grad_x = Tensor::out(Float::F32, batch * visible * width, skip);
        let grad_tokens = Tensor::out(Float::F32, patches * width, skip);
        run(&plan::unmask_gradient_visible(
            dgrad.at(),
            drestore.address(0),
            grad_x.at(),
            sizes,
        ));
        run(&plan::unmask_gradient_masked(
            dgrad.at(),
            drestore.address(0),
            grad_tokens.at(),
            sizes,
        ));
        let wanted = gradients(&expected, &grad, &[&x, &tokens]);
        assert_eq!([grad_x.values(), grad_tokens.values()].as_slice(), wanted);
    }
}
