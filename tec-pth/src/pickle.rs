//! A machine for pickles of protocol 2 (and 3) that builds values and runs nothing.
//!
//! Values live in one arena and refer to each other by number, so that an object referenced twice is one object, and
//! neither nesting nor cycles make anything recurse.

use std::collections::HashMap;

use crate::error::{Error, Refused, Result, damaged, too_large};

/// A pickle of more bytes is refused; a checkpoint's holds names and shapes, no weights.
pub const MAX_BYTES: usize = 64 << 20;
/// So is one that makes more values: each takes about 40 bytes.
const MAX_VALUES: usize = 2_000_000;

/// The number of a value in its [`Pickle`].
pub(crate) type Id = u32;

/// One value.
#[derive(Debug)]
pub(crate) enum Value {
    None,
    Bool,
    Int(i64),
    /// A float, bytes, or an integer of more than 64 bits: nothing that a tensor needs.
    Plain,
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function by name; nothing is imported.
    Global {
        module: String,
        name: String,
    },
    /// What a class or function that is not known would have made, with the items put into it.
    Object {
        items: Vec<(Id, Id)>,
    },
    /// A storage: its type is the class `class`, its content the archive's file `data/KEY`.
    Storage {
        class: Id,
        key: Id,
        len: Id,
    },
    /// A view of a storage. `dtype` is none where the storage's class says it.
    Tensor {
        storage: Id,
        offset: Id,
        shape: Id,
        stride: Id,
        dtype: Option<Id>,
    },
}

/// A parsed pickle.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    pub(crate) fn root(&self) -> Id {
        self.root
    }

    pub(crate) fn value(&self, id: Id) -> &Value {
        // Ids come from this arena alone.
        self.values.get(id as usize).unwrap_or(&Value::None)
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is no value; never so of a parsed pickle.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// Interprets a pickle.
///
/// # Errors
/// Bytes that are no pickle of protocol 2 or 3, or one beyond the limits.
pub fn parse(input: &[u8]) -> Result<Pickle> {
    if input.len() > MAX_BYTES {
        return too_large(format!(
            "its pickle has {} bytes, the limit is {MAX_BYTES}",
            input.len()
        ));
    }
    let mut machine = Machine {
        input,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    let root = machine.run()?;
    Ok(Pickle {
        values: machine.values,
        root,
    })
}

pub(crate) struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    pub(crate) values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Items copied by calls, which the input's length does not bound.
    pub(crate) copied: usize,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id> {
        loop {
            let at = self.at;
            match self.byte()? {
                b'.' => {
                    let root = self.pop()?;
                    return Ok(root);
                }
                // Marks, the stack and the memo
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => self.stack.push(self.top()?),
                b'q' => self.put(|m| m.byte().map(u32::from))?,
                b'r' => self.put(Self::word)?,
                b'p' => self.put(Self::decimal)?,
                b'h' => self.get(|m| m.byte().map(u32::from))?,
                b'j' => self.get(Self::word)?,
                b'g' => self.get(Self::decimal)?,
                // Atoms
                b'N' => self.push(Value::None)?,
                b'\x88' | b'\x89' => self.push(Value::Bool)?,
                b'K' => {
                    let value = self.byte()?;
                    self.push(Value::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()))?;
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()))?;
                }
                b'I' | b'L' => {
                    let line = self.line()?;
                    let text = std::str::from_utf8(line).unwrap_or_default().trim_end_matches('L');
                    let value = text.parse().map_or(Value::Plain, Value::Int);
                    self.push(value)?;
                }
                b'\x8a' => {
                    let len = self.byte()?.into();
                    self.long(len)?;
                }
                b'\x8b' => {
                    let len = self.word()? as usize;
                    self.long(len)?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Plain)?;
                }
                b'F' => {
                    self.line()?;
                    self.push(Value::Plain)?;
                }
                b'X' | b'T' => {
                    let len = self.word()? as usize;
                    self.text(len)?;
                }
                b'U' => {
                    let len = self.byte()?.into();
                    self.text(len)?;
                }
                b'S' | b'V' => {
                    let line = self.line()?;
                    let text = String::from_utf8_lossy(line).trim_matches(['\'', '"']).to_string();
                    self.push(Value::Text(text))?;
                }
                b'B' => {
                    let len = self.word()? as usize;
                    self.take(len)?;
                    self.push(Value::Plain)?;
                }
                b'C' => {
                    let len = self.byte()?.into();
                    self.take(len)?;
                    self.push(Value::Plain)?;
                }
                // Containers
                b')' => self.push(Value::Tuple(Vec::new()))?,
                b'\x85' => self.tuple(1)?,
                b'\x86' => self.tuple(2)?,
                b'\x87' => self.tuple(3)?,
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Value::Tuple(items))?;
                }
                b']' => self.push(Value::List(Vec::new()))?,
                b'l' => {
                    let items = self.pop_mark()?;
                    self.push(Value::List(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b'd' => {
                    let items = pairs(self.pop_mark()?)?;
                    self.push(Value::Dict(items))?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![(key, value)])?;
                }
                b'u' => {
                    let items = pairs(self.pop_mark()?)?;
                    self.set(items)?;
                }
                // Objects
                b'c' => {
                    let module = String::from_utf8_lossy(self.line()?).into_owned();
                    let name = String::from_utf8_lossy(self.line()?).into_owned();
                    self.push(Value::Global { module, name })?;
                }
                b'R' | b'\x81' => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    let made = self.call(callable, arguments)?;
                    self.push_id(made);
                }
                // The state of an object says nothing about tensors that can be named.
                b'b' => drop(self.pop()?),
                b'Q' => {
                    let id = self.pop()?;
                    self.persistent(id)?;
                }
                b'\x80' => match self.byte()? {
                    2 | 3 => {}
                    newer @ 4..=9 => return Err(Error::Refused(Refused::Protocol(newer))),
                    other => return damaged(format!("it names a pickle protocol {other}")),
                },
                other => return damaged(format!("byte {at} of its pickle, {other:#04x}, is no instruction")),
            }
        }
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn word(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N)?;
        bytes.try_into().or_else(|_| damaged("its pickle ends early"))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        match rest.get(..len) {
            Some(taken) => {
                self.at += len;
                Ok(taken)
            }
            None => damaged("its pickle ends early"),
        }
    }

    /// Up to the next line feed, which is consumed too.
    fn line(&mut self) -> Result<&'a [u8]> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let Some(len) = rest.iter().position(|&byte| byte == b'\n') else {
            return damaged("its pickle ends early");
        };
        self.at += len + 1;
        Ok(rest.get(..len).unwrap_or_default())
    }

    fn decimal(&mut self) -> Result<u32> {
        let line = std::str::from_utf8(self.line()?).unwrap_or_default();
        line.parse()
            .or_else(|_| damaged("a memo number in its pickle is no number"))
    }

    fn long(&mut self, len: usize) -> Result<()> {
        let bytes = self.take(len)?;
        let negative = bytes.last().is_some_and(|&byte| byte & 0x80 != 0);
        let mut word = if negative { [0xff; 8] } else { [0; 8] };
        let value = match word.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(word))
            }
            None => Value::Plain,
        };
        self.push(value)
    }

    fn text(&mut self, len: usize) -> Result<()> {
        let text = String::from_utf8_lossy(self.take(len)?).into_owned();
        self.push(Value::Text(text))
    }

    pub(crate) fn add(&mut self, value: Value) -> Result<Id> {
        if self.values.len() >= MAX_VALUES {
            return too_large(format!("its pickle makes more than {MAX_VALUES} values"));
        }
        self.values.push(value);
        Ok((self.values.len() - 1) as Id)
    }

    fn push(&mut self, value: Value) -> Result<()> {
        let id = self.add(value)?;
        self.stack.push(id);
        Ok(())
    }

    pub(crate) fn push_id(&mut self, id: Id) {
        self.stack.push(id);
    }

    /// The lowest height of the stack that may be popped to: the newest mark's.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id> {
        match self.stack.len() > self.floor() {
            true => self
                .stack
                .pop()
                .map_or_else(|| damaged("its pickle's stack is empty"), Ok),
            false => damaged("its pickle takes a value that is not there"),
        }
    }

    fn top(&self) -> Result<Id> {
        match self.stack.get(self.floor()..).and_then(<[Id]>::last) {
            Some(&id) => Ok(id),
            None => damaged("its pickle takes a value that is not there"),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(height) if height <= self.stack.len() => Ok(self.stack.split_off(height)),
            _ => damaged("its pickle takes a mark that is not there"),
        }
    }

    fn put(&mut self, key: impl Fn(&mut Self) -> Result<u32>) -> Result<()> {
        let (key, id) = (key(self)?, self.top()?);
        self.memo.insert(key, id);
        Ok(())
    }

    fn get(&mut self, key: impl Fn(&mut Self) -> Result<u32>) -> Result<()> {
        let key = key(self)?;
        match self.memo.get(&key) {
            Some(&id) => self.stack.push(id),
            None => return damaged(format!("its pickle refers to an object {key} that it has not made")),
        }
        Ok(())
    }

    fn tuple(&mut self, len: usize) -> Result<()> {
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items))
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let to = self.top()?;
        match self.values.get_mut(to as usize) {
            Some(Value::List(list)) => list.extend(items),
            Some(Value::Object { .. }) => {}
            _ => return damaged("its pickle appends to what is no list"),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<(Id, Id)>) -> Result<()> {
        let to = self.top()?;
        match self.values.get_mut(to as usize) {
            Some(Value::Dict(all) | Value::Object { items: all }) => all.extend(items),
            _ => return damaged("its pickle sets items of what is no dictionary"),
        }
        Ok(())
    }
}

fn pairs(items: Vec<Id>) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => damaged("its pickle sets a key without a value"),
    }
}
