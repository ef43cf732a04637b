//! What an operator sees: logs, metrics and traces.

pub mod logging;
pub mod metrics;
pub mod traces;

pub use metrics::Metrics;
pub use traces::Tracer;

/// An error with all that lies behind it.
pub(crate) fn whole_story(error: &dyn std::error::Error) -> String {
    let mut story = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !story.ends_with(&text) {
            story.push_str(": ");
            story.push_str(&text);
        }
        source = cause.source();
    }
    story
}
