//! The description of the REST surface, held against what a follower does.

use reqwest::Method;
use serde_json::{Value, json};

use crate::group::Api;

const ID: &str = "0190a5c0-0000-7000-8000-0000000000ff";
const STORABLE: &str = "^[^\\u0000]*$";

/// A request and where in it something may be put.
struct Site<'a> {
    document: &'a Value,
    method: Method,
    path: String,
    body: Value,
    /// Whether it changes nothing that other tests see, so that it may succeed.
    harmless: bool,
}

/// What a value is expected to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Within,
    Beyond,
}

use Verdict::{Beyond, Within};

#[tokio::test]
async fn the_bounds_in_the_description_are_those_that_hold() {
    let api = Api::of("documented-bounds").await;
    let follower = api.follower().await;
    let document = api.get(follower, "/openapi.json").await.expect(200);
    let mut tried = 0;
    for (pattern, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let content = &operation["requestBody"]["content"]["application/json"];
            let mut body = content["example"].clone();
            for (name, value) in
                [("model_name", &api.name), ("created_by", &api.name), ("hostname", &api.name)]
            {
                if body.get(name).is_some() {
                    body[name] = json!(value);
                }
            }
            let path = pattern.replace("{id}", ID);
            // Neither the group nor the queue is changed, and no thousand jobs are stored.
            let harmless = method == Method::GET
                || !["/cluster", "/queues", "/batch"].iter().any(|part| pattern.contains(part));
            let site = Site { document: &document, method, path, body, harmless };
            tried += site.try_parameters(&api, follower, operation).await;
            if !content.is_null() {
                tried += site.try_body(&api, follower, &content["schema"]).await;
            }
        }
    }
    assert!(tried > 200, "{tried}");
    // Those that somebody else has submitted, for as much as can be told.
    let left = "SELECT id::text FROM jobs WHERE model_name = $1 AND created_by <> $1";
    let left: Vec<String> = sqlx::query_scalar(left).bind(&api.name).fetch_all(&api.database).await.unwrap();
    for id in left {
        api.cancel(follower, &id).await.expect(204);
    }
    api.leave().await;
}

impl Site<'_> {
    /// Puts each parameter at its bounds and beyond them.
    async fn try_parameters(&self, api: &Api, replica: usize, operation: &Value) -> usize {
        let mut tried = 0;
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap();
            for (value, verdict) in self.values(&parameter["schema"]) {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let url = api.url(replica, &self.path);
                let request = match parameter["in"].as_str().unwrap() {
                    "query" if !value.is_array() => {
                        api.http.request(self.method.clone(), url).query(&[(name, text)])
                    }
                    // What is no text of a header cannot be sent in one.
                    "header" if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => {
                        api.http.request(self.method.clone(), url).header(name, text)
                    }
                    _ => continue,
                };
                let request = if self.body.is_null() { request } else { request.json(&self.body) };
                tried += self.judge(request, name, &value, verdict).await;
            }
        }
        tried
    }

    /// Puts each field of the body at its bounds and beyond them.
    async fn try_body(&self, api: &Api, replica: usize, schema: &Value) -> usize {
        let (mut tried, mut open) = (0, vec![(Vec::<String>::new(), schema.clone())]);
        while let Some((place, schema)) = open.pop() {
            let schema = self.resolved(&schema);
            let field = place.join(".");
            let mut values = self.values(&schema);
            let absent = |name: &Value| {
                let mut all = at(&self.body, &place).clone();
                all.as_object_mut().unwrap().remove(name.as_str().unwrap());
                (name.as_str().unwrap().to_owned(), all)
            };
            for (name, without) in schema["required"].as_array().into_iter().flatten().map(absent) {
                let body = changed(&self.body, &place, without);
                let request = api.http.request(self.method.clone(), api.url(replica, &self.path)).json(&body);
                tried += self.judge(request, &name, &Value::Null, Beyond).await;
            }
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                open.push(([&place[..], std::slice::from_ref(name)].concat(), property.clone()));
            }
            if place.is_empty() {
                values.clear();
            }
            for (value, verdict) in values {
                let body = changed(&self.body, &place, value.clone());
                let request = api.http.request(self.method.clone(), api.url(replica, &self.path)).json(&body);
                tried += self.judge(request, &field, &value, verdict).await;
            }
        }
        tried
    }

    /// Sends a request, unless it could do harm. A value beyond its bounds is refused by its name, and no other one is.
    async fn judge(
        &self,
        request: reqwest::RequestBuilder,
        field: &str,
        value: &Value,
        verdict: Verdict,
    ) -> usize {
        if verdict == Within && !self.harmless {
            return 0;
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let stream = answer.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
        let problem = if status < 400 || stream { Value::Null } else { answer.json().await.unwrap() };
        let named = problem["errors"].as_array().into_iter().flatten();
        let named = named.into_iter().any(|error| {
            let name = error["field"].as_str().unwrap();
            name == field || name.starts_with(&format!("{field}.")) || name.starts_with(&format!("{field}["))
        });
        let what = format!(
            "{} {} with {field} = {:.80}: {status} {problem}",
            self.method,
            self.path,
            value.to_string()
        );
        assert!(status < 500, "{what}");
        assert_eq!((named, named && status == 422), (verdict == Beyond, verdict == Beyond), "{what}");
        1
    }

    /// Values at a schema's bounds and just beyond them.
    fn values(&self, schema: &Value) -> Vec<(Value, Verdict)> {
        let schema = self.resolved(schema);
        let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
        let size =
            |name: &str| schema.get(name).and_then(Value::as_u64).map(|size| usize::try_from(size).unwrap());
        let mut values = Vec::new();
        let storable = schema["pattern"].as_str().is_none_or(|pattern| pattern == STORABLE);
        let text = |length: usize| match storable {
            true => "é".repeat(length),
            // An address; a key fits as well.
            false => format!("{}:7070", "h".repeat(length.saturating_sub(5))),
        };
        if let Some(most) = size("maxLength") {
            values.extend([(json!(text(most)), Within), (json!(text(most + 1)), Beyond)]);
        }
        if let Some(least) = size("minLength").filter(|_| storable) {
            values.extend([(json!(text(least)), Within), (json!(text(least - 1)), Beyond)]);
        }
        if schema.get("format").is_some_and(|format| format == "date-time") {
            // A time is more than a number of characters.
            values.retain(|(_, verdict)| *verdict == Beyond);
        }
        if schema["pattern"] == STORABLE {
            values.push((json!("a\0"), Beyond));
        }
        let number = |number: f64| match schema["type"].to_string().contains("integer") {
            #[expect(clippy::cast_possible_truncation, reason = "bounds are whole")]
            true => json!(number as i64),
            false => json!(number),
        };
        if let Some(least) = bound("minimum") {
            values.extend([(number(least), Within), (number(least - 1.0), Beyond)]);
        }
        // The largest numbers of all have nothing beyond them.
        if let Some(most) = bound("maximum").filter(|most| *most < 1e15) {
            values.extend([(number(most), Within), (number(most + 1.0), Beyond)]);
        }
        if let Some(most) = size("maxItems") {
            let item = |_| self.item(&schema["items"]);
            values.extend([(json!((0..most).map(item).collect::<Vec<_>>()), Within)]);
            values.extend([(json!((0..=most).map(item).collect::<Vec<_>>()), Beyond)]);
        }
        if size("minProperties").is_some() {
            values.push((json!({}), Beyond));
        }
        if let Some(known) = schema["enum"].as_array() {
            values.extend(known.iter().map(|known| (known.clone(), Within)));
            values.push((json!("no-such-name"), Beyond));
        }
        if schema["type"] == "object" {
            values.push((json!([]), Beyond));
        }
        values
    }

    /// An item that a list may have.
    fn item(&self, schema: &Value) -> Value {
        let schema = self.resolved(schema);
        match (schema["format"].as_str(), &schema["properties"]["jobs"], &schema["properties"]["input_data"])
        {
            (Some("uuid"), ..) => json!(ID),
            (_, _, Value::Object(_)) => {
                json!({"name": "n", "model_name": "m", "model_version": "1", "input_data": {"a": 1}})
            }
            _ => json!("resnet"),
        }
    }

    /// The schema that is referred to, and of one that may be null the other one.
    fn resolved(&self, schema: &Value) -> Value {
        let one = schema["oneOf"].as_array().and_then(|all| all.iter().find(|one| one.get("$ref").is_some()));
        let schema = one.unwrap_or(schema);
        match schema["$ref"].as_str() {
            Some(name) => self.resolved(self.document.pointer(&name[1..]).unwrap()),
            None => schema.clone(),
        }
    }
}

fn at<'a>(body: &'a Value, place: &[String]) -> &'a Value {
    place.iter().fold(body, |value, name| &value[name])
}

/// The body with another value at a place.
fn changed(body: &Value, place: &[String], value: Value) -> Value {
    let mut body = body.clone();
    *place.iter().fold(&mut body, |value, name| &mut value[name]) = value;
    body
}

#[tokio::test]
async fn the_examples_in_the_description_are_taken() {
    let api = Api::of("documented-examples").await;
    let follower = api.follower().await;
    let document = api.get(follower, "/openapi.json").await.expect(200);
    let example = |name: &str, path: &str| {
        let mut body =
            document["paths"][path][name]["requestBody"]["content"]["application/json"]["example"].clone();
        let job = if body.get("jobs").is_some() { &mut body["jobs"][0] } else { &mut body };
        for (name, value) in [("model_name", &api.name), ("created_by", &api.name), ("hostname", &api.name)] {
            if job.get(name).is_some() {
                job[name] = json!(value);
            }
        }
        body
    };
    let job = api.post(follower, "/api/v1/jobs", &example("post", "/api/v1/jobs")).await.expect(201);
    api.post(follower, "/api/v1/jobs/batch", &example("post", "/api/v1/jobs/batch")).await.expect(201);
    let update = example("patch", "/api/v1/jobs/{id}");
    assert_eq!(
        api.patch(follower, job["id"].as_str().unwrap(), &update).await.expect(200)["status"],
        "running"
    );
    let worker = api.post(follower, "/api/v1/workers", &example("post", "/api/v1/workers")).await.expect(201);
    let path = format!("/api/v1/workers/{}/heartbeat", worker["id"].as_str().unwrap());
    api.post(follower, &path, &example("post", "/api/v1/workers/{id}/heartbeat")).await.expect(200);
    api.leave().await;
}

#[tokio::test]
async fn the_page_comes_whole_from_every_replica() {
    let api = Api::of("documented-page").await;
    for replica in 0..crate::group::REPLICAS {
        // Without the slash at its end the path leads to the one that has it.
        let page = api.get(replica, "/docs").await.expect(200);
        assert_eq!(page, api.get(replica, "/docs/").await.expect(200));
        let page = page.as_str().unwrap();
        let parts = ["href=\"", "src=\""].iter().flat_map(|mark| page.split(mark).skip(1));
        let parts: Vec<_> = parts.map(|part| part.split('"').next().unwrap()).collect();
        assert!(parts.len() >= 5, "{page}");
        for part in parts {
            assert!(!part.contains("//"), "{part} comes from elsewhere");
            let reply = api.get(replica, &format!("/docs/{}", part.trim_start_matches("./"))).await;
            assert_eq!(reply.status, 200, "{part}");
            assert_eq!(reply.header("x-content-type-options"), "nosniff");
            assert!(reply.header("content-security-policy").starts_with("default-src 'self';"));
        }
        let script = api.get(replica, "/docs/swagger-initializer.js").await.expect(200);
        assert!(script.as_str().unwrap().contains("\"url\": \"../openapi.json\""), "{script}");
        let head = api.http.head(api.url(replica, "/docs/")).send().await.unwrap();
        assert_eq!(
            (head.status().as_u16(), &head.headers()["content-type"]),
            (200, &"text/html".parse().unwrap())
        );
        for nothing in ["/docs/nothing.js", "/docs/%ff", "/docs/..%2f..%2fetc%2fpasswd"] {
            api.get(replica, nothing).await.expect(404);
        }
        let other = api.post(replica, "/docs/", &json!({})).await;
        assert_eq!((other.status, other.header("allow")), (405, "GET,HEAD"));
    }
    api.leave().await;
}
