//! Millions of names in little memory.

/// Names between two that are stored whole.
const BLOCK: usize = 16;

/// Names in a given order, each stored as what it does not share with the one before. Neighbors of a sorted list share most of
/// their bytes, so that a file of a large folder needs about ten.
#[derive(Default)]
pub(super) struct Paths {
    /// For each name: how many bytes it shares with the one before, how many follow, those.
    data: Vec<u8>,
    /// Where each block of names begins in `data`.
    blocks: Vec<u64>,
    len: usize,
    last: Vec<u8>,
}

impl Paths {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Appends a name.
    pub fn push(&mut self, name: &[u8]) {
        let mut shared = 0;
        if self.len.is_multiple_of(BLOCK) {
            self.blocks.push(self.data.len() as u64);
        } else {
            shared = name.iter().zip(&self.last).take_while(|(a, b)| a == b).count();
        }
        put(&mut self.data, shared);
        put(&mut self.data, name.len() - shared);
        self.data.extend_from_slice(&name[shared..]);
        self.last.clear();
        self.last.extend_from_slice(name);
        self.len += 1;
    }

    /// Name `index`; empty where there is none.
    pub fn name(&self, index: usize) -> Vec<u8> {
        let first = index / BLOCK * BLOCK;
        self.from(first, index + 1).last().unwrap_or_default()
    }

    /// All names in their order.
    pub fn iter(&self) -> impl Iterator<Item = Vec<u8>> {
        self.from(0, self.len)
    }

    /// The names from `first`, which begins a block, to `end`.
    fn from(&self, first: usize, end: usize) -> impl Iterator<Item = Vec<u8>> {
        let start = self.blocks.get(first / BLOCK).filter(|_| end <= self.len);
        let mut rest = start
            .and_then(|&start| self.data.get(start as usize..))
            .unwrap_or_default();
        let mut name = Vec::new();
        (first..end).map_while(move |_| {
            let (shared, length) = (take(&mut rest), take(&mut rest));
            let (own, after) = rest.split_at_checked(length)?;
            name.truncate(shared);
            name.extend_from_slice(own);
            rest = after;
            Some(name.clone())
        })
    }

    /// Name `index` for messages.
    pub fn text(&self, index: usize) -> String {
        String::from_utf8_lossy(&self.name(index)).into_owned()
    }

    /// Gives back what growing has reserved too much.
    pub fn shrink(&mut self) {
        self.data.shrink_to_fit();
        self.blocks.shrink_to_fit();
    }

    /// Bytes of memory that the names take.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.data.capacity() + self.blocks.capacity() * size_of::<u64>()
    }
}

/// Seven bits a byte, the low ones first, the highest bit says that more follow.
fn put(data: &mut Vec<u8>, mut value: usize) {
    while value > 0x7F {
        data.push(value as u8 | 0x80);
        value >>= 7;
    }
    data.push(value as u8);
}

fn take(data: &mut &[u8]) -> usize {
    let (mut value, mut shift) = (0, 0);
    while let Some((&byte, rest)) = data.split_first() {
        *data = rest;
        value |= usize::from(byte & 0x7F) << shift;
        shift += 7;
        if byte < 0x80 || shift > 56 {
            break;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn every_name_comes_back(
            names in proptest::collection::vec(proptest::collection::vec(97_u8..100, 0..300), 0..100)
        ) {
            let mut paths = Paths::default();
            names.iter().for_each(|name| paths.push(name));
            proptest::prop_assert_eq!(paths.len(), names.len());
            for (index, name) in names.iter().enumerate() {
                proptest::prop_assert_eq!(&paths.name(index), name);
            }
            proptest::prop_assert!(paths.name(names.len()).is_empty());
        }
    }

    /// Names as in ImageNet: a class of 10 bytes, the class again, a number.
    #[test]
    fn a_name_takes_about_ten_bytes() {
        let mut paths = Paths::default();
        let mut whole = 0;
        for class in 0..100_u32 {
            let mut numbers: Vec<_> = (0..1300_u32).map(|number| (number * 37 + class).to_string()).collect();
            numbers.sort();
            for number in numbers {
                let name = format!("n{class:08}/n{class:08}_{number}.JPEG");
                whole += name.len();
                paths.push(name.as_bytes());
            }
        }
        paths.shrink();
        let (bytes, whole) = (
            paths.bytes() as f64 / paths.len() as f64,
            whole as f64 / paths.len() as f64,
        );
        assert!(bytes < 12.5 && whole > 28.0, "{bytes:.2} of {whole:.2} bytes a name");
    }
}
