//! What this crate quantizes, written and read back.

use crate::{bytes_of, common, dequantize};
use ferrotune_quant::files::bnb::{self, Bnb4Matrix};
use ferrotune_quant::files::{
    NewTensor, Safetensors, SafetensorsFile, SafetensorsWriter, Scheme, TorchDtype, compressed,
    mxfp4, packed,
};
use ferrotune_quant::{
    Cpu, Dynamic8, DynamicMap, Element, Format, Grouping, Int8, Int8Asymmetric, MxFp4, MxFp8E4m3,
    MxFp8E5m2, Nf4, NvFp4, Packed, Quantized, View, bf16, f16,
};
use safetensors::Dtype;

fn weight<T: Element>() -> Vec<T> {
    let values = common::random(24 * 128, 7);
    values.into_iter().map(T::from_f32).collect()
}

fn each_scheme<T: Element>() {
    let values = weight::<T>();
    let exact: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
    let amax = exact.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    let view = View::new(&values, 24, 128).unwrap();
    let cpu = Cpu::detect();
    let folder = tempfile::tempdir().unwrap();
    for scheme in Scheme::ALL {
        assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), *scheme);
        let path = folder.path().join(format!("{scheme}.safetensors"));
        let mut writer = SafetensorsWriter::new();
        writer.extend(scheme.quantize("model.layer", view, &cpu).unwrap());
        writer.write(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), writer.to_vec().unwrap());

        let file = SafetensorsFile::open(&path).unwrap();
        let file = file.tensors();
        assert_eq!(file.metadata("format"), Some("pt"));
        assert_eq!(Scheme::layers(&file), [("model.layer".into(), *scheme)]);
        let matrix = scheme.read(&file, "model.layer").unwrap();
        assert_eq!(matrix.shape(), [24, 128]);
        for (found, exact) in dequantize(&*matrix).iter().zip(&exact) {
            // No scheme's worst case is more than a quarter of amax.
            assert!((found - exact).abs() <= amax / 4.0, "{scheme}");
        }
        // Products take what was read.
        let packed = Packed::new(&*matrix, &cpu).unwrap();
        let near = dequantize(&packed);
        for (found, value) in near.iter().zip(dequantize(&*matrix)) {
            assert!((found - value).abs() <= value.abs() * 1e-6, "{scheme}");
        }
    }
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
    assert_eq!(left.len(), Scheme::ALL.len(), "temporary files are gone");
}

#[test]
fn every_scheme_is_read_back() {
    each_scheme::<f32>();
    each_scheme::<f16>();
    each_scheme::<bf16>();
}

#[test]
fn bitsandbytes_keeps_every_bit() {
    let (values, cpu) = (weight::<f32>(), Cpu::detect());
    // Blocks that run across rows, and a last byte with one code.
    let view = View::new(&values[..35 * 37], 35, 37).unwrap();
    let matrix = Quantized::new(Nf4::new(256).unwrap(), view, &cpu).unwrap();
    let bytes = bytes_of(bnb::tensors4("odd", &matrix, TorchDtype::F16, None).unwrap());
    let file = Safetensors::new("memory", &bytes).unwrap();
    let read = bnb::read4(&file, "odd").unwrap();
    assert_eq!(read.matrix, Bnb4Matrix::Nf4(matrix));
    assert_eq!((read.dtype, read.shape), (TorchDtype::F16, vec![35, 37]));
}

#[test]
fn experts_keep_every_bit() {
    let (values, cpu) = (weight::<f32>(), Cpu::detect());
    let part = |i: usize| View::new(&values[i * 768..][..768], 12, 64).unwrap();
    let experts: Vec<_> = (0..4)
        .map(|i| Quantized::new(MxFp4::default(), part(i), &cpu).unwrap())
        .collect();
    let bytes = bytes_of(mxfp4::tensors("mlp.experts.down_proj", &experts).unwrap());
    let file = Safetensors::new("memory", &bytes).unwrap();
    let read = mxfp4::read(&file, "mlp.experts.down_proj").unwrap();
    assert_eq!((read.len(), read.shape()), (4, [12, 64]));
    for (i, expert) in experts.iter().enumerate() {
        assert_eq!(read.expert(i).unwrap(), *expert);
    }
    assert!(
        read.expert(4)
            .unwrap_err()
            .to_string()
            .contains("expert 4 of 4")
    );
    let short = Quantized::new(MxFp4::default(), part(0), &cpu).unwrap();
    let wide = View::new(&values[..768], 6, 128).unwrap();
    let wide = Quantized::new(MxFp4::default(), wide, &cpu).unwrap();
    assert!(mxfp4::tensors("p", &[short, wide]).is_err());
}

#[test]
fn pack_quantized_saturates_at_the_positive_end() {
    let values = [7.5_f32, -7.5, 0.0, 3.75, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let matrix = compressed::PackQuantized::quantize(View::new(&values, 1, 10).unwrap(), 5);
    let matrix = matrix.unwrap();
    let expected = [7.0, -8.0, 0.0, 4.0, 0.0];
    assert_eq!(matrix.dequantize()[..5], expected);
    let bytes = bytes_of(matrix.tensors("p"));
    let file = Safetensors::new("memory", &bytes).unwrap();
    assert_eq!(compressed::read(&file, "p").unwrap(), matrix);
}

fn packed_is_kept<F: Format>(format: F) {
    let (values, cpu) = (weight::<f32>(), Cpu::detect());
    let view = View::new(&values, 24, 128).unwrap();
    let matrix = Packed::new(&Quantized::new(format, view, &cpu).unwrap(), &cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packed.safetensors");
    let mut writer = SafetensorsWriter::new();
    writer.extend(packed::tensors("p", &matrix).unwrap());
    writer.write(&path).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    let read = packed::read(&file.tensors(), "p").unwrap();
    assert_eq!(read, matrix);
    assert_eq!(read.codes().as_ptr().addr() % 64, 0, "on a cache line");
    let codes = file.tensors().tensor("p.packed_codes").unwrap().data();
    assert_eq!(read.codes().as_ptr(), codes.as_ptr(), "borrowed");
}

#[test]
fn packed_matrices_are_mapped() {
    packed_is_kept(Nf4::new(64).unwrap());
    packed_is_kept(ferrotune_quant::Fp4::new(64).unwrap());
    packed_is_kept(Int8(Grouping::Row));
    packed_is_kept(Int8Asymmetric(Grouping::Block(32)));
    packed_is_kept(MxFp4::default());
    packed_is_kept(MxFp8E4m3::default());
    packed_is_kept(MxFp8E5m2::default());
    packed_is_kept(NvFp4);
    packed_is_kept(Dynamic8::new(DynamicMap::Signed, 64).unwrap());
    packed_is_kept(Dynamic8::new(DynamicMap::Unsigned, 64).unwrap());
}

/// A zero point for each group, of whatever dtype its scales are.
#[test]
fn a_matrix_with_zero_points_is_packed() {
    let file = crate::open("ct_pack_quantized");
    let prefix = "model.layers.0.self_attn.k_proj";
    let matrix = compressed::read(&file.tensors(), prefix).unwrap();
    assert!(matrix.zeros().is_some());
    assert_eq!(
        (matrix.bits(), matrix.group(), matrix.scales().len()),
        (4, 128, 40)
    );
    let packed = Packed::new(&matrix, &Cpu::detect()).unwrap();
    for (found, value) in dequantize(&packed).iter().zip(matrix.dequantize()) {
        assert!((found - value).abs() <= 1e-6, "{found} {value}");
    }
}

#[test]
fn a_failed_write_leaves_the_file_that_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, b"before").unwrap();
    let mut writer = SafetensorsWriter::new();
    let file = crate::open("bnb_nf4");
    for tensor in crate::copied(&file.tensors()) {
        writer.add(tensor.clone());
        writer.add(tensor);
    }
    let error = writer.write(&path).unwrap_err().to_string();
    assert!(error.contains("the name is taken"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"before");
    let missing = folder.path().join("no/such/folder/model.safetensors");
    let error = SafetensorsWriter::new().write(&missing).unwrap_err();
    assert!(error.to_string().contains("no/such/folder"), "{error}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

/// 8 bits: four codes to a word, plus 128, and zero points down the rows.
#[test]
fn pack_quantized_of_8_bits() {
    let tensor = |name: &str, dtype, shape: &[usize], data: Vec<u8>| NewTensor {
        name: format!("p.{name}"),
        dtype,
        shape: shape.to_vec(),
        data: data.into(),
    };
    let mut codes = [128; 24];
    (codes[0], codes[3], codes[9], codes[13]) = (0, 255, 130, 126);
    let sides = [2_i64, 10].iter().flat_map(|n| n.to_le_bytes()).collect();
    let scales = [0.5_f32, 2.0]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let bytes = bytes_of([
        tensor("weight_packed", Dtype::I32, &[2, 3], codes.to_vec()),
        tensor("weight_scale", Dtype::F32, &[2, 1], scales),
        tensor("weight_shape", Dtype::I64, &[2], sides),
        tensor(
            "weight_zero_point",
            Dtype::I32,
            &[1, 1],
            vec![129, 118, 0, 0],
        ),
    ]);
    let file = Safetensors::new("memory", &bytes).unwrap();
    let matrix = compressed::read(&file, "p").unwrap();
    assert_eq!((matrix.bits(), matrix.zeros().unwrap()), (8, &[1, -10][..]));
    let mut expected = [[-0.5_f32; 10], [20.0; 10]];
    (expected[0][0], expected[0][3], expected[0][9]) = (-64.5, 63.0, 0.5);
    expected[1][1] = 16.0;
    assert_eq!(matrix.dequantize(), expected.concat());
    for tensor in matrix.tensors("p") {
        // Zero points beyond the rows are written as 0.
        assert_eq!(tensor, file.tensor(&tensor.name).unwrap().into());
    }
    let packed = Packed::new(&matrix, &Cpu::detect()).unwrap();
    assert_eq!(dequantize(&packed), expected.concat());
}
