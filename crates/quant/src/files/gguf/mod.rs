//! GGUF, the files of llama.cpp (ggml, `docs/gguf.md`, versions 2 and 3, little endian): metadata,
//! tensors by name, and a writer of version 3.
//!
//! | part | layout |
//! |---|---|
//! | head | `GGUF`, version u32, tensors u64, entries u64 |
//! | entry | key string, type u32, value |
//! | string | length u64, UTF-8 |
//! | array | type u32, length u64, elements |
//! | tensor | name string, dimensions u32, each u64 (the innermost first), type u32, offset u64 |
//! | data | from the next multiple of `general.alignment` (32); offsets count from there and are multiples of it |

mod cursor;
mod kind;
mod matrix;
mod value;
mod write;

pub use kind::GgmlType;
pub use matrix::GgufKind;
pub use value::{Array, Value};
pub use write::GgufWriter;

use super::error::{Error, Result};
use crate::{Element, bf16, f16};
use cursor::Cursor;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 4] = b"GGUF";
/// ggml has no more.
const MOST_DIMENSIONS: u32 = 4;
/// Where a file does not say.
const ALIGNMENT: usize = 32;
/// A page of any system; more would only be filling.
const MOST_ALIGNMENT: u32 = 65_536;
const ALIGNMENT_KEY: &str = "general.alignment";

/// A GGUF file. All parts are borrowed from its bytes, which [`super::Mapped`] lends, but for arrays
/// that are not aligned.
///
/// ```no_run
/// use ferrotune_quant::files::{Mapped, gguf::Gguf};
///
/// let file = Mapped::open("model.gguf")?;
/// let gguf = Gguf::new(file.path(), &file)?;
/// for tensor in gguf.tensors() {
///     println!("{} {} {:?}", tensor.name, tensor.kind, tensor.shape);
/// }
/// # Ok::<(), ferrotune_quant::files::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Gguf<'a> {
    path: PathBuf,
    version: u32,
    metadata: Vec<(&'a str, Value<'a>)>,
    tensors: Vec<Info<'a>>,
    /// Places in `tensors`.
    names: BTreeMap<&'a str, usize>,
    /// From where offsets count.
    data: &'a [u8],
}

#[derive(Debug, Clone)]
struct Info<'a> {
    name: &'a str,
    kind: GgmlType,
    /// The outermost first.
    shape: Vec<usize>,
    offset: usize,
    /// None of a type whose size is not known.
    length: Option<usize>,
}

/// A tensor of a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type.
    pub kind: GgmlType,
    /// Its shape, the outermost dimension first, as everywhere but in the file.
    pub shape: Vec<usize>,
    /// Its bytes: rows of whole blocks.
    pub data: &'a [u8],
}

impl<'a> Gguf<'a> {
    /// Reads metadata and the table of tensors. `path` is what errors call the file.
    ///
    /// # Errors
    /// Not a GGUF file, one of version 1 or of a big-endian machine; a length, a count or an offset that
    /// the file is too short for; a name that is there twice; a type of value that there is not; text
    /// that is not UTF-8.
    pub fn new(path: impl AsRef<Path>, bytes: &'a [u8]) -> Result<Self> {
        let path = path.as_ref();
        let mut cursor = Cursor::new(path, bytes);
        if cursor.take("head", 4)? != MAGIC {
            return Err(Error::header(path, "not a GGUF file"));
        }
        let version = cursor.word::<u32>("version")?;
        match version {
            2 | 3 => {}
            _ if version & 0xffff == 0 => {
                return Err(Error::header(path, "a GGUF file of a big-endian machine"));
            }
            _ => {
                let reason = format!("GGUF version {version}: this crate reads 2 and 3");
                return Err(Error::header(path, reason));
            }
        }
        let tensors = cursor.word::<u64>("number of tensors")?;
        let entries = cursor.word::<u64>("number of metadata entries")?;
        // A key's length, a type, and a value of a byte.
        cursor.fits("metadata entries", entries, 13)?;
        let mut metadata: Vec<(&str, Value)> = Vec::new();
        let mut keys = BTreeSet::new();
        for _ in 0..entries {
            let key = cursor.name("metadata")?;
            if !keys.insert(key) {
                return Err(Error::content(path, key, "the key is there twice"));
            }
            metadata.push((key, Value::read(&mut cursor, key)?));
        }
        let alignment = alignment(path, &metadata)?;
        // A name's length, dimensions, type, offset.
        cursor.fits("tensors", tensors, 24)?;
        let mut infos = Vec::new();
        let mut names = BTreeMap::new();
        for place in 0..tensors {
            let info = info(&mut cursor, path, alignment)?;
            if names.insert(info.name, place as usize).is_some() {
                return Err(Error::content(path, info.name, "the tensor is there twice"));
            }
            infos.push(info);
        }
        let begin = cursor.at().next_multiple_of(alignment);
        let data = bytes.get(begin..).unwrap_or(&[]);
        for info in &infos {
            let length = info.length.unwrap_or(0);
            let end = info.offset.checked_add(length);
            if end.is_none_or(|end| end > data.len()) {
                let reason = format!(
                    "{length} bytes at offset {} of the data, which has {}",
                    info.offset,
                    data.len()
                );
                return Err(Error::content(path, info.name, reason));
            }
        }
        Ok(Self {
            path: path.to_owned(),
            version,
            metadata,
            tensors: infos,
            names,
            data,
        })
    }

    /// What errors call the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata, in the order of the file.
    pub fn metadata(&self) -> &[(&'a str, Value<'a>)] {
        &self.metadata
    }

    /// An entry of the metadata.
    pub fn value(&self, key: &str) -> Option<&Value<'a>> {
        let entry = self.metadata.iter().find(|(known, _)| *known == key);
        entry.map(|(_, value)| value)
    }

    /// The names of all tensors, in the order of the table.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.tensors.iter().map(|info| info.name)
    }

    /// All tensors of known types, in the order of the table.
    pub fn tensors(&self) -> impl Iterator<Item = GgufTensor<'a>> {
        self.tensors.iter().filter_map(|info| self.lend(info))
    }

    /// A tensor.
    ///
    /// # Errors
    /// There is none of that name; it is of a type whose size this crate does not know.
    pub fn tensor(&self, name: &str) -> Result<GgufTensor<'a>> {
        let info = self
            .names
            .get(name)
            .and_then(|place| self.tensors.get(*place));
        let info = info.ok_or_else(|| Error::Missing {
            path: self.path.clone(),
            key: name.to_owned(),
        })?;
        self.lend(info).ok_or_else(|| {
            let reason = format!(
                "type {} at offset {}: the size of its blocks is not known",
                info.kind, info.offset
            );
            Error::content(&self.path, name, reason)
        })
    }

    fn lend(&self, info: &Info<'a>) -> Option<GgufTensor<'a>> {
        let data = self.data.get(info.offset..)?.get(..info.length?)?;
        Some(GgufTensor {
            name: info.name,
            kind: info.kind,
            shape: info.shape.clone(),
            data,
        })
    }
}

fn alignment(path: &Path, metadata: &[(&str, Value)]) -> Result<usize> {
    let entry = metadata.iter().find(|(key, _)| *key == ALIGNMENT_KEY);
    let entry = entry.map(|(_, value)| value);
    aligned(entry).map_err(|reason| Error::content(path, ALIGNMENT_KEY, reason))
}

/// The alignment that an entry of the metadata asks for.
fn aligned(entry: Option<&Value>) -> Result<usize, String> {
    match entry {
        None => Ok(ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() && *n <= MOST_ALIGNMENT => Ok(*n as usize),
        Some(value) => Err(format!(
            "{value:?} is not a power of two in 32 bits, {MOST_ALIGNMENT} at most"
        )),
    }
}

fn info<'a>(cursor: &mut Cursor<'a, '_>, path: &Path, alignment: usize) -> Result<Info<'a>> {
    let name = cursor.name("tensor")?;
    let refuse = |reason: String| Error::content(path, name, reason);
    let mut rest = cursor.clone();
    let dimensions = rest.word::<u32>(name)?;
    if dimensions > MOST_DIMENSIONS {
        return Err(refuse(format!(
            "{dimensions} dimensions, ggml has at most {MOST_DIMENSIONS}"
        )));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let side = rest.word::<u64>(name)?;
        let side = usize::try_from(side).map_err(|_| refuse(format!("a side of {side}")))?;
        shape.insert(0, side);
    }
    let kind = GgmlType(rest.word::<u32>(name)?);
    let offset = rest.word::<u64>(name)?;
    let offset = usize::try_from(offset)
        .ok()
        .filter(|offset| offset % alignment == 0)
        .ok_or_else(|| refuse(format!("offset {offset} is not a multiple of {alignment}")))?;
    let length = match kind.block() {
        None => None,
        Some((block, bytes)) => {
            let cols = shape.last().copied().unwrap_or(1);
            if cols % block != 0 {
                return Err(refuse(format!(
                    "rows of {cols} are not whole blocks of {block} ({kind})"
                )));
            }
            let elements = shape.iter().try_fold(1_usize, |all, n| all.checked_mul(*n));
            let length = elements.and_then(|n| (n / block).checked_mul(bytes));
            let length = length.ok_or_else(|| {
                refuse(format!(
                    "shape {shape:?} has more elements than memory can hold"
                ))
            })?;
            Some(length)
        }
    };
    *cursor = rest;
    Ok(Info {
        name,
        kind,
        shape,
        offset,
        length,
    })
}

impl<'a> GgufTensor<'a> {
    /// `[rows, cols]`: a row is the innermost dimension.
    pub fn matrix_shape(&self) -> [usize; 2] {
        match self.shape.split_last() {
            Some((cols, outer)) => [outer.iter().product(), *cols],
            None => [1, 1],
        }
    }

    /// The values of a tensor of F32, F16 or BF16 as f32: borrowed if they are that already, and
    /// aligned. None of other types.
    pub fn floats(&self) -> Option<Cow<'a, [f32]>> {
        use super::words::words;
        match self.kind {
            GgmlType::F32 => Some(words(self.data)),
            GgmlType::F16 => {
                let values = words::<f16>(self.data);
                Some(values.iter().map(|value| Element::to_f32(*value)).collect())
            }
            GgmlType::BF16 => {
                let values = words::<bf16>(self.data);
                Some(values.iter().map(|value| Element::to_f32(*value)).collect())
            }
            _ => None,
        }
    }
}
