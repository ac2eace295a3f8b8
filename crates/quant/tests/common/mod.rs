//! Recorded tensors of the real peers: `peers/make_quant_fixtures.py` makes them.
#![allow(dead_code, clippy::unwrap_used)]

use ferrotune_quant::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/quant")
}

/// A file of recorded tensors.
pub struct Recorded(Vec<u8>);

impl Recorded {
    pub fn open(name: &str) -> Self {
        let path = fixtures().join(name);
        Self(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.file().names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    }

    pub fn has(&self, name: &str) -> bool {
        self.file().tensor(name).is_ok()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.file().tensor(name).unwrap().shape().to_vec()
    }

    pub fn dtype(&self, name: &str) -> Dtype {
        self.file().tensor(name).unwrap().dtype()
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let file = self.file();
        let tensor = file
            .tensor(name)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        tensor.data().to_vec()
    }

    /// Values of any float type.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = self.bytes(name);
        match self.dtype(name) {
            Dtype::F32 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            Dtype::F16 => self.f16s(name).iter().map(|x| x.to_f32()).collect(),
            Dtype::BF16 => self.bf16s(name).iter().map(|x| x.to_f32()).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    pub fn f16s(&self, name: &str) -> Vec<f16> {
        let bytes = self.bytes(name);
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f16::from_le_bytes(*b))
            .collect()
    }

    pub fn bf16s(&self, name: &str) -> Vec<bf16> {
        let bytes = self.bytes(name);
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| bf16::from_le_bytes(*b))
            .collect()
    }

    pub fn i32s(&self, name: &str) -> Vec<i32> {
        let bytes = self.bytes(name);
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| i32::from_le_bytes(*b))
            .collect()
    }

    pub fn i64s(&self, name: &str) -> Vec<i64> {
        let bytes = self.bytes(name);
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| i64::from_le_bytes(*b))
            .collect()
    }

    /// Rows and columns of a case's input: a vector is one row.
    pub fn matrix(&self, name: &str) -> [usize; 2] {
        match self.shape(name)[..] {
            [n] => [1, n],
            [rows, cols] => [rows, cols],
            ref other => panic!("{name} has shape {other:?}"),
        }
    }
}

/// Numbers that repeat, about normal: sums of uniform ones.
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 16_777_216.0 - 0.5
    };
    (0..n)
        .map(|_| (0..6).map(|_| uniform()).sum::<f32>())
        .collect()
}
