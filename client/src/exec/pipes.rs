//! The three pipes of a command, served at the same time so that none of them
//! can block it.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const CHUNK: usize = 16 * 1024;

/// The command wrote more than it may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

/// Writes everything and closes the pipe. A command may end without having read
/// its input, so a broken pipe is no failure.
pub(super) async fn feed(mut pipe: impl AsyncWrite + Unpin, input: Bytes) {
    let _ = pipe.write_all(&input).await;
    let _ = pipe.shutdown().await;
}

/// Reads to the end, or to the first byte over the limit.
pub(super) async fn read_bounded(pipe: impl AsyncRead + Unpin, limit: usize) -> Result<Vec<u8>, TooLarge> {
    let mut output = Vec::new();
    let one_more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    // A pipe that breaks has ended, as far as the output is concerned.
    let _ = pipe.take(one_more).read_to_end(&mut output).await;
    if output.len() > limit {
        return Err(TooLarge);
    }
    Ok(output)
}

/// Reads to the end and keeps the last `keep` bytes.
pub(super) async fn read_tail(mut pipe: impl AsyncRead + Unpin, keep: usize) -> Vec<u8> {
    let mut tail = Vec::with_capacity(keep + CHUNK);
    while let Ok(1..) = pipe.read_buf(&mut tail).await {
        let excess = tail.len().saturating_sub(keep);
        tail.drain(..excess);
        tail.reserve(CHUNK);
    }
    tail
}

/// The tail as text. A character that the cut went through is left out, and NUL,
/// which no database column takes, is replaced.
pub(super) fn tail_text(tail: &[u8]) -> String {
    let is_continuation = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
    let start = tail.iter().take_while(|byte| is_continuation(byte)).count();
    let text = String::from_utf8_lossy(&tail[start..]);
    text.trim().replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_read_up_to_the_limit_and_not_a_byte_further() {
        assert_eq!(read_bounded(&b"12345"[..], 5).await, Ok(b"12345".to_vec()));
        assert_eq!(read_bounded(&b"123456"[..], 5).await, Err(TooLarge));
    }

    #[tokio::test]
    async fn only_the_end_of_a_long_stream_is_kept() {
        let mut long = vec![b'x'; 100_000];
        long.extend_from_slice(b"the end");
        assert_eq!(read_tail(&long[..], 9).await, b"xxthe end");
    }

    #[test]
    fn a_cut_character_is_left_out() {
        let text = "é fine".as_bytes();
        assert_eq!(tail_text(&text[1..]), "fine");
        assert_eq!(tail_text(b"bad \xff\0 bytes\n"), "bad \u{fffd}\u{fffd} bytes");
    }
}
