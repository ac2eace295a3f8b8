//! Checkpoints on disk: safetensors, mapped into memory, one file or shards with an index.

use crate::{Error, Param, Result, files};
use ferrotune_libtorch::tch::{Device, Kind, Tensor, no_grad_guard};
use memmap2::Mmap;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, View, serialize_to_file};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The name of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The index of a sharded one.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    #[serde(default)]
    metadata: serde_json::Map<String, serde_json::Value>,
    weight_map: BTreeMap<String, String>,
}

/// The tensors of a checkpoint. Nothing is read before it is asked for.
///
/// The files are mapped: do not shorten them while this is open.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    shards: Vec<ShardFile>,
    place: HashMap<String, usize>,
    used: Mutex<BTreeSet<String>>,
}

#[derive(Debug)]
struct ShardFile {
    path: PathBuf,
    map: Mmap,
    data: usize,
    metadata: Metadata,
}

impl ShardFile {
    fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(|source| Error::io(&path, source))?;
        // SAFETY: a private read-only map. Another process that truncates the file under us makes
        // reads fail with SIGBUS, as for every reader of safetensors; the type's docs say so.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io(&path, source))?;
        let read = safetensors::SafeTensors::read_metadata(&map);
        let (header, metadata) = read.map_err(|error| Error::Corrupt {
            path: path.clone(),
            reason: match error {
                SafeTensorError::MetadataIncompleteBuffer => format!(
                    "its {} bytes are not as many as its header says: cut short, or padded",
                    map.len()
                ),
                other => other.to_string(),
            },
        })?;
        let data = header + 8;
        Ok(Self {
            path,
            map,
            data,
            metadata,
        })
    }
}

impl Weights {
    /// Opens a checkpoint folder, or one safetensors file.
    ///
    /// # Errors
    /// A file that is missing, truncated or lies about itself; an index that names a tensor its
    /// shard does not hold.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let index = path.join(INDEX_FILE);
        let (files, weight_map) = if path.is_file() {
            (vec![path.to_owned()], BTreeMap::new())
        } else if index.exists() {
            let Index { weight_map, .. } = files::read_json(&index)?;
            let names: BTreeSet<&String> = weight_map.values().collect();
            (
                names.into_iter().map(|name| path.join(name)).collect(),
                weight_map,
            )
        } else {
            (vec![path.join(SINGLE_FILE)], BTreeMap::new())
        };
        let shards = files
            .into_iter()
            .map(ShardFile::open)
            .collect::<Result<Vec<_>>>()?;
        let mut place = HashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.metadata.tensors().into_keys() {
                place.insert(name, i);
            }
        }
        // Where the index speaks, it decides.
        for (name, file) in weight_map {
            let file = path.join(file);
            let shard = shards
                .iter()
                .position(|shard| shard.path == file && shard.metadata.info(&name).is_some());
            let shard = shard.ok_or_else(|| Error::Missing {
                name: name.clone(),
                path: file,
            })?;
            place.insert(name, shard);
        }
        Ok(Self {
            path: path.to_owned(),
            shards,
            place,
            used: Mutex::default(),
        })
    }

    /// Where the checkpoint lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.place
            .keys()
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Whether the checkpoint holds `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.place.contains_key(name)
    }

    /// The tensor `name`, as `kind` on `device`, copied once from the map; `shape` is demanded
    /// where given.
    ///
    /// # Errors
    /// A name that is missing, another shape, or an integer where a float is asked for.
    pub fn load(
        &self,
        name: &str,
        shape: Option<&[i64]>,
        kind: Option<Kind>,
        device: Device,
    ) -> Result<Tensor> {
        let missing = || Error::Missing {
            name: name.to_owned(),
            path: self.path.clone(),
        };
        let shard = &self.shards[*self.place.get(name).ok_or_else(missing)?];
        let info = shard.metadata.info(name).ok_or_else(missing)?;
        let found: Vec<i64> = info.shape.iter().map(|size| *size as i64).collect();
        let path = || shard.path.clone();
        if let Some(expected) = shape.filter(|expected| *expected != found) {
            let (name, expected) = (name.to_owned(), expected.to_vec());
            return Err(Error::Shape {
                name,
                path: path(),
                found,
                expected,
            });
        }
        let dtype_error = || Error::Dtype {
            name: name.to_owned(),
            path: path(),
            dtype: format!("{:?}", info.dtype),
        };
        let stored = kind_of(info.dtype).ok_or_else(dtype_error)?;
        let kind = kind.unwrap_or(stored);
        if is_float(kind) && !is_float(stored) {
            return Err(dtype_error());
        }
        let bytes = &shard.map[shard.data + info.data_offsets.0..shard.data + info.data_offsets.1];
        let _guard = no_grad_guard();
        let mut tensor = Tensor::f_empty(&found, (kind, device))?;
        if !bytes.is_empty() {
            tensor.f_copy_(&view(bytes, &found, stored)?)?;
        }
        self.used
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned());
        Ok(tensor)
    }

    /// Overwrites each parameter with the tensor of its name, all of them or none; the checkpoint
    /// holds nothing else.
    ///
    /// # Errors
    /// A name that is missing or unknown, another shape, or an integer where a float is needed.
    pub fn assign(&self, params: &[(String, Param)]) -> Result<()> {
        let read = |(name, param): &(String, Param)| {
            let tensor = param.tensor();
            let (shape, kind) = (tensor.size(), tensor.kind());
            self.load(name, Some(&shape), Some(kind), tensor.device())
        };
        let values = params.iter().map(read).collect::<Result<Vec<_>>>()?;
        self.finish(|_| false)?;
        let mut pairs = params.iter().zip(&values);
        pairs.try_for_each(|((_, param), value)| param.assign(value))
    }

    /// Says that every tensor was used, but for those that `ignore` accepts.
    ///
    /// # Errors
    /// The names that nobody asked for.
    pub fn finish(&self, ignore: impl Fn(&str) -> bool) -> Result<()> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<String> = self
            .names()
            .into_iter()
            .filter(|name| !used.contains(name) && !ignore(name))
            .collect();
        if names.is_empty() {
            Ok(())
        } else {
            Err(Error::Unexpected {
                names,
                path: self.path.clone(),
            })
        }
    }
}

/// The bytes of a map as a tensor that borrows them; unaligned ones are copied first.
fn view(bytes: &[u8], shape: &[i64], kind: Kind) -> Result<Tensor> {
    if !(bytes.as_ptr() as usize).is_multiple_of(kind.elt_size_in_bytes()) {
        return Ok(Tensor::f_from_data_size(bytes, shape, kind)?);
    }
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    // SAFETY: safetensors has checked that the length is that of the shape and dtype, the address is
    // aligned, and the caller copies out of the view before the map can close.
    Ok(unsafe { Tensor::f_from_blob(bytes.as_ptr(), shape, &strides, kind, Device::Cpu) }?)
}

fn is_float(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double
    )
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    [
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::F64,
        Dtype::I64,
        Dtype::I32,
        Dtype::I16,
        Dtype::I8,
        Dtype::U8,
        Dtype::BOOL,
    ]
    .into_iter()
    .find(|dtype| kind_of(*dtype) == Some(kind))
}

/// A tensor as the safetensors crate wants it: its bytes are borrowed where they lie on the CPU.
struct Stored {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Stored {
    fn new(name: &str, tensor: &Tensor, path: &Path) -> Result<Self> {
        let dtype = dtype_of(tensor.kind()).ok_or_else(|| Error::Dtype {
            name: name.to_owned(),
            path: path.to_owned(),
            dtype: format!("{:?}", tensor.kind()),
        })?;
        let tensor = tensor.detach().f_contiguous()?;
        let shape = tensor.size().iter().map(|size| *size as usize).collect();
        Ok(Self {
            tensor,
            dtype,
            shape,
        })
    }
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let length = self.data_len();
        if self.tensor.device() == Device::Cpu && length > 0 {
            // SAFETY: contiguous CPU memory of that many bytes, kept alive by the borrow of `self`.
            let bytes =
                unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast(), length) };
            return Cow::Borrowed(bytes);
        }
        let mut bytes = vec![0; length];
        self.tensor
            .to_device(Device::Cpu)
            .copy_data_u8(&mut bytes, self.tensor.numel());
        Cow::Owned(bytes)
    }
    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// Writes one safetensors file, whole or not at all, with PyTorch's metadata.
///
/// # Errors
/// The system's, or a dtype that safetensors does not know.
pub fn save_file<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Result<()> {
    stage_file(path, tensors)?.commit()
}

fn stage_file<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Result<files::Staged> {
    let stored: Vec<(&str, Stored)> = tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, Stored::new(name, tensor, path)?)))
        .collect::<Result<_>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    files::stage(path, |temporary| {
        let views = stored.iter().map(|(name, stored)| (*name, stored));
        serialize_to_file(views, Some(metadata), temporary).map_err(|error| match error {
            SafeTensorError::IoError(source) => Error::io(path, source),
            other => Error::Corrupt {
                path: path.to_owned(),
                reason: other.to_string(),
            },
        })
    })
}

/// Writes a checkpoint as Hugging Face does: one file up to `max_shard_bytes`, else shards and their
/// index. What is half written does not load, and a checkpoint that stood in the folder does until
/// the new one is whole; then its files go.
///
/// # Errors
/// The system's.
pub fn save(dir: &Path, tensors: &[(String, Tensor)], max_shard_bytes: usize) -> Result<()> {
    stage(dir, tensors, max_shard_bytes)?.commit()
}

/// A checkpoint whose bytes are on disk and which only renames separate from being there.
#[derive(Debug)]
pub(crate) struct Staged {
    shards: Vec<files::Staged>,
    index: Option<files::Staged>,
    /// Files of the checkpoint that is replaced: its entry point first, so that it never loads in part.
    stale: Vec<PathBuf>,
}

pub(crate) fn stage(
    dir: &Path,
    tensors: &[(String, Tensor)],
    max_shard_bytes: usize,
) -> Result<Staged> {
    std::fs::create_dir_all(dir).map_err(|source| Error::io(dir, source))?;
    let index_path = dir.join(INDEX_FILE);
    // An index that does not parse holds nothing worth keeping.
    let old: BTreeSet<String> = files::read_json::<Index>(&index_path)
        .map(|index| index.weight_map.into_values().collect())
        .unwrap_or_default();
    let split = split(tensors, max_shard_bytes);
    let names = shard_names(split.len(), &old);
    let mut weight_map = BTreeMap::new();
    let mut shards = Vec::new();
    for (name, shard) in names.iter().zip(&split) {
        let entries = shard.iter().map(|(name, tensor)| (name.as_str(), tensor));
        shards.push(stage_file(&dir.join(name), entries)?);
        weight_map.extend(shard.iter().map(|(entry, _)| (entry.clone(), name.clone())));
    }
    let entry = if names.len() == 1 {
        INDEX_FILE
    } else {
        SINGLE_FILE
    };
    let stale = std::iter::once(entry)
        .chain(
            old.iter()
                .map(String::as_str)
                .filter(|file| !names.iter().any(|name| name == file)),
        )
        .map(|file| dir.join(file))
        .filter(|file| file.exists())
        .collect();
    let total: usize = tensors.iter().map(|(_, tensor)| bytes(tensor)).sum();
    let metadata = serde_json::Map::from_iter([("total_size".to_owned(), total.into())]);
    let index = Index {
        metadata,
        weight_map,
    };
    let index = (names.len() > 1).then(|| files::stage_json(&index_path, &index));
    Ok(Staged {
        shards,
        index: index.transpose()?,
        stale,
    })
}

impl Staged {
    /// Puts the checkpoint in place.
    pub(crate) fn commit(self) -> Result<()> {
        for file in self.shards.into_iter().chain(self.index) {
            file.commit()?;
        }
        for path in self.stale {
            std::fs::remove_file(&path).map_err(|source| Error::io(path, source))?;
        }
        Ok(())
    }
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

/// Cuts the list where the next tensor would exceed `max_bytes`; one part at least.
fn split(tensors: &[(String, Tensor)], max_bytes: usize) -> Vec<&[(String, Tensor)]> {
    let (mut parts, mut start, mut filled) = (Vec::new(), 0, 0);
    for (i, (_, tensor)) in tensors.iter().enumerate() {
        if i > start && filled + bytes(tensor) > max_bytes {
            parts.push(&tensors[start..i]);
            (start, filled) = (i, 0);
        }
        filled += bytes(tensor);
    }
    parts.push(&tensors[start..]);
    parts
}

/// Hugging Face's names for `count` shards, or a variant of them where the checkpoint that stands
/// uses those: its shards must outlive the writing of the new ones.
fn shard_names(count: usize, taken: &BTreeSet<String>) -> Vec<String> {
    if count == 1 {
        return vec![SINGLE_FILE.to_owned()];
    }
    let names = |stem: &str| -> Vec<String> {
        (1..=count)
            .map(|i| format!("{stem}-{i:05}-of-{count:05}.safetensors"))
            .collect()
    };
    ["model", "model-new"]
        .map(names)
        .into_iter()
        .find(|names| names.iter().all(|name| !taken.contains(name)))
        .unwrap_or_else(|| names("model"))
}
