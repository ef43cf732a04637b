use std::collections::BTreeSet;

use serde::de::value::Error;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde_json::Value;

use super::complete::member;
use super::document::document;
use crate::api::rest::{heartbeat, jobs, members, router, workers};
use crate::domain::job::JobDraft;
use crate::security::Access;

/// Every operation with its method and path.
fn operations() -> impl Iterator<Item = (String, String, &'static Value)> {
    let paths = document()["paths"].as_object().unwrap();
    paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap();
        methods.iter().map(move |(method, operation)| (method.clone(), path.clone(), operation))
    })
}

/// What a reference leads to.
fn resolved(value: &'static Value) -> &'static Value {
    match value.get("$ref") {
        Some(Value::String(name)) => {
            resolved(document().pointer(&name[1..]).unwrap_or_else(|| panic!("{name}")))
        }
        _ => value,
    }
}

fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.trim().is_empty())
}

#[test]
fn what_is_served_is_described_and_nothing_else() {
    let served: BTreeSet<_> =
        router::routes().iter().map(|(method, path, _)| (member(method), (*path).to_owned())).collect();
    let described: BTreeSet<_> = operations().map(|(method, path, _)| (method, path)).collect();
    assert_eq!(served, described);
    assert!(document()["openapi"].as_str().unwrap().starts_with("3.1."));
}

#[test]
fn every_operation_says_what_it_takes_answers_and_asks_for() {
    let mut names = BTreeSet::new();
    for (method, path, operation) in operations() {
        let what = format!("{method} {path}");
        assert!(is_text(&operation["summary"]) && is_text(&operation["description"]), "{what}");
        assert!(
            names.insert(operation["operationId"].as_str().unwrap()),
            "{what} has the name of another one"
        );
        assert_eq!(operation["tags"].as_array().unwrap().len(), 1, "{what}");
        let parameters = || operation["parameters"].as_array().into_iter().flatten();
        for parameter in parameters() {
            let complete = is_text(&parameter["description"]) && parameter.get("example").is_some();
            assert!(complete && parameter["schema"].is_object(), "{what}: {parameter}");
        }
        let in_path = parameters().filter(|parameter| parameter["in"] == "path").count();
        assert_eq!(path.matches('{').count(), in_path, "{what}");
        if let Some(body) = operation.get("requestBody") {
            for kind in ["application/json", "application/vnd.msgpack"] {
                assert!(body["content"][kind]["example"].is_object(), "{what}: {kind}");
            }
        }
        assert!(operation["responses"].as_object().unwrap().keys().any(|status| status < &"400".to_owned()));
        for (status, response) in operation["responses"].as_object().unwrap() {
            let response = resolved(response);
            assert!(is_text(&response["description"]), "{what}: {status}");
            // A part of the page is what it is.
            for (kind, content) in response["content"].as_object().into_iter().flatten().take(3) {
                let shown = content.get("example").or(content.get("examples")).is_some();
                assert!(shown || path == "/docs/{file}", "{what}: {status} as {kind} has no example");
            }
            if status.as_str() >= "400" && !path.contains("/health") {
                let problem = &response["content"]["application/problem+json"];
                assert_eq!(problem["schema"]["$ref"], "#/components/schemas/Problem", "{what}: {status}");
            }
        }
    }
}

#[test]
fn every_operation_says_whose_token_it_asks_for_and_how_it_refuses_others() {
    for (method, path, access) in router::routes() {
        let operation = &document()["paths"][path][member(&method)];
        let told = operation["description"].as_str().unwrap();
        let refused = ["401", "403", "429"].iter().all(|status| operation["responses"].get(status).is_some());
        assert_eq!(refused, access != Access::Open, "{method} {path}");
        assert_eq!(operation["security"].as_array().unwrap().len(), usize::from(refused), "{method} {path}");
        assert!(access == Access::Open || told.contains(access.roles()), "{method} {path}: {told}");
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    references(document(), &mut found);
    for name in &found {
        assert!(document().pointer(&name[1..]).is_some(), "{name}");
    }
    for kind in ["schemas", "responses"] {
        for name in document()["components"][kind].as_object().unwrap().keys() {
            let name = format!("#/components/{kind}/{name}");
            // What an operation says in words of its own, what the router answers for others, and a defect.
            let of_none = ["Conflict", "MethodNotAllowed", "InternalServerError"];
            let of_none = of_none.iter().any(|other| name.ends_with(other));
            assert!(found.contains(&name) || of_none, "{name} is not used");
        }
    }
}

#[test]
fn the_bodies_that_are_described_have_the_members_that_are_read() {
    let described = |name: &str| {
        let properties = document()["components"]["schemas"][name]["properties"].as_object().unwrap();
        properties.keys().cloned().collect::<BTreeSet<_>>()
    };
    assert_eq!(described("JobCreate"), read::<JobDraft>());
    assert_eq!(described("JobBatchCreate"), read::<jobs::BatchDraft>());
    assert_eq!(described("JobUpdate"), read::<jobs::PatchDraft>());
    assert_eq!(described("WorkerCreate"), read::<workers::Registration>());
    assert_eq!(described("WorkerHeartbeat"), read::<heartbeat::Body>());
    assert_eq!(described("MemberCreate"), read::<members::MemberDraft>());
    assert_eq!(described("Transfer"), read::<members::TransferDraft>());
}

/// The members that a type looks for.
fn read<T: DeserializeOwned>() -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    let error = T::deserialize(Asked(&mut fields)).err();
    assert!(error.is_some() && !fields.is_empty());
    fields
}

/// Notes which members it is asked for, and has none.
struct Asked<'a>(&'a mut BTreeSet<String>);

impl<'de> Deserializer<'de> for Asked<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("asked for something else"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        self.0.extend(fields.iter().map(ToString::to_string));
        Err(Error::custom("noted"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
