use super::{Handler, WorkerError, builder::Settings};
use tokio_util::sync::CancellationToken;
pub(super) async fn run<H: Handler>(
    _settings: Settings,
    _handler: H,
    _shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    Err(WorkerError::Refused("under construction".into()))
}
