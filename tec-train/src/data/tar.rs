//! Tar shards in the layout of WebDataset.

mod index;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use self::index::{Member, Members};
pub(super) use self::index::{compression, is_header};
use super::folder::MAX_FILE_BYTES;
use super::paths::Paths;
use super::shard::read_at;
use super::{Pixels, Source, Stored};
use crate::{Error, Result};

/// A tar file is made of blocks of so many bytes.
const BLOCK: u64 = 512;
/// A class is written in fewer bytes than this.
const MAX_LABEL_BYTES: u64 = 1 << 20;

/// Images in uncompressed tar files, read in place by their offsets.
///
/// Neighboring members whose paths agree up to the first dot of the last component are a sample: its image is `.jpg`, `.jpeg` or
/// `.png`, its class the text of `.cls`, or `label`, `cls` or `class` of the object in `.json`. There are classes if every sample
/// has one. Samples without an image and all other members are counted. Opening reads the headers of all members; an image costs
/// one read of its bytes.
pub struct TarShards {
    shards: Vec<PathBuf>,
    /// The first sample of each shard.
    starts: Vec<u32>,
    names: Paths,
    /// Where each image begins, in blocks of 512 bytes, and its length.
    places: Vec<(u32, u32)>,
    labels: Vec<u32>,
    classes: Vec<String>,
    ignored: usize,
    unlabelled: usize,
}

/// What is known of the sample whose members are being read.
#[derive(Default)]
struct Sample {
    key: Vec<u8>,
    image: Option<Member>,
    label: Option<String>,
    ignored: usize,
}

impl TarShards {
    /// Reads the headers of tar files, in the order given.
    ///
    /// # Errors
    /// [`Error::File`] naming the shard that is compressed, damaged or cut short, with its last good member; or the first one
    /// when there is no image in any.
    pub fn open(shards: Vec<PathBuf>) -> Result<Self> {
        let mut source = Self {
            shards: Vec::new(),
            starts: Vec::new(),
            names: Paths::default(),
            places: Vec::new(),
            labels: Vec::new(),
            classes: Vec::new(),
            ignored: 0,
            unlabelled: 0,
        };
        let mut numbers = BTreeMap::new();
        for shard in &shards {
            let fail = |reason: String| Error::File {
                path: shard.clone(),
                reason,
            };
            source.starts.push(source.places.len() as u32);
            source.shard(shard, &mut numbers).map_err(fail)?;
        }
        if source.places.is_empty() {
            return Err(Error::File {
                path: shards.into_iter().next().unwrap_or_default(),
                reason: format!(
                    "no .jpg, .jpeg or .png among {} members; give tar files with images in them",
                    source.ignored
                ),
            });
        }
        source.shards = shards;
        source.names.shrink();
        source.places.shrink_to_fit();
        source.classify(numbers);
        Ok(source)
    }

    /// How many members were passed over because no image belongs to them.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    fn shard(&mut self, path: &Path, numbers: &mut BTreeMap<String, u32>) -> Result<(), String> {
        let mut sample = Sample::default();
        for member in Members::open(path)? {
            let member = member?;
            let (key, extension) = split(&member.name);
            if key != sample.key {
                self.finish(std::mem::take(&mut sample), numbers)?;
                sample.key = key.to_vec();
            }
            let text = |member: &Member| match member.len <= MAX_LABEL_BYTES {
                true => read_at(path, member.offset, member.len as usize),
                false => Err(format!("{}: too long for a class", member.text())),
            };
            match extension.to_ascii_lowercase().as_slice() {
                b"jpg" | b"jpeg" | b"png" if sample.image.is_none() => sample.image = Some(member),
                b"cls" => sample.label = Some(class_text(&text(&member)?).ok_or_else(|| no_class(&member))?),
                b"json" if sample.label.is_none() => sample.label = json_class(&text(&member)?),
                _ => sample.ignored += 1,
            }
        }
        self.finish(sample, numbers)
    }

    fn finish(&mut self, sample: Sample, numbers: &mut BTreeMap<String, u32>) -> Result<(), String> {
        self.ignored += sample.ignored;
        let Some(image) = sample.image else {
            self.ignored += usize::from(sample.label.is_some());
            return Ok(());
        };
        let too_far = |_| format!("{}: lies or ends beyond 2 TB", image.text());
        let block = u32::try_from(image.offset / BLOCK).map_err(too_far)?;
        let len = u32::try_from(image.len).map_err(too_far)?;
        if image.len > MAX_FILE_BYTES {
            return Err(format!("{}: {len} bytes are too large for an image", image.text()));
        }
        self.names.push(&image.name);
        self.places.push((block, len));
        match sample.label {
            Some(label) => {
                let next = numbers.len() as u32;
                self.labels.push(*numbers.entry(label).or_insert(next));
            }
            None => self.unlabelled += 1,
        }
        Ok(())
    }

    fn classify(&mut self, numbers: BTreeMap<String, u32>) {
        if self.unlabelled > 0 {
            self.labels = Vec::new();
            return;
        }
        let mut classes: Vec<_> = numbers.into_iter().collect();
        if classes.iter().all(|(class, _)| class.parse::<u64>().is_ok()) {
            classes.sort_by_key(|(class, _)| class.parse::<u64>().unwrap_or(0));
        }
        let mut places = vec![0; classes.len()];
        for (place, &(_, number)) in classes.iter().enumerate() {
            places[number as usize] = place as u32;
        }
        self.labels
            .iter_mut()
            .for_each(|label| *label = places[*label as usize]);
        self.labels.shrink_to_fit();
        self.classes = classes.into_iter().map(|(class, _)| class).collect();
    }

    fn shard_of(&self, index: usize) -> Option<&PathBuf> {
        let after = self.starts.partition_point(|&start| start as usize <= index);
        self.shards.get(after.checked_sub(1)?)
    }
}

impl Source for TarShards {
    fn len(&self) -> usize {
        self.places.len()
    }

    fn name(&self, index: usize) -> String {
        let shard = self.shard_of(index).and_then(|shard| shard.file_name());
        let shard = shard.map(|name| name.to_string_lossy().into_owned());
        format!("{}: {}", shard.unwrap_or_default(), self.names.text(index))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, index: usize) -> Result<Pixels, String> {
        self.read(index)?.decode()
    }

    fn read(&self, index: usize) -> Result<Stored, String> {
        let place = self.places.get(index).zip(self.shard_of(index));
        let (&(block, len), shard) = place.ok_or_else(|| format!("there is no image {index}"))?;
        read_at(shard, u64::from(block) * BLOCK, len as usize).map(Stored::File)
    }

    fn summary(&self) -> String {
        let mut text = format!("{} images in {} tar files", self.len(), self.shards.len());
        match (self.classes.len(), self.unlabelled) {
            (0, unlabelled) if unlabelled < self.len() => {
                text += &format!(", {unlabelled} without a class: none is used")
            }
            (0, _) => {}
            (classes, _) => text += &format!(", {classes} classes"),
        }
        if self.ignored > 0 {
            text += &format!(", {} other members ignored", self.ignored);
        }
        text
    }
}

/// A member's key and extension, parted at the first dot of the last component.
fn split(name: &[u8]) -> (&[u8], &[u8]) {
    let base = name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    match name[base..].iter().position(|&byte| byte == b'.') {
        Some(dot) => (&name[..base + dot], &name[base + dot + 1..]),
        None => (name, b""),
    }
}

fn class_text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    (!text.is_empty()).then(|| text.to_string())
}

fn json_class(bytes: &[u8]) -> Option<String> {
    let object: Value = serde_json::from_slice(bytes).ok()?;
    ["label", "cls", "class"].iter().find_map(|key| match object.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => number.as_u64().map(|number| number.to_string()),
        _ => None,
    })
}

fn no_class(member: &Member) -> String {
    format!(
        "{}: is no text; write the class's name or number into it",
        member.text()
    )
}

#[cfg(test)]
mod tests;
