//! `/cluster/members` and `/cluster/transfer`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::body::JsonObject;
use super::path::MemberPath;
use crate::api::problem::Problem;
use crate::api::state::Api;
use crate::domain::validate::{FieldError, Validator};
use crate::services::control::NewMember;

/// Longest address, in characters: a name of 253 and a port.
const MAX_ADDRESS: usize = 259;

/// A replica as it votes.
#[derive(Debug, Serialize)]
pub(super) struct Member {
    id: u64,
    peer: String,
    http: String,
    grpc: String,
}

/// Who leads.
#[derive(Debug, Serialize)]
pub(super) struct Leads {
    leader: u64,
}

/// `POST /cluster/members`: 201 once the replica votes, 200 if it did so before.
pub(super) async fn add(
    State(api): State<Api>,
    JsonObject(draft): JsonObject<MemberDraft>,
) -> Result<impl IntoResponse, Problem> {
    let member = draft.check().map_err(Problem::invalid)?;
    let new = api.services.add_member(member.clone()).await?;
    let NewMember { id, peer, http, grpc } = member;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(Member { id, peer, http, grpc })))
}

/// `DELETE /cluster/members/{id}`: takes a replica out for good.
pub(super) async fn remove(
    State(api): State<Api>,
    MemberPath(id): MemberPath,
) -> Result<StatusCode, Problem> {
    api.services.remove_member(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /cluster/transfer`: lets another replica lead.
pub(super) async fn transfer(
    State(api): State<Api>,
    JsonObject(draft): JsonObject<TransferDraft>,
) -> Result<Json<Leads>, Problem> {
    let to = draft.check().map_err(Problem::invalid)?;
    Ok(Json(Leads { leader: api.services.transfer_leadership(to).await? }))
}

/// A new member as it arrives.
#[derive(Debug, Default, Deserialize)]
pub(super) struct MemberDraft {
    id: Option<Value>,
    peer: Option<Value>,
    http: Option<Value>,
    grpc: Option<Value>,
}

impl MemberDraft {
    /// Names all fields that are missing or wrong.
    fn check(self) -> Result<NewMember, Vec<FieldError>> {
        let mut v = Validator::default();
        if matches!(self.id, None | Some(Value::Null)) {
            v.reject("id", "is required");
        }
        let id = member_id(&mut v, "id", self.id.as_ref());
        if matches!(self.peer, None | Some(Value::Null)) {
            v.reject("peer", "is required");
        }
        let mut own =
            |field, value: Option<Value>| address(&mut v, field, value.as_ref()).unwrap_or_default();
        let (peer, http, grpc) = (own("peer", self.peer), own("http", self.http), own("grpc", self.grpc));
        v.finish(id.map(|id| NewMember { id, peer, http, grpc }))
    }
}

/// Who is to lead, as it arrives; without a name the best prepared replica.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TransferDraft {
    to: Option<Value>,
}

impl TransferDraft {
    fn check(self) -> Result<Option<u64>, Vec<FieldError>> {
        let mut v = Validator::default();
        let to = member_id(&mut v, "to", self.to.as_ref());
        v.finish(Some(to))
    }
}

fn member_id(v: &mut Validator, field: &str, value: Option<&Value>) -> Option<u64> {
    v.integer(field, value, 1, i64::MAX).map(i64::cast_unsigned)
}

fn address(v: &mut Validator, field: &str, value: Option<&Value>) -> Option<String> {
    let text = v.optional_text(field, value, 3, MAX_ADDRESS)?;
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains(['/', '@', ' ']));
    if port.and_then(|(_, port)| port.parse::<u16>().ok()).is_none_or(|port| port == 0) {
        v.reject(field, "must be host:port");
        return None;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(body: &Value) -> Vec<String> {
        let draft: MemberDraft = serde_json::from_str(&body.to_string()).unwrap();
        draft.check().unwrap_err().into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn a_member_needs_an_id_and_a_peer_address() {
        let draft: MemberDraft = serde_json::from_str(r#"{"id": 4, "peer": "a:1", "http": null}"#).unwrap();
        let expected = NewMember { id: 4, peer: "a:1".into(), http: String::new(), grpc: String::new() };
        assert_eq!(draft.check(), Ok(expected));
        assert_eq!(fields(&json!({})), ["id", "peer"]);
    }

    #[test]
    fn every_bad_field_is_named_at_once() {
        let bad = json!({"id": 0, "peer": "a", "http": "a:0", "grpc": 7});
        assert_eq!(fields(&bad), ["id", "peer", "http", "grpc"]);
        for peer in [":1", "a:65536", "http://a:1", "a b:1", ""] {
            assert_eq!(fields(&json!({"id": 1, "peer": peer})), ["peer"], "{peer}");
        }
    }

    #[test]
    fn a_transfer_names_a_member_or_nobody() {
        let check = |body: &str| serde_json::from_str::<TransferDraft>(body).unwrap().check();
        assert_eq!((check("{}"), check(r#"{"to": 2}"#)), (Ok(None), Ok(Some(2))));
        assert!(check(r#"{"to": "2"}"#).is_err() && check(r#"{"to": -1}"#).is_err());
    }
}
