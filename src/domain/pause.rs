//! Which jobs are held back on purpose: all of them, or those of some models.
//!
//! A pause is a setting of the replicated control state, so every replica can show it and a new leader
//! knows it before its first round. Held jobs wait as `queued`; what is assigned already goes on.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The setting that holds all jobs back.
const ALL: &str = "queue.paused";
/// The settings that hold the jobs of one model back begin with it; the model's name follows.
const MODEL: &str = "queue.paused.model:";

/// What is paused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Paused {
    /// Whether all jobs are held back.
    #[serde(rename = "paused")]
    pub all: bool,
    /// The models whose jobs are held back, whatever holds for all.
    #[serde(rename = "paused_models")]
    pub models: BTreeSet<String>,
}

impl Paused {
    /// Reads what is paused from the settings of the control state.
    pub fn of(settings: &BTreeMap<String, String>) -> Self {
        let names = settings.range(MODEL.to_owned()..).map(|(key, _)| key.strip_prefix(MODEL));
        Self {
            all: settings.contains_key(ALL),
            models: names.map_while(|name| name.map(str::to_owned)).collect(),
        }
    }

    /// The setting whose presence pauses a model, or everything.
    pub fn setting(model: Option<&str>) -> String {
        model.map_or_else(|| ALL.to_owned(), |name| format!("{MODEL}{name}"))
    }

    /// The settings that are to go so that nothing is paused any more.
    pub fn settings(&self) -> Vec<String> {
        let models = self.models.iter().map(|name| Self::setting(Some(name)));
        self.all.then(|| Self::setting(None)).into_iter().chain(models).collect()
    }

    /// Whether jobs of this model are held back.
    pub fn holds(&self, model_name: &str) -> bool {
        self.all || self.models.contains(model_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(keys: &[String]) -> BTreeMap<String, String> {
        keys.iter().map(|key| (key.clone(), "true".to_owned())).collect()
    }

    #[test]
    fn what_was_paused_is_read_back_and_nothing_else() {
        let other = ["a".to_owned(), "queue.paused.model".to_owned(), "queue.paused.model;x".to_owned()];
        assert_eq!(Paused::of(&settings(&other)), Paused::default());
        let names = ["", "a:b", "größe", "queue.paused"];
        let keys: Vec<_> = names.iter().map(|name| Paused::setting(Some(name))).collect();
        let paused = Paused::of(&settings(&[&keys[..], &other].concat()));
        assert_eq!((paused.all, &paused.models), (false, &names.map(str::to_owned).into()));
        assert!(paused.holds("a:b") && !paused.holds("a"));
    }

    #[test]
    fn pausing_everything_holds_every_model_and_resuming_names_all_settings() {
        let keys = [Paused::setting(None), Paused::setting(Some("m"))];
        let paused = Paused::of(&settings(&keys));
        assert!(paused.holds("m") && paused.holds("n"));
        assert_eq!(paused.settings(), keys);
    }
}
