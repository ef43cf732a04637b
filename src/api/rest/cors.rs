//! Calls from browsers on other origins (section `cors`).

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::config::Cors;

/// What an entry says that stands for all.
const ALL: &str = "*";
/// How long a browser may remember an answer.
const MAX_AGE: Duration = Duration::from_secs(600);

/// Answers browsers' questions before anybody is asked for a token: a browser sends none with them. Nothing if
/// no other origin may call.
pub fn layer(config: &Cors) -> Option<CorsLayer> {
    if !config.enabled || config.origins.is_empty() {
        return None;
    }
    let all = |list: &[String]| list.iter().any(|entry| entry == ALL);
    let origins = if all(&config.origins) {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(config.origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    // `*` in an answer would not hold for requests with credentials; what is asked for always does.
    let methods = if all(&config.allow_methods) {
        AllowMethods::mirror_request()
    } else {
        let method = |name: &String| Method::from_bytes(name.to_ascii_uppercase().as_bytes()).ok();
        AllowMethods::list(config.allow_methods.iter().filter_map(method))
    };
    let headers = if all(&config.allow_headers) {
        AllowHeaders::mirror_request()
    } else {
        AllowHeaders::list(config.allow_headers.iter().filter_map(|name| HeaderName::try_from(name).ok()))
    };
    let shown = [header::LOCATION, header::RETRY_AFTER, header::WWW_AUTHENTICATE, header::ETAG];
    Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods(methods)
            .allow_headers(headers)
            .allow_credentials(config.allow_credentials)
            .expose_headers(shown)
            .max_age(MAX_AGE),
    )
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::{Request, Response};
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    fn cors(origins: &[&str], credentials: bool) -> Cors {
        Cors {
            enabled: true,
            origins: origins.iter().map(ToString::to_string).collect(),
            allow_credentials: credentials,
            allow_methods: vec![ALL.to_owned()],
            allow_headers: vec![ALL.to_owned()],
        }
    }

    async fn ask(config: &Cors, method: Method, origin: &str) -> Response<Body> {
        let app = Router::new().route("/", get(async || "")).layer(layer(config).unwrap());
        let request = Request::builder()
            .method(method)
            .uri("/")
            .header(header::ORIGIN, origin)
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "PATCH")
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization");
        app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    fn text<'a>(response: &'a Response<Body>, name: &HeaderName) -> &'a str {
        response.headers().get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[tokio::test]
    async fn a_listed_origin_may_call_with_its_token_and_no_other_one() {
        let config = cors(&["http://a:1"], true);
        let answer = ask(&config, Method::OPTIONS, "http://a:1").await;
        assert_eq!(text(&answer, &header::ACCESS_CONTROL_ALLOW_ORIGIN), "http://a:1");
        assert_eq!(text(&answer, &header::ACCESS_CONTROL_ALLOW_METHODS), "PATCH");
        assert_eq!(text(&answer, &header::ACCESS_CONTROL_ALLOW_HEADERS), "authorization");
        assert_eq!(text(&answer, &header::ACCESS_CONTROL_ALLOW_CREDENTIALS), "true");
        let answer = ask(&config, Method::GET, "http://a:1").await;
        assert!(text(&answer, &header::ACCESS_CONTROL_EXPOSE_HEADERS).contains("retry-after"));
        for stranger in ["http://b:1", "http://a", "null", "http://a:1.evil"] {
            let answer = ask(&config, Method::OPTIONS, stranger).await;
            assert_eq!(text(&answer, &header::ACCESS_CONTROL_ALLOW_ORIGIN), "", "{stranger}");
        }
    }

    #[tokio::test]
    async fn any_origin_may_call_where_that_is_configured() {
        let answer = ask(&cors(&["*"], false), Method::GET, "http://b").await;
        assert_eq!(text(&answer, &header::ACCESS_CONTROL_ALLOW_ORIGIN), "*");
    }

    #[test]
    fn without_origins_no_browser_is_told_anything() {
        assert!(layer(&cors(&[], true)).is_none());
        assert!(layer(&Cors { enabled: false, ..cors(&["http://a"], true) }).is_none());
    }
}
