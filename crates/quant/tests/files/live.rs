//! The peers themselves read what is written here.

use crate::{common, dequantize};
use ferrotune_quant::files::gguf::{GgmlType, Gguf, GgufWriter, Value};
use ferrotune_quant::files::{Mapped, NewTensor, Safetensors, SafetensorsWriter, Scheme};
use ferrotune_quant::{Cpu, KQuant, Matrix, Q4_0, Q4K, Q6K, Q8_0, Quantized, View, bf16};
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

fn expected(path: PathBuf, shape: &[usize], all: &[(&str, Vec<f32>)]) -> PathBuf {
    let mut writer = SafetensorsWriter::new();
    for (name, values) in all {
        let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.add(NewTensor {
            name: (*name).into(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            data: data.into(),
        });
    }
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
        let values = dequantize(&*scheme.read(&file, "p").unwrap());
        let shape: &[usize] = match scheme {
            Scheme::MxFp4 => &[1, 48, 256],
            _ => &[48, 256],
        };
        let beside = folder.path().join(format!("{scheme}.expected.safetensors"));
        check(
            kind,
            &path,
            &expected(beside, shape, &[("p.weight", values)]),
        );
    }
}

#[test]
#[ignore = "needs the live peers"]
fn gguf_reads_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let values = common::random(3 * 512, 5);
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let cpu = Cpu::detect();
    let view = View::new(&values, 3, 512).unwrap();
    let q8 = Quantized::new(Q8_0, view, &cpu).unwrap();
    let q4 = Quantized::new(Q4_0, view, &cpu).unwrap();
    let q4k = KQuant::<Q4K>::new(view, &cpu).unwrap();
    let q6k = KQuant::<Q6K>::new(view, &cpu).unwrap();
    let mut writer = GgufWriter::new();
    writer.metadata("general.architecture", Value::Text("llama".into()));
    writer.tensor("f32", GgmlType::F32, &[3, 512], bytes);
    writer.quantized("q8_0", &q8).unwrap();
    writer.quantized("q4_0", &q4).unwrap();
    writer.k_quant("q4_k", &q4k);
    writer.k_quant("q6_k", &q6k);
    writer.write(&path).unwrap();
    let mapped = Mapped::open(&path).unwrap();
    let file = Gguf::new(&path, &mapped).unwrap();
    let matrices: [(&str, &dyn Matrix); 4] =
        [("q8_0", &q8), ("q4_0", &q4), ("q4_k", &q4k), ("q6_k", &q6k)];
    let mut all = vec![("f32", values)];
    for (name, matrix) in matrices {
        let values = dequantize(matrix);
        assert_eq!(dequantize(&*file.matrix(name).unwrap()), values, "{name}");
        all.push((name, values));
    }
    let beside = expected(folder.path().join("expected.safetensors"), &[3, 512], &all);
    check("gguf", &path, &beside);
}
