//! Checkpoints on disk: safetensors, mapped into memory, one file or shards with an index.

use crate::{Error, Result, files};
use ferrotune_libtorch::tch::{Device, Kind, Tensor, no_grad_guard};
use memmap2::Mmap;
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
        let corrupt = |reason: String| Error::Corrupt {
            path: path.clone(),
            reason,
        };
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&map)
            .map_err(|error| corrupt(error.to_string()))?;
        let (data, length) = (header + 8, metadata.data_len());
        if map.len() != data + length {
            return Err(corrupt(format!(
                "{} bytes, the header says {}",
                map.len(),
                data + length
            )));
        }
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
        let files: Vec<PathBuf> = if path.is_file() {
            vec![path.to_owned()]
        } else if index.exists() {
            let index: Index = files::read_json(&index)?;
            let names: BTreeSet<String> = index.weight_map.into_values().collect();
            names.into_iter().map(|name| path.join(name)).collect()
        } else {
            vec![path.join(SINGLE_FILE)]
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
        if index.exists() {
            let index: Index = files::read_json(&index)?;
            if let Some((name, file)) = index.weight_map.iter().find(|(name, file)| {
                place
                    .get(*name)
                    .is_none_or(|i| shards[*i].path != path.join(file))
            }) {
                return Err(Error::Missing {
                    name: name.clone(),
                    path: path.join(file),
                });
            }
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
    if bytes.as_ptr() as usize % kind.elt_size_in_bytes() != 0 {
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
    let stored: Vec<(&str, Stored)> = tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, Stored::new(name, tensor, path)?)))
        .collect::<Result<_>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    files::replace(path, |temporary| {
        let views = stored.iter().map(|(name, stored)| (*name, stored));
        serialize_to_file(views, Some(metadata), temporary).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(source) => Error::io(path, source),
            other => Error::Corrupt {
                path: path.to_owned(),
                reason: other.to_string(),
            },
        })
    })
}

/// Writes a checkpoint as Hugging Face does: one file up to `max_shard_bytes`, else shards and then
/// their index. What is half written does not load.
///
/// # Errors
/// The system's.
pub fn save(dir: &Path, tensors: &[(String, Tensor)], max_shard_bytes: usize) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|source| Error::io(dir, source))?;
    let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
    let mut shards: Vec<(usize, Vec<&(String, Tensor)>)> = Vec::new();
    for entry in tensors {
        let size = bytes(&entry.1);
        match shards.last_mut() {
            Some((filled, shard)) if *filled + size <= max_shard_bytes => {
                *filled += size;
                shard.push(entry);
            }
            _ => shards.push((size, vec![entry])),
        }
    }
    let write = |name: &str, shard: &[&(String, Tensor)]| {
        save_file(
            &dir.join(name),
            shard.iter().map(|entry| (entry.0.as_str(), &entry.1)),
        )
    };
    if shards.len() <= 1 {
        let all: Vec<_> = tensors.iter().collect();
        return write(SINGLE_FILE, &all);
    }
    let mut weight_map = BTreeMap::new();
    for (i, (_, shard)) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write(&file, shard)?;
        weight_map.extend(shard.iter().map(|entry| (entry.0.clone(), file.clone())));
    }
    let total: usize = shards.iter().map(|(size, _)| size).sum();
    let metadata = serde_json::Map::from_iter([("total_size".to_owned(), total.into())]);
    files::write_json(
        &dir.join(INDEX_FILE),
        &Index {
            metadata,
            weight_map,
        },
    )
}
