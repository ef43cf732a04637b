//! The generated messages and services of `proto/cortex.proto`.
//!
//! `job_service_client` is always there, `job_service_server` with the feature
//! `server`. Bytes fields are [`bytes::Bytes`], so resending a report copies
//! no payload.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

tonic::include_proto!("cortex");
