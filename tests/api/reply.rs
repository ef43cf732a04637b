//! An answer of the REST surface.

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde_json::Value;

/// An answer that was read to its end and, where it is an error, is a well-formed problem.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    /// JSON where the answer says so, else the text.
    pub body: Value,
}

impl Reply {
    pub async fn read(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let kind = headers.get(CONTENT_TYPE).map_or("", |kind| kind.to_str().unwrap()).to_owned();
        let body = match kind.as_str() {
            "application/json" | "application/problem+json" => serde_json::from_str(&text).unwrap(),
            _ => Value::String(text),
        };
        let reply = Self { status, headers, body };
        reply.check_problem(&kind);
        reply
    }

    /// Errors are RFC 9457 problems, and no request of a test may make one of the 5xx kind.
    fn check_problem(&self, kind: &str) {
        assert!(self.status < 500, "{self:?}");
        if self.status < 400 {
            return;
        }
        assert_eq!(kind, "application/problem+json", "{self:?}");
        assert!(self.body["type"].as_str().unwrap().starts_with("urn:cortex:problem:"), "{self:?}");
        assert_eq!(self.body["status"], self.status, "{self:?}");
        assert!(["title", "detail"].iter().all(|member| !self.body[member].as_str().unwrap().is_empty()));
    }

    /// The body, if the answer has this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    /// The fields that the answer calls invalid, sorted.
    pub fn fields(&self) -> Vec<&str> {
        let errors = self.body["errors"].as_array().expect("the problem names no fields");
        let mut fields: Vec<_> = errors.iter().map(|error| error["field"].as_str().unwrap()).collect();
        fields.sort_unstable();
        fields
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}
