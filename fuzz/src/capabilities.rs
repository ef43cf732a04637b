//! What workers say that they can do, and what jobs ask for.

use cortex::domain::matching::{Capabilities, Shape, capabilities_from_strings};
use cortex::domain::validate::{FieldError, Validator};
use serde_json::{Map, Value};

/// Most MiB that can be declared or asked for.
const MAX_MIB: u64 = 1 << 30;

/// The first byte says what the others are: `s` lines of `name=value`, as workers send them; `m` a job's
/// metadata; `n` a name of a shape; anything else capabilities in JSON.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind {
        b's' => strings(&String::from_utf8_lossy(rest)),
        b'm' => metadata(rest),
        b'n' => name(&String::from_utf8_lossy(rest)),
        _ => {
            if let Ok(json) = serde_json::from_slice(rest) {
                typed(&json);
            }
        }
    }
}

fn strings(text: &str) {
    let pairs = text.lines().map(|line| line.split_once('=').unwrap_or((line, "")));
    match capabilities_from_strings(pairs) {
        Ok(json) => typed(&json),
        Err(errors) => named(&errors, "capabilities."),
    }
}

fn typed(json: &Map<String, Value>) {
    match Capabilities::from_json(json) {
        Ok(capabilities) => {
            assert!(capabilities.memory_mib.is_none_or(|mib| mib <= MAX_MIB), "{capabilities:?}");
            let model = capabilities.models.iter().flatten().next().cloned().unwrap_or_default();
            let most = Shape {
                model_name: model,
                requires_gpu: capabilities.gpu,
                required_memory_mib: capabilities.memory_mib.unwrap_or(0),
            };
            let none = capabilities.models.as_ref().is_some_and(|models| models.is_empty());
            assert_eq!(capabilities.check(&most).is_err(), none, "{capabilities:?} cannot do what they say");
        }
        Err(errors) => named(&errors, "capabilities."),
    }
}

fn metadata(json: &[u8]) {
    let Ok(metadata) = serde_json::from_slice(json) else { return };
    let mut v = Validator::default();
    let shape = Shape::of_job("model", &metadata, &mut v);
    match v.finish(Some(shape)) {
        Ok(shape) => {
            assert!(shape.required_memory_mib <= MAX_MIB, "{shape:?}");
            assert_eq!(shape.to_string().parse(), Ok(shape));
        }
        Err(errors) => named(&errors, "metadata."),
    }
}

fn name(text: &str) {
    if let Ok(shape) = text.parse::<Shape>() {
        assert_eq!(shape.to_string().parse(), Ok(shape));
    }
}

fn named(errors: &[FieldError], prefix: &str) {
    assert!(!errors.is_empty(), "refused, and nobody knows why");
    assert!(errors.iter().all(|error| error.field.starts_with(prefix)), "{errors:?}");
}
