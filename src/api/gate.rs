//! What every request has to pass before its handler: who calls, how often, and whether they may.
//!
//! A handler runs within [`Caller::scope`]; without it no command is carried out. So a route that came past
//! this gate could read, and change nothing.
//!
//! A stream of ours ends with the token on whose strength it was opened ([`GoodUntil`]): what goes on for hours is no single call.

use std::future::pending;
use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tower_http::cors::CorsLayer;

use super::access;
use super::answers::Answers;
use super::problem::{Problem, ProblemType};
use super::state::Api;
use crate::security::{Access, AuthError, Authenticator, Caller, Limiter};

/// What opens the value of an `Authorization` header.
const SCHEME: &str = "bearer";

/// When the token of a request expires, if it needs one. Every request that has passed has it among its extensions,
/// but for those of open routes.
#[derive(Debug, Clone, Copy)]
pub(super) struct GoodUntil(Option<Instant>);

impl GoodUntil {
    /// Resolves then.
    pub(super) async fn expired(self) {
        match self.0 {
            Some(at) => sleep_until(at).await,
            None => pending().await,
        }
    }

    /// What a stream of gRPC says last.
    pub(super) fn status() -> Status {
        let detail = "the token on which this stream was opened has expired";
        Problem::new(ProblemType::TokenRefused, detail).into()
    }
}

/// Whose request passes, and how long that holds.
struct Admitted {
    caller: Caller,
    until: GoodUntil,
}

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
    /// Bounds what is on its way to slow readers.
    pub answers: Answers,
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
    ) -> Result<Admitted, Problem> {
        let bearer = match &self.authenticator {
            None => Ok(Admitted { caller: Caller::Anybody, until: GoodUntil(None) }),
            Some(authenticator) => identify(authenticator, headers).await,
        };
        // Whoever guesses at tokens is counted by address.
        if let Some(limiter) = &self.limiter {
            let subject = bearer.as_ref().ok().and_then(|admitted| admitted.caller.subject());
            limiter.admit(subject, address).map_err(Problem::rate_limited)?;
        }
        let admitted = bearer?;
        if admitted.caller.may(access) {
            Ok(admitted)
        } else {
            let caller = admitted.caller;
            let detail = format!("{caller} may not do this; the role must be {}", access.roles());
            Err(Problem::new(ProblemType::Forbidden, detail))
        }
    }
}

/// Whose token a request carries.
async fn identify(authenticator: &Authenticator, headers: &HeaderMap) -> Result<Admitted, Problem> {
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
    match authenticator.bearer_of(token).await {
        // So late that it cannot be told is never.
        Ok(bearer) => {
            let until = GoodUntil(Instant::now().checked_add(bearer.good_for));
            Ok(Admitted { caller: bearer.caller, until })
        }
        Err(AuthError::Refused(reason)) => Err(refused(reason)),
        Err(error @ AuthError::Unavailable) => {
            Err(Problem::new(ProblemType::KeysUnavailable, error.to_string()))
        }
    }
}

/// Lets a request pass.
async fn pass(admitted: Admitted, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(admitted.until);
    admitted.caller.scope(next.run(request)).await
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
        Ok(admitted) => pass(admitted, request, next).await,
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
        Ok(admitted) => pass(admitted, request, next).await,
        Err(problem) => Status::from(problem).into_http(),
    }
}
