//! What a model asks of a worker, for jobs that do not say so themselves.

use serde_json::{Map, Value};

use super::job::NewJob;
use super::matching::Shape;
use super::validate::{FieldError, Validator};

/// Members of a job's metadata that a model may have defaults for, and their names among a worker's capabilities.
const MEMBERS: [(&str, &str); 2] = [("requires_gpu", "gpu"), ("required_memory_gb", "memory_gb")];

/// Defaults of a model, checked like a job's own requirements.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Requirements(Map<String, Value>);

impl Requirements {
    /// Reads them from an object that names them as a job's metadata does, or as a worker's capabilities do. Other
    /// members are of no concern here.
    ///
    /// # Errors
    /// Names every member whose value no job could have.
    pub fn read(members: &Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let named = |(name, other): (&str, &str)| {
            let value = members.get(name).or_else(|| members.get(other))?;
            (!value.is_null()).then(|| (name.to_owned(), value.clone()))
        };
        let read: Map<String, Value> = MEMBERS.into_iter().filter_map(named).collect();
        let mut v = Validator::default();
        Shape::of_job("", &read, &mut v);
        v.finish(Some(Self(read)))
    }
}

impl NewJob {
    /// Adds to the metadata what it does not mention. A member that is `null` there stays so: it asks for nothing.
    pub fn fill_in(&mut self, defaults: &Requirements) {
        let own: Map<String, Value> = serde_json::from_str(self.metadata.as_str()).unwrap_or_default();
        let mut missing = defaults.0.clone();
        missing.retain(|name, _| !own.contains_key(name));
        if missing.is_empty() {
            return;
        }
        self.metadata = self.metadata.with(&missing);
        let all = missing.into_iter().chain(own).collect();
        // Both parts were checked before.
        self.shape = Shape::of_job(&self.model_name, &all, &mut Validator::default());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::JobId;
    use crate::domain::job::{JobDefaults, JobDraft};
    use crate::domain::retry::RetryPolicy;

    fn job(metadata: &Value) -> NewJob {
        let body = json!({"name": "n", "model_name": "m", "model_version": "1", "input_data": {"a": 1},
            "metadata": metadata});
        let draft: JobDraft = serde_json::from_str(&body.to_string()).unwrap();
        let defaults = JobDefaults { retry: RetryPolicy::default(), timeout_seconds: 3600 };
        draft.check(JobId(Uuid::nil()), &defaults).unwrap()
    }

    fn read(members: &Value) -> Result<Requirements, Vec<FieldError>> {
        Requirements::read(members.as_object().unwrap())
    }

    #[test]
    fn what_a_job_leaves_open_is_filled_in() {
        let defaults = read(&json!({"gpu": true, "required_memory_gb": 1.5, "licence": "x"})).unwrap();
        let mut plain = job(&json!({}));
        plain.fill_in(&defaults);
        assert_eq!(plain.metadata.as_str(), r#"{"required_memory_gb":1.5,"requires_gpu":true}"#);
        assert_eq!((plain.shape.requires_gpu, plain.shape.required_memory_mib), (true, 1536));
        let mut labelled = job(&json!({"a": {"b": 1}, "required_memory_gb": 3}));
        labelled.fill_in(&defaults);
        let metadata: Value = serde_json::from_str(labelled.metadata.as_str()).unwrap();
        assert_eq!(metadata, json!({"a": {"b": 1}, "required_memory_gb": 3, "requires_gpu": true}));
        assert_eq!(labelled.shape.required_memory_mib, 3072, "what the job says itself wins");
    }

    #[test]
    fn null_in_a_job_asks_for_nothing() {
        let mut job = job(&json!({"requires_gpu": null, "required_memory_gb": null}));
        let before = (job.metadata.clone(), job.shape.clone());
        job.fill_in(&read(&json!({"requires_gpu": true, "memory_gb": 8})).unwrap());
        assert_eq!((job.metadata, job.shape), before);
    }

    #[test]
    fn requirements_that_no_job_could_have_are_refused() {
        let errors = read(&json!({"requires_gpu": "yes", "memory_gb": -1})).unwrap_err();
        let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["metadata.requires_gpu", "metadata.required_memory_gb"]);
        assert_eq!(read(&json!({"gpu": null})).unwrap(), Requirements::default());
    }
}
