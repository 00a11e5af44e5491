//! Every tensor of a pickle, named by its path.

use std::collections::{BTreeMap, HashMap};

use crate::dtype::DType;
use crate::error::{Error, Refused, Result, damaged, too_large};
use crate::pickle::{Id, Pickle, Value};

/// Dictionaries and lists inside each other; checkpoints have three or four.
const MAX_DEPTH: usize = 16;
/// Dictionaries, lists and items looked at, counted once for each path that leads to them.
const MAX_VISITS: usize = 2_000_000;
/// Bytes of all names together.
const MAX_NAMES: usize = 64 << 20;
/// Axes of a tensor.
const MAX_AXES: usize = 16;
/// Values of a tensor that repeats its storage's values, as `expand` makes.
const MAX_EXPANDED: usize = 1 << 24;

/// Where a tensor lies and what it looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The type of its numbers.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    pub(crate) stride: Vec<usize>,
    pub(crate) storage: String,
    pub(crate) storage_len: usize,
    pub(crate) offset: usize,
}

impl TensorInfo {
    /// Number of values.
    pub fn count(&self) -> usize {
        // Checked when it was made.
        self.shape.iter().product()
    }

    /// Whether both are the same view of the same storage: one tensor under two names.
    pub fn same_data(&self, other: &Self) -> bool {
        self == other
    }

    /// Whether its values lie in the storage one after the other.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.stride).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size.max(1);
            fits
        })
    }
}

impl Pickle {
    /// Every tensor under its path: keys of dictionaries and numbers of list items, joined by dots. A dictionary that is
    /// referred to twice has its tensors under both paths.
    ///
    /// # Errors
    /// A file that holds a model object, tensors that do not fit their storage, nesting beyond the limits.
    pub fn tensors(&self) -> Result<BTreeMap<String, TensorInfo>> {
        let mut found = BTreeMap::new();
        let (mut visits, mut names) = (0, 0);
        // A stack of paths still to follow, instead of recursion.
        let mut open: Vec<(Id, String, usize)> = vec![(self.root(), String::new(), 0)];
        while let Some((id, path, depth)) = open.pop() {
            let items: Vec<(String, Id)> = match self.value(id) {
                Value::Tensor { .. } => {
                    let info = self.tensor(id).map_err(|error| named(error, &path))?;
                    let name = if path.is_empty() { "tensor".into() } else { path };
                    if found.insert(name.clone(), info).is_some() {
                        return damaged(format!("it holds two tensors named `{name}`"));
                    }
                    continue;
                }
                Value::Dict(items) | Value::Object { items } => {
                    // A key that was set twice has its last value.
                    let last: HashMap<String, Id> = items
                        .iter()
                        .filter_map(|&(key, value)| Some((self.key(key)?, value)))
                        .collect();
                    last.into_iter().collect()
                }
                Value::List(items) | Value::Tuple(items) => {
                    let numbered = items.iter().enumerate();
                    numbered.map(|(number, &item)| (number.to_string(), item)).collect()
                }
                _ => continue,
            };
            if depth >= MAX_DEPTH {
                return too_large(format!("`{}` is nested more than {MAX_DEPTH} deep", cut(&path)));
            }
            visits += items.len();
            for (key, item) in items {
                if !matches!(
                    self.value(item),
                    Value::Tensor { .. } | Value::Dict(_) | Value::Object { .. } | Value::List(_) | Value::Tuple(_)
                ) {
                    continue;
                }
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                names += path.len();
                open.push((item, path, depth + 1));
            }
            if visits > MAX_VISITS || names > MAX_NAMES {
                return too_large("its dictionaries refer to each other too often");
            }
        }
        if found.is_empty() && matches!(self.value(self.root()), Value::Object { .. }) {
            return Err(Error::Refused(Refused::WholeModel));
        }
        Ok(found)
    }

    /// A dictionary's key as part of a path; keys that are no text or number lead to nothing that has a name.
    fn key(&self, id: Id) -> Option<String> {
        match self.value(id) {
            Value::Text(text) => Some(text.clone()),
            Value::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }

    fn tensor(&self, id: Id) -> Result<TensorInfo> {
        let &Value::Tensor {
            storage,
            offset,
            shape,
            stride,
            dtype,
        } = self.value(id)
        else {
            return damaged("is no tensor");
        };
        let &Value::Storage { class, key, len } = self.value(storage) else {
            return damaged("it has no storage");
        };
        let Value::Text(key) = self.value(key) else {
            return damaged("its storage has no name");
        };
        let class = dtype.unwrap_or(class);
        let dtype = match self.value(class) {
            Value::Global { name, .. } => DType::of(name),
            _ => DType::Other,
        };
        let info = TensorInfo {
            dtype,
            shape: self.sizes(shape)?,
            stride: self.sizes(stride)?,
            storage: key.clone(),
            storage_len: self.size(len)?,
            offset: self.size(offset)?,
        };
        check(&info)?;
        Ok(info)
    }

    fn size(&self, id: Id) -> Result<usize> {
        let size = match self.value(id) {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        };
        size.map_or_else(|| damaged("one of its sizes is no number"), Ok)
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>> {
        match self.value(id) {
            Value::Tuple(items) | Value::List(items) if items.len() <= MAX_AXES => {
                items.iter().map(|&item| self.size(item)).collect()
            }
            _ => damaged("its shape is no short tuple"),
        }
    }
}

/// Shape and strides must agree and stay inside the storage.
fn check(info: &TensorInfo) -> Result<()> {
    if info.shape.len() != info.stride.len() {
        return damaged("it has another number of sizes than of strides");
    }
    if info.shape.contains(&0) {
        return Ok(());
    }
    let count = info
        .shape
        .iter()
        .try_fold(1usize, |count, &size| count.checked_mul(size));
    let last = info
        .shape
        .iter()
        .zip(&info.stride)
        .try_fold(info.offset, |last, (&size, &stride)| {
            last.checked_add((size - 1).checked_mul(stride)?)
        });
    // A typed view counts its storage in bytes; reading checks against the file's own length in any case.
    match (count, last) {
        (Some(count), Some(last)) if last < info.storage_len && count <= info.storage_len.max(MAX_EXPANDED) => Ok(()),
        _ => damaged(format!(
            "its shape {:?} does not fit its storage of {} values",
            info.shape, info.storage_len
        )),
    }
}

fn named(error: Error, path: &str) -> Error {
    match error {
        Error::Damaged(reason) => Error::Damaged(format!("tensor `{}`: {reason}", cut(path))),
        other => other,
    }
}

/// Names in messages; forged ones can be long.
fn cut(name: &str) -> String {
    name.chars().take(100).collect()
}
