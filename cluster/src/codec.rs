//! The one encoding of everything this crate stores or sends: a format version
//! byte, a CRC-32 of what follows, then bincode.
//!
//! bincode is positional, so the shape of a stored type only changes together
//! with [`FORMAT`].

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of the layout of all encoded types.
const FORMAT: u8 = 1;
const HEADER: usize = 5;
/// Most bytes that a record may say it has. No message between members is longer, and no record comes near it;
/// without a limit memory is asked for as much as a record says.
const LIMIT: usize = 16 * 1024 * 1024;

/// Why bytes can't be read or a value can't be written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("a record of {0} bytes is too short to be one")]
    Truncated(usize),
    #[error("a record has format version {0}, this program knows {FORMAT}")]
    Format(u8),
    #[error("the checksum of a record does not match its content")]
    Checksum,
    #[error("a record has bytes after its end")]
    Trailing,
    #[error("a record can't be decoded: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    #[error("a record can't be encoded: {0}")]
    Encode(#[from] bincode::error::EncodeError),
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![0; HEADER];
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())?;
    let checksum = crc32(&bytes[HEADER..]);
    bytes[0] = FORMAT;
    bytes[1..HEADER].copy_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let Some((header, body)) = bytes.split_at_checked(HEADER) else {
        return Err(CodecError::Truncated(bytes.len()));
    };
    if header[0] != FORMAT {
        return Err(CodecError::Format(header[0]));
    }
    if header[1..] != crc32(body).to_le_bytes() {
        return Err(CodecError::Checksum);
    }
    let (value, read) =
        bincode::serde::decode_from_slice(body, bincode::config::standard().with_limit::<LIMIT>())?;
    if read != body.len() {
        return Err(CodecError::Trailing);
    }
    Ok(value)
}

/// These bytes with the header that belongs to them.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn framed(body: &[u8]) -> Vec<u8> {
    [&[FORMAT], &crc32(body).to_le_bytes()[..], body].concat()
}

/// CRC-32 as in IEEE 802.3, computed from a table built at compile time.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            #[expect(clippy::cast_possible_truncation, reason = "below 256")]
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { 0xEDB8_8320 ^ (value >> 1) } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, byte| TABLE[((crc ^ u32::from(*byte)) & 0xFF) as usize] ^ (crc >> 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_standard_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn a_text_that_is_said_to_be_longer_than_its_record_is_refused() {
        for length in [LIMIT as u64 - 100, 1 << 32, 1 << 45, u64::MAX] {
            let body = [&[253], &length.to_le_bytes()[..], b"text"].concat();
            assert!(matches!(decode::<String>(&framed(&body)), Err(CodecError::Decode(_))), "{length}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = encode(&("cortex".to_owned(), 7_u64)).unwrap();
        for index in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[index / 8] ^= 1 << (index % 8);
            assert!(decode::<(String, u64)>(&damaged).is_err(), "bit {index} went unnoticed");
        }
    }
}
