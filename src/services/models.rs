//! Submissions and the registry of models.

use std::collections::HashSet;

use super::error::ServiceError;
use super::facade::Services;
use crate::domain::idempotency::IdempotencyKey;
use crate::domain::job::NewJob;
use crate::domain::validate::FieldError;
use crate::genome::{Model, Verdict};

impl Services {
    /// Refuses jobs whose model the registry does not know, and fills in what it says that a model needs. Where there is
    /// no registry, any model is known. Jobs that are stored already, under this key, were checked when they were.
    pub(super) async fn check_models(
        &self,
        jobs: &mut [NewJob],
        key: Option<&IdempotencyKey>,
        named: impl Fn(FieldError, usize) -> FieldError,
    ) -> Result<(), ServiceError> {
        let Some(genome) = &self.genome else { return Ok(()) };
        if let Some(key) = key
            && self.queries.is_settled(key).await?
        {
            return Ok(());
        }
        let models: HashSet<Model> = jobs.iter().map(model).collect();
        let verdicts = genome.verdicts(models).await;
        let mut unknown = Vec::new();
        for (index, job) in jobs.iter_mut().enumerate() {
            match verdicts.get(&model(job)).unwrap_or(&Verdict::Unavailable) {
                Verdict::Accepted(requirements) => job.fill_in(requirements),
                Verdict::Unknown => {
                    let message = "is not in the model registry in this version";
                    unknown.push(named(FieldError::new("model_name", message), index));
                }
                Verdict::Unavailable => {
                    return Err(ServiceError::Unavailable {
                        reason: "the model registry does not answer".to_owned(),
                    });
                }
            }
        }
        if unknown.is_empty() { Ok(()) } else { Err(ServiceError::Invalid(unknown)) }
    }
}

fn model(job: &NewJob) -> Model {
    (job.model_name.clone(), job.model_version.clone())
}
