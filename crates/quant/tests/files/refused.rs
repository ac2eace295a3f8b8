//! Files that were cut short, or lie: an error each, which names file and key.

use crate::{RECORDED, bytes_of, copied, named, open, recorded};
use ferrotune_quant::files::{
    Mapped, NewTensor, Result, Safetensors, SafetensorsFile, SafetensorsWriter, Scheme,
};
use ferrotune_quant::{Cpu, View};
use safetensors::Dtype;

pub const Q: &str = "model.layers.0.self_attn.q_proj";
pub const K: &str = "model.layers.0.self_attn.k_proj";

pub fn read(bytes: &[u8], scheme: Scheme, prefix: &str) -> Result<()> {
    let file = Safetensors::new("lies.safetensors", bytes)?;
    scheme.read(&file, prefix).map(drop)
}

pub fn says(result: Result<()>, words: &[&str]) {
    let error = result.expect_err(&format!("{words:?}")).to_string();
    for word in words.iter().chain(&["lies.safetensors"]) {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

/// Changes a tensor of a recorded file, and expects an error about it.
pub fn refused<E: FnOnce(&mut NewTensor)>(
    name: &str,
    scheme: Scheme,
    key: &str,
    edit: E,
    words: &[&str],
) {
    let file = open(name);
    let mut tensors = copied(&file.tensors());
    edit(named(&mut tensors, key));
    says(read(&bytes_of(tensors), scheme, prefix(key)), words);
}

pub fn prefix(key: &str) -> &str {
    [Q, K]
        .into_iter()
        .find(|prefix| key.starts_with(prefix))
        .unwrap_or("")
}

pub fn floats(tensor: &mut NewTensor, place: usize, value: f32) {
    tensor.data.to_mut()[4 * place..][..4].copy_from_slice(&value.to_le_bytes());
}

pub fn text(tensor: &mut NewTensor, from: &str, to: &str) {
    let text = String::from_utf8(tensor.data.to_vec()).unwrap();
    assert!(text.contains(from), "{text}");
    let text = text.replace(from, to);
    tensor.shape = vec![text.len()];
    tensor.data = text.into_bytes().into();
}

pub fn of_type(tensor: &mut NewTensor, dtype: Dtype) {
    tensor.shape = vec![tensor.data.len() * 8 / dtype.bitsize()];
    tensor.dtype = dtype;
}

#[test]
fn files_cut_short() {
    let names = RECORDED.iter().map(|(name, _)| *name);
    for name in names.chain(["gptq", "gptq_v2", "awq"]) {
        let bytes = std::fs::read(recorded(&format!("{name}.safetensors"))).unwrap();
        for length in (0..bytes.len()).step_by(64).chain([1, 7, 8, 9]) {
            let file = Safetensors::new("lies.safetensors", &bytes[..length]);
            says(file.map(drop), &[]);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.safetensors");
    std::fs::write(&path, []).unwrap();
    assert!(Mapped::open(&path).unwrap().is_empty());
    let error = SafetensorsFile::open(&path).unwrap_err().to_string();
    assert!(error.contains("empty.safetensors: not a safetensors file: 0 bytes"));
    let missing = SafetensorsFile::open(folder.path().join("none")).unwrap_err();
    assert!(missing.to_string().contains("none: "));
}

/// A header as it stands, and so many bytes of data.
fn raw(header: &str, data: usize) -> Result<()> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    Safetensors::new("lies.safetensors", &bytes).map(drop)
}

#[test]
fn headers_that_lie() {
    let with_length = |n: u64| {
        let bytes = [&n.to_le_bytes()[..], b"{}"].concat();
        Safetensors::new("lies.safetensors", &bytes).map(drop)
    };
    says(
        with_length(u64::MAX),
        &["18446744073709551615", "2 are left"],
    );
    says(with_length(100_000_001), &["100000001"]);
    says(with_length(3), &["a header of 3 bytes"]);
    says(with_length(1), &["not a safetensors header"]);
    assert!(with_length(2).is_ok());
    let tensor = |shape: &str, offsets: &str| {
        format!(r#"{{"t": {{"dtype": "U8", "shape": {shape}, "data_offsets": {offsets}}}}}"#)
    };
    assert!(raw(&tensor("[4]", "[0, 4]"), 4).is_ok());
    says(raw(&tensor("[4]", "[0, 4]"), 5), &["4 bytes", "has 5"]);
    says(raw(&tensor("[4]", "[0, 4]"), 3), &["4 bytes", "has 3"]);
    says(raw(&tensor("[4]", "[1, 5]"), 5), &[]);
    says(raw(&tensor("[4]", "[4, 0]"), 4), &[]);
    says(raw(&tensor("[5]", "[0, 4]"), 4), &[]);
    says(raw(&tensor("[-1]", "[0, 4]"), 4), &[]);
    says(raw(&tensor("[4294967296, 4294967296]", "[0, 0]"), 0), &[]);
    // safetensors 0.7 adds the sum of these to the length of the header, unchecked.
    let eighth = usize::MAX / 8;
    let tensors = (0..8).map(|i| {
        let (begin, end) = (i * eighth, (i + 1) * eighth);
        format!(
            r#""{i}": {{"dtype": "U8", "shape": [{eighth}], "data_offsets": [{begin}, {end}]}}"#
        )
    });
    let tensors: Vec<_> = tensors.collect();
    says(
        raw(&format!("{{{}}}", tensors.join(",")), 4),
        &["has 4", "18446744073709551608"],
    );
    says(
        raw(
            r#"{"t": {"dtype": "X9", "shape": [1], "data_offsets": [0, 1]}}"#,
            1,
        ),
        &["X9"],
    );
    says(raw("{\"t\": \u{1}}", 0), &[]);
}

#[test]
fn keys_that_are_not_there() {
    for (name, _) in RECORDED {
        let file = open(name);
        let file = file.tensors();
        let (prefix, scheme) = Scheme::layers(&file).remove(0);
        let mut missing = 0;
        for key in file.names().iter().filter(|key| key.starts_with(&prefix)) {
            let rest: Vec<_> = copied(&file)
                .into_iter()
                .filter(|t| t.name != **key)
                .collect();
            match read(&bytes_of(rest), scheme, &prefix) {
                // A bias, or what older files lack, or what makes it another layout.
                Ok(()) => assert!(
                    ["bias", "weight_format", "weight_zero_point"]
                        .iter()
                        .any(|end| key.ends_with(end)),
                    "{key}"
                ),
                other if key.ends_with("nested_absmax") => says(other, &["absmax is U8"]),
                other => {
                    missing += 1;
                    // Whether it was to be NF4 or FP4 nobody can tell.
                    let key = key.split("__").next().unwrap();
                    says(other, &["there is no tensor", key]);
                }
            }
        }
        assert!(missing >= 2, "{name}");
    }
}

#[test]
fn schemes_that_there_are_not() {
    let error = "nf5".parse::<Scheme>().unwrap_err().to_string();
    assert!(
        error.contains("\"nf5\"") && error.contains("nf4-nested, fp4"),
        "{error}"
    );
    let view = View::new(&[1.0_f32; 30], 3, 10).unwrap();
    for (scheme, words) in [
        (Scheme::MxFp4, "p_blocks: rows of 10"),
        (Scheme::NvFp4, "p.weight_packed: rows of 10"),
    ] {
        let error = scheme
            .quantize("p", view, &Cpu::detect())
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
    }
    let mut values = [1.0_f32; 32];
    values[5] = f32::NAN;
    for scheme in Scheme::ALL {
        let view = View::new(&values, 1, 32).unwrap();
        let error = scheme
            .quantize("p", view, &Cpu::detect())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("p: element 5"), "{scheme}: {error}");
    }
    let mut writer = SafetensorsWriter::new();
    writer.add(NewTensor {
        name: "t".into(),
        dtype: Dtype::F32,
        shape: vec![3],
        data: vec![0; 11].into(),
    });
    let error = writer.to_vec().unwrap_err().to_string();
    assert!(
        error.contains("t: 11 bytes for the type F32 and the shape [3]"),
        "{error}"
    );
}
