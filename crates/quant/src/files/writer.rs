//! Writes safetensors files, whole or not at all.

use super::error::{Error, Result};
use super::replace::replace;
use super::tensors::Tensor;
use super::words::{Word, bytes};
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTensor<'a> {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes, row by row, little endian.
    pub data: Cow<'a, [u8]>,
}

impl<'a> NewTensor<'a> {
    pub(crate) fn bytes(
        name: String,
        dtype: Dtype,
        shape: &[usize],
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        Self {
            name,
            dtype,
            shape: shape.to_vec(),
            data: data.into(),
        }
    }

    pub(crate) fn words<T: Word>(
        name: String,
        dtype: Dtype,
        shape: &[usize],
        data: &'a [T],
    ) -> Self {
        Self::bytes(name, dtype, shape, bytes(data))
    }

    /// The same in memory of its own.
    pub fn into_owned(self) -> NewTensor<'static> {
        NewTensor {
            name: self.name,
            dtype: self.dtype,
            shape: self.shape,
            data: Cow::Owned(self.data.into_owned()),
        }
    }
}

impl<'a> From<Tensor<'a>> for NewTensor<'a> {
    /// A tensor of another file, borrowed.
    fn from(tensor: Tensor<'a>) -> Self {
        let name = tensor.key().to_owned();
        Self::bytes(name, tensor.dtype(), tensor.shape(), tensor.data())
    }
}

/// What is to stand in a safetensors file. It holds no more than it is given: borrowed tensors, of
/// another file that is mapped for instance, go from there to the new file.
///
/// ```
/// use ferrotune_quant::files::{Safetensors, SafetensorsWriter, TorchDtype, bnb};
/// use ferrotune_quant::{Cpu, Nf4, Quantized, View};
///
/// let weights: Vec<f32> = (0..8 * 64).map(|i| (i as f32).sin()).collect();
/// let matrix = Quantized::new(Nf4::new(64)?, View::new(&weights, 8, 64)?, &Cpu::detect())?;
/// let mut writer = SafetensorsWriter::new();
/// writer.extend(bnb::tensors4("model.q_proj", &matrix, TorchDtype::BF16, None)?);
/// let bytes = writer.to_vec()?;
///
/// let file = Safetensors::new("in memory", &bytes)?;
/// let read = bnb::read4(&file, "model.q_proj")?;
/// assert_eq!(read.matrix, bnb::Bnb4Matrix::Nf4(matrix));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct SafetensorsWriter<'a> {
    tensors: Vec<NewTensor<'a>>,
    metadata: Vec<(String, String)>,
}

impl<'a> Extend<NewTensor<'a>> for SafetensorsWriter<'a> {
    fn extend<I: IntoIterator<Item = NewTensor<'a>>>(&mut self, tensors: I) {
        self.tensors.extend(tensors);
    }
}

impl<'a> SafetensorsWriter<'a> {
    /// Of no tensors yet, and the metadata `{"format": "pt"}`, without which Transformers refuses a file.
    pub fn new() -> Self {
        Self {
            tensors: Vec::new(),
            metadata: vec![("format".into(), "pt".into())],
        }
    }

    /// Adds an entry to `__metadata__`, or replaces it.
    pub fn metadata(&mut self, key: &str, value: &str) {
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.push((key.into(), value.into()));
    }

    /// Adds a tensor.
    pub fn add(&mut self, tensor: NewTensor<'a>) {
        self.tensors.push(tensor);
    }

    /// Writes the file under a temporary name, syncs it, and renames it.
    ///
    /// # Errors
    /// Two tensors of one name; bytes that are not as many as type and shape say; the system's.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let (header, order) = self.header()?;
        replace(path.as_ref(), |file| Self::write_to(file, &header, &order))
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// Two tensors of one name; bytes that are not as many as type and shape say.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let (header, order) = self.header()?;
        let mut file = Vec::new();
        // Writing to memory cannot fail.
        let _ = Self::write_to(&mut file, &header, &order);
        Ok(file)
    }

    fn write_to(
        file: &mut dyn Write,
        header: &[u8],
        order: &[&NewTensor<'a>],
    ) -> std::io::Result<()> {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header)?;
        order
            .iter()
            .try_for_each(|tensor| file.write_all(&tensor.data))
    }

    /// The header, and the tensors in the order of their bytes: such that all are aligned to their
    /// elements, and those of whole cache lines to cache lines.
    fn header(&self) -> Result<(Vec<u8>, Vec<&NewTensor<'a>>)> {
        let mut order: Vec<&NewTensor> = self.tensors.iter().collect();
        order.sort_by_key(|tensor| {
            let lines = tensor.data.len() % 64 == 0;
            (
                Reverse(lines),
                Reverse(tensor.dtype.bitsize()),
                &tensor.name,
            )
        });
        let mut names = BTreeSet::from(["__metadata__"]);
        let mut header = Map::new();
        let metadata = self.metadata.iter();
        let metadata: Map<_, _> = metadata.map(|(k, v)| (k.clone(), json!(v))).collect();
        header.insert("__metadata__".into(), Value::Object(metadata));
        let mut at = 0_usize;
        for tensor in &order {
            if !names.insert(&tensor.name) {
                return Err(Error::unwritable(&tensor.name, "the name is taken"));
            }
            let (found, expected) = (tensor.data.len(), size(tensor.dtype, &tensor.shape));
            if expected != Some(found) {
                let (dtype, shape) = (tensor.dtype, &tensor.shape);
                let reason =
                    format!("{found} bytes for the type {dtype:?} and the shape {shape:?}");
                return Err(Error::unwritable(&tensor.name, reason));
            }
            let entry = json!({
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": [at, at + found],
            });
            header.insert(tensor.name.clone(), entry);
            at += found;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize((header.len() + 8).next_multiple_of(64) - 8, b' ');
        Ok((header, order))
    }
}

/// Bytes of a tensor.
fn size(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape
        .iter()
        .try_fold(1_usize, |all, n| all.checked_mul(*n))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    (bits % 8 == 0).then_some(bits / 8)
}
