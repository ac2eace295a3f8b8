//! Any bytes as a GGUF file: what is read can be written, and is then the same.
#![no_main]

use ferrotune_quant::files::gguf::{Gguf, GgufWriter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Gguf::new("fuzz", bytes) else {
        return;
    };
    for name in file.names() {
        if let Ok(tensor) = file.tensor(name) {
            let [rows, cols] = tensor.matrix_shape();
            assert!(rows.checked_mul(cols).is_some());
            let _ = tensor.floats();
            if let Ok(matrix) = file.matrix(name) {
                let mut row = vec![0.0; cols];
                for i in 0..rows {
                    matrix.dequantize_row(i, &mut row);
                }
            }
        }
    }
    let Ok(writer) = GgufWriter::try_from(&file) else {
        return;
    };
    let written = writer.to_vec().expect("writable");
    let again = Gguf::new("again", &written).expect("readable");
    assert!(again.tensors().eq(file.tensors()));
    // Not compared as values: NaN is not itself.
    assert_eq!(
        format!("{:?}", again.metadata()),
        format!("{:?}", file.metadata())
    );
});
