//! Commands and answers as bytes: MessagePack with field names, so that a replica of the version before
//! or after reads what it knows. What it does not know is an error of that one command.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::domain::trace::TraceContext;
use crate::security::Caller;
use crate::services::command::{Answer, Command, Delivery};
use crate::services::error::ServiceError;

type Outcome = Result<Answer, ServiceError>;
type Result<T, E = ServiceError> = std::result::Result<T, E>;

/// A command, who has it carried out, and the trace that it is a part of.
#[derive(Deserialize)]
pub(super) struct Order {
    pub(super) by: Caller,
    #[serde(default)]
    pub(super) trace: Option<TraceContext>,
    pub(super) command: Command,
}

/// The same, borrowed.
#[derive(Serialize)]
struct OrderRef<'a> {
    by: &'a Caller,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a TraceContext>,
    command: &'a Command,
}

/// A command as bytes.
pub(super) fn encode_order(by: &Caller, trace: Option<&TraceContext>, command: &Command) -> Result<Bytes> {
    rmp_serde::to_vec_named(&OrderRef { by, trace, command }).map(Bytes::from).map_err(|error| {
        tracing::error!(command = command.name(), %error, "A command cannot be encoded.");
        ServiceError::Internal
    })
}

/// A command from bytes. Nothing was done when it cannot be read.
pub(super) fn decode_order(bytes: &[u8]) -> Result<Order> {
    rmp_serde::from_slice(bytes).map_err(|error| {
        tracing::warn!(%error, "A follower sent a command that this replica does not know.");
        ServiceError::Internal
    })
}

/// An outcome as bytes. An answer that cannot be encoded leaves its caller without knowledge.
pub(super) fn encode_outcome(outcome: &Outcome) -> Bytes {
    rmp_serde::to_vec_named(outcome).map(Bytes::from).unwrap_or_else(|error| {
        tracing::error!(%error, "An answer cannot be encoded.");
        Bytes::new()
    })
}

/// An outcome from bytes.
pub(super) fn decode_outcome(bytes: &[u8]) -> Outcome {
    rmp_serde::from_slice(bytes).unwrap_or_else(|error| {
        tracing::warn!(%error, "The leader sent an answer that this replica does not know.");
        Err(ServiceError::Internal)
    })
}

/// A delivery as bytes; `None` if it cannot be encoded, which is a defect.
pub(super) fn encode_delivery(delivery: &Delivery) -> Option<Bytes> {
    rmp_serde::to_vec_named(delivery)
        .map(Bytes::from)
        .map_err(|error| {
            tracing::error!(%error, "A delivery cannot be encoded.");
        })
        .ok()
}

/// A delivery from bytes.
pub(super) fn decode_delivery(bytes: &[u8]) -> Option<Delivery> {
    rmp_serde::from_slice(bytes)
        .map_err(|error| {
            tracing::warn!(%error, "The leader sent a delivery that this replica does not know.");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::JobId;
    use crate::domain::transition::JobEvent;
    use crate::security::Role;

    #[test]
    fn a_command_survives_the_way() {
        let command = Command::ApplyEvent(JobId(Uuid::nil()), JobEvent::Cancel);
        let by = Caller::Known { subject: "ann".to_owned(), role: Role::Submitter };
        let trace =
            TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some("a=1"));
        let read = decode_order(&encode_order(&by, trace.as_ref(), &command).unwrap()).unwrap();
        assert_eq!(format!("{:?}", read.command), format!("{command:?}"));
        assert_eq!(read.by, by, "the leader sees who asks");
        assert_eq!(read.trace, trace);
        assert_eq!(decode_order(&encode_order(&by, None, &command).unwrap()).unwrap().trace, None);
    }

    #[test]
    fn an_error_survives_the_way() {
        let full = ServiceError::QueueFull { limit: 7 };
        assert_eq!(decode_outcome(&encode_outcome(&Err(full.clone()))).unwrap_err(), full);
    }

    #[test]
    fn a_field_of_a_newer_version_is_passed_over() {
        #[derive(Serialize)]
        struct NewerOrder {
            by: Caller,
            command: Newer,
            mood: &'static str,
        }
        #[derive(Serialize)]
        enum Newer {
            PollJob(NewerPoll),
        }
        #[derive(Serialize)]
        struct NewerPoll {
            worker_id: Uuid,
            mood: &'static str,
            delivery: Uuid,
            wait: std::time::Duration,
        }
        let poll = NewerPoll {
            worker_id: Uuid::nil(),
            mood: "good",
            delivery: Uuid::nil(),
            wait: std::time::Duration::from_secs(1),
        };
        let order = NewerOrder { by: Caller::Anybody, command: Newer::PollJob(poll), mood: "good" };
        let bytes = rmp_serde::to_vec_named(&order).unwrap();
        assert!(matches!(decode_order(&bytes).unwrap().command, Command::PollJob(_)));
    }

    #[test]
    fn a_command_of_a_newer_version_is_an_error() {
        #[derive(Serialize)]
        enum Newer {
            ForgetEverything(u64),
        }
        let bytes = rmp_serde::to_vec_named(&(Caller::Anybody, Newer::ForgetEverything(1))).unwrap();
        assert_eq!(decode_order(&bytes).err(), Some(ServiceError::Internal));
    }
}
