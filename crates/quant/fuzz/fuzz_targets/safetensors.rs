//! Any bytes as a file: every layer that has a scheme is read, and every value computed.
#![no_main]

use ferrotune_quant::Matrix;
use ferrotune_quant::files::{Safetensors, Scheme, packed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Safetensors::new("fuzz", bytes) else {
        return;
    };
    for (prefix, scheme) in Scheme::layers(&file) {
        if let Ok(matrix) = scheme.read(&file, &prefix) {
            values(&*matrix);
        }
    }
    for name in file.names() {
        if let Some(prefix) = name.strip_suffix(".packed_structure")
            && let Ok(matrix) = packed::read(&file, prefix)
        {
            values(&matrix);
        }
    }
});

fn values(matrix: &dyn Matrix) {
    let [rows, cols] = matrix.shape();
    let mut row = vec![0.0; cols];
    for i in 0..rows {
        matrix.dequantize_row(i, &mut row);
    }
}
