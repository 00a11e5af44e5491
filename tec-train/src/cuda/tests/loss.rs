use candle_core::Var;

use super::super::{Float, loss as plan};
use super::*;
use crate::ops;

#[test]
fn feature_loss_and_gradient() {
    for (batch, patches, width, skip) in [(1, 1, 1, 0), (2, 49, 96, 0), (5, 60, 33, 1), (1, 9, 1030, 0)] {
        let rows = batch * patches;
        let (mut pred, target) = (values(1, rows * width), values(2, rows * width));
        let removed: Vec<f32> = (0..rows).map(|row| if row % 4 == 3 { 0.0 } else { 1.0 }).collect();
        let tensor = |values: &[f32]| Tensor::new(Float::F32, values, skip);
        let (dtarget, dremoved) = (tensor(&target), tensor(&removed));
        let var = Var::from_tensor(&cpu(&pred, (batch, patches, width))).unwrap();
        let expected = ops::feature_loss(
            &var,
            &cpu(&target, (batch, patches, width)),
            &cpu(&removed, (batch, patches)),
        );
        let expected = expected.unwrap();
        // What is visible is not looked at.
        pred.chunks_mut(width)
            .zip(&removed)
            .filter(|(_, r)| **r == 0.0)
            .for_each(|(p, _)| p.fill(f32::NAN));
        let dpred = tensor(&pred);
        let (value, scratch) = (
            Tensor::out(Float::F32, 2, 0),
            Tensor::out(Float::F32, plan::scratch(rows), 0),
        );
        let inputs = [dpred.at(), dtarget.at(), dremoved.at()];
        let launches = plan::feature_loss(inputs, value.at(), scratch.at(), rows, width);
        let [result] = twice(&launches, [&value]);
        let what = format!("{batch} {patches} {width}");
        close(&what, &result[..1], &flat(&expected), F32);
        let (upstream, grad) = (tensor(&[0.6]), Tensor::out(Float::F32, rows * width, skip));
        run(&plan::feature_loss_gradient(
            inputs,
            upstream.at(),
            value.at(),
            grad.at(),
            rows,
            width,
        ));
        close(&what, &grad.values(), &gradients(&expected, &[0.6], &[&var])[0], F32);
    }
}

#[test]
fn relation_loss_and_gradient() {
    for (rows, width, skip) in [(1, 7, 0), (60, 49, 1), (129, 196, 0), (9, 32, 0)] {
        let pred: Vec<f32> = values(1, rows * width).iter().map(|v| 8.0 * v).collect();
        let target = ops::tempered_target(&cpu(&values(2, rows * width), (rows, width)), 0.5).unwrap();
        let tensor = |values: &[f32]| Tensor::new(Float::F32, values, skip);
        let (dpred, dtarget) = (tensor(&pred), tensor(&flat(&target)));
        let (value, scratch) = (
            Tensor::out(Float::F32, 2, 0),
            Tensor::out(Float::F32, plan::scratch(rows), 0),
        );
        let launches = plan::relation_loss(dpred.at(), dtarget.at(), value.at(), scratch.at(), rows, width);
        let [result] = twice(&launches, [&value]);
        let var = Var::from_tensor(&cpu(&pred, (1, rows, 1, width))).unwrap();
        let expected = ops::relation_loss(&var, &target.reshape((1, rows, 1, width)).unwrap()).unwrap();
        let what = format!("{rows} {width}");
        close(&what, &result[..1], &flat(&expected), F32);
        let (upstream, grad) = (tensor(&[-1.5]), Tensor::out(Float::F32, rows * width, skip));
        run(&plan::relation_loss_gradient(
            dpred.at(),
            dtarget.at(),
            upstream.at(),
            grad.at(),
            rows,
            width,
        ));
        close(&what, &grad.values(), &gradients(&expected, &[-1.5], &[&var])[0], F32);
    }
}

#[test]
fn a_mask_that_removes_nothing_gives_nan() {
    let (x, removed) = (Tensor::f32(&values(1, 6)), Tensor::f32(&[0.0, 0.0]));
    let (value, scratch) = (Tensor::out(Float::F32, 2, 0), Tensor::out(Float::F32, 2, 0));
    plan::feature_loss([x.at(), x.at(), removed.at()], value.at(), scratch.at(), 2, 3)
        .iter()
        .for_each(run);
    assert!(value.values()[0].is_nan());
}
