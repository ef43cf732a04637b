//! A collector of traces, as OTLP over gRPC has it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A running collector. It ends with the runtime of its test.
pub struct Collector {
    /// Its URL.
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    spans: Vec<Seen>,
    requests: Vec<String>,
    /// Refuses what comes, and says what came.
    echoes: bool,
}

/// A span as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `service.name` and `service.instance.id` of whoever sent it.
    pub origin: (String, String),
    resource: Vec<KeyValue>,
    span: Span,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state: Arc<Mutex<State>> = Arc::default();
        let service = TraceServiceServer::new(Receiver(Arc::clone(&state)));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { endpoint, state }
    }

    /// From now on spans are refused with a message that repeats the headers.
    pub fn refuse(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).echoes = true;
    }

    /// The spans of a trace, named by 32 hexadecimal digits.
    pub fn trace(&self, id: &str) -> Vec<Seen> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.spans.iter().filter(|seen| seen.trace_id() == id).cloned().collect()
    }

    /// All that came, as text.
    pub fn everything(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{:?}", state.spans)
    }

    /// The headers of all requests, as text.
    pub fn headers(&self) -> Vec<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).requests.clone()
    }
}

impl Seen {
    pub fn name(&self) -> &str {
        &self.span.name
    }

    pub fn trace_id(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// Empty at the beginning of a trace.
    pub fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    pub fn state(&self) -> &str {
        &self.span.trace_state
    }

    pub fn lasted_ms(&self) -> u64 {
        (self.span.end_time_unix_nano - self.span.start_time_unix_nano) / 1_000_000
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<String> {
        let status = self.span.status.as_ref()?;
        (status.code == i32::from(StatusCode::Error)).then(|| status.message.clone())
    }

    /// What whoever sent it says of itself; empty if it does not.
    pub fn resource(&self, key: &str) -> String {
        attribute(&self.resource, key)
    }

    /// An attribute; empty if there is none.
    pub fn attribute(&self, key: &str) -> String {
        attribute(&self.span.attributes, key)
    }
}

struct Receiver(Arc<Mutex<State>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let headers = format!("{:?}", request.metadata());
        state.requests.push(headers.clone());
        if state.echoes {
            return Err(Status::permission_denied(format!("not with these: {headers}")));
        }
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let origin =
                (attribute(&attributes, "service.name"), attribute(&attributes, "service.instance.id"));
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let seen = |span| Seen { origin: origin.clone(), resource: attributes.clone(), span };
            state.spans.extend(spans.map(seen));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.clone()) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
