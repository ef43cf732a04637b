//! What every request has to pass before its handler: who calls, how often, and whether they may.
//!
//! A handler runs within [`Caller::scope`]; without it no command is carried out. So a route that came past
//! this gate could read, and change nothing.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tonic::Status;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tower_http::cors::CorsLayer;

use super::access;
use super::problem::{Problem, ProblemType};
use super::state::Api;
use crate::security::{Access, AuthError, Authenticator, Caller, Limiter};

/// What opens the value of an `Authorization` header.
const SCHEME: &str = "bearer";

/// Who is asked what at the gate.
#[derive(Default)]
pub struct Gate {
    /// Checks tokens; nobody needs one without.
    pub authenticator: Option<Authenticator>,
    /// Counts requests; anybody may make any number without.
    pub limiter: Option<Limiter>,
    /// Largest sum of all names and values of a request's headers in bytes; 0 is any.
    pub max_header_bytes: usize,
    /// Answers browsers on other origins; none of them may call without.
    pub cors: Option<CorsLayer>,
}

impl Gate {
    /// Whether the headers are within their limit.
    pub(super) fn takes(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let limit = self.max_header_bytes;
        let bytes = || headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
        if limit > 0 && bytes() > limit {
            let detail = format!("the headers may have at most {limit} bytes");
            return Err(Problem::new(ProblemType::HeadersTooLarge, detail));
        }
        Ok(())
    }

    /// Who makes a request, if they may make it.
    async fn admit(
        &self,
        access: Access,
        headers: &HeaderMap,
        address: Option<IpAddr>,
    ) -> Result<Caller, Problem> {
        let caller = match &self.authenticator {
            None => Ok(Caller::Anybody),
            Some(authenticator) => identify(authenticator, headers).await,
        };
        // Whoever guesses at tokens is counted by address.
        if let Some(limiter) = &self.limiter {
            let subject = caller.as_ref().ok().and_then(Caller::subject);
            limiter.admit(subject, address).map_err(Problem::rate_limited)?;
        }
        let caller = caller?;
        if caller.may(access) {
            Ok(caller)
        } else {
            let detail = format!("{caller} may not do this; the role must be {}", access.roles());
            Err(Problem::new(ProblemType::Forbidden, detail))
        }
    }
}

/// Whose token a request carries.
async fn identify(authenticator: &Authenticator, headers: &HeaderMap) -> Result<Caller, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        let detail = "a token is needed: Authorization: Bearer <token>";
        return Err(Problem::new(ProblemType::TokenMissing, detail));
    };
    let refused = |detail: String| Problem::new(ProblemType::TokenRefused, detail);
    if values.next().is_some() {
        return Err(refused("there is more than one Authorization header".to_owned()));
    }
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case(SCHEME).then(|| token.trim())
    });
    let token = token.ok_or_else(|| refused("Authorization must be Bearer and a token".to_owned()))?;
    authenticator.caller_of(token).await.map_err(|error| match error {
        AuthError::Refused(reason) => refused(reason),
        AuthError::Unavailable => Problem::new(ProblemType::KeysUnavailable, error.to_string()),
    })
}

/// Stands in front of one route.
pub(super) async fn http(
    State((api, access)): State<(Api, Access)>,
    request: Request,
    next: Next,
) -> Response {
    if access == Access::Open {
        return next.run(request).await;
    }
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    match api.gate.admit(access, request.headers(), address).await {
        Ok(caller) => caller.scope(next.run(request)).await,
        Err(problem) => problem.into_response(),
    }
}

/// Stands in front of all RPCs.
pub(super) async fn grpc(State(api): State<Api>, request: Request, next: Next) -> Response {
    let access = access::of_rpc(request.uri().path());
    if access == Access::Open {
        return next.run(request).await;
    }
    let extensions = request.extensions();
    let tcp = extensions.get::<TcpConnectInfo>();
    let tls = extensions.get::<TlsConnectInfo<TcpConnectInfo>>().map(TlsConnectInfo::get_ref);
    let address = tcp.or(tls).and_then(TcpConnectInfo::remote_addr).map(|address| address.ip());
    match api.gate.admit(access, request.headers(), address).await {
        Ok(caller) => caller.scope(next.run(request)).await,
        Err(problem) => Status::from(problem).into_http(),
    }
}
