//! GGUF files.

use crate::{common, recorded};
use ferrotune_quant::files::Mapped;
use ferrotune_quant::files::gguf::{Array, GgmlType, Gguf, GgufWriter, Value};
use std::borrow::Cow;

fn refused(bytes: &[u8], words: &[&str]) {
    let error = Gguf::new("lies.gguf", bytes).unwrap_err().to_string();
    for word in words.iter().chain(&["lies.gguf"]) {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

#[test]
fn metadata_and_tensors_are_the_peers() {
    let mapped = Mapped::open(recorded("sample.gguf")).unwrap();
    let file = Gguf::new(mapped.path(), &mapped).unwrap();
    assert_eq!(file.version(), 3);
    let value = |key: &str| file.value(key).unwrap_or_else(|| panic!("{key}"));
    assert_eq!(value("general.architecture").as_str(), Some("llama"));
    assert_eq!(value("sample.string").as_str(), Some("größe\n"));
    assert_eq!(*value("sample.uint8"), Value::U8(7));
    assert_eq!(*value("sample.int8"), Value::I8(-7));
    assert_eq!(*value("sample.int16"), Value::I16(-7));
    assert_eq!(*value("sample.int32"), Value::I32(-7));
    assert_eq!(*value("sample.int64"), Value::I64(-7));
    assert_eq!(value("sample.uint64").as_u64(), Some(7));
    assert_eq!(value("sample.int64").as_u64(), None);
    assert_eq!(*value("sample.float32"), Value::F32(0.1));
    assert_eq!(*value("sample.float64"), Value::F64(0.1));
    assert_eq!(*value("sample.bool"), Value::Bool(true));
    let tokens = ["<s>", "", "▁a", "日本"].map(Cow::Borrowed).to_vec();
    assert_eq!(
        *value("tokenizer.ggml.tokens"),
        Value::Array(Array::Text(tokens))
    );
    let Value::Array(Array::Array(nested)) = value("sample.nested") else {
        panic!("{:?}", value("sample.nested"));
    };
    assert_eq!(nested.iter().map(Array::len).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(
        *value("sample.bools"),
        Value::Array(Array::Bool(vec![true, false]))
    );

    let expected = common::Recorded::open("files/sample.expected.safetensors");
    let mut names: Vec<_> = file.names().collect();
    names.sort();
    assert_eq!(names, expected.names());
    for tensor in file.tensors() {
        assert_eq!(tensor.shape, expected.shape(tensor.name));
        assert!(
            mapped.as_ptr_range().contains(&tensor.data.as_ptr()),
            "borrowed"
        );
        let found = match tensor.floats() {
            Some(found) => found.into_owned(),
            None => crate::dequantize(&*file.matrix(tensor.name).unwrap()),
        };
        assert_eq!(found, expected.floats(tensor.name), "{}", tensor.name);
    }
    let tensor = file.tensor("blk.0.ffn_up.weight").unwrap();
    assert_eq!(
        (tensor.kind, tensor.matrix_shape()),
        (GgmlType::Q4_K, [3, 512])
    );
    assert_eq!(tensor.data.len(), 3 * 2 * 144);
    assert_eq!(
        file.tensor("blk.0.attn_q.weight").unwrap().kind.to_string(),
        "Q8_0"
    );
    assert!(
        file.tensor("output")
            .unwrap_err()
            .to_string()
            .contains("no tensor output")
    );
}

/// The peer's file, written again, is the peer's file.
#[test]
fn a_file_is_written_as_the_peer_wrote_it() {
    let bytes = std::fs::read(recorded("sample.gguf")).unwrap();
    let file = Gguf::new("sample.gguf", &bytes).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("again.gguf");
    let writer = GgufWriter::try_from(&file).unwrap();
    writer.write(&path).unwrap();
    let written = std::fs::read(&path).unwrap();
    assert_eq!(written, writer.to_vec().unwrap());
    let again = Gguf::new("again.gguf", &written).unwrap();
    assert_eq!(again.metadata(), file.metadata());
    assert!(again.tensors().eq(file.tensors()));
    assert_eq!(written.len(), bytes.len());
    assert!(written == bytes, "as gguf-py writes it");
}

#[test]
fn values_of_every_type_are_read_back() {
    let mut writer = GgufWriter::new();
    let nested = Array::Array(vec![
        Array::Text(vec!["a".into(), "".into()]),
        Array::Array(vec![]),
        Array::F64(vec![f64::MIN, 0.5].into()),
    ]);
    let values = [
        Value::U16(u16::MAX),
        Value::U32(7),
        Value::F32(-0.0),
        Value::Array(nested),
        Value::Array(Array::U8(vec![1, 2, 3].into())),
        Value::Array(Array::I64(vec![i64::MIN].into())),
        Value::Text("ü".into()),
    ];
    for (i, value) in values.iter().enumerate() {
        writer.metadata(&format!("key.{i}"), value.clone());
    }
    writer.metadata("general.alignment", Value::U32(64));
    writer.tensor("a", GgmlType::Q8_0, &[3, 2, 64], vec![1; 12 * 34]);
    writer.tensor("b", GgmlType::F16, &[5], vec![2; 10]);
    writer.tensor("none", GgmlType::F32, &[0, 4], vec![]);
    let bytes = writer.to_vec().unwrap();
    let file = Gguf::new("memory", &bytes).unwrap();
    for (i, value) in values.iter().enumerate() {
        assert_eq!(file.value(&format!("key.{i}")), Some(value));
    }
    let tensor = file.tensor("a").unwrap();
    assert_eq!(
        (tensor.matrix_shape(), tensor.data),
        ([6, 64], &[1; 408][..])
    );
    assert_eq!(file.tensor("b").unwrap().data, [2; 10]);
    assert_eq!(bytes.len() % 64, 0);
    let again = GgufWriter::try_from(&file).unwrap().to_vec().unwrap();
    assert_eq!(again, bytes);
}

#[test]
fn what_is_not_a_tensor_is_not_written() {
    let unwritable = |kind, shape: &[usize], bytes: usize| {
        let mut writer = GgufWriter::new();
        writer.tensor("t", kind, shape, vec![0; bytes]);
        writer.to_vec().unwrap_err().to_string()
    };
    assert!(unwritable(GgmlType::Q4_0, &[2, 33], 36).contains("t: 36 bytes"));
    assert!(unwritable(GgmlType::F32, &[2], 7).contains("7 bytes"));
    assert!(unwritable(GgmlType(99), &[2], 7).contains("number 99"));
    assert!(unwritable(GgmlType::F32, &[1; 5], 4).contains("5 dimensions"));
    let mut writer = GgufWriter::new();
    writer.metadata("general.alignment", Value::U32(48));
    assert!(writer.to_vec().unwrap_err().to_string().contains("U32(48)"));
}

#[test]
fn files_cut_short_are_refused() {
    let bytes = std::fs::read(recorded("sample.gguf")).unwrap();
    let whole = Gguf::new("whole.gguf", &bytes).unwrap();
    let last = whole
        .tensors()
        .map(|tensor| tensor.data.as_ptr_range().end.addr() - bytes.as_ptr().addr());
    let needed = last.max().unwrap();
    for length in (0..bytes.len()).filter(|n| *n < 1024 || n % 64 == 0) {
        let file = Gguf::new("lies.gguf", &bytes[..length]);
        assert_eq!(file.is_ok(), length >= needed, "{length} bytes");
        if let Err(error) = file {
            assert!(error.to_string().contains("lies.gguf"), "{error}");
        }
    }
}

fn head(tensors: u64, entries: u64) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    bytes
}

/// A key and a type.
fn entry(key: &str, kind: u32) -> Vec<u8> {
    let mut bytes = (key.len() as u64).to_le_bytes().to_vec();
    bytes.extend(key.as_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes
}

#[test]
fn files_that_lie_are_refused() {
    refused(b"GGML....", &["not a GGUF file"]);
    refused(b"GGUF\0\0\0\x03", &["big-endian"]);
    refused(b"GGUF\x01\0\0\0", &["version 1"]);
    refused(&head(u64::MAX, 0), &["tensors", "18446744073709551615"]);
    refused(&head(0, u64::MAX), &["metadata entries"]);
    refused(&head(0, 1 << 40), &["metadata entries", "0 are left"]);

    let with = |parts: &[&[u8]]| [&head(0, 1), &parts.concat()[..], &[0; 64]].concat();
    let long = u64::MAX.to_le_bytes();
    refused(&with(&[&long]), &["metadata"]);
    refused(
        &with(&[&entry("k", 8), &long]),
        &["k: 18446744073709551615"],
    );
    refused(&with(&[&entry("k", 13)]), &["k: a value of type 13"]);
    refused(&with(&[&entry("k", 7), &[2]]), &["k: 2 is neither"]);
    refused(
        &with(&[&entry("k", 8), &3_u64.to_le_bytes(), &[0xff; 3]]),
        &["k: not UTF-8"],
    );
    for kind in [0_u32, 7, 8, 9, 12] {
        let array = [
            &entry("k", 9)[..],
            &kind.to_le_bytes(),
            &(1_u64 << 60).to_le_bytes(),
        ];
        refused(&with(&array), &["k: 1152921504606846976 of at least"]);
    }
    let one = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
    let deep = one.repeat(50);
    refused(
        &with(&[&entry("k", 9), &deep]),
        &["k: arrays in arrays more than 8 deep"],
    );
    refused(
        &with(&[&entry("general.alignment", 4), &3_u32.to_le_bytes()]),
        &["general.alignment: U32(3)"],
    );
    let twice = [&head(0, 2), &entry("k", 0)[..], &[1], &entry("k", 0), &[1]].concat();
    refused(&twice, &["k: the key is there twice"]);

    let tensor = |dims: &[u64], kind: u32, offset: u64| {
        let mut bytes = head(1, 0);
        bytes.extend(entry("w", dims.len() as u32));
        dims.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.resize(256, 0);
        bytes
    };
    assert!(Gguf::new("good", &tensor(&[8, 2], 0, 32)).is_ok());
    refused(&tensor(&[8, 2], 0, 33), &["w: offset 33"]);
    refused(
        &tensor(&[8, 2], 0, u64::MAX - 31),
        &["w: 64 bytes at offset"],
    );
    refused(&tensor(&[8, 200], 0, 0), &["w: 6400 bytes at offset 0"]);
    refused(&tensor(&[1 << 33, 1 << 33], 0, 0), &["w: shape"]);
    refused(&tensor(&[1; 5], 0, 0), &["w: 5 dimensions"]);
    refused(&tensor(&[33], 8, 0), &["w: rows of 33", "Q8_0"]);
    let bytes = tensor(&[33], 77, 32);
    let file = Gguf::new("lies.gguf", &bytes).unwrap();
    let error = file.tensor("w").unwrap_err().to_string();
    assert!(
        error.contains("lies.gguf: w: type number 77 at offset 32"),
        "{error}"
    );
    assert_eq!((file.names().count(), file.tensors().count()), (1, 0));
    let error = GgufWriter::try_from(&file).unwrap_err().to_string();
    assert!(error.contains("w: type number 77"), "not left out: {error}");
}
