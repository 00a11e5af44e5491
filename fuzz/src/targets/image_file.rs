//! Any bytes as a JPEG or PNG file, decoded whole and in part.

use tec_image::{Decoder, Pixels, Region, decode, inspect};

/// Files of each kind: baseline with every subsampling, restarts, progressive, CMYK, grey.
const FILES: [&[u8]; 9] = [
    include_bytes!("../../../tec-image/tests/data/full.jpg"),
    include_bytes!("../../../tec-image/tests/data/half.jpg"),
    include_bytes!("../../../tec-image/tests/data/quarter.jpg"),
    include_bytes!("../../../tec-image/tests/data/restarts.jpg"),
    include_bytes!("../../../tec-image/tests/data/progressive.jpg"),
    include_bytes!("../../../tec-image/tests/data/progressive-grey.jpg"),
    include_bytes!("../../../tec-image/tests/data/cmyk.jpg"),
    include_bytes!("../../../tec-image/tests/data/grey.jpg"),
    include_bytes!("../../../tec-image/tests/data/narrow.png"),
];

/// Larger images only take time.
const MOST_PIXELS: usize = 1 << 18;

/// Inputs to start from.
pub fn seeds() -> Vec<Vec<u8>> {
    FILES.iter().map(|file| file.to_vec()).collect()
}

/// Takes one input.
///
/// # Panics
/// Where something does not hold.
pub fn run(data: &[u8]) {
    let Ok(info) = inspect(data) else {
        assert!(decode(data).is_err(), "a file without a good header gave pixels");
        return;
    };
    if info.width.saturating_mul(info.height) > MOST_PIXELS {
        return;
    }
    let mut decoder = Decoder::new();
    let Ok(whole) = decoder.whole(data) else {
        return;
    };
    let damaged = decoder.damaged();
    let turned = info.orientation > 4;
    let (width, height) = if turned {
        (info.height, info.width)
    } else {
        (info.width, info.height)
    };
    assert_eq!(
        (whole.width, whole.height),
        (width, height),
        "another size than the header's"
    );
    let mut region = None;
    let part = decoder.part(data, 1, |width, height| {
        let chosen = choose(data, width, height);
        region = Some(chosen);
        Region::Cut {
            left: chosen[0],
            top: chosen[1],
            width: chosen[2],
            height: chosen[3],
        }
    });
    let (Ok((part, placed)), Some(region)) = (part, region) else {
        panic!("the whole decodes, its part does not");
    };
    if !damaged {
        let Region::Cut {
            left,
            top,
            width,
            height,
        } = placed
        else {
            panic!("a cut became a window");
        };
        assert_eq!([width, height], [region[2], region[3]]);
        assert_eq!(
            cut(&part, [left, top, width, height]),
            cut(&whole, region),
            "{region:?}"
        );
    }
}

/// Left, top, width and height of a part of an image, by the file's last bytes.
fn choose(data: &[u8], width: usize, height: usize) -> [usize; 4] {
    let mut bytes = data.iter().rev().map(|&byte| usize::from(byte));
    let mut below = |end: usize| bytes.next().unwrap_or(0) * 251 % end;
    let (left, top) = (below(width), below(height));
    [left, top, 1 + below(width - left), 1 + below(height - top)]
}

/// The values of a part of an image.
fn cut(pixels: &Pixels, [left, top, width, height]: [usize; 4]) -> Vec<u8> {
    let channels = pixels.channels;
    let rows = pixels.data.chunks_exact(pixels.width * channels).skip(top).take(height);
    rows.flat_map(|row| &row[left * channels..(left + width) * channels])
        .copied()
        .collect()
}
