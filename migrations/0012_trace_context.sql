-- The trace that a job belongs to, for who leads when it is given to a worker may be another than who stored it: a
-- W3C traceparent (https://www.w3.org/TR/trace-context-2/), and after a space the tracestate where there is one.
-- NULL for jobs that nobody traces, which costs nothing.
ALTER TABLE jobs ADD COLUMN trace_context TEXT
    CONSTRAINT jobs_trace_context_well_formed
    CHECK (trace_context ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}( [ -~]+)?$' AND length(trace_context) <= 568);
