//! `/cluster/members` and `/cluster/transfer`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::body::{JsonObject, NoBody};
use super::openapi::requests;
use super::path::MemberPath;
use crate::api::problem::Problem;
use crate::api::state::Api;
use crate::domain::validate::{FieldError, Validator};
use crate::services::control::NewMember;

/// Longest address, in characters: a name of 253 and a port.
const MAX_ADDRESS: usize = 259;

/// A replica as it votes.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Member {
    id: u64,
    peer: String,
    http: String,
    grpc: String,
}

impl Member {
    pub(super) fn example() -> Self {
        let address = |port: u16| format!("cortex-4:{port}");
        Self { id: 4, peer: address(7070), http: address(8080), grpc: address(9090) }
    }
}

/// Who leads.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Leads {
    pub(super) leader: u64,
}

/// Takes a running replica into the cluster.
///
/// It was started with an unused id and an empty folder. Its answer comes once it votes.
#[utoipa::path(
    post,
    path = "/api/v1/cluster/members",
    tag = "cluster",
    request_body = requests::MemberCreate,
    responses(
        (status = 201, description = "The replica, which votes now", body = Member),
        (status = 200, description = "The replica, which voted before", body = Member),
        (status = 409, description = "The id was used before, the replica is not reachable, or another change is under way"),
    )
)]
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

/// Takes a replica out of the cluster for good.
///
/// Its id is never used again. A leader is not removed: let another one lead first.
#[utoipa::path(
    delete,
    path = "/api/v1/cluster/members/{id}",
    tag = "cluster",
    params(("id" = i64, Path, description = "The replica", minimum = 1, maximum = 9223372036854775807_i64, example = 4)),
    responses(
        (status = 204, description = "The replica is no member any more"),
        (status = 409, description = "The replica leads, is the last one, or another change is under way"),
    )
)]
pub(super) async fn remove(
    State(api): State<Api>,
    MemberPath(id): MemberPath,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    api.services.remove_member(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lets another replica lead.
///
/// The one that is named, or the one that is best prepared. The body may be left out.
#[utoipa::path(
    post,
    path = "/api/v1/cluster/transfer",
    tag = "cluster",
    request_body = Option<requests::Transfer>,
    responses(
        (status = 200, description = "Who leads now", body = Leads),
        (status = 404, description = "There is no such replica"),
        (status = 409, description = "There is no other replica that could lead"),
    )
)]
pub(super) async fn transfer(
    State(api): State<Api>,
    draft: Option<JsonObject<TransferDraft>>,
) -> Result<Json<Leads>, Problem> {
    let to = draft.map_or_else(TransferDraft::default, |body| body.0).check().map_err(Problem::invalid)?;
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
