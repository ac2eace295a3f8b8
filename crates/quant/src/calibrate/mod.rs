//! Calibrated quantization.
