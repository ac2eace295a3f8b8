//! Numbers of several bytes in a file, which begin wherever they begin: borrowed where they are aligned
//! and the machine is little endian as files are, else copied.

use crate::{bf16, f16};
use safetensors::Dtype;
use std::borrow::Cow;

/// A number as files have it, little endian.
pub(crate) trait Word: Copy + 'static + sealed::Plain {
    fn from_le(bytes: &[u8]) -> Self;
    fn push_le(self, out: &mut Vec<u8>);
}

mod sealed {
    /// # Safety
    /// Without padding, and all bit patterns are values.
    pub(crate) unsafe trait Plain {}
}

macro_rules! word {
    ($($type:ty),*) => {$(
        // SAFETY: a number of the machine, or one transparent over u16.
        unsafe impl sealed::Plain for $type {}

        impl Word for $type {
            fn from_le(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<Self>()];
                array.copy_from_slice(bytes);
                Self::from_le_bytes(array)
            }

            fn push_le(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

word!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, f16, bf16);

/// The numbers of `bytes`; a rest shorter than a number is left out.
pub(crate) fn words<T: Word>(bytes: &[u8]) -> Cow<'_, [T]> {
    if cfg!(target_endian = "little") {
        // SAFETY: `Plain`: any bytes are values, and `align_to` minds the alignment.
        let (before, middle, _) = unsafe { bytes.align_to::<T>() };
        if before.is_empty() && middle.len() == bytes.len() / size_of::<T>() {
            return Cow::Borrowed(middle);
        }
    }
    let numbers = bytes.chunks_exact(size_of::<T>()).map(T::from_le);
    Cow::Owned(numbers.collect())
}

/// The bytes of `numbers` as files have them.
pub(crate) fn bytes<T: Word>(numbers: &[T]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        // SAFETY: `Plain`: without padding, so every byte is initialized; bytes need no alignment.
        let bytes = unsafe {
            core::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(numbers))
        };
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(size_of_val(numbers));
    numbers.iter().for_each(|number| number.push_le(&mut out));
    Cow::Owned(out)
}

/// [`bytes`] of numbers that may be owned.
pub(crate) fn cow_bytes<T: Word>(numbers: Cow<'_, [T]>) -> Cow<'_, [u8]> {
    match numbers {
        Cow::Borrowed(numbers) => bytes(numbers),
        Cow::Owned(numbers) => Cow::Owned(bytes(&numbers).into_owned()),
    }
}

/// The bytes of floats as F16 or BF16, rounded, or as F32 where `dtype` is anything else.
pub(crate) fn floats(values: &[f32], dtype: Dtype) -> Cow<'_, [u8]> {
    let halves = |half: fn(f32) -> [u8; 2]| values.iter().flat_map(|x| half(*x)).collect();
    match dtype {
        Dtype::F16 => halves(|x| f16::from_f32(x).to_le_bytes()),
        Dtype::BF16 => halves(|x| bf16::from_f32(x).to_le_bytes()),
        _ => bytes(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unaligned_numbers_are_copied() {
        let numbers = [1.5_f32, -2.0, 3.25];
        let mut room = [0_u8; 32];
        for offset in 0..8 {
            room[offset..offset + 12].copy_from_slice(&bytes(&numbers));
            let found = words::<f32>(&room[offset..offset + 12]);
            assert_eq!(*found, numbers);
            let aligned = room[offset..].as_ptr().addr().is_multiple_of(4);
            assert_eq!(matches!(found, Cow::Borrowed(_)), aligned);
        }
        assert_eq!(words::<f32>(&room[..3]).len(), 0);
    }
}
