//! `/openapi.json`, and `/docs`: Swagger UI, all of which is part of the program, so that it works without other hosts.

use std::sync::{Arc, LazyLock};

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Redirect, Response};
use bytes::Bytes;
use utoipa_swagger_ui::Config;

use super::document;
use crate::api::problem::{Problem, ProblemType};
use crate::services::error::ServiceError;

/// Where the page finds the document, seen from the page, so that both may be served under any prefix.
const DOCUMENT: &str = "../openapi.json";
/// The page loads nothing from elsewhere, talks to nobody else, and is shown in nobody's frame. Swagger UI sets styles in
/// place and has its images within them.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
    object-src 'none'; base-uri 'none'; frame-ancestors 'none'";
/// What is shown after an update of the program is what it says.
const REVALIDATE: &str = "no-cache";

/// Shows this document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "operations",
    responses((status = 200, description = "The document", body = Object, example = json!({"openapi": "3.1.0"})))
)]
pub async fn served() -> impl IntoResponse {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(document().to_string()));
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, REVALIDATE)], TEXT.clone())
}

/// Leads to the page.
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "docs",
    tag = "operations",
    responses((status = 308, description = "The page is at `docs/`",
        headers(("Location" = String, description = "`docs/`, relative to this path"))))
)]
pub async fn redirect() -> Redirect {
    Redirect::permanent("docs/")
}

/// Shows this document as a page that can make calls.
#[utoipa::path(
    get,
    path = "/docs/",
    operation_id = "docs_page",
    tag = "operations",
    responses((status = 200, description = "The page", body = String, content_type = "text/html",
        example = "<!DOCTYPE html>"))
)]
pub async fn page() -> Result<Response, Problem> {
    part("index.html")
}

/// Shows a part of the page.
#[utoipa::path(
    get,
    path = "/docs/{file}",
    operation_id = "docs_file",
    tag = "operations",
    params(("file" = String, Path, description = "The file", example = "swagger-ui.css")),
    responses(
        (status = 200, description = "The file", content(
            (String = "text/html"), (String = "text/css", example = "html {}"), (String = "text/javascript"), (String = "image/png"),
        )),
        (status = 404, description = "There is no such file"),
    )
)]
pub async fn file(file: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    // What is no text names no file.
    part(&file.map(|Path(file)| file).unwrap_or_default())
}

fn part(file: &str) -> Result<Response, Problem> {
    static CONFIG: LazyLock<Arc<Config<'static>>> =
        LazyLock::new(|| Arc::new(Config::from(DOCUMENT).try_it_out_enabled(true)));
    if file.is_empty() {
        return Err(no_such(file));
    }
    let found = utoipa_swagger_ui::serve(file, Arc::clone(&CONFIG)).map_err(|error| {
        tracing::error!(%error, file, "A part of the documentation's page cannot be shown.");
        ServiceError::Internal
    })?;
    let found = found.ok_or_else(|| no_such(file))?;
    let kind = HeaderValue::from_str(&found.content_type)
        .unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CACHE_CONTROL, HeaderValue::from_static(REVALIDATE)),
    ];
    Ok((headers, found.bytes.into_owned()).into_response())
}

fn no_such(file: &str) -> Problem {
    Problem::new(ProblemType::NoSuchRoute, format!("the documentation has no file \"{file:.200}\""))
}
