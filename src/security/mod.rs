//! Who calls, and what they may do: tokens, roles, limits on rates. And payloads that are sealed at rest.
//!
//! Knows no transport and no use case. [`crate::api`] reads a token from a request and asks
//! [`Authenticator`] whose it is; the [`Caller`] then goes with every command, to the leader, wherever that is.
//!
//! Invariant: what cannot be checked is refused. No part of a token is believed before its signature is.

mod authenticator;
mod caller;
mod issue;
mod jwks;
mod keys;
mod limiter;
mod tls;
mod token;
mod vault;

pub use authenticator::{AuthError, Authenticator, SetupError};
pub use caller::{Access, Bearer, Caller, Role};
pub use issue::{IssueError, Issuer, KeyPair, NewToken};
pub use limiter::{Limiter, Rate};
pub use tls::{
    PeerTls, RedisTls, TlsError, TlsIdentity, is_tls_failure, peer_tls, redis_tls, server_identity,
};
pub use token::MAX_TOKEN;
pub use vault::{BadKey, Column, Unsealed, Vault};
