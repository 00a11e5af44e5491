//! Every public function of `tec-core`.

use tec_core::adapter::{self, EncoderAdapter, Group, Mlp};
use tec_core::integer::{self, GELU_TABLE_LEN, NormRow, WeightedMean};
use tec_core::lanes::{self, Accumulator};
use tec_core::norm::{self, RowStats};
use tec_core::philox::{self, Noise, Stream};
use tec_core::position::{self, Resample};
use tec_core::{activation, linear, loss, mask, relation, softmax};

use crate::{some, unknown, used};

pub fn all() {
    activations();
    adapters();
    integers();
    sums();
    linears();
    losses();
    masks();
    norms();
    noise();
    positions();
    relations();
    softmaxes();
}

fn float() -> f32 {
    unknown(0.0)
}

fn size() -> usize {
    unknown(0)
}

fn activations() {
    used(activation::exp(float()));
    used(activation::erf(float()));
    used(activation::gelu(float()));
    used(activation::gelu_grad(float()));
    used(activation::gelu_slice(some(), some()));
    used(activation::gelu_backward_slice(some(), some(), some()));
}

fn adapters() {
    used(adapter::groups(size()));
    let mlp = Mlp {
        fc1_weight: some(),
        fc1_bias: some(),
        fc2_weight: some(),
        fc2_bias: some(),
    };
    used(Mlp::hidden(&mlp));
    used(Mlp::apply(&mlp, some(), some(), some()));
    used(adapter::input_adapter(
        some(),
        some(),
        some(),
        some(),
        some(),
        some(),
        some(),
    ));
    let weights = EncoderAdapter {
        before_weight: some(),
        before_bias: some(),
        groups: some::<Group<'_>>(),
        after_weight: some(),
        after_bias: some(),
    };
    used(EncoderAdapter::scratch_len(&weights));
    used(adapter::encoder_adapter(&weights, some(), some(), some()));
}

fn integers() {
    used(integer::gelu_table(
        unknown(0.0),
        unknown(0.0),
        unknown(0.0),
        unknown(0),
    ));
    used(integer::gelu(unknown(&[0; GELU_TABLE_LEN]), unknown(0)));
    let row = unknown(NormRow::new(some(), unknown(0)));
    used(NormRow::normalize(&row, unknown(0)));
    used(NormRow::from_sums(unknown(3), unknown(1), unknown(1), unknown(1)).shift);
    let row = NormRow::from_sums_by(unknown(3), unknown(1), unknown(1), unknown(1), integer::sqrt);
    used(row.shift);
    used(integer::norm_affine(unknown(0), unknown(0), unknown(0), unknown(0)));
    used(integer::center_pixel(unknown(0)));
    used(integer::pixel_constants(float(), float()));
    used(integer::pixel_from_f32(float(), float(), float()));
    used(integer::sqrt(unknown(0)));
    used(integer::reciprocal(unknown(0)));
    used(integer::round_shift(unknown(0), unknown(0)));
    used(integer::scale(unknown(0), unknown(0), unknown(0)));
    used(integer::saturate_i8(unknown(0)));
    used(integer::saturate_i16(unknown(0)));
    used(integer::saturate_i32(unknown(0)));
    used(integer::softmax_weights(some(), unknown(0), unknown(0), some()));
    let mean = unknown(WeightedMean::new(unknown(0)));
    used(WeightedMean::of(mean, unknown(0)));
}

fn sums() {
    used(lanes::combine(unknown([0.0; lanes::LANES])));
    used(lanes::sum(some()));
    used(lanes::dot(some(), some()));
    let factor = float();
    used(lanes::max_by(some(), |value| value * factor));
    let mut accumulator = unknown(Accumulator::new());
    Accumulator::push(&mut accumulator, float());
    used(Accumulator::total(&accumulator));
}

fn linears() {
    used(linear::linear(some(), size(), some(), unknown(Some(some())), some()));
    let grad_bias = unknown(Some(some()));
    used(linear::linear_backward(
        some(),
        size(),
        some(),
        some(),
        some(),
        some(),
        grad_bias,
    ));
}

fn losses() {
    used(loss::feature_loss(some(), some(), some(), size()));
    used(loss::feature_scale(float()));
    used(loss::feature_loss_backward(
        some(),
        some(),
        some(),
        size(),
        float(),
        some(),
    ));
    used(loss::relation_loss(some(), some()));
    used(loss::relation_loss_backward(some(), some(), float(), some()));
}

fn masks() {
    used(mask::kept(size(), unknown(0.0)));
    used(mask::argsort(some(), some()));
    used(mask::mask(some(), size(), some(), some(), some()));
}

fn norms() {
    used(norm::layer_norm(some(), some(), some(), float(), some()));
    let stats = unknown(RowStats { mean: 0.0, rstd: 0.0 });
    used(norm::layer_norm_backward(
        some(),
        some(),
        stats,
        some(),
        some(),
        some(),
        some(),
    ));
}

fn noise() {
    used(philox::philox4x32_10(unknown([0; 4]), unknown([0; 2])));
    let noise = unknown(Noise {
        seed: 0,
        epoch: 0,
        sample: 0,
        stream: Stream::Mask,
    });
    used(Noise::bits(&noise, unknown(0)));
    used(Noise::uniform(&noise, unknown(0)));
    Noise::fill(&noise, some());
}

fn positions() {
    used(position::sincos_2d(size(), size(), some()));
    let resample = unknown(Resample::Plain);
    used(position::resize_bicubic(
        some(),
        size(),
        size(),
        size(),
        resample,
        some(),
    ));
}

fn relations() {
    used(relation::normalize_features(some(), size(), size(), some()));
    used(relation::rank_queries(some(), size(), size(), some(), some()));
    used(relation::target_rows(some(), size(), size(), some(), some()));
    used(relation::tempered_target(some(), size(), float(), some()));
}

fn softmaxes() {
    used(softmax::softmax(some(), float(), some()));
    used(softmax::softmax_backward(some(), some(), float(), some()));
    used(softmax::log_sum_exp(some(), float()));
}
