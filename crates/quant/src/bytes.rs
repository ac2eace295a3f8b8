//! Bytes that are borrowed, from a file that is mapped for instance, or owned and aligned to a cache
//! line: a vector that lies across two lines is loaded at half the speed.

use alloc::{vec, vec::Vec};
use core::ops::Deref;

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u8; 64]);

#[derive(Debug, Clone)]
pub(crate) enum Bytes<'a> {
    Borrowed(&'a [u8]),
    Owned { lines: Vec<Line>, length: usize },
}

impl Bytes<'static> {
    pub fn zeros(length: usize) -> Self {
        Self::Owned {
            lines: vec![Line([0; 64]); length.div_ceil(64)],
            length,
        }
    }
}

impl Bytes<'_> {
    /// Owned bytes for writing; none of borrowed ones.
    pub fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Borrowed(_) => &mut [],
            Self::Owned { lines, length } => &mut flat_mut(lines)[..*length],
        }
    }

    pub fn into_owned(self) -> Bytes<'static> {
        let mut owned = Bytes::zeros(self.len());
        owned.as_mut().copy_from_slice(&self);
        owned
    }
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned { lines, length } => &flat(lines)[..*length],
        }
    }
}

impl PartialEq for Bytes<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

/// The bytes of lines.
fn flat(lines: &[Line]) -> &[u8] {
    // SAFETY: a line is 64 bytes without padding, and any bytes are valid.
    unsafe { core::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 64) }
}

/// The bytes of lines.
pub(crate) fn flat_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: as above.
    unsafe { core::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 64) }
}
