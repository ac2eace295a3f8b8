//! Metadata of GGUF files.

use super::cursor::Cursor;
use crate::files::error::{Error, Result};
use crate::files::words::{Word, words};
use std::borrow::Cow;

/// How deep arrays may lie in arrays.
const DEEPEST: usize = 8;

macro_rules! values {
    ($($name:ident($type:ty) = $id:literal,)*) => {
        /// A value of the metadata.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "the names are those of their types")]
        pub enum Value<'a> {
            $($name($type),)*
            Bool(bool),
            Text(Cow<'a, str>),
            Array(Array<'a>),
        }

        /// An array of the metadata: all of one type.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "the names are those of their types")]
        pub enum Array<'a> {
            $($name(Cow<'a, [$type]>),)*
            Bool(Vec<bool>),
            Text(Vec<Cow<'a, str>>),
            Array(Vec<Array<'a>>),
        }

        impl<'a> Value<'a> {
            /// The value of an entry.
            pub(super) fn read(cursor: &mut Cursor<'a, '_>, key: &str) -> Result<Self> {
                match cursor.word::<u32>(key)? {
                    $($id => Ok(Self::$name(cursor.word(key)?)),)*
                    BOOL => Ok(Self::Bool(boolean(cursor, key)?)),
                    TEXT => Ok(Self::Text(cursor.text(key)?.into())),
                    ARRAY => Ok(Self::Array(Array::read(cursor, key, 0)?)),
                    other => Err(unknown(cursor, key, other)),
                }
            }

            /// Type and value.
            pub(super) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name(value) => {
                        $id.push_le(out);
                        value.push_le(out);
                    })*
                    Self::Bool(value) => {
                        BOOL.push_le(out);
                        out.push(u8::from(*value));
                    }
                    Self::Text(value) => {
                        TEXT.push_le(out);
                        push_text(value, out);
                    }
                    Self::Array(array) => {
                        ARRAY.push_le(out);
                        array.write(out);
                    }
                }
            }
        }

        impl<'a> Array<'a> {
            fn read(cursor: &mut Cursor<'a, '_>, key: &str, depth: usize) -> Result<Self> {
                if depth == DEEPEST {
                    let reason = format!("arrays in arrays more than {DEEPEST} deep");
                    return Err(Error::content(cursor.path(), key, reason));
                }
                let kind = cursor.word::<u32>(key)?;
                let count = cursor.word::<u64>(key)?;
                match kind {
                    $($id => {
                        let size = size_of::<$type>();
                        let count = cursor.fits(key, count, size as u64)?;
                        Ok(Self::$name(words(cursor.take(key, count * size)?)))
                    })*
                    BOOL => {
                        let count = cursor.fits(key, count, 1)?;
                        let values = (0..count).map(|_| boolean(cursor, key));
                        Ok(Self::Bool(values.collect::<Result<_>>()?))
                    }
                    TEXT => {
                        let count = cursor.fits(key, count, 8)?;
                        let values = (0..count).map(|_| Ok(cursor.text(key)?.into()));
                        Ok(Self::Text(values.collect::<Result<_>>()?))
                    }
                    ARRAY => {
                        let count = cursor.fits(key, count, 12)?;
                        let values = (0..count).map(|_| Self::read(cursor, key, depth + 1));
                        Ok(Self::Array(values.collect::<Result<_>>()?))
                    }
                    other => Err(unknown(cursor, key, other)),
                }
            }

            /// How many elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$name(values) => values.len(),)*
                    Self::Bool(values) => values.len(),
                    Self::Text(values) => values.len(),
                    Self::Array(values) => values.len(),
                }
            }

            /// Type, length and elements.
            fn write(&self, out: &mut Vec<u8>) {
                let head = |kind: u32, out: &mut Vec<u8>| {
                    kind.push_le(out);
                    (self.len() as u64).push_le(out);
                };
                match self {
                    $(Self::$name(values) => {
                        head($id, out);
                        values.iter().for_each(|value| value.push_le(out));
                    })*
                    Self::Bool(values) => {
                        head(BOOL, out);
                        out.extend(values.iter().map(|value| u8::from(*value)));
                    }
                    Self::Text(values) => {
                        head(TEXT, out);
                        values.iter().for_each(|value| push_text(value, out));
                    }
                    Self::Array(values) => {
                        head(ARRAY, out);
                        values.iter().for_each(|value| value.write(out));
                    }
                }
            }
        }
    };
}

const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

values! {
    U8(u8) = 0_u32,
    I8(i8) = 1_u32,
    U16(u16) = 2_u32,
    I16(i16) = 3_u32,
    U32(u32) = 4_u32,
    I32(i32) = 5_u32,
    F32(f32) = 6_u32,
    U64(u64) = 10_u32,
    I64(i64) = 11_u32,
    F64(f64) = 12_u32,
}

impl Array<'_> {
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Value<'_> {
    /// A value that is an integer of whatever type, and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(n) => Some(n.into()),
            Self::U16(n) => Some(n.into()),
            Self::U32(n) => Some(n.into()),
            Self::U64(n) => Some(n),
            Self::I8(n) => n.try_into().ok(),
            Self::I16(n) => n.try_into().ok(),
            Self::I32(n) => n.try_into().ok(),
            Self::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// A value that is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

pub(super) fn push_text(text: &str, out: &mut Vec<u8>) {
    (text.len() as u64).push_le(out);
    out.extend_from_slice(text.as_bytes());
}

fn boolean(cursor: &mut Cursor, key: &str) -> Result<bool> {
    match cursor.word::<u8>(key)? {
        0 => Ok(false),
        1 => Ok(true),
        other => {
            let reason = format!("{other} is neither false nor true");
            Err(Error::content(cursor.path(), key, reason))
        }
    }
}

fn unknown(cursor: &Cursor, key: &str, kind: u32) -> Error {
    let reason = format!("a value of type {kind}, GGUF has 0 to 12");
    Error::content(cursor.path(), key, reason)
}
