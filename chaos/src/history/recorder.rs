//! Writes a history to disk as it happens.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::time::Instant;

use super::record::{Act, Line, Outcome, Record, Request};

/// Takes records from any task. A thread of its own writes them, and flushes whenever nothing more waits, so that a
/// harness that is killed leaves all but its last moments behind.
pub struct Recorder {
    began: Instant,
    next: AtomicU64,
    lines: mpsc::Sender<Line>,
}

/// The thread that writes; [`Writer::finish`] waits for it.
pub struct Writer {
    thread: JoinHandle<io::Result<()>>,
}

impl Recorder {
    /// Begins a history in this file, which must not exist.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path) -> io::Result<(Self, Writer)> {
        let file = File::create_new(path)?;
        let (lines, received) = mpsc::channel();
        let thread =
            std::thread::Builder::new().name("history".into()).spawn(move || write(file, &received))?;
        Ok((Self { began: Instant::now(), next: AtomicU64::new(1), lines }, Writer { thread }))
    }

    /// Notes what happened just now.
    pub fn note(&self, record: Record) {
        // The writer ends only after all recorders have, or with an error that `finish` tells.
        let _ = self.lines.send(Line { at: self.now(), record });
    }

    /// Notes what a worker did.
    pub fn act(&self, worker: &str, act: Act) {
        self.note(Record::Worker { worker: worker.to_owned(), act });
    }

    /// A number that nothing else in this history has.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes a request before it is sent, runs it, and notes what came of it.
    pub async fn call(
        &self,
        client: &str,
        replica: usize,
        request: Request,
        run: impl Future<Output = Outcome>,
    ) -> Outcome {
        let call = self.number();
        self.note(Record::Begin { call, client: client.to_owned(), replica, request });
        let outcome = run.await;
        self.note(Record::End { call, outcome: outcome.clone() });
        outcome
    }

    /// Microseconds since the history began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Writer {
    /// Waits until everything is written. All recorders must have been dropped.
    ///
    /// # Errors
    /// When something could not be written: the history is not whole.
    pub fn finish(self) -> io::Result<()> {
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the writer of the history has panicked")))
    }
}

fn write(file: File, lines: &mpsc::Receiver<Line>) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    while let Ok(line) = lines.recv() {
        append(&mut file, &line)?;
        while let Ok(line) = lines.try_recv() {
            append(&mut file, &line)?;
        }
        file.flush()?;
    }
    file.flush()
}

fn append(file: &mut BufWriter<File>, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *file, line)?;
    file.write_all(b"\n")
}
