//! Schemas that no derive can tell, and what is added to those that were derived.

use serde_json::{Map, Value, json};

use crate::domain::job::MAX_TAGS;

/// A text that PostgreSQL can store.
const STORABLE: &str = "^[^\\u0000]*$";

/// Puts the schemas of a document right.
pub(super) fn shape(schemas: &mut Map<String, Value>) {
    let value = json!({
        "description": "Any JSON value whose texts do not contain the character U+0000.",
        "type": ["null", "boolean", "number", "string", "array", "object"],
        "pattern": STORABLE,
        "items": {"$ref": "#/components/schemas/StorableValue"},
        "propertyNames": {"pattern": STORABLE},
        "additionalProperties": {"$ref": "#/components/schemas/StorableValue"},
    });
    schemas.insert("StorableValue".to_owned(), value);
    // The objects that are kept as they are, with all that they hold.
    for name in ["Payload", "JobInput", "JobMetadata", "JobRetryPolicy", "WorkerCapabilities"] {
        extend(
            schemas,
            name,
            json!({
                "propertyNames": {"pattern": STORABLE},
                "additionalProperties": {"$ref": "#/components/schemas/StorableValue"},
            }),
        );
    }
    extend(schemas, "JobInput", json!({"minProperties": 1}));
    extend(schemas, "Payload", json!({"description": "A JSON object."}));
    extend(
        schemas,
        "Tags",
        json!({
            "maxProperties": MAX_TAGS,
            "propertyNames": {"minLength": 1, "maxLength": 255, "pattern": STORABLE},
            "additionalProperties": {"type": "string", "maxLength": 4096, "pattern": STORABLE},
        }),
    );
    extend(schemas, "IpAddress", json!({"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}));
    for property in ["peer", "http", "grpc"] {
        let port = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";
        // A host of 1 to 253 characters.
        let pattern = format!("^[^\\u0000/@ ]+:{port}$");
        schemas["MemberCreate"]["properties"][property]["pattern"] = pattern.into();
    }
    let named = |(name, schema): (&String, &Value)| {
        let alone =
            schema["oneOf"].as_array().and_then(|all| all.iter().find(|one| one.get("$ref").is_some()));
        let kind = schema["type"].as_array().and_then(|all| all.iter().find(|one| *one != "null"));
        let wanted = alone.cloned().or_else(|| kind.map(|kind| json!({"type": kind})));
        json!({"required": [name], "properties": {name: wanted}})
    };
    let update = schemas["JobUpdate"]["properties"].as_object().map(|all| all.iter().map(named).collect());
    schemas["JobUpdate"]["anyOf"] = Value::Array(update.unwrap_or_default());
}

/// Adds members to a schema.
fn extend(schemas: &mut Map<String, Value>, name: &str, members: Value) {
    if let (Some(Value::Object(schema)), Value::Object(members)) = (schemas.get_mut(name), members) {
        schema.extend(members);
    }
}
