//! Writes GGUF files, whole or not at all.

use super::value::push_text;
use super::{ALIGNMENT_KEY, GgmlType, Gguf, MAGIC, MOST_DIMENSIONS, Value, aligned};
use crate::files::error::{Error, Result};
use crate::files::replace::replace;
use crate::files::words::Word;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

/// What is to stand in a GGUF file of version 3. It holds no more than it is given.
#[derive(Debug, Default, Clone)]
pub struct GgufWriter<'a> {
    metadata: Vec<(String, Value<'a>)>,
    tensors: Vec<NewTensor<'a>>,
}

#[derive(Debug, Clone)]
struct NewTensor<'a> {
    name: String,
    kind: GgmlType,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

impl<'a> TryFrom<&Gguf<'a>> for GgufWriter<'a> {
    type Error = Error;

    /// All of a file that was read, for a file with some more or some replaced.
    ///
    /// # Errors
    /// A tensor of a type that is not known: it could not be copied.
    fn try_from(file: &Gguf<'a>) -> Result<Self> {
        let mut writer = Self::new();
        for (key, value) in file.metadata() {
            writer.metadata(key, value.clone());
        }
        for name in file.names() {
            let tensor = file.tensor(name)?;
            writer.tensor(tensor.name, tensor.kind, &tensor.shape, tensor.data);
        }
        Ok(writer)
    }
}

impl<'a> GgufWriter<'a> {
    /// Of nothing yet. llama.cpp asks for the metadata `general.architecture` at least.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry to the metadata, or replaces it.
    pub fn metadata(&mut self, key: &str, value: Value<'a>) {
        match self.metadata.iter_mut().find(|(known, _)| known == key) {
            Some((_, place)) => *place = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    /// Adds a tensor, of blocks as ggml has them. `shape` has the outermost dimension first.
    pub fn tensor(
        &mut self,
        name: &str,
        kind: GgmlType,
        shape: &[usize],
        data: impl Into<Cow<'a, [u8]>>,
    ) {
        self.tensors.push(NewTensor {
            name: name.to_owned(),
            kind,
            shape: shape.to_vec(),
            data: data.into(),
        });
    }

    /// Writes the file under a temporary name, syncs it, and renames it.
    ///
    /// # Errors
    /// Two tensors of one name; a type that is not known; bytes that are not as many as type and shape
    /// say; more than 4 dimensions; an alignment that is not a power of two; the system's.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let (head, alignment) = self.head()?;
        replace(path.as_ref(), |file| self.write_to(file, &head, alignment))
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// As [`GgufWriter::write`], but for the system's.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let (head, alignment) = self.head()?;
        let mut file = Vec::new();
        // Writing to memory cannot fail.
        let _ = self.write_to(&mut file, &head, alignment);
        Ok(file)
    }

    fn write_to(&self, file: &mut dyn Write, head: &[u8], alignment: usize) -> std::io::Result<()> {
        let parts = self.tensors.iter().map(|tensor| &*tensor.data);
        std::iter::once(head).chain(parts).try_for_each(|part| {
            file.write_all(part)?;
            let filling = part.len().next_multiple_of(alignment) - part.len();
            std::io::copy(
                &mut std::io::Read::take(std::io::repeat(0), filling as u64),
                file,
            )
            .map(drop)
        })
    }

    /// All before the data, and the alignment.
    fn head(&self) -> Result<(Vec<u8>, usize)> {
        let entry = self.metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY);
        let alignment = aligned(entry.map(|(_, value)| value))
            .map_err(|reason| Error::unwritable(ALIGNMENT_KEY, reason))?;
        let mut out = MAGIC.to_vec();
        3_u32.push_le(&mut out);
        (self.tensors.len() as u64).push_le(&mut out);
        (self.metadata.len() as u64).push_le(&mut out);
        for (key, value) in &self.metadata {
            push_text(key, &mut out);
            value.write(&mut out);
        }
        let mut names = BTreeSet::new();
        let mut offset = 0;
        for tensor in &self.tensors {
            let name = &tensor.name;
            if !names.insert(name) {
                return Err(Error::unwritable(name, "the name is taken"));
            }
            tensor.check()?;
            push_text(name, &mut out);
            (tensor.shape.len() as u32).push_le(&mut out);
            for side in tensor.shape.iter().rev() {
                (*side as u64).push_le(&mut out);
            }
            tensor.kind.0.push_le(&mut out);
            (offset as u64).push_le(&mut out);
            offset += tensor.data.len().next_multiple_of(alignment);
        }
        Ok((out, alignment))
    }
}

impl NewTensor<'_> {
    fn check(&self) -> Result<()> {
        let Self {
            name,
            kind,
            shape,
            data,
        } = self;
        let refuse = |reason: String| Err(Error::unwritable(name, reason));
        if shape.len() > MOST_DIMENSIONS as usize {
            return refuse(format!(
                "{} dimensions, ggml has at most {MOST_DIMENSIONS}",
                shape.len()
            ));
        }
        let Some((block, bytes)) = kind.block() else {
            return refuse(format!("type {kind}: the size of its blocks is not known"));
        };
        let cols = shape.last().copied().unwrap_or(1);
        let elements = shape.iter().try_fold(1_usize, |all, n| all.checked_mul(*n));
        let expected = elements.and_then(|n| (n / block).checked_mul(bytes));
        if cols % block != 0 || expected != Some(data.len()) {
            let found = data.len();
            return refuse(format!(
                "{found} bytes for the shape {shape:?} in blocks of {block} in {bytes} bytes ({kind})"
            ));
        }
        Ok(())
    }
}
