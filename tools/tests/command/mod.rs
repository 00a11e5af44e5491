//! The command in a folder of its own, and images for it.

// Each test file uses its part of this.
#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::SystemTime,
};

use image::{DynamicImage, Rgb, RgbImage, codecs::jpeg::JpegEncoder};
use serde_json::Value;
use tempfile::TempDir;

/// A model of 16 patches that trains in a moment.
pub const SMALL: &str = "--set data.image_size=32 --set model.patch_size=8 --set model.dim=32 --set model.depth=2 \
     --set model.heads=2 --set decoder.dim=32 --set decoder.depth=1 --set decoder.heads=2 --set optimizer.lr=1e-3 \
     --epochs 2";

/// A working directory.
pub struct Place(TempDir);

/// How a command ended.
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    args: String,
}

impl Place {
    pub fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// The command in this directory; `args` are separated by spaces.
    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tec"));
        command.args(args.split_whitespace()).current_dir(self.0.path());
        command.stdin(Stdio::null());
        command
    }

    pub fn tec(&self, args: &str) -> Outcome {
        Outcome::of(self.command(args), args)
    }

    /// Asserts that the command refuses with `code` in one message that has all of `words`, and changes no file.
    pub fn refuses(&self, args: &str, code: i32, words: &[&str]) {
        let before = self.listing();
        let outcome = self.tec(args);
        let said = &outcome.stderr;
        assert_eq!(outcome.code, Some(code), "{outcome}");
        assert_eq!(outcome.stdout, "", "{outcome}");
        let errors = said.lines().filter(|l| l.starts_with("error: ")).count();
        assert_eq!(errors, 1, "not one message: {outcome}");
        for word in words {
            assert!(said.contains(word), "nothing about {word:?}: {outcome}");
        }
        assert!(
            !said.contains("panicked") && !said.contains("internal error"),
            "{outcome}"
        );
        assert_eq!(before, self.listing(), "files changed: {outcome}");
    }

    /// Every file and folder with its length and time.
    fn listing(&self) -> BTreeMap<PathBuf, Option<(u64, SystemTime)>> {
        let mut found = BTreeMap::new();
        list(self.0.path(), &mut |path, metadata| {
            let file = metadata
                .is_file()
                .then(|| (metadata.len(), metadata.modified().unwrap()));
            found.insert(path, file);
        });
        found
    }

    /// Paths of the files below `name`, relative to it, sorted.
    pub fn files(&self, name: &str) -> Vec<String> {
        let root = self.path(name);
        let mut found = Vec::new();
        list(&root, &mut |path, metadata| {
            if metadata.is_file() {
                found.push(path.strip_prefix(&root).unwrap().display().to_string());
            }
        });
        found.sort();
        found
    }

    /// `count` images of three classes in subfolders, from number `first` on: JPEG and PNG, color, grey, with alpha and with
    /// a palette, of many sizes.
    pub fn images(&self, folder: &str, first: u32, count: u32) {
        for number in first..first + count {
            let class = ["checks/fine/and/coarse", "disc", "stripes"][number as usize % 3];
            let picture = picture(number, 20 + number * 7 % 50, 20 + number * 11 % 40);
            let kind = number / 3 % 6;
            let extension = ["jpg", "png", "PNG", "png", "png", "JPEG"][kind as usize];
            let path = self.path(&format!("{folder}/{class}/{number:03}.{extension}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match kind {
                0 => fs::write(path, jpeg(&picture.into())).unwrap(),
                1 => picture.save(path).unwrap(),
                2 => DynamicImage::from(picture).to_luma8().save(path).unwrap(),
                3 => DynamicImage::from(picture).to_rgba8().save(path).unwrap(),
                4 => save_with_palette(&picture, &path),
                _ => fs::write(path, jpeg(&DynamicImage::from(picture).to_luma8().into())).unwrap(),
            }
        }
    }
}

impl Outcome {
    pub fn of(mut command: Command, args: &str) -> Self {
        let output = command.output().unwrap();
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            args: args.into(),
        }
    }

    /// Asserts success.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    /// Standard output as one JSON object a line, and nothing else.
    pub fn json(&self) -> Vec<Value> {
        let parse = |line: &str| match serde_json::from_str(line) {
            Ok(value @ Value::Object(_)) => value,
            _ => panic!("no JSON object: {line:?}: {self}"),
        };
        let lines: Vec<Value> = self.stdout.lines().map(parse).collect();
        assert!(!lines.is_empty(), "{self}");
        lines
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            code,
            stdout,
            stderr,
            args,
        } = self;
        write!(
            f,
            "tec {args}\nended with {code:?}\n--- stdout\n{stdout}--- stderr\n{stderr}---"
        )
    }
}

fn list(folder: &Path, each: &mut impl FnMut(PathBuf, &fs::Metadata)) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        each(entry.path(), &metadata);
        if metadata.is_dir() {
            list(&entry.path(), each);
        }
    }
}

/// Checks, a disc or stripes, by `number` modulo 3; size, place and colors vary with it.
pub fn picture(number: u32, width: u32, height: u32) -> RgbImage {
    let n = number / 3;
    let period = 4 + n % 5;
    let (cx, cy, radius) = (width / 3 + n % 8, height / 3 + n % 6, width.min(height) / 3);
    RgbImage::from_fn(width, height, |x, y| {
        let inside = match number % 3 {
            0 => (x / period + y / period).is_multiple_of(2),
            1 => x.abs_diff(cx).pow(2) + y.abs_diff(cy).pow(2) < radius.pow(2),
            _ => ((x + n) / period).is_multiple_of(2),
        };
        let shade = (x * 2 + y) as u8 / 4;
        match inside {
            true => Rgb([220 - shade, (n * 37 % 200) as u8 + shade, 60]),
            false => Rgb([20 + shade, 30, (n * 53 % 180) as u8 + shade]),
        }
    })
}

/// The image as a JPEG file.
pub fn jpeg(image: &DynamicImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image
        .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 90))
        .unwrap();
    bytes
}

fn save_with_palette(picture: &RgbImage, path: &Path) {
    let levels = |v: u8| v / 52; // 0..=4
    let index = |p: &Rgb<u8>| 25 * levels(p[0]) + 5 * levels(p[1]) + levels(p[2]);
    let palette = (0..125u8).flat_map(|i| [i / 25, i / 5 % 5, i % 5].map(|level| level * 52 + 25));
    let mut encoder = png::Encoder::new(
        BufWriter::new(File::create(path).unwrap()),
        picture.width(),
        picture.height(),
    );
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(palette.collect::<Vec<u8>>());
    let pixels: Vec<u8> = picture.pixels().map(index).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
}

/// What a small masked autoencoder left behind.
pub struct Trained {
    pub encoder: Vec<u8>,
    pub checkpoint: Vec<u8>,
}

/// A trained base, made once a test program.
pub fn base() -> &'static Trained {
    static BASE: OnceLock<Trained> = OnceLock::new();
    BASE.get_or_init(|| {
        let place = Place::new();
        place.images("photos", 0, 24);
        place
            .tec(&format!(
                "pretrain --method mae --data photos --out base --batch 8 {SMALL}"
            ))
            .ok();
        Trained {
            encoder: place.read("base/encoder.safetensors"),
            checkpoint: place.read("base/checkpoints/step-00000006.safetensors"),
        }
    })
}
