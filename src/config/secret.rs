//! Values that must not be printed.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// A value that is a secret or carries one, such as a store's URL with its password; wiped from memory when it is
/// dropped. `Debug` and `Display` print a URL without its password, and of anything else nothing at all.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into().into())
    }

    /// The value itself. Never log it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HIDDEN: &str = "[hidden]";
        let Some((scheme, rest)) = self.expose().split_once("://") else {
            return f.write_str(HIDDEN);
        };
        // Query parameters may hold a password too (`?password=`), so they are left out.
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        match rest.rsplit_once('@') {
            None => write!(f, "{scheme}://{rest}"),
            Some((login, place)) => match login.split_once(':') {
                Some((user, _password)) => write!(f, "{scheme}://{user}:{HIDDEN}@{place}"),
                None => write!(f, "{scheme}://{login}@{place}"),
            },
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        for (value, shown) in [
            (
                "postgres://cortex:hunter2@db:5432/cortex?password=hunter2",
                "postgres://cortex:[hidden]@db:5432/cortex",
            ),
            ("redis://:hunter2@redis:6379/0", "redis://:[hidden]@redis:6379/0"),
            ("postgres://u:p@hunter2@db/x", "postgres://u:[hidden]@db/x"),
            ("redis://redis:6379", "redis://redis:6379"),
            ("postgres://cortex@db/x", "postgres://cortex@db/x"),
            ("hunter2", "[hidden]"),
        ] {
            let secret = Secret::new(value);
            assert_eq!(format!("{secret}"), shown);
            assert_eq!(format!("{secret:?}"), shown);
            assert_eq!(secret.expose(), value);
        }
    }
}
