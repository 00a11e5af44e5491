//! Any bytes as a file of a data set: the first says which kind, the others are its content.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::data::{self, Cifar, Idx, Source, Stored, TarShards};

/// Blocks of a tar file.
const BLOCK: usize = 512;
/// Bytes of an image of CIFAR's, and of the classes before it.
const CIFAR_IMAGE: usize = 3072;
/// The image that lies beside lists.
const IMAGE: &[u8] = include_bytes!("../../../tec-image/tests/data/narrow.png");
/// Its name.
const IMAGE_NAME: &str = "a.png";
/// The folder in ours where it lies, and nothing else.
const LISTS: &str = "lists";
/// Samples that are read of one source; more only take time.
const SAMPLES: usize = 32;

/// Inputs to start from: one of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let kind = |kind: u8, rest: &[u8]| [&[kind], rest].concat();
    let idx = b"\0\0\x08\x03\0\0\0\x02\0\0\0\x02\0\0\0\x03abcdefghijkl";
    let labelled = [&[8], &b"\0\0\x08\x01\0\0\0\x02\x03\x01"[..], idx].concat();
    let members: [(&str, &[u8]); 4] = [
        ("a/1.png", IMAGE),
        ("a/1.cls", b"3"),
        ("b.2.jpg", b"jpeg"),
        ("b.json", b"{\"label\": 4}"),
    ];
    let tar: Vec<u8> = members
        .into_iter()
        .flat_map(|(name, data)| member(name, data))
        .collect();
    let mut hundred = vec![7; CIFAR_IMAGE + 2];
    hundred[1] = 99;
    vec![
        kind(0, b"# mine\na.png 3\r\nx/b c.jpg\t10\n\n/d.jpeg 3"),
        kind(0, b"a.png\nb.jpg"),
        kind(1, idx),
        kind(2, &labelled),
        kind(3, &seal(&tar)),
        // Cut within an image.
        kind(3, &seal(&member("c.png", IMAGE))[..BLOCK + IMAGE.len() - 1]),
        kind(4, &tar),
        kind(4, &[member("././@LongLink", b"a long name.png\0"), tar].concat()),
        kind(5, &vec![9; CIFAR_IMAGE + 1]),
        kind(6, &hundred),
    ]
}

/// Takes one input.
///
/// # Panics
/// Where something does not hold.
pub fn run(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 7 {
        0 => list(rest),
        1 => idx(rest, None),
        2 => {
            let (&length, rest) = rest.split_first().unwrap_or((&0, &[]));
            let (labels, images) = rest.split_at((usize::from(length) + 2).min(rest.len()));
            idx(images, Some(labels));
        }
        3 => tar(rest),
        4 => tar(&seal(rest)),
        5 => cifar(rest),
        // Whole records: of another length it would only be refused.
        _ => {
            let record = CIFAR_IMAGE + 1 + rest.len() % 2;
            let mut whole = rest.to_vec();
            whole.resize(rest.len().div_ceil(record).max(1) * record, 0);
            cifar(&whole);
        }
    }
}

/// What holds of every source; the first samples.
fn samples(source: &impl Source) -> Vec<Result<Stored, String>> {
    let classes = source.classes().len();
    assert!(source.len() > 0, "a source without an image");
    for index in 0..source.len() {
        assert!(!source.name(index).is_empty(), "image {index} has no name");
        let label = source.label(index);
        assert_eq!(label.is_some(), classes > 0, "image {index} of {classes} classes");
        assert!(
            label.is_none_or(|label| (label as usize) < classes),
            "{label:?} of {classes} classes"
        );
    }
    assert!(source.label(source.len()).is_none());
    assert!(source.read(source.len()).is_err(), "an image behind the last");
    let read = (0..source.len().min(SAMPLES)).map(|index| source.read(index));
    read.inspect(|read| assert!(!matches!(read, Err(reason) if reason.is_empty()), "no reason"))
        .collect()
}

fn list(text: &[u8]) {
    let Ok(list) = data::list(text, folder().join(LISTS)) else {
        return;
    };
    // Every line that says something is an image.
    let lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    assert_eq!(list.len(), lines.clone().count());
    for (index, line) in lines.enumerate() {
        let name = list.name(index);
        assert!(
            String::from_utf8_lossy(line).starts_with(&name),
            "{name:?} of another line"
        );
        // Others may lie anywhere: what is read must be ours.
        if !name.contains('/') {
            assert_eq!(list.read(index).is_ok(), name == IMAGE_NAME, "{name:?}");
        }
    }
    assert!(list.classes().len() <= list.len());
}

fn idx(images: &[u8], labels: Option<&[u8]>) {
    let Ok(idx) = Idx::from_bytes(images, labels) else {
        return;
    };
    let plain = images.starts_with(&[0, 0]).then(|| &images[16..]);
    let mut start = 0;
    for read in samples(&idx) {
        let Ok(Stored::Pixels(image)) = read else {
            panic!("an image of a good file cannot be read");
        };
        let end = start + image.width * image.height;
        assert!(
            plain.is_none_or(|bytes| bytes[start..end] == image.data),
            "not the file's"
        );
        start = end;
    }
    if idx.len() <= SAMPLES {
        assert!(
            plain.is_none_or(|bytes| bytes.len() == start),
            "more or less than the file has"
        );
    }
}

fn cifar(bytes: &[u8]) {
    let path = write("data.bin", bytes);
    // The first kind that fits.
    let fits = |head: usize| {
        let whole = !bytes.is_empty() && bytes.len().is_multiple_of(CIFAR_IMAGE + head);
        let good = |record: &[u8]| {
            if head == 1 {
                record[0] < 10
            } else {
                record[0] < 20 && record[1] < 100
            }
        };
        whole && bytes.chunks(CIFAR_IMAGE + head).all(good)
    };
    let head = [1, 2].into_iter().find(|&head| fits(head));
    let opened = Cifar::open(vec![path]);
    assert_eq!(opened.is_ok(), head.is_some(), "{} bytes", bytes.len());
    let (Ok(cifar), Some(head)) = (opened, head) else {
        return;
    };
    let records = bytes.chunks(CIFAR_IMAGE + head);
    assert_eq!(cifar.len(), records.len());
    for ((index, read), record) in samples(&cifar).into_iter().enumerate().zip(records) {
        assert_eq!(cifar.label(index), Some(u32::from(record[head - 1])));
        let Ok(Stored::Pixels(image)) = read else {
            panic!("a whole record cannot be read");
        };
        for (pixel, color) in [(0, 0), (33, 1), (1023, 2)] {
            assert_eq!(image.data[3 * pixel + color], record[head + 1024 * color + pixel]);
        }
    }
}

fn tar(bytes: &[u8]) {
    let path = write("data.tar", bytes);
    let Ok(tar) = TarShards::open(vec![path]) else {
        return;
    };
    let members = members(bytes);
    for read in samples(&tar) {
        let Ok(Stored::File(image)) = read else {
            panic!("an image that was listed does not lie in the file");
        };
        // Headers that change those that follow are not looked at here.
        if members.iter().all(|member| matches!(member.kind, 0 | b'0')) {
            let listed = |member: &Member| bytes.get(member.start..member.start + member.len) == Some(&image);
            assert!(members.iter().any(listed), "no member is this image");
        }
    }
}

/// A plain member of a tar file.
struct Member {
    kind: u8,
    start: usize,
    len: usize,
}

/// The members by the lengths in their headers alone, up to the first that has none.
fn members(bytes: &[u8]) -> Vec<Member> {
    let mut members = Vec::new();
    let mut at = 0;
    while let Some(header) = bytes
        .get(at..at + BLOCK)
        .filter(|header| header.iter().any(|&byte| byte != 0))
    {
        let digits: Vec<u8> = header[124..136].iter().copied().take_while(|&byte| byte != 0).collect();
        let text = String::from_utf8_lossy(&digits);
        let Some(len) = usize::from_str_radix(text.trim(), 8)
            .ok()
            .filter(|&len| len <= bytes.len())
        else {
            break;
        };
        members.push(Member {
            kind: header[156],
            start: at + BLOCK,
            len,
        });
        at += BLOCK + len.div_ceil(BLOCK) * BLOCK;
    }
    members
}

/// The file with right sums in its headers, up to the first without a length.
fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    let starts: Vec<usize> = members(bytes).iter().map(|member| member.start - BLOCK).collect();
    for start in starts {
        let header = &mut sealed[start..start + BLOCK];
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    sealed
}

/// A header, still without its sum, and data.
fn member(name: &str, data: &[u8]) -> Vec<u8> {
    let mut member = vec![0; BLOCK];
    member[..name.len()].copy_from_slice(name.as_bytes());
    member[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    member[156] = if name.starts_with("././") { b'L' } else { b'0' };
    member[257..263].copy_from_slice(b"ustar\0");
    member.extend_from_slice(data);
    member.resize(member.len().div_ceil(BLOCK) * BLOCK, 0);
    member
}

/// A folder of this process, with an image.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("tec-fuzz-{}", std::process::id()));
        let lists = folder.join(LISTS);
        fs::create_dir_all(&lists).expect("a folder for files");
        fs::write(lists.join(IMAGE_NAME), IMAGE).expect("room for a file");
        folder
    })
}

/// The path of a file with that content.
fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("room for a file");
    path
}
