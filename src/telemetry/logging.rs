//! The process log: one line per event on standard error, as text or as JSON.
//!
//! `RUST_LOG` overrides the configured level, with the directives of `tracing_subscriber::EnvFilter`
//! (`info,cortex=debug`). Panics are logged like everything else.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::TryInitError;

use crate::config::{LogFormat, LogLevel};

/// Libraries whose lower levels drown ours; `RUST_LOG` brings them back.
const QUIET: &str = "openraft=error,h2=warn,hyper=warn,hyper_util=warn,tower=warn,tonic=warn,rustls=warn,reqwest=warn,sqlx=warn";

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `RUST_LOG` cannot be read.
    #[error("RUST_LOG is not a list of log directives such as `info,cortex=debug`: {0}")]
    Directives(#[from] ParseError),
    /// Another subscriber is installed.
    #[error("logging was set up twice: {0}")]
    Twice(#[from] TryInitError),
}

/// Starts logging for the whole process and sends panics to the log.
///
/// # Errors
/// When `RUST_LOG` cannot be read, or when a subscriber is already installed.
pub fn init(level: LogLevel, format: LogFormat) -> Result<(), LoggingError> {
    use tracing_subscriber::util::SubscriberInitExt;

    let filter = filter(level, std::env::var("RUST_LOG").ok().as_deref())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.finish().try_init()?,
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init()?,
    }
    log_panics();
    Ok(())
}

fn filter(level: LogLevel, directives: Option<&str>) -> Result<EnvFilter, ParseError> {
    match directives.map(str::trim) {
        Some(directives) if !directives.is_empty() => EnvFilter::try_new(directives),
        _ => EnvFilter::try_new(format!("{},{QUIET}", level.as_str())),
    }
}

fn log_panics() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if tracing::enabled!(tracing::Level::ERROR) {
            log_panic(panic);
        } else {
            previous(panic);
        }
    }));
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("a value that is not text");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let current = std::thread::current();
    let thread = current.name().unwrap_or("unnamed");
    // Empty unless RUST_BACKTRACE asks for it.
    let backtrace = std::backtrace::Backtrace::capture();
    match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => {
            tracing::error!(%location, thread, %backtrace, "panicked: {message}");
        }
        _ => tracing::error!(%location, thread, "panicked: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::filter::LevelFilter;

    use super::*;

    #[test]
    fn the_environment_overrides_the_configured_level() {
        let level = |directives| filter(LogLevel::Warn, directives).unwrap().max_level_hint();
        assert_eq!(level(None), Some(LevelFilter::WARN));
        assert_eq!(level(Some(" ")), Some(LevelFilter::WARN));
        assert_eq!(level(Some("cortex=debug")), Some(LevelFilter::DEBUG));
        assert!(filter(LogLevel::Info, Some("cortex=loud=quiet")).is_err());
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_logged_with_its_place() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        let hook = std::panic::take_hook();
        log_panics();
        let result = tracing::subscriber::with_default(subscriber, || {
            std::panic::catch_unwind(|| panic!("the {} broke", "thing"))
        });
        std::panic::set_hook(hook);
        assert!(result.is_err());
        let log = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("panicked: the thing broke") && log.contains("logging.rs"), "{log}");
    }
}
