//! Public keys from `security.jwks_url`: kept, refreshed, and asked for anew when a token names a key that is
//! not among them.
//!
//! Anybody can make up key ids, so what is not known is asked for once in [`ASK_EVERY`] at the most, whatever
//! arrives. Keys that could not be refreshed for [`KEEP_FOR`] are trusted no longer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Client, redirect};
use tokio_util::task::AbortOnDropHandle;

use super::keys::KeySet;
use crate::domain::ambient::Ambient;

/// Time between two refreshes.
const REFRESH_EVERY: Duration = Duration::from_secs(300);
/// Shortest time between two fetches, whatever they are for.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// Age at which keys are no longer trusted.
const KEEP_FOR: Duration = Duration::from_secs(3600);
/// How long a fetch may take, connecting included.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Largest key set in bytes.
const MAX_BODY: usize = 256 * 1024;

/// The keys of one URL.
pub(super) struct Jwks {
    source: Arc<Source>,
    _refresh: AbortOnDropHandle<()>,
}

struct Source {
    url: String,
    client: Client,
    ambient: Arc<dyn Ambient>,
    kept: Mutex<Option<(Instant, Arc<KeySet>)>>,
    /// When the last fetch began. Held while one is under way.
    asked: tokio::sync::Mutex<Option<(Instant, bool)>>,
}

impl Jwks {
    /// Begins to fetch, now and from time to time. Must run inside a runtime.
    pub(super) fn start(url: &str, ambient: Arc<dyn Ambient>) -> Result<Self, String> {
        // A redirect would let whoever can answer in this URL's place name another one.
        let client = Client::builder()
            .timeout(ANSWER_WITHIN)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| format!("cannot be used: {error}"))?;
        let (kept, asked) = (Mutex::default(), tokio::sync::Mutex::default());
        let source = Arc::new(Source { url: url.to_owned(), client, ambient, kept, asked });
        let refresh = tokio::spawn(Arc::clone(&source).refresh());
        Ok(Self { source, _refresh: AbortOnDropHandle::new(refresh) })
    }

    /// The keys, asked for anew if none of those at hand has this id. Nothing if there are none to be trusted.
    pub(super) async fn keys(&self, kid: Option<&str>) -> Option<Arc<KeySet>> {
        match self.source.kept() {
            Some(keys) if keys.candidates(kid).next().is_some() => Some(keys),
            _ => {
                // Spawned, so that a caller who hangs up does not take the answer from the others who wait.
                let source = Arc::clone(&self.source);
                drop(tokio::spawn(async move { source.ask().await }).await);
                self.source.kept()
            }
        }
    }
}

impl Source {
    fn kept(&self) -> Option<Arc<KeySet>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, keys) = kept.as_ref()?;
        (self.ambient.instant().duration_since(*at) < KEEP_FOR).then(|| Arc::clone(keys))
    }

    async fn refresh(self: Arc<Self>) {
        loop {
            let pause = if self.ask().await { REFRESH_EVERY } else { ASK_EVERY };
            tokio::time::sleep(pause).await;
        }
    }

    /// Fetches, unless that was done a moment ago. `false` says that there was no answer.
    async fn ask(&self) -> bool {
        let mut asked = self.asked.lock().await;
        let now = self.ambient.instant();
        if let Some((_, answered)) = asked.filter(|(at, _)| now.duration_since(*at) < ASK_EVERY) {
            return answered;
        }
        let fetched = self.fetch().await;
        let answered = match fetched {
            Ok(keys) => {
                let kept = (self.ambient.instant(), Arc::new(keys));
                *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "The keys of security.jwks_url could not be fetched.");
                false
            }
        };
        *asked = Some((now, answered));
        answered
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        let request = self.client.get(&self.url).header(reqwest::header::ACCEPT, "application/json");
        // The URL may hold a password; the error's text does not need it.
        let text = |error: reqwest::Error| error.without_url().to_string();
        let mut response = request.send().await.map_err(text)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(format!("the answer is {}, not 200", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(text)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(format!("the answer is larger than {MAX_BODY} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        KeySet::from_jwks(&body)
    }
}

#[cfg(test)]
#[path = "jwks_tests.rs"]
mod tests;
