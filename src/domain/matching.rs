//! Which worker can run which job.
//!
//! Jobs with the same requirements share a [`Shape`]; workers with the same abilities share
//! [`Capabilities`]. Matching is between the two, so its cost does not grow with the number of jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::validate::{FieldError, Validator, check_text};

/// What a job asks of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shape {
    /// The model that the worker must be able to run.
    pub model_name: String,
    /// Whether a GPU is required (`metadata.requires_gpu`).
    pub requires_gpu: bool,
    /// Required memory in MiB, rounded up (`metadata.required_memory_gb`); 0 means none.
    pub required_memory_mib: u64,
}

/// `gpu`, memory and model in one text: the name of the shape in the ready queue.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", u8::from(self.requires_gpu), self.required_memory_mib, self.model_name)
    }
}

impl std::str::FromStr for Shape {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(3, ':');
        let (Some(gpu), Some(memory), Some(model)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(());
        };
        Ok(Self {
            model_name: model.to_owned(),
            requires_gpu: gpu == "1",
            required_memory_mib: memory.parse().map_err(|_| ())?,
        })
    }
}

impl Shape {
    /// Reads the requirements from a job's model and metadata.
    pub fn of_job(model_name: &str, metadata: &Map<String, Value>, v: &mut Validator) -> Self {
        let requires_gpu = match metadata.get("requires_gpu") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(gpu)) => *gpu,
            Some(_) => {
                v.reject("metadata.requires_gpu", "must be true or false");
                false
            }
        };
        let required_memory_mib = match metadata.get("required_memory_gb") {
            None | Some(Value::Null) => 0,
            Some(value) => memory_mib(value).unwrap_or_else(|message| {
                v.reject("metadata.required_memory_gb", message);
                0
            }),
        };
        Self { model_name: model_name.to_owned(), requires_gpu, required_memory_mib }
    }
}

/// What a worker can do, as far as placement cares.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Capabilities {
    /// The models that it runs; `None` means any.
    pub models: Option<BTreeSet<String>>,
    /// Whether it has a GPU.
    pub gpu: bool,
    /// Memory in MiB; `None` means undeclared, which satisfies no memory requirement.
    pub memory_mib: Option<u64>,
}

/// Why a worker cannot take a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// The model is not among the worker's models.
    Model,
    /// The job needs a GPU and the worker has none.
    Gpu,
    /// The job needs more memory than the worker has declared.
    Memory,
}

impl Capabilities {
    /// Whether a worker with these capabilities can run jobs of `shape`, and if not, why.
    pub fn check(&self, shape: &Shape) -> Result<(), Mismatch> {
        if self.models.as_ref().is_some_and(|models| !models.contains(&shape.model_name)) {
            return Err(Mismatch::Model);
        }
        if shape.requires_gpu && !self.gpu {
            return Err(Mismatch::Gpu);
        }
        if shape.required_memory_mib > self.memory_mib.unwrap_or(0) {
            return Err(Mismatch::Memory);
        }
        Ok(())
    }

    /// Reads the typed form of a worker's `capabilities`; other members are of no concern here.
    pub fn from_json(capabilities: &Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let mut v = Validator::default();
        let models = match capabilities.get("models") {
            None | Some(Value::Null) => None,
            value => v.typed::<BTreeSet<String>>("capabilities.models", value, "an array of model names"),
        };
        let gpu = v.typed("capabilities.gpu", capabilities.get("gpu"), "true or false").unwrap_or(false);
        let memory_mib = match capabilities.get("memory_gb") {
            None | Some(Value::Null) => None,
            Some(value) => match memory_mib(value) {
                Ok(mib) => Some(mib),
                Err(message) => {
                    v.reject("capabilities.memory_gb", message);
                    None
                }
            },
        };
        v.finish(Some(Self { models, gpu, memory_mib }))
    }
}

/// Turns the string map of the worker protocol into the typed JSON form: `models` is a JSON array or
/// comma-separated, `gpu` true or false, `memory_gb` a number. Other members stay strings.
pub fn capabilities_from_strings<'a>(
    strings: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Map<String, Value>, Vec<FieldError>> {
    let sorted: BTreeMap<&str, &str> = strings.into_iter().collect();
    let mut v = Validator::default();
    let mut capabilities = Map::new();
    for (key, text) in sorted {
        if let Err(message) = check_text(key, 1, 255).and_then(|()| check_text(text, 0, 65_536)) {
            v.reject(format!("capabilities.{key:.64}"), message);
            continue;
        }
        let value = match key {
            "models" if text.trim().is_empty() => continue,
            "models" => models_from_text(text.trim(), &mut v),
            "gpu" => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" => Value::Bool(true),
                "false" | "0" | "no" | "" => Value::Bool(false),
                _ => {
                    v.reject("capabilities.gpu", "must be true or false");
                    continue;
                }
            },
            "memory_gb" => match text.trim().parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
                Some(number) => Value::Number(number),
                None => {
                    v.reject("capabilities.memory_gb", "must be a number");
                    continue;
                }
            },
            _ => Value::String(text.to_owned()),
        };
        capabilities.insert(key.to_owned(), value);
    }
    v.finish(Some(capabilities))
}

fn models_from_text(text: &str, v: &mut Validator) -> Value {
    if text.starts_with('[') {
        return serde_json::from_str::<Vec<String>>(text).map_or_else(
            |_| {
                v.reject(
                    "capabilities.models",
                    "must be a JSON array of model names or a comma-separated list",
                );
                Value::Null
            },
            |models| models.into_iter().map(Value::String).collect(),
        );
    }
    text.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(|name| Value::String(name.to_owned()))
        .collect()
}

/// Gigabytes (GiB) to MiB, rounded up. A number from 0 to 1048576.
fn memory_mib(value: &Value) -> Result<u64, String> {
    match value.as_f64() {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
        Some(gb) if (0.0..=1_048_576.0).contains(&gb) => Ok((gb * 1024.0).ceil() as u64),
        _ => Err("must be a number from 0 to 1048576".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shape(model: &str, gpu: bool, memory_mib: u64) -> Shape {
        Shape { model_name: model.into(), requires_gpu: gpu, required_memory_mib: memory_mib }
    }

    fn capabilities(value: Value) -> Capabilities {
        Capabilities::from_json(value.as_object().unwrap()).unwrap()
    }

    #[test]
    fn absent_models_mean_any_model_and_an_empty_list_means_none() {
        assert_eq!(capabilities(json!({})).check(&shape("a", false, 0)), Ok(()));
        assert_eq!(capabilities(json!({"models": []})).check(&shape("a", false, 0)), Err(Mismatch::Model));
        assert_eq!(capabilities(json!({"models": ["b"]})).check(&shape("a", false, 0)), Err(Mismatch::Model));
        assert_eq!(capabilities(json!({"models": ["a"]})).check(&shape("a", false, 0)), Ok(()));
    }

    #[test]
    fn gpu_and_memory_are_required_only_where_the_job_asks() {
        let plain = capabilities(json!({}));
        assert_eq!(plain.check(&shape("a", true, 0)), Err(Mismatch::Gpu));
        assert_eq!(plain.check(&shape("a", false, 1)), Err(Mismatch::Memory));
        let large = capabilities(json!({"gpu": true, "memory_gb": 16}));
        assert_eq!(large.check(&shape("a", true, 16 * 1024)), Ok(()));
        assert_eq!(large.check(&shape("a", true, 16 * 1024 + 1)), Err(Mismatch::Memory));
    }

    #[test]
    fn strings_of_the_worker_protocol_become_typed() {
        let typed = capabilities_from_strings([
            ("models", "a, b,"),
            ("gpu", "True"),
            ("memory_gb", "24.5"),
            ("zone", "eu"),
        ])
        .unwrap();
        assert_eq!(
            Value::Object(typed),
            json!({"models": ["a", "b"], "gpu": true, "memory_gb": 24.5, "zone": "eu"})
        );
        let array = capabilities_from_strings([("models", r#"["a"]"#)]).unwrap();
        assert_eq!(Value::Object(array), json!({"models": ["a"]}));
        let errors = capabilities_from_strings([("models", "[1"), ("gpu", "maybe"), ("memory_gb", "much")])
            .unwrap_err();
        assert_eq!(errors.len(), 3);
    }

    #[test]
    fn a_shape_survives_its_name() {
        let shape = shape("org/model:7b", true, 512);
        assert_eq!(shape.to_string().parse(), Ok(shape));
    }
}
