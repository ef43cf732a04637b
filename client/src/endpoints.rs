//! Lists of replica addresses, as users write them.

use std::fmt;

/// An address that is not `http://host:port` or `https://host:port`, or a list without any.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid endpoint {endpoint:?}: {reason}")]
pub struct InvalidEndpoint {
    /// The part of the list that was refused.
    pub endpoint: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Splits a comma-separated list into base URLs without a trailing slash. An
/// address without a scheme gets `http://`.
pub(crate) fn parse_list(list: &str) -> Result<Vec<String>, InvalidEndpoint> {
    let endpoints = list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(parse)
        .collect::<Result<Vec<_>, _>>()?;
    if endpoints.is_empty() {
        return Err(invalid(list, "no address given"));
    }
    Ok(endpoints)
}

fn parse(text: &str) -> Result<String, InvalidEndpoint> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = reqwest::Url::parse(&full).map_err(|e| invalid(text, e))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid(text, "only http:// and https:// are supported"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(invalid(text, "the host is missing"));
    }
    Ok(full.trim_end_matches('/').to_owned())
}

fn invalid(endpoint: &str, reason: impl fmt::Display) -> InvalidEndpoint {
    InvalidEndpoint { endpoint: endpoint.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_split_and_completed() {
        let list = parse_list(" http://a:1/ , b:2,,").unwrap();
        assert_eq!(list, ["http://a:1", "http://b:2"]);
    }

    #[test]
    fn an_empty_list_and_other_schemes_are_refused() {
        assert!(parse_list(" , ").is_err());
        assert!(parse_list("https://a:1").is_ok());
        assert!(parse_list("ftp://a:1").is_err());
        assert!(parse_list("http://").is_err());
    }
}
