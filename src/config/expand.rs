//! `${VAR}` and `${VAR:-default}` inside one text.

use super::source::Environment;

/// Expands every reference of a text. `$${` stands for a literal `${`; the result is not expanded again.
/// The error says which variable is missing or which reference cannot be read, never a value.
pub(super) fn expand(text: &str, environment: &Environment) -> Result<String, Vec<String>> {
    let mut expanded = String::with_capacity(text.len());
    let mut errors = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, reference) = rest.split_at(start);
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &reference[2..];
            continue;
        }
        expanded.push_str(before);
        let Some((inner, after)) = reference[2..].split_once('}') else {
            errors.push("has `${` without a closing `}` (write `$${` for a literal `${`)".to_owned());
            return Err(errors);
        };
        match resolve(inner, environment) {
            Ok(value) => expanded.push_str(value),
            Err(message) => errors.push(message),
        }
        rest = after;
    }
    expanded.push_str(rest);
    if errors.is_empty() { Ok(expanded) } else { Err(errors) }
}

fn resolve<'a>(reference: &'a str, environment: &'a Environment) -> Result<&'a str, String> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err("has a `${...}` that is neither `${VAR}` nor `${VAR:-default}`".to_owned());
    }
    if default.is_some_and(|default| default.contains("${")) {
        return Err("has a `${...}` within another one, which is not expanded".to_owned());
    }
    match (environment.get(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default),
        (None, None) => Err(format!("needs the environment variable {name}, which is not set")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, Vec<String>> {
        let environment = [("HOST", "db"), ("PORT", "5432"), ("EMPTY", ""), ("ODD", "${HOST}")];
        expand(text, &environment.into_iter().collect())
    }

    #[test]
    fn every_reference_of_a_text_is_expanded_once() {
        for (text, value) in [
            ("plain $HOME $ { }", "plain $HOME $ { }"),
            ("postgres://${HOST}:${PORT}/x", "postgres://db:5432/x"),
            ("${MISSING:-fallback}", "fallback"),
            ("${MISSING:-}", ""),
            ("${EMPTY:-fallback}", "fallback"),
            ("<${EMPTY}>", "<>"),
            ("${HOST:-other}", "db"),
            ("${MISSING:-redis://h:1/0}", "redis://h:1/0"),
            ("$${HOST}", "${HOST}"),
            ("${ODD}", "${HOST}"),
            ("é${HOST}é", "édbé"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(value), "{text}");
        }
    }

    #[test]
    fn all_missing_variables_are_named() {
        let errors = expanded("${MISSING}-${HOST}-${ABSENT}").unwrap_err();
        assert_eq!(errors.len(), 2);
        assert!(errors[0].contains("MISSING") && errors[1].contains("ABSENT"), "{errors:?}");
    }

    #[test]
    fn a_reference_that_cannot_be_read_is_an_error() {
        for text in ["${HOST", "${}", "${A-B}", "${1A}", "${:-x}", "${HOST:-${PORT}}", "${A:-${B:-c}}"] {
            assert!(expanded(text).is_err(), "{text}");
        }
    }
}
