//! The trace that a request and a job belong to, as W3C Trace Context writes it.
//!
//! A context names a trace, the span in it under which further work belongs, and whether the trace is recorded. What
//! cannot be read is no error: whoever sent it has no trace then, as the recommendation wants it.

use std::fmt::Write;
use std::num::{NonZeroU64, NonZeroU128};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ids::LeaseId;

/// Longest `tracestate` that is handed on, in bytes; a longer one is left out. The recommendation asks for at least
/// as much.
pub const MAX_TRACESTATE: usize = 512;
/// Most members of a `tracestate`.
const MAX_MEMBERS: usize = 32;
/// Length of a `traceparent` of version 00.
const TRACEPARENT: usize = 55;
/// The flag that says that the trace is recorded.
const SAMPLED: u8 = 1;
/// The flags that are known; others are not handed on.
const KNOWN_FLAGS: u8 = 3;

/// The name of a span within its trace.
pub type SpanId = NonZeroU64;

/// Where in which trace work belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceContext {
    /// The trace.
    pub trace_id: NonZeroU128,
    /// The span under which the work belongs.
    pub span_id: SpanId,
    flags: u8,
    state: Option<Box<str>>,
}

impl TraceContext {
    /// The beginning of a trace.
    pub fn new(trace_id: NonZeroU128, span_id: SpanId, sampled: bool) -> Self {
        Self { trace_id, span_id, flags: u8::from(sampled), state: None }
    }

    /// Reads the two headers. `None` without a `traceparent` that can be read; a `tracestate` that cannot be read is
    /// left out.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let version = hex(traceparent.get(..2)?)?;
        let known = traceparent.get(..TRACEPARENT)?;
        // A later version may go on after another dash.
        let rest = &traceparent[TRACEPARENT..];
        if version == 0xff || !(rest.is_empty() || (version > 0 && rest.starts_with('-'))) {
            return None;
        }
        let mut parts = known.split('-').skip(1);
        let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
        if (trace.len(), span.len(), flags.len()) != (32, 16, 2) {
            return None;
        }
        let flags = u8::try_from(hex(flags)?).ok()?;
        Some(Self {
            trace_id: NonZeroU128::new(hex(trace)?)?,
            span_id: NonZeroU64::new(u64::try_from(hex(span)?).ok()?)?,
            flags: flags & if version == 0 { KNOWN_FLAGS } else { SAMPLED },
            state: tracestate.and_then(state),
        })
    }

    /// The header of that name.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }

    /// The header of that name; empty where there is none.
    pub fn tracestate(&self) -> &str {
        self.state.as_deref().unwrap_or_default()
    }

    /// Whether the trace is recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED == SAMPLED
    }

    /// The same trace, further down.
    pub fn under(&self, span_id: SpanId) -> Self {
        Self { span_id, ..self.clone() }
    }

    /// The span of the attempt under this lease. It is named after the lease, so whoever leads finds it again.
    pub fn attempt(&self, lease: LeaseId) -> Self {
        self.of(lease.0)
    }

    /// The span that is named after this id.
    pub fn of(&self, id: Uuid) -> Self {
        let (_, low) = id.as_u64_pair();
        NonZeroU64::new(low).map_or_else(|| self.clone(), |span_id| self.under(span_id))
    }

    /// As one text, in which it is stored and carried.
    pub fn to_text(&self) -> String {
        let mut text = self.traceparent();
        if let Some(state) = &self.state {
            // Writing into a text cannot fail.
            let _ = write!(text, " {state}");
        }
        text
    }

    /// Reads what [`Self::to_text`] has written.
    pub fn from_text(text: &str) -> Option<Self> {
        let (traceparent, state) =
            text.split_once(' ').map_or((text, None), |(parent, state)| (parent, Some(state)));
        Self::parse(traceparent, state)
    }
}

impl From<TraceContext> for String {
    fn from(context: TraceContext) -> Self {
        context.to_text()
    }
}

impl TryFrom<String> for TraceContext {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::from_text(&text).ok_or("is no trace context")
    }
}

/// Lower-case digits only, as the recommendation has it.
fn hex(text: &str) -> Option<u128> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    digits.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// What others keep in a context, as far as it is well formed.
fn state(text: &str) -> Option<Box<str>> {
    let text = text.trim_matches([' ', '\t', ',']);
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let member = |member: &str| member.trim().is_empty() || member.contains('=');
    let fits = (1..=MAX_TRACESTATE).contains(&text.len()) && text.split(',').count() <= MAX_MEMBERS;
    (fits && printable && text.split(',').all(member)).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_read_and_written() {
        let context = TraceContext::parse(PARENT, Some(" a=1, b@c=2 ")).unwrap();
        assert_eq!((context.traceparent().as_str(), context.tracestate()), (PARENT, "a=1, b@c=2"));
        assert!(context.is_sampled());
        assert_eq!(TraceContext::from_text(&context.to_text()), Some(context.clone()));
        let bytes = rmp_serde::to_vec_named(&context).unwrap();
        assert_eq!(rmp_serde::from_slice::<TraceContext>(&bytes).unwrap(), context);
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for later in [PARENT.replacen("00", "01", 1), format!("{}-more", PARENT.replacen("00", "fe", 1))] {
            assert_eq!(TraceContext::parse(&later, None).unwrap().traceparent(), PARENT, "{later}");
        }
        let flags = TraceContext::parse(&PARENT.replace("-01", "-ff"), None).unwrap();
        assert!(flags.traceparent().ends_with("-03"), "unknown flags are not handed on");
    }

    #[test]
    fn what_is_malformed_is_no_context() {
        for wrong in [
            "",
            "00",
            &PARENT[..54],
            &format!("{PARENT}-more"),
            &format!("{PARENT} "),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.to_uppercase(),
            &PARENT.replace('-', "_"),
            &PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &PARENT.replace("-01", "-+1"),
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902bé-01",
        ] {
            assert_eq!(TraceContext::parse(wrong, None), None, "{wrong}");
        }
    }

    #[test]
    fn a_tracestate_that_cannot_be_handed_on_is_left_out() {
        let kept = |state: &str| TraceContext::parse(PARENT, Some(state)).unwrap().tracestate().to_owned();
        let longest = format!("a={}", "x".repeat(MAX_TRACESTATE - 2));
        assert_eq!(kept(&longest), longest);
        let many = |members: usize| vec!["a=1"; members].join(",");
        assert_eq!(kept(&many(32)), many(32));
        for wrong in ["", " ", "no member", "a=é", "a=\u{7f}", &format!("{longest}x"), &many(33)] {
            assert_eq!(kept(wrong), "", "{wrong}");
        }
    }

    #[test]
    fn every_attempt_has_a_span_of_its_own_in_the_same_trace() {
        let context = TraceContext::parse(PARENT, Some("a=1")).unwrap();
        let attempt = |lease| context.attempt(LeaseId(Uuid::from_u128(lease)));
        assert_eq!(attempt(7).traceparent(), PARENT.replace("00f067aa0ba902b7", "0000000000000007"));
        assert_ne!(attempt(7), attempt(8));
        assert_eq!(attempt(7).tracestate(), "a=1");
    }

    proptest! {
        #[test]
        fn no_header_makes_a_panic_or_a_text_that_cannot_be_stored(parent in ".{0,80}", state in ".{0,40}") {
            let _ = TraceContext::parse(&parent, Some(&state));
            let context = TraceContext::parse(PARENT, Some(&state)).unwrap();
            prop_assert_eq!(TraceContext::from_text(&context.to_text()), Some(context));
        }
    }
}
