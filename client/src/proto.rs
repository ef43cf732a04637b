//! The generated messages and services of `proto/cortex.proto`.
//!
//! `job_service_client` is always there, `job_service_server` with the feature
//! `server`. Bytes fields are [`bytes::Bytes`], so resending a report copies
//! no payload.
#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason)]

tonic::include_proto!("cortex");
