//! The trace that the present task works for.

use crate::domain::trace::TraceContext;

tokio::task_local! {
    static CURRENT: Option<TraceContext>;
}

/// Runs work as a part of a trace, if there is one. Work that is spawned must be given it anew.
pub async fn scope<F: Future>(context: Option<TraceContext>, work: F) -> F::Output {
    CURRENT.scope(context, work).await
}

/// Where the work of the present task belongs; nothing outside of [`scope`].
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(Option::clone).ok().flatten()
}
