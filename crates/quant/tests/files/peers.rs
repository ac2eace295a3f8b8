//! Files that bitsandbytes, compressed-tensors and others wrote.

use crate::{RECORDED, bytes_of, common, copied, dequantize, open, recorded};
use ferrotune_quant::files::bnb::{self, Bnb4Matrix};
use ferrotune_quant::files::nvfp4::{self, NvFp4Keys};
use ferrotune_quant::files::{Mapped, NewTensor, Safetensors, Scheme, compressed, mxfp4};
use ferrotune_quant::{Cpu, NestedAbsmax, Quantized};
use safetensors::Dtype;

#[test]
fn values_are_the_peers() {
    for (name, rounded) in RECORDED {
        let file = open(name);
        let file = file.tensors();
        let expected = common::Recorded::open(&format!("files/{name}.expected.safetensors"));
        let layers = Scheme::layers(&file);
        assert_eq!(layers.len(), expected.names().len(), "{name}");
        for (prefix, scheme) in layers {
            let found = match scheme {
                Scheme::MxFp4 => {
                    let experts = mxfp4::read(&file, &prefix).unwrap();
                    let experts = (0..experts.len()).map(|i| experts.expert(i).unwrap());
                    experts.flat_map(|matrix| dequantize(&matrix)).collect()
                }
                _ => dequantize(&*scheme.read(&file, &prefix).unwrap()),
            };
            let expected = expected.floats(&format!("{prefix}.weight"));
            assert_eq!(found.len(), expected.len());
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let allowed = if rounded { expected.abs() * 2e-7 } else { 0.0 };
                assert!(
                    (found - expected).abs() <= allowed,
                    "{name}, {prefix}, element {i}: {found:e}, peer {expected:e}"
                );
            }
        }
    }
}

/// What was read is written as it was, byte for byte.
#[test]
fn files_are_written_as_the_peers_wrote_them() {
    for (name, _) in RECORDED {
        let file = open(name);
        let file = file.tensors();
        for (prefix, scheme) in Scheme::layers(&file) {
            let same = |tensors: Vec<NewTensor>| {
                assert!(tensors.len() > 1);
                for tensor in tensors {
                    let original = NewTensor::from(file.tensor(&tensor.name).unwrap());
                    if tensor.name.ends_with("weight_global_scale") {
                        // A reciprocal of a reciprocal.
                        let one = |tensor: &NewTensor| {
                            f32::from_le_bytes(tensor.data[..4].try_into().unwrap())
                        };
                        assert!((one(&tensor) / one(&original) - 1.0).abs() < 2e-7);
                        assert_eq!(tensor.shape, original.shape);
                    } else {
                        assert_eq!(tensor, original, "{name}");
                    }
                }
            };
            match scheme {
                Scheme::Int8 => {
                    let matrix = bnb::read8(&file, &prefix).unwrap();
                    same(bnb::tensors8(&prefix, &matrix));
                }
                Scheme::Int4 => {
                    same(compressed::read(&file, &prefix).unwrap().tensors(&prefix));
                }
                Scheme::MxFp4 => {
                    let experts = mxfp4::read(&file, &prefix).unwrap();
                    let all: Vec<_> = (0..experts.len())
                        .map(|i| experts.expert(i).unwrap())
                        .collect();
                    same(mxfp4::tensors(&prefix, &all).unwrap());
                }
                Scheme::NvFp4 => {
                    let keys = NvFp4Keys::CompressedTensors;
                    let layer = nvfp4::read(&file, &prefix, keys).unwrap();
                    same(nvfp4::tensors(&prefix, &layer, keys).unwrap());
                }
                _ => {
                    let layer = bnb::read4(&file, &prefix).unwrap();
                    same(layer.tensors(&prefix).unwrap());
                }
            }
        }
    }
}

#[test]
fn codes_are_borrowed_and_unaligned_scales_copied() {
    let mapped = Mapped::open(recorded("bnb_nf4.safetensors")).unwrap();
    let mut shifted = vec![0; mapped.len() + 8];
    for offset in 0..8 {
        let bytes = &mut shifted[offset..][..mapped.len()];
        bytes.copy_from_slice(&mapped);
        let file = Safetensors::new("shifted", bytes).unwrap();
        let prefix = "model.layers.0.self_attn.q_proj";
        let Bnb4Matrix::Nf4(matrix) = bnb::read4(&file, prefix).unwrap().matrix else {
            panic!("not nf4");
        };
        assert!(bytes.as_ptr_range().contains(&matrix.codes().as_ptr()));
        let absmax = file.tensor(&format!("{prefix}.weight.absmax")).unwrap();
        let aligned = absmax.data().as_ptr().addr() % 4 == 0;
        let scales = matrix.scales().as_ptr().cast::<u8>();
        assert_eq!(bytes.as_ptr_range().contains(&scales), aligned);
        let expected = common::Recorded::open("files/bnb_nf4.expected.safetensors");
        assert_eq!(
            dequantize(&matrix),
            expected.floats(&format!("{prefix}.weight"))
        );
    }
}

/// Codes, scales and offset of double quantization, from the f32 absmax that bitsandbytes recorded.
#[test]
fn nested_absmax_is_that_of_bitsandbytes() {
    let file = common::Recorded::open("bnb4.safetensors");
    let names = file.names();
    let names = names
        .iter()
        .filter_map(|name| name.strip_suffix(".nested.offset"));
    let mut compared = 0;
    for name in names {
        if !file.has(&format!("{name}.absmax")) {
            continue;
        }
        compared += 1;
        let absmax = file.floats(&format!("{name}.absmax"));
        let nested = NestedAbsmax::new(&absmax, &Cpu::detect()).unwrap();
        let offset = file.floats(&format!("{name}.nested.offset"))[0];
        let part = |part: &str| format!("{name}.nested.{part}");
        assert!((nested.offset() - offset).abs() <= offset * 3e-7, "{name}");
        let largest = absmax.iter().fold(0.0_f32, |a, b| a.max(*b));
        // The peer's expansion of its own parts.
        let codes = file.bytes(&part("absmax"));
        let scales = file.floats(&part("nested_absmax"));
        let map = ferrotune_quant::SIGNED_MAP;
        for (i, found) in nested.expand().iter().enumerate() {
            let expected = map[usize::from(codes[i])] * scales[i / 256] + offset;
            // torch sums in an order of its own: the offset may be another by some units.
            let allowed = if nested.offset() == offset {
                0.0
            } else {
                largest * 1e-6
            };
            assert!((found - expected).abs() <= allowed, "{name} {i}");
        }
    }
    assert!(compared >= 8, "{compared} cases");
}

#[test]
fn other_storage_types_hold_the_same_codes() {
    let file = open("bnb_nf4");
    let prefix = "model.layers.0.self_attn.q_proj";
    let expected = bnb::read4(&file.tensors(), prefix).unwrap();
    for (dtype, bytes) in [(Dtype::BF16, 2), (Dtype::F16, 2), (Dtype::F32, 4)] {
        let mut tensors = copied(&file.tensors());
        for tensor in &mut tensors {
            if tensor.name == format!("{prefix}.weight") {
                tensor.dtype = dtype;
                tensor.shape[0] /= bytes;
            }
        }
        let bytes = bytes_of(tensors);
        let file = Safetensors::new("stored otherwise", &bytes).unwrap();
        assert_eq!(bnb::read4(&file, prefix).unwrap(), expected);
    }
}

/// Keys and directions of ModelOpt, which has no recorded file: the same codes and scales as those of
/// compressed-tensors, the factor instead of its inverse.
#[test]
fn modelopt_stores_the_factor() {
    let file = open("ct_nvfp4");
    let prefix = "model.layers.0.self_attn.k_proj";
    let layer = nvfp4::read(&file.tensors(), prefix, NvFp4Keys::CompressedTensors).unwrap();
    let divisor = file
        .tensors()
        .tensor(&format!("{prefix}.weight_global_scale"));
    let divisor = divisor.unwrap().scalar().unwrap();
    let bytes = bytes_of(nvfp4::tensors(prefix, &layer, NvFp4Keys::ModelOpt).unwrap());
    let written = Safetensors::new("modelopt", &bytes).unwrap();
    let factor = written.tensor(&format!("{prefix}.weight_scale_2")).unwrap();
    assert_eq!(factor.shape(), [0_usize; 0]);
    assert_eq!(factor.scalar().unwrap(), 1.0 / divisor);
    assert_eq!(Scheme::of(&written, prefix), Some(Scheme::NvFp4ModelOpt));
    let read = nvfp4::read(&written, prefix, NvFp4Keys::ModelOpt).unwrap();
    assert_eq!(read, layer);
    let _: &Quantized<_> = &read.matrix;
}
