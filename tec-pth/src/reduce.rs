//! The callables that checkpoints need, each by what it would make.

use crate::error::{Result, damaged, too_large};
use crate::pickle::{Id, Machine, Value};

/// Items that calls may copy: a few bytes of input could otherwise copy a long list again and again.
const MAX_COPIED: usize = 1_000_000;
/// Wrappers of wrappers of tensors; PyTorch makes one.
const MAX_WRAPPERS: usize = 4;

impl Machine<'_> {
    /// What `callable(*arguments)` makes: a tensor, a dictionary, or an object of which only the items are kept.
    pub(crate) fn call(&mut self, callable: Id, arguments: Id) -> Result<Id> {
        let (mut callable, mut arguments) = (callable, arguments);
        for _ in 0..MAX_WRAPPERS {
            let Some((module, name)) = self.global(callable) else {
                return self.add(Value::Object { items: Vec::new() });
            };
            match (module, name) {
                ("torch._tensor", "_rebuild_from_type_v2") => {
                    (callable, arguments) = (self.item(arguments, 0)?, self.item(arguments, 2)?);
                }
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                    return self.item(arguments, 0);
                }
                ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => return self.tensor(arguments, false),
                ("torch._utils", "_rebuild_tensor_v3") => return self.tensor(arguments, true),
                ("collections", "OrderedDict") | ("builtins" | "__builtin__", "dict") => {
                    let first = self.items(arguments).and_then(|items| items.first().copied());
                    return self.dictionary(first);
                }
                ("collections", "defaultdict" | "Counter") => return self.dictionary(None),
                _ => return self.add(Value::Object { items: Vec::new() }),
            }
        }
        damaged("a tensor is wrapped too often")
    }

    /// What the persistent id `('storage', class, key, place, length)` stands for.
    pub(crate) fn persistent(&mut self, id: Id) -> Result<()> {
        let kind = self.items(id).and_then(|items| items.first()).copied();
        let is_storage =
            kind.is_some_and(|kind| matches!(self.value(kind), Some(Value::Text(text)) if text == "storage"));
        if !is_storage {
            return damaged("its pickle refers to something outside that is no storage");
        }
        let (class, key, len) = (self.item(id, 1)?, self.item(id, 2)?, self.item(id, 4)?);
        let storage = self.add(Value::Storage { class, key, len })?;
        self.push_id(storage);
        Ok(())
    }

    /// `(storage, offset, shape, stride, …)`; version 3 carries the type after the hooks.
    fn tensor(&mut self, arguments: Id, typed: bool) -> Result<Id> {
        let dtype = match typed {
            true => Some(self.item(arguments, 6)?),
            false => None,
        };
        let value = Value::Tensor {
            storage: self.item(arguments, 0)?,
            offset: self.item(arguments, 1)?,
            shape: self.item(arguments, 2)?,
            stride: self.item(arguments, 3)?,
            dtype,
        };
        self.add(value)
    }

    /// A dictionary, of a list of pairs if given: so Python 2 wrote an OrderedDict.
    fn dictionary(&mut self, from: Option<Id>) -> Result<Id> {
        let mut all = Vec::new();
        for &pair in from.and_then(|from| self.items(from)).unwrap_or_default() {
            if let Some(&[key, value]) = self.items(pair) {
                all.push((key, value));
            }
        }
        self.copied += all.len();
        if self.copied > MAX_COPIED {
            return too_large(format!("its pickle copies more than {MAX_COPIED} items"));
        }
        self.add(Value::Dict(all))
    }

    fn value(&self, id: Id) -> Option<&Value> {
        self.values.get(id as usize)
    }

    fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.value(id) {
            Some(Value::Global { module, name }) => Some((module, name)),
            _ => None,
        }
    }

    fn items(&self, id: Id) -> Option<&[Id]> {
        match self.value(id) {
            Some(Value::Tuple(items) | Value::List(items)) => Some(items),
            _ => None,
        }
    }

    fn item(&self, id: Id, number: usize) -> Result<Id> {
        match self.items(id).and_then(|items| items.get(number)) {
            Some(&item) => Ok(item),
            None => damaged("its pickle calls something with too few arguments"),
        }
    }
}
