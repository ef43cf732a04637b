//! The layers a configuration is made of, before anything is known about its keys.

use std::collections::BTreeMap;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use yaml_serde::Value as Yaml;

use super::error::{ConfigError, Problem};
use super::expand::expand;

/// Prefix of the environment variables that override keys.
const OVERRIDE_PREFIX: &str = "CORTEX__";

/// Environment variables, as a snapshot.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process. Variables that are not UTF-8 are left out.
    pub fn process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// The value of one variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// The merged layers: a tree of values that know their origin.
pub(super) struct Source {
    pub(super) tree: Dict,
    pub(super) figment: Figment,
    pub(super) problems: Vec<Problem>,
}

/// Parses the file, expands its variables and lays the environment's overrides over it.
pub(super) fn layers(yaml: &str, origin: &str, environment: &Environment) -> Result<Source, ConfigError> {
    let mut document: Yaml = yaml_serde::from_str(yaml)
        .map_err(|error| ConfigError::whole(format!("is not valid YAML: {error}"), origin))?;
    let mut problems = Vec::new();
    expand_scalars(&mut document, "", origin, environment, &mut problems);
    let file = match document {
        Yaml::Null => Dict::new(),
        Yaml::Mapping(_) => {
            as_dict(&document).ok_or_else(|| ConfigError::whole("has a key that is not text", origin))?
        }
        _ => return Err(ConfigError::whole("must be a mapping of sections", origin)),
    };
    let mut figment = Figment::new().merge(Layer { origin: origin.to_owned(), values: file });
    for (name, value) in &environment.0 {
        if let Some(path) = override_path(name) {
            let leaf = Value::from(value.as_str());
            let nested =
                path.rsplit("__").fold(leaf, |inner, key| Value::from(Dict::from([(key.to_owned(), inner)])));
            if let Some(values) = nested.into_dict() {
                figment = figment.merge(Layer { origin: format!("environment variable {name}"), values });
            }
        }
    }
    let tree = match figment.data() {
        Ok(mut profiles) => profiles.remove(&Profile::Default).unwrap_or_default(),
        Err(error) => return Err(ConfigError::whole(error.to_string(), origin)),
    };
    Ok(Source { tree, figment, problems })
}

/// `cortex__queue__redis_url` gives `queue__redis_url`.
fn override_path(name: &str) -> Option<String> {
    let head = name.get(..OVERRIDE_PREFIX.len())?;
    let path = name.get(OVERRIDE_PREFIX.len()..)?;
    (head.eq_ignore_ascii_case(OVERRIDE_PREFIX) && !path.is_empty()).then(|| path.to_ascii_lowercase())
}

fn expand_scalars(
    value: &mut Yaml,
    path: &str,
    origin: &str,
    environment: &Environment,
    problems: &mut Vec<Problem>,
) {
    match value {
        Yaml::String(text) => match expand(text, environment) {
            Ok(expanded) => *text = expanded,
            Err(errors) => {
                problems.extend(errors.into_iter().map(|message| Problem {
                    key: path.to_owned(),
                    message,
                    origin: Some(origin.to_owned()),
                }));
                // Absent from here on, so that the key is not reported a second time.
                *value = Yaml::Null;
            }
        },
        Yaml::Sequence(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                expand_scalars(item, &format!("{path}[{index}]"), origin, environment, problems);
            }
        }
        Yaml::Mapping(entries) => {
            for (key, item) in entries.iter_mut() {
                let key = key.as_str().unwrap_or("?");
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                expand_scalars(item, &path, origin, environment, problems);
            }
        }
        Yaml::Tagged(tagged) => expand_scalars(&mut tagged.value, path, origin, environment, problems),
        Yaml::Null | Yaml::Bool(_) | Yaml::Number(_) => {}
    }
}

fn as_dict(document: &Yaml) -> Option<Dict> {
    Value::serialize(document).ok()?.into_dict()
}

struct Layer {
    origin: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}
