//! Writes the pixels of images for `compare.py`, which compares them with PIL's.
//!
//! usage: pixels OUT [FILE LEFT TOP WIDTH HEIGHT]...
//!
//! For each file: `OUT/N.whole` (width, height and channels in four bytes each, then the pixels), and `OUT/N.crop`, the rectangle
//! resized to 224 × 224. A file that does not decode leaves none.

use std::error::Error;
use std::path::Path;

use tec_image::{Decoder, Region, Resizer, decode};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (out, jobs) = args.split_first().ok_or("give the folder to write to")?;
    let (mut decoder, mut resizer) = (Decoder::new(), Resizer::new());
    for (number, job) in jobs.chunks_exact(5).enumerate() {
        let bytes = std::fs::read(&job[0])?;
        let Ok(whole) = decode(&bytes) else { continue };
        let sizes = [whole.width, whole.height, whole.channels].map(|size| (size as u32).to_le_bytes());
        std::fs::write(
            Path::new(out).join(format!("{number}.whole")),
            [&sizes.concat()[..], &whole.data].concat(),
        )?;
        let region = Region::Cut {
            left: job[1].parse()?,
            top: job[2].parse()?,
            width: job[3].parse()?,
            height: job[4].parse()?,
        };
        let (part, region) = decoder.part(&bytes, 224, |_, _| region)?;
        let crop = resizer.square(&part, region, 224)?;
        std::fs::write(Path::new(out).join(format!("{number}.crop")), crop)?;
    }
    Ok(())
}
