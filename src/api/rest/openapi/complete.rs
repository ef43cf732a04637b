//! What the router's table and the layers around the handlers decide about an operation: who may call it, how it is refused,
//! and the formats.

use axum::http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::api::messagepack::MESSAGE_PACK;
use crate::api::problem::{PROBLEM_JSON, Problem, ProblemType};
use crate::security::Access;

/// The format of bodies and answers beside which MessagePack may be used.
const JSON: &str = "application/json";
/// Paths whose answers are not those of a member of the cluster.
const HEALTH: &str = "/api/v1/health";

/// Adds what is not said beside the handler. `examples` go by the names of schemas.
pub(super) fn complete(
    operation: &mut Value,
    method: &Method,
    path: &str,
    access: Access,
    examples: &Map<String, Value>,
) {
    tell_access(operation, access);
    for status in refusals_of(operation, method, path, access) {
        let response = &mut operation["responses"][status.as_str()];
        if response.is_null() {
            *response = json!({"$ref": format!("#/components/responses/{}", name(status))});
        }
    }
    let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten() {
        // A parameter that is left out is not null.
        not_null(&mut parameter["schema"]);
    }
    if let Some(body) = operation.get_mut("requestBody") {
        // Nor is a body.
        if let Some(json) = body["content"].get_mut(JSON) {
            not_null(&mut json["schema"]);
        }
        illustrate(&mut body["content"], examples);
    }
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        if response.get("content").is_some() {
            illustrate(&mut response["content"], examples);
        } else if let Some(status) = status.parse().ok().filter(|status: &StatusCode| status.as_u16() >= 400)
            && response.get("$ref").is_none()
        {
            let description = response["description"].take();
            *response = refusal(status);
            response["description"] = description;
        }
    }
}

/// How an operation may be refused before and beside what its handler says.
fn refusals_of(operation: &Value, method: &Method, path: &str, access: Access) -> Vec<StatusCode> {
    let mut refusals = vec![StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE];
    if access != Access::Open {
        refusals.extend([StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS]);
    }
    if path.starts_with("/api/v1/") && !path.starts_with(HEALTH) {
        refusals.push(StatusCode::SERVICE_UNAVAILABLE);
    }
    if path.contains('{') && access != Access::Open {
        refusals.extend([StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND]);
    }
    let parameters = operation.get("parameters").and_then(Value::as_array);
    if parameters.into_iter().flatten().any(|parameter| parameter["in"] != "path") {
        refusals.push(StatusCode::UNPROCESSABLE_ENTITY);
    }
    if operation.get("requestBody").is_some() {
        refusals.extend([
            StatusCode::BAD_REQUEST,
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            StatusCode::UNPROCESSABLE_ENTITY,
        ]);
    } else if !method.is_safe() {
        // One that takes no body refuses any.
        refusals.extend([
            StatusCode::BAD_REQUEST,
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::UNPROCESSABLE_ENTITY,
        ]);
    }
    refusals
}

/// The ways in which requests are refused, by name.
pub(super) fn refusals() -> Value {
    let mut all = Map::new();
    for kind in ProblemType::ALL {
        all.entry(name(kind.http())).or_insert_with(|| refusal(kind.http()));
    }
    Value::Object(all)
}

/// Says whose token an operation asks for.
fn tell_access(operation: &mut Value, access: Access) {
    let (security, told) = match access {
        Access::Open => (json!([]), "Needs no token.".to_owned()),
        _ => (json!([{"token": []}]), format!("Roles: {}.", access.roles())),
    };
    let description = operation["description"].as_str().map(|text| format!("{text}\n\n{told}"));
    operation["description"] = description.unwrap_or(told).into();
    operation["security"] = security;
}

/// The name of a status as it is used in the document.
fn name(status: StatusCode) -> String {
    status.canonical_reason().unwrap_or_default().replace(' ', "")
}

/// An answer of a status, with every kind of problem that has it.
fn refusal(status: StatusCode) -> Value {
    let kinds: Vec<_> = ProblemType::ALL.into_iter().filter(|kind| kind.http() == status).collect();
    let example = |kind: &ProblemType| {
        let name = kind.uri().rsplit(':').next().unwrap_or_default().to_owned();
        (name, json!({"summary": kind.title(), "value": Problem::example(*kind)}))
    };
    let examples: Map<String, Value> = kinds.iter().map(example).collect();
    let titles: Vec<_> = kinds.iter().map(|kind| kind.title()).collect();
    let schema = json!({"$ref": "#/components/schemas/Problem"});
    let mut refusal = json!({
        "description": titles.join("; "),
        "content": {PROBLEM_JSON: {"schema": schema, "examples": examples}},
    });
    let integer = json!({"type": "integer", "minimum": 1});
    let headers = match status {
        StatusCode::TOO_MANY_REQUESTS => json!({"Retry-After": {"required": true, "schema": integer,
            "description": "Seconds after which to come again"}}),
        StatusCode::SERVICE_UNAVAILABLE => json!({"Retry-After": {"schema": integer,
            "description": "Seconds after which to come again; absent where the outcome is unknown"}}),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => json!({"WWW-Authenticate": {"required": true,
            "schema": {"type": "string"}, "description": "As in RFC 6750"}}),
        _ => return refusal,
    };
    refusal["headers"] = headers;
    refusal
}

/// Adds the example of what is JSON, and lets it be MessagePack as well.
fn illustrate(content: &mut Value, examples: &Map<String, Value>) {
    let Some(json) = content.get_mut(JSON) else { return };
    if let Some(example) = example(&json["schema"], examples) {
        json["example"] = example;
    }
    let packed = json.clone();
    content[MESSAGE_PACK] = packed;
}

/// The example of a schema that is named, or of a list of such.
fn example(schema: &Value, examples: &Map<String, Value>) -> Option<Value> {
    if schema["type"] == "array" {
        return example(&schema["items"], examples).map(|one| json!([one]));
    }
    let name = schema["$ref"].as_str()?.rsplit('/').next()?;
    examples.get(name).cloned()
}

/// Takes `null` out of a schema.
fn not_null(schema: &mut Value) {
    let given = |kind: &&Value| **kind != "null" && **kind != json!({"type": "null"});
    let only = |all: &Value| all.as_array().and_then(|all| all.iter().find(given)).cloned();
    if let Some(kind) = schema.get("type").and_then(only) {
        schema["type"] = kind;
    }
    if let Some(one) = schema.get("oneOf").and_then(only) {
        *schema = one;
    }
}

/// The member of a path's description that holds a method.
pub(super) fn member(method: &Method) -> String {
    method.as_str().to_ascii_lowercase()
}
