//! Every public function of `tec-edge`.

use core::fmt::{self, Write};

use tec_edge::format::{self, Header, Section};
use tec_edge::layers::{I32s, Linear, Norm};
use tec_edge::{
    Aligned, BackEnd, Encoder, Error, Geometry, Image, Options, Output, OutputKind, Outputs, Precision, ScratchUsage,
    Stage, Trace, TraceValues, int4, panel,
};

use crate::{some, unknown, used};

pub fn all() {
    used(Aligned::<[u8; 32]>::zeroed());
    used(write!(Sink, "{}", unknown(Error::NotAnEncoder)));
    // Then every encoder that the type can hold, not only those that the reader lets through.
    let Ok(encoder) = Encoder::from_bytes(some()) else {
        return;
    };
    let encoder = unknown(encoder);
    reads(&encoder);
    encodes(&encoder);
    formats(encoder.header());
    layers();
}

fn reads(encoder: &Encoder<'_>) {
    used(Encoder::geometry(encoder));
    used(Encoder::header(encoder));
    used(Encoder::name(encoder));
    used(Encoder::normalization(encoder));
    used(Encoder::pool(encoder));
    used(Encoder::scratch_len(encoder, unknown(Outputs::ALL)));
    let usage = Encoder::scratch_usage(encoder, unknown("dsp"), unknown(Outputs::ALL));
    used(usage.map(|usage| ScratchUsage::total(&usage)));
    let kind = unknown(OutputKind::Class);
    used(Encoder::output_len(encoder, kind));
    used(Encoder::output_scale_shift(encoder, kind));
    let values = some();
    Encoder::to_f32(encoder, kind, some(), values);
    used(values);
}

fn encodes(encoder: &Encoder<'_>) {
    let out = unknown(Output {
        class: Some(some()),
        mean: Some(some()),
        patches: Some(some()),
        logits: Some(some()),
    });
    used(Output::outputs(&out));
    used(Encoder::encode(encoder, unknown(Image::Pixels(some())), some(), out));
    let options = unknown(Options {
        patches: Some(some()),
        workers: 3,
    });
    used(Encoder::scratch_len_with(encoder, &options, unknown(Outputs::ALL)));
    used(Encoder::fast_scratch_len(encoder, &options, unknown(Outputs::ALL)));
    let out = unknown(Output {
        class: Some(some()),
        mean: Some(some()),
        patches: Some(some()),
        logits: Some(some()),
    });
    used(Encoder::encode_with(
        encoder,
        &options,
        unknown(Image::Pixels(some())),
        some(),
        out,
    ));
    used(BackEnd::name(Encoder::back_end(&Encoder::with_back_end(
        *encoder,
        unknown(BackEnd::SCALAR),
    ))));
    used(Encoder::encode(
        encoder,
        unknown(Image::Grey(some())),
        some(),
        unknown(Output::default()),
    ));
    let image = unknown(Image::Normalized(some()));
    used(Encoder::encode_traced(
        encoder,
        image,
        some(),
        unknown(Output::default()),
        &mut Watch,
    ));
}

struct Watch;

impl Trace for Watch {
    fn record(&mut self, stage: Stage, block: usize, offset: usize, values: TraceValues<'_>) {
        used((Stage::name(stage), block, offset));
        used(values);
    }
}

fn layers() {
    let linear = Linear {
        weight: some(),
        precision: unknown(Precision::Int4 { group: 4 }),
        inner: unknown(3),
        bias: I32s::from_bytes(some()),
        multiplier: I32s::from_bytes(some()),
        shift: unknown(3),
    };
    used(Linear::memory(&linear, unknown(1)));
    used(BackEnd::name(unknown(BackEnd::best())));
    used(BackEnd::linear(
        unknown(BackEnd::best()),
        &linear,
        some(),
        some(),
        some(),
    ));
    let norm = Norm {
        multiplier: I32s::from_bytes(some()),
        offset: I32s::from_bytes(some()),
        bits: unknown(20),
        epsilon: unknown(1),
    };
    used(Norm::memory(&norm, unknown(1)));
    used(BackEnd::norm(unknown(BackEnd::best()), &norm, some(), some(), some()));
    let out: &mut [i64] = some();
    Norm::row(&norm, some(), out, |slot, value| *slot = value);
    used(out);
    used(BackEnd::softmax(
        unknown(BackEnd::SCALAR),
        some(),
        unknown(1),
        unknown(1),
        some(),
    ));
    BackEnd::weighted(unknown(BackEnd::SCALAR), some(), unknown(3), some(), some());
    used(BackEnd::all().count());
    used((panel::padded(unknown(1)), panel::panels_len(unknown(1), unknown(1))));
    used(panel::place(unknown(1), unknown(1), unknown(1)));
    let panels = some();
    panel::pack(some(), unknown(1), panels);
    used(panels);
    let panels = some();
    int4::pack(some(), some(), unknown(1), unknown(1), panels);
    used(panels);
    used(int4::panels_len(unknown(1), unknown(1), unknown(1)));
    used(int4::weight(unknown(1), unknown(1)));
}

fn formats(header: &Header) {
    let geometry = unknown(header.geometry);
    used(Geometry::validate(&geometry));
    used(Geometry::grid(&geometry));
    used(Geometry::patches(&geometry));
    used(Geometry::tokens(&geometry));
    used(Geometry::head_width(&geometry));
    used(Geometry::patch_len(&geometry));
    used(Geometry::image_len(&geometry));
    let header = unknown(*header);
    used(Header::validate(&header));
    used(format::checksum(some()));
    used(format::sections(&header).last());
    used(format::file_len(&header));
    used(Section::matrix(unknown(Section::QkvWeight), &header));
    used(Section::precision(unknown(Section::QkvWeight), &header));
    used(Section::boundary(unknown(Section::QkvWeight), &header));
    used(Header::classes(&header));
    let fill = |section: Section, block: usize, bytes: &mut [u8]| {
        used((section, block));
        used(bytes);
    };
    used(format::write(&header, some(), fill));
}

/// Text that goes nowhere.
struct Sink;

impl Write for Sink {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        used(text);
        Ok(())
    }
}
