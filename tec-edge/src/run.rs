//! One image's way through the encoder, by any kernel, by one thread or several.

use bytemuck::Zeroable;
use tec_core::integer::{center_pixel, pixel_constants, pixel_from_f32};

use crate::block::{Block, add};
use crate::encoder::{Encoder, Image, Options, Output};
use crate::format::{Precision, Section};
use crate::kernel::{Kernel, Work};
use crate::layers::{Linear, stride};
use crate::panel::{PANEL, QUAD};
use crate::plan::{Memory, Part, Plan, Rest, count};
use crate::team::Team;
use crate::trace::{NoTrace, Stage, Trace, TraceValues};
use crate::views::{I16s, I32s, part, part_mut};
use crate::{Error, Geometry, outputs};

/// An image on its way.
pub(crate) struct Run<'r, 'a, K, T> {
    pub(crate) encoder: &'r Encoder<'a>,
    pub(crate) kernel: K,
    pub(crate) team: T,
    pub(crate) options: Options<'r>,
    pub(crate) image: Image<'r>,
}

/// What is done to all tokens before the next thing begins.
enum Pass<'p, 'a> {
    Embed,
    KeysAndValues(&'p Block<'a>),
    AttentionAndMlp(&'p Block<'a>, &'p [i8]),
}

/// How the memory was split.
struct Layout {
    plan: Plan,
    tile_len: usize,
    rows: usize,
}

impl<K: Kernel, T: Team> Run<'_, '_, K, T> {
    /// Encodes the image. What `trace` records needs one worker.
    pub(crate) fn run(&self, scratch: &mut [u8], out: Output<'_>, trace: &mut impl Trace) -> Result<(), Error> {
        let geometry = self.encoder.geometry();
        const { assert!(size_of::<K::Factor>() == K::NEEDS.factor, "the table of needs is wrong") };
        let plan = self.encoder.plan(&self.options, out.outputs());
        let Memory {
            tokens,
            kept,
            tiles,
            tile_len,
            rows,
        } = plan.split(K::NEEDS, scratch)?;
        let layout = Layout { plan, tile_len, rows };
        self.pass(&layout, &Pass::Embed, tokens, &mut [], tiles, trace)?;
        trace.record(Stage::Embedding, 0, 0, TraceValues::I16(tokens));
        for index in 0..geometry.depth {
            let block = Block::read(self.encoder.file(), index)?;
            self.pass(&layout, &Pass::KeysAndValues(&block), tokens, kept, tiles, trace)?;
            self.pass(
                &layout,
                &Pass::AttentionAndMlp(&block, kept),
                tokens,
                &mut [],
                tiles,
                trace,
            )?;
        }
        // As with a block's functions: elsewhere that would only keep the compiler from leaving out what nobody asks for.
        if cfg!(target_arch = "x86_64") {
            let last = Last {
                run: self,
                tokens,
                tiles,
                out,
            };
            return self.kernel.with(last).ok_or(SHORT);
        }
        outputs::write(self.encoder, self.kernel, tokens, tiles, out).ok_or(SHORT)
    }

    fn pass(
        &self,
        layout: &Layout,
        pass: &Pass<'_, '_>,
        tokens: &mut [i16],
        kept: &mut [i8],
        tiles: &mut [u8],
        trace: &mut impl Trace,
    ) -> Result<(), Error> {
        let all = Part {
            workers: 0..layout.plan.workers,
            tokens,
            kept,
            tiles,
        };
        self.share_out(layout, pass, all, trace)
    }

    /// Divides the work among the workers, half by half.
    fn share_out(
        &self,
        layout: &Layout,
        pass: &Pass<'_, '_>,
        part: Part<'_>,
        trace: &mut impl Trace,
    ) -> Result<(), Error> {
        let workers = count(&part.workers);
        if workers <= 1 {
            return self.kernel.with(Share {
                run: self,
                layout,
                pass,
                part,
                trace,
            });
        }
        let middle = part.workers.start + workers / 2;
        let (first, second) = part.split(&layout.plan, layout.tile_len, middle).ok_or(SHORT)?;
        let (first, second) = self.team.join(
            || self.share_out(layout, pass, first, &mut NoTrace),
            || self.share_out(layout, pass, second, &mut NoTrace),
        );
        first.and(second)
    }

    /// Writes the tokens that enter the first block.
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn embed(&self, layout: &Layout, part: Part<'_>) -> Result<(), Error> {
        let Geometry { dim, .. } = *self.encoder.geometry();
        let patch_len = self.encoder.geometry().patch_len();
        let section = |section| self.encoder.file().outside(section);
        let projection = Linear {
            weight: section(Section::PatchWeight),
            precision: Precision::Int8,
            inner: patch_len,
            bias: I32s(section(Section::PatchBias)),
            multiplier: I32s(section(Section::PatchMultiplier)),
            shift: self.encoder.header().patch_shift.into(),
        };
        let (class, positions) = (I16s(section(Section::ClassToken)), I16s(section(Section::Position)));
        let share = layout.plan.share(part.workers);
        for (token, slots) in share.clone().zip(part.tokens.chunks_exact_mut(dim.max(1))) {
            // The class token, then the patches' positions.
            let values = match token.checked_sub(1) {
                None => class,
                Some(number) => positions.part(self.patch(number) * dim, dim),
            };
            slots
                .iter_mut()
                .zip(values.iter())
                .for_each(|(slot, value)| *slot = value);
        }
        let has_class = share.start == 0 && !share.is_empty();
        let patches = part.tokens.get_mut(usize::from(has_class) * dim..).unwrap_or_default();
        let first = (share.start + usize::from(has_class)).saturating_sub(1);
        let row_len = stride::<K>(patch_len);
        let factors = Rest(part.tiles).take::<K::Factor>(layout.rows * row_len).ok_or(SHORT)?;
        for (number, tile) in patches.chunks_mut((layout.rows * dim).max(1)).enumerate() {
            let count = tile.len() / dim.max(1);
            for (i, row) in factors.chunks_exact_mut(row_len.max(1)).take(count).enumerate() {
                part_mut(row, patch_len, row_len - patch_len).fill(K::Factor::zeroed());
                self.gather(self.patch(first + number * layout.rows + i), row)?;
                self.kernel.finish(row);
            }
            projection.apply(
                self.kernel,
                factors,
                count,
                0..dim.div_ceil(PANEL),
                &mut [],
                |row, output, values| {
                    for (token, values) in (row..).zip(values) {
                        let slots = part_mut(tile, token * dim + output, PANEL.min(dim - output));
                        // The position is there already.
                        add(slots, values);
                    }
                },
            );
        }
        Ok(())
    }

    /// The patch that a token after the class token comes from.
    fn patch(&self, number: usize) -> usize {
        match self.options.patches {
            None => number,
            Some(patches) => patches.get(number).map_or(0, |&patch| patch as usize),
        }
    }

    /// Collects one patch, `[patch_size, patch_size, channels]`, as factors of centered pixels.
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn gather(&self, patch: usize, out: &mut [K::Factor]) -> Result<(), Error> {
        let geometry = self.encoder.geometry();
        let channels = geometry.channels;
        let size = geometry.patch_size;
        let grid = geometry.grid().max(1);
        let row_len = size * channels;
        let (top, left) = (patch / grid * size, patch % grid * row_len);
        let repeat = if matches!(self.image, Image::Grey(_)) {
            channels.max(1)
        } else {
            1
        };
        let put = |out: &mut [K::Factor], i: usize, pixel| {
            if let Some(slot) = out.get_mut(self.kernel.at(i)) {
                *slot = self.kernel.factor(center_pixel(pixel));
            }
        };
        for y in 0..size {
            let start = (top + y) * geometry.image_size * channels + left;
            let place = y * row_len;
            match self.image {
                Image::Pixels(pixels) if K::LARGE && row_len.is_multiple_of(QUAD) => {
                    let (whole, rest) = part(pixels, start, row_len).as_chunks::<PANEL>();
                    for (number, lanes) in whole.iter().enumerate() {
                        self.kernel.put(&lanes.map(center_pixel), out, place + number * PANEL);
                    }
                    let place = place + whole.len() * PANEL;
                    rest.iter()
                        .enumerate()
                        .for_each(|(x, &pixel)| put(out, place + x, pixel));
                }
                // A grey pixel stands for all channels.
                Image::Pixels(pixels) | Image::Grey(pixels) => {
                    let row = part(pixels, start / repeat, row_len / repeat);
                    for (x, &pixel) in row.iter().enumerate() {
                        (0..repeat).for_each(|i| put(out, place + x * repeat + i, pixel));
                    }
                }
                Image::Normalized(values) => {
                    let normalization = self.encoder.normalization();
                    let constants = normalization.mean.iter().zip(&normalization.std).take(channels).cycle();
                    let row = values.get(start..start + row_len).unwrap_or_default();
                    for (x, (&value, (&mean, &std))) in row.iter().zip(constants).enumerate() {
                        let (multiplier, offset) = pixel_constants(mean, std);
                        let pixel = pixel_from_f32(value, multiplier, offset);
                        put(
                            out,
                            place + x,
                            pixel.map_err(|_| Error::NotANumber { index: start + x })?,
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

/// One worker's share of a pass.
struct Share<'s, 'r, 'a, K, T, R> {
    run: &'s Run<'r, 'a, K, T>,
    layout: &'s Layout,
    pass: &'s Pass<'s, 'a>,
    part: Part<'s>,
    trace: &'s mut R,
}

impl<K: Kernel, T: Team, R: Trace> Work for Share<'_, '_, '_, K, T, R> {
    type Result = Result<(), Error>;

    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn run(self) -> Self::Result {
        let Layout { plan, rows, .. } = self.layout;
        let kernel = self.run.kernel;
        match self.pass {
            Pass::Embed => self.run.embed(self.layout, self.part),
            Pass::KeysAndValues(block) => block
                .keys_and_values(kernel, plan, *rows, self.part, self.trace)
                .ok_or(SHORT),
            Pass::AttentionAndMlp(block, kept) => block
                .attention_and_mlp(kernel, plan, *rows, kept, self.part, self.trace)
                .ok_or(SHORT),
        }
    }
}

/// What is left when all blocks are done.
struct Last<'s, 'r, 'a, K, T> {
    run: &'s Run<'r, 'a, K, T>,
    tokens: &'s [i16],
    tiles: &'s mut [u8],
    out: Output<'s>,
}

impl<K: Kernel, T> Work for Last<'_, '_, '_, K, T> {
    type Result = Option<()>;

    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn run(self) -> Self::Result {
        outputs::write(self.run.encoder, self.run.kernel, self.tokens, self.tiles, self.out)
    }
}

/// What to say if the memory did not suffice, which [`Plan::split`] rules out.
const SHORT: Error = Error::Length {
    what: "scratch memory's bytes",
    expected: usize::MAX,
    actual: 0,
};
