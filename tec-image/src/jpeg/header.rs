//! What a JPEG file says before its pixels: markers, tables, the frame.

use super::huffman::Huffman;

/// One color channel of a frame.
#[derive(Clone, Debug)]
pub(super) struct Component {
    pub id: u8,
    /// Blocks of this component in a unit of coded data, across and down.
    pub h: usize,
    pub v: usize,
    /// Which quantization table.
    pub quantizer: usize,
    /// Samples, as the encoder left them: the rest of the last blocks is padding.
    pub width: usize,
    pub height: usize,
}

impl Component {
    /// Blocks across that hold samples.
    pub fn blocks_wide(&self) -> usize {
        self.width.div_ceil(8)
    }

    /// Blocks down that hold samples.
    pub fn blocks_high(&self) -> usize {
        self.height.div_ceil(8)
    }
}

/// Geometry and coding of the one image in a file.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub width: usize,
    pub height: usize,
    pub progressive: bool,
    /// 1 (grey), 3 or 4.
    pub components: Vec<Component>,
    /// The largest of the components' `h` and `v`.
    pub h: usize,
    pub v: usize,
}

impl Frame {
    /// Units of coded data (MCUs) across.
    pub fn units_wide(&self) -> usize {
        self.width.div_ceil(8 * self.h)
    }

    /// Units of coded data (MCUs) down.
    pub fn units_high(&self) -> usize {
        self.height.div_ceil(8 * self.v)
    }

    fn parse(body: &[u8], progressive: bool) -> Result<Self, String> {
        let &[depth, h0, h1, w0, w1, count, ref rest @ ..] = body else {
            return Err("its frame header is cut".into());
        };
        let (height, width) = (u16::from_be_bytes([h0, h1]), u16::from_be_bytes([w0, w1]));
        if depth != 8 {
            return Err(format!("samples of {depth} bits; only 8 are decoded"));
        }
        if width == 0 || height == 0 {
            return Err(format!("the image is empty: {width}x{height} pixels"));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(format!("{count} color channels; only 1, 3 and 4 are decoded"));
        }
        let specs = rest.get(..usize::from(count) * 3).ok_or("its frame header is cut")?;
        let mut components = Vec::new();
        for spec in specs.chunks_exact(3) {
            let (h, v) = (usize::from(spec[1] >> 4), usize::from(spec[1] & 15));
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) || spec[2] > 3 {
                return Err("its frame header is invalid".into());
            }
            components.push(Component {
                id: spec[0],
                h,
                v,
                quantizer: usize::from(spec[2]),
                width: 0,
                height: 0,
            });
        }
        // A single component is never interleaved, so its factors mean nothing.
        if let [grey] = components.as_mut_slice() {
            (grey.h, grey.v) = (1, 1);
        }
        let h = components.iter().map(|component| component.h).max().unwrap_or(1);
        let v = components.iter().map(|component| component.v).max().unwrap_or(1);
        let (width, height) = (usize::from(width), usize::from(height));
        for component in &mut components {
            if h % component.h != 0 || v % component.v != 0 {
                return Err("its color channels have sizes that are no multiples of each other".into());
            }
            component.width = (width * component.h).div_ceil(h);
            component.height = (height * component.v).div_ceil(v);
        }
        Ok(Self {
            width,
            height,
            progressive,
            components,
            h,
            v,
        })
    }
}

/// The color space of the coded channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Grey,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

/// A scan's header: which coefficients of which components follow.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    /// Position among the frame's components, DC table, AC table.
    pub components: Vec<(usize, usize, usize)>,
    /// First and last coefficient in zigzag order.
    pub first: usize,
    pub last: usize,
    /// The lowest bit decoded before (0: none) and now.
    pub high: u32,
    pub low: u32,
}

impl Scan {
    fn parse(body: &[u8], frame: &Frame) -> Result<Self, String> {
        let cut = || String::from("a scan header is cut");
        let (&count, rest) = body.split_first().ok_or_else(cut)?;
        let count = usize::from(count);
        let specs = rest.get(..count * 2).ok_or_else(cut)?;
        let &[first, last, bits, ..] = rest.get(count * 2..).unwrap_or_default() else {
            return Err(cut());
        };
        let mut components = Vec::new();
        for spec in specs.chunks_exact(2) {
            let found = frame.components.iter().position(|component| component.id == spec[0]);
            let at = found.ok_or("a scan is of a channel that does not exist")?;
            let (dc, ac) = (usize::from(spec[1] >> 4), usize::from(spec[1] & 15));
            if dc > 3 || ac > 3 || components.iter().any(|&(known, _, _)| known == at) {
                return Err("a scan header is invalid".into());
            }
            components.push((at, dc, ac));
        }
        let scan = match frame.progressive {
            true => Self {
                components,
                first: usize::from(first),
                last: usize::from(last),
                high: u32::from(bits >> 4),
                low: u32::from(bits & 15),
            },
            // Programs have written nonsense here: it has no meaning without progression.
            false => Self {
                components,
                first: 0,
                last: 63,
                high: 0,
                low: 0,
            },
        };
        let ac_alone = scan.first == 0 || scan.components.len() == 1;
        let range = scan.first <= scan.last && scan.last <= 63 && (scan.first > 0) == (scan.last > 0);
        let ordered = !frame.progressive || (range && ac_alone && scan.low <= 13);
        match ordered && !scan.components.is_empty() {
            true => Ok(scan),
            false => Err("a scan header is invalid".into()),
        }
    }
}

/// The state of reading a file from marker to marker.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    pub frame: Option<Frame>,
    /// In zigzag order.
    pub quantizers: [Option<[u16; 64]>; 4],
    pub dc: [Option<Box<Huffman>>; 4],
    pub ac: [Option<Box<Huffman>>; 4],
    /// Units of coded data between restart markers; 0 without.
    pub restart: usize,
    pub exif: Option<&'a [u8]>,
    jfif: bool,
    adobe: Option<u8>,
}

/// What ends a stretch of tables.
pub(super) enum Next {
    /// Coded data follow.
    Scan(Scan),
    /// The image is complete.
    End,
}

impl<'a> Reader<'a> {
    /// A reader behind the start-of-image marker.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 2,
            frame: None,
            quantizers: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart: 0,
            exif: None,
            jfif: false,
            adobe: None,
        }
    }

    /// Reads tables and headers up to coded data or the end.
    pub fn next(&mut self) -> Result<Next, String> {
        loop {
            let marker = self.marker()?;
            if marker == 0xD9 {
                return Ok(Next::End);
            }
            if matches!(marker, 0x01 | 0xD0..=0xD8) {
                continue;
            }
            let body = self.body()?;
            match marker {
                0xC0..=0xC2 if self.frame.is_some() => return Err("it has two frames".into()),
                0xC0..=0xC2 => self.frame = Some(Frame::parse(body, marker == 0xC2)?),
                0xC4 => self.huffman_tables(body)?,
                0xC9..=0xCB => return Err("arithmetic coding is not decoded".into()),
                0xC3 | 0xC5..=0xC7 | 0xCD..=0xCF => {
                    return Err("lossless and hierarchical coding are not decoded".into());
                }
                0xDA => {
                    let frame = self.frame.as_ref().ok_or("coded data before the frame header")?;
                    return Scan::parse(body, frame).map(Next::Scan);
                }
                0xDB => self.quantization_tables(body)?,
                0xDD => {
                    let &[high, low, ..] = body else {
                        return Err("a restart interval is cut".into());
                    };
                    self.restart = usize::from(u16::from_be_bytes([high, low]));
                }
                0xE0 if body.len() >= 12 && body.starts_with(b"JFIF\0") => self.jfif = true,
                0xE1 if self.exif.is_none() && body.starts_with(b"Exif\0\0") => self.exif = body.get(6..),
                // A block that is too short for its color transform says nothing, as in libjpeg.
                0xEE if body.starts_with(b"Adobe") => self.adobe = body.get(11).copied().or(self.adobe),
                _ => {}
            }
        }
    }

    /// Moves past the coded data that begin here. `data` receives them without stuffed bytes, `ends` where each interval
    /// between restart markers ends in it.
    pub fn coded(&mut self, data: &mut Vec<u8>, ends: &mut Vec<usize>) {
        data.clear();
        ends.clear();
        let mut rest = self.bytes.get(self.at..).unwrap_or_default();
        loop {
            let Some(at) = memchr::memchr(0xFF, rest) else {
                data.extend_from_slice(rest);
                rest = &[];
                break;
            };
            let (plain, marked) = rest.split_at(at);
            data.extend_from_slice(plain);
            match marked.get(1) {
                Some(0) => {
                    data.push(0xFF);
                    rest = &marked[2..];
                }
                Some(0xFF) => rest = &marked[1..],
                Some(0xD0..=0xD7) if self.restart > 0 => {
                    ends.push(data.len());
                    rest = &marked[2..];
                }
                Some(_) => {
                    rest = marked;
                    break;
                }
                None => {
                    rest = &[];
                    break;
                }
            }
        }
        ends.push(data.len());
        self.at = self.bytes.len() - rest.len();
    }

    /// How the channels are coded, by libjpeg's rules.
    pub fn coding(&self, frame: &Frame) -> Coding {
        match (frame.components.as_slice(), self.adobe) {
            ([_], _) => Coding::Grey,
            ([_, _, _, _], None | Some(0)) => Coding::Cmyk,
            ([_, _, _, _], _) => Coding::Ycck,
            (_, _) if self.jfif => Coding::YCbCr,
            (_, Some(0)) => Coding::Rgb,
            ([r, g, b], None) if [r.id, g.id, b.id] == *b"RGB" => Coding::Rgb,
            _ => Coding::YCbCr,
        }
    }

    /// The next marker; bytes before it are stepped over, as in libjpeg.
    fn marker(&mut self) -> Result<u8, String> {
        let mut rest = self.bytes.get(self.at..).unwrap_or_default();
        loop {
            let at = memchr::memchr(0xFF, rest).ok_or_else(truncated)?;
            rest = &rest[at + 1..];
            match rest.first() {
                Some(0 | 0xFF) => {}
                Some(&marker) => {
                    self.at = self.bytes.len() - rest.len() + 1;
                    return Ok(marker);
                }
                None => return Err(truncated()),
            }
        }
    }

    fn body(&mut self) -> Result<&'a [u8], String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let &[high, low, ..] = rest else {
            return Err(truncated());
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < 2 {
            return Err("a segment is shorter than its own length field".into());
        }
        let body = rest.get(2..length).ok_or_else(truncated)?;
        self.at += length;
        Ok(body)
    }

    fn quantization_tables(&mut self, mut body: &[u8]) -> Result<(), String> {
        while let Some((&head, rest)) = body.split_first() {
            let wide = head >> 4 > 0;
            let bytes = if wide { 128 } else { 64 };
            let values = rest.get(..bytes).ok_or("a quantization table is cut")?;
            let table = self
                .quantizers
                .get_mut(usize::from(head & 15))
                .ok_or("there is a fifth quantization table")?;
            let mut steps = [0; 64];
            for (number, step) in steps.iter_mut().enumerate() {
                *step = match wide {
                    true => u16::from_be_bytes([values[2 * number], values[2 * number + 1]]),
                    false => u16::from(values[number]),
                };
            }
            *table = Some(steps);
            body = &rest[bytes..];
        }
        Ok(())
    }

    fn huffman_tables(&mut self, mut body: &[u8]) -> Result<(), String> {
        let cut = || String::from("a Huffman table is cut");
        while body.len() > 16 {
            let head = body[0];
            let counts: [u8; 16] = body[1..17].try_into().map_err(|_| cut())?;
            let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let symbols = body.get(17..17 + total).ok_or_else(cut)?;
            let tables = if head >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            let table = tables
                .get_mut(usize::from(head & 15))
                .filter(|_| head >> 4 <= 1)
                .ok_or("there is a fifth Huffman table")?;
            *table = Some(Box::new(Huffman::new(&counts, symbols)?));
            body = &body[17 + total..];
        }
        Ok(())
    }
}

pub(super) fn truncated() -> String {
    "truncated JPEG: the file ends before the image does".into()
}
