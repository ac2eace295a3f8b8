//! The peers themselves read what is written here.

use crate::common;
use ferrotune_quant::files::gguf::{GgmlType, GgufWriter, Value};
use ferrotune_quant::files::{NewTensor, Safetensors, SafetensorsWriter, Scheme};
use ferrotune_quant::{Cpu, View, bf16};
use safetensors::Dtype;
use std::path::{Path, PathBuf};
use std::process::Command;

fn check(kind: &str, file: &Path, expected: &Path) {
    let python = std::env::var("FERROTUNE_PEERS").expect("FERROTUNE_PEERS names a python");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../peers/check_quant.py");
    let output = Command::new(python)
        .arg(script)
        .args([Path::new(kind), file, expected])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{kind}, {}: {text}",
        file.display()
    );
}

fn expected(path: PathBuf, shape: &[usize], values: &[f32], name: &str) -> PathBuf {
    let data: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let mut writer = SafetensorsWriter::new();
    writer.add(NewTensor {
        name: name.into(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        data: data.into(),
    });
    writer.write(&path).unwrap();
    path
}

#[test]
#[ignore = "needs the live peers"]
fn peers_read_what_is_written() {
    let values: Vec<bf16> = common::random(48 * 256, 11)
        .into_iter()
        .map(bf16::from_f32)
        .collect();
    let view = View::new(&values, 48, 256).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (scheme, kind) in [
        (Scheme::Nf4, "bnb4"),
        (Scheme::Nf4Nested, "bnb4"),
        (Scheme::Fp4, "bnb4"),
        (Scheme::Fp4Nested, "bnb4"),
        (Scheme::Int8, "bnb8"),
        (Scheme::Int4, "ct"),
        (Scheme::MxFp4, "mxfp4"),
        (Scheme::NvFp4, "ct"),
        (Scheme::Gptq, "gptq"),
        (Scheme::Awq, "awq"),
    ] {
        let path = folder.path().join(format!("{scheme}.safetensors"));
        let mut writer = SafetensorsWriter::new();
        writer.extend(scheme.quantize("p", view, &Cpu::detect()).unwrap());
        writer.write(&path).unwrap();
        let bytes = writer.to_vec().unwrap();
        let file = Safetensors::new(&path, &bytes).unwrap();
        let values = crate::dequantize(&*scheme.read(&file, "p").unwrap());
        let shape: &[usize] = match scheme {
            Scheme::MxFp4 => &[1, 48, 256],
            _ => &[48, 256],
        };
        let beside = folder.path().join(format!("{scheme}.expected.safetensors"));
        check(kind, &path, &expected(beside, shape, &values, "p.weight"));
    }
}

#[test]
#[ignore = "needs the live peers"]
fn gguf_reads_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let values = common::random(6 * 32, 5);
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let mut writer = GgufWriter::new();
    writer.metadata("general.architecture", Value::Text("llama".into()));
    writer.tensor("w", GgmlType::F32, &[6, 32], bytes);
    writer.write(&path).unwrap();
    let beside = folder.path().join("expected.safetensors");
    check("gguf", &path, &expected(beside, &[6, 32], &values, "w"));
}
