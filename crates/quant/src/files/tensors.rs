//! Safetensors files: tensors by name, borrowed.

use super::error::{Error, Result};
use super::mapped::Mapped;
use super::words::{Word, words};
use crate::{Element, bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the peer allows a header to be.
const LONGEST_HEADER: u64 = 100_000_000;

/// A safetensors file that is mapped.
#[derive(Debug)]
pub struct SafetensorsFile {
    map: Mapped,
    header: Arc<Header>,
}

impl SafetensorsFile {
    /// Maps a file and reads its header; see [`Mapped`] for what must not happen meanwhile.
    ///
    /// # Errors
    /// The system's; a header that does not describe the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let map = Mapped::open(path)?;
        let header = Arc::new(Header::read(map.path(), &map)?);
        Ok(Self { map, header })
    }

    /// Its tensors.
    pub fn tensors(&self) -> Safetensors<'_> {
        Safetensors {
            header: Arc::clone(&self.header),
            data: &self.map[self.header.begin..],
        }
    }
}

#[derive(Debug)]
struct Header {
    path: PathBuf,
    /// Where the tensors' bytes begin.
    begin: usize,
    metadata: Metadata,
}

impl Header {
    /// The crate's own function adds unchecked numbers of the header, so only its checks of the table
    /// are used.
    fn read(path: &Path, bytes: &[u8]) -> Result<Self> {
        let refuse = |reason: String| Error::header(path, reason);
        let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(refuse(format!(
                "not a safetensors file: {} bytes",
                bytes.len()
            )));
        };
        let length = u64::from_le_bytes(*length);
        let header = usize::try_from(length)
            .ok()
            .filter(|_| length <= LONGEST_HEADER)
            .and_then(|length| rest.get(..length))
            .ok_or_else(|| {
                let left = rest.len();
                refuse(format!(
                    "not a safetensors file, or cut short: a header of {length} bytes, {left} are left"
                ))
            })?;
        let metadata: Metadata = serde_json::from_slice(header)
            .map_err(|error| refuse(format!("not a safetensors header: {error}")))?;
        let (found, expected) = (rest.len() - header.len(), metadata.data_len());
        if found != expected {
            return Err(refuse(format!(
                "the header describes {expected} bytes of tensors, the file has {found}"
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            begin: 8 + header.len(),
            metadata,
        })
    }
}

/// The tensors of a safetensors file, wherever its bytes are. A clone costs nothing.
#[derive(Debug, Clone)]
pub struct Safetensors<'a> {
    header: Arc<Header>,
    data: &'a [u8],
}

impl<'a> Safetensors<'a> {
    /// Reads the header of a file's bytes. `path` is what errors call the file.
    ///
    /// # Errors
    /// A header that does not describe the bytes.
    pub fn new(path: impl AsRef<Path>, bytes: &'a [u8]) -> Result<Self> {
        let header = Header::read(path.as_ref(), bytes)?;
        Ok(Self {
            data: &bytes[header.begin..],
            header: Arc::new(header),
        })
    }

    /// What errors call the file.
    pub fn path(&self) -> &Path {
        &self.header.path
    }

    /// The names of all tensors, in the order of their bytes.
    pub fn names(&self) -> Vec<String> {
        self.header.metadata.offset_keys()
    }

    /// An entry of `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let entries = self.header.metadata.metadata().as_ref()?;
        entries.get(key).map(String::as_str)
    }

    /// A tensor, if there is one of that name.
    pub fn get(&self, name: &str) -> Option<Tensor<'a>> {
        let info = self.header.metadata.info(name)?;
        let (begin, end) = info.data_offsets;
        Some(Tensor {
            header: Arc::clone(&self.header),
            key: name.to_owned(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            data: self.data.get(begin..end)?,
        })
    }

    /// A tensor.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'a>> {
        self.get(name).ok_or_else(|| Error::Missing {
            path: self.path().to_owned(),
            key: name.to_owned(),
        })
    }
}

/// A tensor of a file. Its bytes are as many as type and shape say, and not aligned to anything.
#[derive(Debug, Clone)]
pub struct Tensor<'a> {
    header: Arc<Header>,
    key: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// Its name.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its bytes.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The tensor itself, if it is of one of these types.
    ///
    /// # Errors
    /// It is of another.
    pub fn of(self, dtypes: &[Dtype]) -> Result<Self> {
        if dtypes.contains(&self.dtype) {
            return Ok(self);
        }
        let expected: Vec<String> = dtypes.iter().map(|dtype| format!("{dtype:?}")).collect();
        Err(Error::Dtype {
            path: self.header.path.clone(),
            found: format!("{:?}", self.dtype),
            expected: expected.join(" or "),
            key: self.key,
        })
    }

    /// The tensor itself, if it has this shape.
    ///
    /// # Errors
    /// It has another.
    pub fn shaped(self, shape: &[usize]) -> Result<Self> {
        if self.shape == shape {
            return Ok(self);
        }
        Err(self.misshapen(format!("{shape:?}")))
    }

    /// The tensor's shape, if it has `N` dimensions.
    ///
    /// # Errors
    /// It has more or fewer.
    pub fn dims<const N: usize>(&self) -> Result<[usize; N]> {
        let dims = <[usize; N]>::try_from(self.shape.as_slice());
        dims.map_err(|_| self.misshapen(format!("{N} dimensions")))
    }

    /// The number in a tensor of one f32.
    ///
    /// # Errors
    /// Another type, or more or less than one.
    pub fn scalar(self) -> Result<f32> {
        let tensor = self.of(&[Dtype::F32])?;
        match *tensor.words::<f32>() {
            [value] => Ok(value),
            _ => Err(tensor.misshapen("one element".into())),
        }
    }

    /// The values of a tensor of floats as f32: borrowed if they are that already, and aligned.
    ///
    /// # Errors
    /// Another type than F32, F16 and BF16.
    pub fn floats(self) -> Result<Cow<'a, [f32]>> {
        let tensor = self.of(&[Dtype::F32, Dtype::F16, Dtype::BF16])?;
        let halves = |values: &[f16]| values.iter().map(|value| Element::to_f32(*value)).collect();
        let brains = |values: &[bf16]| values.iter().map(|value| Element::to_f32(*value)).collect();
        Ok(match tensor.dtype {
            Dtype::F16 => Cow::Owned(halves(&tensor.words())),
            Dtype::BF16 => Cow::Owned(brains(&tensor.words())),
            _ => tensor.words(),
        })
    }

    /// Refuses a weight without elements: its other side could be of any length.
    pub(crate) fn refuse_empty(&self, [rows, cols]: [usize; 2]) -> Result<()> {
        if rows > 0 && cols > 0 {
            return Ok(());
        }
        Err(self.misshapen(format!("a weight that is not empty ([{rows}, {cols}])")))
    }

    /// Its bytes as numbers.
    pub(crate) fn words<T: Word>(&self) -> Cow<'a, [T]> {
        words(self.data)
    }

    pub(crate) fn misshapen(&self, expected: String) -> Error {
        Error::Shape {
            path: self.header.path.clone(),
            key: self.key.clone(),
            found: self.shape.clone(),
            expected,
        }
    }

    pub(crate) fn content(&self, reason: impl Into<String>) -> Error {
        Error::content(&self.header.path, &self.key, reason)
    }

    pub(crate) fn matrix(&self, source: crate::Error) -> Error {
        Error::matrix(&self.header.path, &self.key, source)
    }
}
