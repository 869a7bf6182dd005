//! The jute codec: big-endian integers, one-byte booleans, strings and buffers with an `i32` length
//! (-1 is null), vectors with an `i32` count (-1 is null). Records are their fields, one after another.

use std::cell::OnceCell;
use std::{fmt, str};

use bytes::{BufMut, Bytes, BytesMut};
use typed_arena::Arena;

/// Why bytes from outside could not be read as what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The record ends before its last field.
    #[error("the record is cut short: {needed} more bytes are needed at byte {at}")]
    Short {
        /// Where in the record.
        at: usize,
        /// How many bytes are missing.
        needed: usize,
    },
    /// A length or count that cannot be.
    #[error("length {length} at byte {at} is not possible")]
    Length {
        /// Where in the record.
        at: usize,
        /// What stands there.
        length: i32,
    },
    /// A value that its field cannot have.
    #[error("{field} cannot be {value}")]
    Value {
        /// The field's name.
        field: &'static str,
        /// What stands there.
        value: i64,
    },
}

/// Keeps strings that were malformed, with U+FFFD in place of each malformed sequence, for as long as
/// what was decoded borrows them. Java reads such bytes so, and takes them for no error. Costs nothing
/// until there is one.
#[derive(Default)]
pub struct LossyText(OnceCell<Arena<String>>);

impl LossyText {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(OnceCell::new())
    }

    /// Keeps `text`.
    fn keep(&self, text: String) -> &str {
        // An arena allocates when it is made, and most requests need none.
        self.0.get_or_init(|| Arena::with_capacity(1)).alloc(text)
    }
}

impl fmt::Debug for LossyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LossyText({})", self.0.get().map_or(0, Arena::len))
    }
}

/// What a malformed string reads as where there is no [`LossyText`] to keep it.
pub const NOT_UTF8: &str = "\u{fffd}";

/// Reads jute fields from a slice, front to back, borrowing strings and buffers from it.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    len: usize,
    lossy: Option<&'a LossyText>,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            len: bytes.len(),
            lossy: None,
        }
    }

    /// The same, reading malformed strings as Java does.
    pub const fn lossy(mut self, text: &'a LossyText) -> Self {
        self.lossy = Some(text);
        self
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(DecodeError::Short {
                at: self.at(),
                needed: count - self.rest.len(),
            }),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        match self.rest.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(*taken)
            }
            None => Err(DecodeError::Short {
                at: self.at(),
                needed: N - self.rest.len(),
            }),
        }
    }

    /// A boolean: any byte but 0 is true, as `DataInputStream.readBoolean` has it.
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        Ok(self.array::<1>()? != [0])
    }

    /// A signed byte.
    pub fn byte(&mut self) -> Result<i8, DecodeError> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    /// An `int`.
    pub fn int(&mut self) -> Result<i32, DecodeError> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    /// A `long`.
    pub fn long(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// A buffer; `None` is null.
    pub fn buffer(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        let at = self.at();
        match self.int()? {
            -1 => Ok(None),
            length => {
                let count =
                    usize::try_from(length).map_err(|_| DecodeError::Length { at, length })?;
                self.take(count).map(Some)
            }
        }
    }

    /// A string; `None` is null. Malformed bytes are no error: see [`LossyText`].
    pub fn ustring(&mut self) -> Result<Option<&'a str>, DecodeError> {
        let bytes = self.buffer()?;
        Ok(
            bytes.map(|bytes| match (str::from_utf8(bytes), self.lossy) {
                (Ok(text), _) => text,
                (Err(_), Some(text)) => text.keep(String::from_utf8_lossy(bytes).into_owned()),
                (Err(_), None) => NOT_UTF8,
            }),
        )
    }

    /// The count of a vector; `None` is null, and what is below null is empty (as in Java's
    /// `BinaryInputArchive`). Each element takes at least `element_len_min` bytes, so a count that the
    /// remaining bytes cannot hold is refused before anything is allocated for it.
    pub fn count(&mut self, element_len_min: usize) -> Result<Option<usize>, DecodeError> {
        let at = self.at();
        match self.int()? {
            -1 => Ok(None),
            length => {
                let count = usize::try_from(length).unwrap_or(0);
                if count.saturating_mul(element_len_min.max(1)) > self.rest.len() {
                    return Err(DecodeError::Length { at, length });
                }
                Ok(Some(count))
            }
        }
    }

    /// A vector of strings; null reads as empty, a null string as "".
    pub fn strings(&mut self) -> Result<Vec<&'a str>, DecodeError> {
        let count = self.count(4)?.unwrap_or(0);
        (0..count)
            .map(|_| Ok(self.ustring()?.unwrap_or("")))
            .collect()
    }

    /// What has not been read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// How many bytes have been read.
    pub const fn at(&self) -> usize {
        self.len - self.rest.len()
    }

    /// Whether everything has been read.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Writes jute fields to anything that takes bytes.
pub trait WriteJute: BufMut {
    /// A boolean.
    fn put_bool(&mut self, value: bool) {
        self.put_u8(u8::from(value));
    }

    /// A buffer, or null.
    fn put_buffer(&mut self, value: Option<&[u8]>) {
        match value {
            None => self.put_i32(-1),
            Some(bytes) => {
                self.put_i32(wire_len(bytes.len()));
                self.put_slice(bytes);
            }
        }
    }

    /// A string.
    fn put_ustring(&mut self, value: &str) {
        self.put_buffer(Some(value.as_bytes()));
    }

    /// A vector of strings.
    fn put_strings<'a, I>(&mut self, values: I)
    where
        I: IntoIterator<Item = &'a str>,
        I::IntoIter: ExactSizeIterator,
    {
        let values = values.into_iter();
        self.put_i32(wire_len(values.len()));
        for value in values {
            self.put_ustring(value);
        }
    }
}

impl<B: BufMut + ?Sized> WriteJute for B {}

/// A length as the wire has it.
///
/// # Panics
/// When `len` does not fit an `i32`: nothing near that size is ever admitted or built.
pub fn wire_len(len: usize) -> i32 {
    i32::try_from(len).expect("no record of 2 GiB is ever built: sizes are bounded at admission")
}

/// Appends a frame to `out`: a 4-byte length, then what `body` writes.
pub fn put_frame(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_i32(0);
    body(out);
    let len = wire_len(out.len() - start - 4);
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&len.to_be_bytes());
    }
}

/// `bytes` as an owned buffer that shares `frame`'s memory when it lies within it.
pub fn slice_of(frame: &Bytes, bytes: &[u8]) -> Bytes {
    let start = (bytes.as_ptr() as usize).wrapping_sub(frame.as_ptr() as usize);
    if start <= frame.len() && bytes.len() <= frame.len() - start {
        frame.slice(start..start + bytes.len())
    } else {
        Bytes::copy_from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_written() {
        let mut out = BytesMut::new();
        out.put_bool(true);
        out.put_i32(-7);
        out.put_i64(1 << 40);
        out.put_buffer(None);
        out.put_buffer(Some(b"abc"));
        out.put_ustring("/a/\u{e9}");
        out.put_strings(["x", ""]);
        let mut reader = Reader::new(&out);
        assert_eq!(reader.bool(), Ok(true));
        assert_eq!(reader.int(), Ok(-7));
        assert_eq!(reader.long(), Ok(1 << 40));
        assert_eq!(reader.buffer(), Ok(None));
        assert_eq!(reader.buffer(), Ok(Some(&b"abc"[..])));
        assert_eq!(reader.ustring(), Ok(Some("/a/\u{e9}")));
        assert_eq!(reader.strings(), Ok(vec!["x", ""]));
        assert!(reader.is_empty());
    }

    #[test]
    fn lying_lengths_are_errors() {
        assert_eq!(
            Reader::new(&[0, 0, 0, 9, 1]).buffer(),
            Err(DecodeError::Short { at: 4, needed: 8 })
        );
        assert_eq!(
            Reader::new(&[0xff, 0xff, 0xff, 0xfe]).buffer(),
            Err(DecodeError::Length { at: 0, length: -2 })
        );
        assert_eq!(
            Reader::new(&[0x7f, 0xff, 0xff, 0xff, 0]).strings(),
            Err(DecodeError::Length {
                at: 0,
                length: i32::MAX
            })
        );
        assert_eq!(
            Reader::new(&[0, 0, 0, 1, 0xff]).ustring(),
            Ok(Some(NOT_UTF8))
        );
        let text = LossyText::new();
        assert_eq!(
            Reader::new(&[0, 0, 0, 2, b'a', 0xff])
                .lossy(&text)
                .ustring(),
            Ok(Some("a\u{fffd}"))
        );
    }

    #[test]
    fn a_slice_of_the_frame_shares_its_memory() {
        let frame = Bytes::from_static(b"hello world");
        let part = slice_of(&frame, &frame[6..]);
        assert_eq!(part.as_ptr(), frame[6..].as_ptr());
        assert_eq!(
            slice_of(&frame, b"elsewhere"),
            Bytes::from_static(b"elsewhere")
        );
    }
}
