//! Whose token it is.

use std::sync::Arc;

use super::caller::Bearer;
use super::jwks::Jwks;
use super::keys::KeySet;
use super::token::{Distrust, Policy, Unverified};
use crate::config;
use crate::domain::ambient::Ambient;

/// Why there is no authenticator.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Tokens are required, and nothing to check them with is configured.
    #[error(
        "security.require_auth is true, and there is no key to check tokens with: set security.jwt_public_key \
         (PEM text, or the path of a PEM file) or security.jwks_url; or set security.require_auth to false and \
         keep the ports private"
    )]
    NoKeys,
    /// The PEM text or file is not usable.
    #[error("security.jwt_public_key {0}")]
    PublicKey(String),
    /// The URL is not usable.
    #[error("security.jwks_url {0}")]
    JwksUrl(String),
}

/// Why a token was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// It is not to be believed; the text is public.
    #[error("{0}")]
    Refused(String),
    /// It cannot be judged at the moment: the keys of `security.jwks_url` were never fetched, or long ago.
    #[error("the keys of security.jwks_url are not available")]
    Unavailable,
}

/// Checks tokens.
pub struct Authenticator {
    fixed: KeySet,
    remote: Option<Jwks>,
    policy: Policy,
    ambient: Arc<dyn Ambient>,
}

impl Authenticator {
    /// What the configuration asks for; nothing if nobody needs a token. Must run inside a runtime.
    ///
    /// # Errors
    /// If tokens are required and the keys to check them with are missing or cannot be read.
    pub fn new(config: &config::Security, ambient: Arc<dyn Ambient>) -> Result<Option<Self>, SetupError> {
        if !config.require_auth {
            return Ok(None);
        }
        if config.jwt_public_key.is_none() && config.jwks_url.is_none() {
            return Err(SetupError::NoKeys);
        }
        let fixed = config.jwt_public_key.as_deref().map(KeySet::from_pem).transpose();
        let remote =
            config.jwks_url.as_ref().map(|url| Jwks::start(url.expose(), Arc::clone(&ambient))).transpose();
        let (issuer, audience) = (config.jwt_issuer.clone(), config.jwt_audience.clone());
        Ok(Some(Self {
            fixed: fixed.map_err(SetupError::PublicKey)?.unwrap_or_default(),
            remote: remote.map_err(SetupError::JwksUrl)?,
            policy: Policy { issuer, audience },
            ambient,
        }))
    }

    /// Who the token names, and for how long.
    ///
    /// # Errors
    /// [`AuthError`]. What is wrong with a token is always the bearer's fault, never an internal error.
    pub async fn bearer_of(&self, token: &str) -> Result<Bearer, AuthError> {
        let refused = |distrust: Distrust| AuthError::Refused(distrust.to_string());
        let token = Unverified::read(token).map_err(refused)?;
        let kid = token.kid.as_deref();
        // Those at hand first: the others may have to be fetched.
        let claims = match (token.verify(self.fixed.candidates(kid)), &self.remote) {
            (Ok(claims), _) => claims,
            (Err(distrust), None) => return Err(refused(distrust)),
            (Err(_), Some(remote)) => {
                let keys = remote.keys(kid).await.ok_or(AuthError::Unavailable)?;
                token.verify(keys.candidates(kid)).map_err(refused)?
            }
        };
        claims.check(&self.policy, self.ambient.now()).map_err(refused)
    }
}
