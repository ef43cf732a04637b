//! Holds the connection, and notes what the observer makes of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::ConnectionAddr;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::observer::Observer;
use crate::cluster::{Cluster, queue_key};
use crate::history::{Record, Recorder, RedisAct};

/// Time between two attempts to connect: as long as this nothing may be seen after Redis has come back.
const AGAIN_AFTER: Duration = Duration::from_millis(5);
/// Bytes that are read at once.
const BUFFER: usize = 1 << 18;

/// Watches until it is told to stop, and connects again whenever Redis has gone away.
pub async fn watch(cluster: Arc<Cluster>, recorder: Arc<Recorder>, stop: CancellationToken) {
    let ConnectionAddr::Tcp(host, port) = cluster.redis_client.get_connection_info().addr().clone() else {
        return;
    };
    drop(cluster);
    let mut observer = Observer::new(queue_key("epoch"));
    let note = |act| recorder.note(Record::Redis { act });
    loop {
        let mut is_watching = false;
        let followed = follow((&host, port), &mut observer, &mut is_watching, &recorder);
        let ended = stop.run_until_cancelled(followed).await;
        observer.end().into_iter().for_each(note);
        let is_over = ended.is_none();
        let why = match ended {
            None => "the run is over".to_owned(),
            Some(Ok(())) => "Redis has closed the connection".to_owned(),
            Some(Err(error)) => error.to_string(),
        };
        if is_watching {
            note(RedisAct::Unwatched { why });
        }
        if is_over || stop.run_until_cancelled(sleep(AGAIN_AFTER)).await.is_none() {
            return;
        }
    }
}

/// Connects and notes what it sees, until the connection ends.
async fn follow(
    place: (&str, u16),
    observer: &mut Observer,
    is_watching: &mut bool,
    recorder: &Recorder,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(place).await?;
    stream.write_all(b"INFO server\r\nMONITOR\r\n").await?;
    let mut stream = BufReader::with_capacity(BUFFER, stream);
    let run_id = run_id(&mut stream).await?;
    let mut line = Vec::new();
    // The end of the text before comes first, an empty line.
    while line != b"+OK\r\n" {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 || line.starts_with(b"-") {
            return Err(io::Error::other(String::from_utf8_lossy(&line).trim_end().to_owned()));
        }
    }
    *is_watching = true;
    recorder.note(Record::Redis { act: RedisAct::Watched { run_id } });
    loop {
        line.clear();
        stream.read_until(b'\n', &mut line).await?;
        let Some(whole) = line.strip_suffix(b"\r\n") else { return Ok(()) };
        observer.line(whole).into_iter().for_each(|act| recorder.note(Record::Redis { act }));
    }
}

/// What tells one run of Redis from the next, from its answer to `INFO`.
async fn run_id(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut length = String::new();
    stream.read_line(&mut length).await?;
    let unexpected = || io::Error::other(format!("not an answer to INFO: {length:?}"));
    let length = length.trim_end().strip_prefix('$').and_then(|length| length.parse::<u16>().ok());
    let mut text = vec![0; length.ok_or_else(unexpected)?.into()];
    stream.read_exact(&mut text).await?;
    let text = String::from_utf8_lossy(&text);
    let id = text.lines().find_map(|line| line.strip_prefix("run_id:"));
    Ok(id.ok_or_else(unexpected)?.trim_end().to_owned())
}
