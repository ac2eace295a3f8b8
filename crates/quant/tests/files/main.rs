//! Files of the real peers, read, compared and written again; what was quantized here, written and read
//! back; and files that lie.
#![cfg(feature = "files")]
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod gguf;
mod int4;
mod lies;
mod lies_bnb;
mod live;
mod peers;
mod refused;
mod round_trip;

use ferrotune_quant::Matrix;
use ferrotune_quant::files::{NewTensor, Safetensors, SafetensorsFile, SafetensorsWriter};
use std::path::PathBuf;

/// The recorded files with tensors, and whether a peer's arithmetic leaves the last place of an f32 open.
const RECORDED: [(&str, bool); 7] = [
    ("bnb_nf4", false),
    ("bnb_nf4_nested", false),
    ("bnb_fp4", false),
    ("bnb_int8", false),
    ("ct_pack_quantized", false),
    ("ct_nvfp4", true),
    ("mxfp4_gpt_oss", false),
];

fn recorded(name: &str) -> PathBuf {
    common::fixtures().join("files").join(name)
}

fn open(name: &str) -> SafetensorsFile {
    SafetensorsFile::open(recorded(&format!("{name}.safetensors"))).unwrap()
}

fn dequantize(matrix: &dyn Matrix) -> Vec<f32> {
    let [rows, cols] = matrix.shape();
    let mut out = vec![0.0; rows * cols];
    for (row, out) in out.chunks_mut(cols).enumerate() {
        matrix.dequantize_row(row, out);
    }
    out
}

/// All tensors of a file, to be written again.
fn copied<'a>(file: &Safetensors<'a>) -> Vec<NewTensor<'a>> {
    let names = file.names().into_iter();
    names
        .map(|name| file.tensor(&name).unwrap().into())
        .collect()
}

/// The tensor of a name.
fn named<'t, 'a>(tensors: &'t mut [NewTensor<'a>], name: &str) -> &'t mut NewTensor<'a> {
    let tensor = tensors.iter_mut().find(|tensor| tensor.name == name);
    tensor.unwrap_or_else(|| panic!("there is no {name}"))
}

fn bytes_of<'a>(tensors: impl IntoIterator<Item = NewTensor<'a>>) -> Vec<u8> {
    let mut writer = SafetensorsWriter::new();
    writer.extend(tensors);
    writer.to_vec().unwrap()
}
