//! Those who try what they may not: every route and every RPC, at every replica, without a token or with one that does
//! not suffice. What they send would be carried out, were they let in.

use std::sync::Arc;
use std::time::Duration;

use cortex::api::{rest, rpcs};
use cortex::security::{Access, Role};
use cortex_client::proto::{CancelJobRequest, JobSubmission, SubmitJobRequest, SubmitJobsRequest};
use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tonic_prost::prost::Message;

use super::pollers::channel;
use super::submitters::{outcome_of, send_off};
use super::{Plan, Shared, pause};
use crate::draw::Draw;
use crate::history::{Outcome, Request};

/// Longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);
/// Pause between two attempts.
const EVERY: Duration = Duration::from_millis(200);
/// Attempts in a hundred by somebody who may, with a body that is malformed.
const MALFORMED: u64 = 15;

/// What is tried, and what comes of it.
type Attempt = (Request, BoxFuture<'static, Outcome>);

/// A way in that is not open to everybody.
enum Door {
    Route(Method, &'static str),
    Rpc(&'static str),
}

/// What one shows who may not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bearer {
    Nobody,
    Forger,
    Known(Role),
}

/// Tries what must be refused, at every replica.
pub(super) async fn intrude(shared: Arc<Shared>, number: usize, slower: u32, stop: CancellationToken) {
    let client = format!("intruder-{number}");
    let mut draw = shared.draw(&client);
    let doors = doors();
    while pause(EVERY * slower, &stop).await {
        let replica = draw.index(shared.cluster.size());
        let (request, outcome) = if draw.percent(MALFORMED) {
            malformed(&shared, replica, &mut draw)
        } else {
            let (door, access) = draw.choose(&doors);
            let bearer = Bearer::draw(*access, &mut draw);
            match *door {
                Door::Route(ref method, path) => by_rest(&shared, replica, method, path, bearer, &mut draw),
                Door::Rpc(path) => by_grpc(&shared, replica, path, bearer, &mut draw),
            }
        };
        let outcome = shared.recorder.call(&client, replica, request, outcome).await;
        debug_assert!(!matches!(outcome, Outcome::Ok { .. }), "the judge will say so, too");
    }
}

fn doors() -> Vec<(Door, Access)> {
    let routes = rest::routes().into_iter().map(|(method, path, access)| (Door::Route(method, path), access));
    let rpcs = rpcs().map(|(path, access)| (Door::Rpc(path), access));
    routes.chain(rpcs).filter(|(_, access)| *access != Access::Open).collect()
}

impl Bearer {
    /// One who may not.
    fn draw(access: Access, draw: &mut Draw) -> Self {
        let roles = Role::ALL.into_iter().filter(|role| !role.allows(access)).map(Self::Known);
        let all: Vec<_> = [Self::Nobody, Self::Forger].into_iter().chain(roles).collect();
        *draw.choose(&all)
    }

    fn token(self, shared: &Shared) -> Option<String> {
        let tokens = shared.cluster.tokens();
        match self {
            Self::Nobody => None,
            Self::Forger => Some(tokens.forged()),
            Self::Known(role) => Some(tokens.of(role).to_owned()),
        }
    }

    /// What is tried in this way, as it is told.
    fn tries(self, what: &str) -> String {
        match self {
            Self::Nobody => format!("tries {what} without a token"),
            Self::Forger => format!("tries {what} with a forged token"),
            Self::Known(role) => format!("tries {what} as {role}"),
        }
    }

    /// The HTTP status and gRPC's code by which one is refused.
    const fn refused_by(self) -> (u16, Code) {
        match self {
            Self::Nobody | Self::Forger => (401, Code::Unauthenticated),
            Self::Known(_) => (403, Code::PermissionDenied),
        }
    }
}

fn by_rest(
    shared: &Shared,
    replica: usize,
    method: &Method,
    path: &str,
    bearer: Bearer,
    draw: &mut Draw,
) -> Attempt {
    let victim = shared.recent(draw).filter(|_| path.contains("/jobs/{id}"));
    let id = if path.contains("/members/") {
        (draw.index(shared.cluster.size()) + 1).to_string()
    } else {
        victim.unwrap_or_else(|| draw.uuid()).to_string()
    };
    let url = format!("http://{}{}", shared.cluster.rest(replica), path.replace("{id}", &id));
    let mut send = shared.cluster.http.request(method.clone(), url).timeout(ANSWER_WITHIN);
    if let Some(body) = body(shared, method, path, draw) {
        send = send.json(&body);
    }
    if let Some(token) = bearer.token(shared) {
        send = send.bearer_auth(token);
    }
    let what = bearer.tries(&format!("{method} {path}"));
    let request = Request::Intrusion { what, expected: bearer.refused_by().0, job: victim };
    (request, refusal_of(send).boxed())
}

/// A body that would do something.
fn body(shared: &Shared, method: &Method, path: &str, draw: &mut Draw) -> Option<Value> {
    let mut job = || Plan::draw(shared.next_number(), draw).body(draw);
    match (method.as_str(), path) {
        ("GET" | "DELETE", _) => None,
        ("POST", "/api/v1/jobs") => Some(job()),
        ("POST", "/api/v1/jobs/batch") => Some(json!({"jobs": [job()]})),
        ("PATCH", _) => Some(json!({"status": "cancelled"})),
        _ => Some(json!({})),
    }
}

/// Sends what must be refused. Whoever is let in is, whatever the answer holds and whether or not it ends.
async fn refusal_of(request: RequestBuilder) -> Outcome {
    let answer = match send_off(request).await {
        Ok(answer) => answer,
        Err(outcome) => return outcome,
    };
    let status = answer.status().as_u16();
    if status < 400 {
        return Outcome::Ok { status, jobs: Vec::new() };
    }
    let body: Value = answer.json().await.unwrap_or_default();
    Outcome::Refused { status, why: body["type"].as_str().unwrap_or("no body").to_owned() }
}

fn by_grpc(shared: &Shared, replica: usize, path: &'static str, bearer: Bearer, draw: &mut Draw) -> Attempt {
    let name = path.rsplit('/').next().unwrap_or_default();
    let of_job = matches!(name, "GetJob" | "CancelJob" | "RetryJob" | "WatchJob");
    let victim = shared.recent(draw).filter(|_| of_job);
    let (channel, token) = (channel(&shared.cluster, replica), bearer.token(shared));
    let answer = match name {
        "SubmitJob" => {
            let job = Some(submission(shared, draw));
            call(channel, path, token, SubmitJobRequest { job, ..SubmitJobRequest::default() }).boxed()
        }
        "SubmitJobs" => {
            let jobs = vec![submission(shared, draw)];
            call(channel, path, token, SubmitJobsRequest { jobs, ..SubmitJobsRequest::default() }).boxed()
        }
        // All of them name the job in the same way.
        _ if of_job => {
            let job_id = victim.unwrap_or_else(|| draw.uuid()).to_string();
            call(channel, path, token, CancelJobRequest { job_id }).boxed()
        }
        _ => call(channel, path, token, ()).boxed(),
    };
    let expected = bearer.refused_by().1 as u16;
    let request = Request::Intrusion { what: bearer.tries(path), expected, job: victim };
    (request, outcome_of_call(answer).boxed())
}

fn submission(shared: &Shared, draw: &mut Draw) -> JobSubmission {
    let plan = Plan::draw(shared.next_number(), draw);
    JobSubmission {
        name: format!("job-{}", plan.number),
        model_name: format!("m{}", draw.index(4)),
        model_version: "1".to_owned(),
        input_data: json!(plan).to_string().into(),
        ..JobSubmission::default()
    }
}

/// Calls an RPC, and waits for the beginning of its answer.
async fn call<M: Message + 'static>(
    channel: Channel,
    path: &'static str,
    token: Option<String>,
    message: M,
) -> Result<(), Status> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        let bearer: Result<MetadataValue<Ascii>, _> = format!("Bearer {token}").parse();
        let bearer = bearer.map_err(|error| Status::unknown(error.to_string()))?;
        request.metadata_mut().insert("authorization", bearer);
    }
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    // As a stream, whatever it is: some of them do not end.
    let path = PathAndQuery::from_static(path);
    let answer = client.server_streaming(request, path, ProstCodec::<M, ()>::default()).await?;
    answer.into_inner().message().await?;
    Ok(())
}

async fn outcome_of_call(answer: BoxFuture<'static, Result<(), Status>>) -> Outcome {
    match tokio::time::timeout(ANSWER_WITHIN, answer).await {
        Ok(Ok(())) => Outcome::Ok { status: Code::Ok as u16, jobs: Vec::new() },
        Ok(Err(status)) => match status.code() {
            // What the client itself makes of a connection that breaks.
            Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Internal => {
                Outcome::Unknown { why: status.to_string() }
            }
            code => Outcome::Refused { status: code as u16, why: status.message().to_owned() },
        },
        Err(_) => Outcome::Unknown { why: "no answer in time".to_owned() },
    }
}

/// A submission by somebody who may; it cannot be read, or breaks a bound.
fn malformed(shared: &Shared, replica: usize, draw: &mut Draw) -> Attempt {
    let number = shared.next_number();
    let post = shared.cluster.http.post(format!("http://{}/api/v1/jobs", shared.cluster.rest(replica)));
    let post = post.bearer_auth(&shared.cluster.tokens().submitter).timeout(ANSWER_WITHIN);
    let (what, expected, send) = if draw.percent(50) {
        let mut bad = Plan::draw(number, draw).body(draw);
        bad["priority"] = json!(11);
        ("submits with a priority of 11", 422, post.json(&bad))
    } else {
        let text = format!("{{\"name\": \"job-{number}\", \"input_data\": [[[");
        ("submits half a body", 400, post.header("Content-Type", "application/json").body(text))
    };
    (Request::Intrusion { what: what.to_owned(), expected, job: None }, outcome_of(send).boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_door_is_tried_by_everybody_who_may_not_and_by_nobody_who_may() {
        let mut draw = Draw::new(1, "intruder");
        let doors = doors();
        let rpcs = doors.iter().filter(|(door, _)| matches!(door, Door::Rpc(_))).count();
        assert_eq!(rpcs, cortex::api::rpcs().count());
        let closed = rest::routes().into_iter().filter(|(_, _, access)| *access != Access::Open).count();
        assert_eq!(doors.len() - rpcs, closed);
        for (_, access) in doors {
            let seen: Vec<_> = (0..200).map(|_| Bearer::draw(access, &mut draw)).collect();
            assert!(seen.contains(&Bearer::Nobody) && seen.contains(&Bearer::Forger));
            for role in Role::ALL {
                assert_eq!(
                    seen.contains(&Bearer::Known(role)),
                    !role.allows(access),
                    "{role} for {access:?}"
                );
            }
        }
    }
}
