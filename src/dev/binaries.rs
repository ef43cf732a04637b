//! Finds the programs of PostgreSQL and Redis.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::DevError;

/// Folders with one subfolder per installed version of PostgreSQL, and where the programs are in those.
const VERSIONED: [(&str, &str, &str); 4] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
];
/// Other folders where programs are installed, besides those of PATH.
const COMMON: [&str; 5] =
    ["/usr/local/pgsql/bin", "/usr/local/bin", "/usr/bin", "/opt/homebrew/bin", "/snap/bin"];

/// The folder with `postgres` and `initdb`: of the version that wrote the data if there is any, else the
/// first on PATH, else the newest installed.
pub(super) fn postgres_folder(data_version: Option<&str>) -> Result<PathBuf, DevError> {
    let folders = postgres_folders(&search_path(std::env::var_os("PATH").as_deref()));
    choose_postgres(folders, data_version, |folder| version_of(&folder.join("postgres")))
}

/// The program `redis-server` (or its successor under another name).
pub(super) fn redis_server() -> Result<PathBuf, DevError> {
    choose_redis(&search_path(std::env::var_os("PATH").as_deref()))
}

fn choose_postgres(
    folders: Vec<PathBuf>,
    data_version: Option<&str>,
    version_of: impl Fn(&Path) -> Option<String>,
) -> Result<PathBuf, DevError> {
    let Some(newest) = folders.first().cloned() else {
        return Err(DevError::Missing {
            program: "PostgreSQL",
            install: "apt-get install postgresql",
            instead: "--database-url",
        });
    };
    let Some(wanted) = data_version else { return Ok(newest) };
    let found = folders.into_iter().find(|folder| version_of(folder).as_deref() == Some(wanted));
    found.ok_or_else(|| {
        let version = version_of(&newest).unwrap_or_else(|| "another version".to_owned());
        DevError::Failed(format!(
            "the data was written by PostgreSQL {wanted}, but only {version} was found: install PostgreSQL {wanted}, \
             or choose another --data-dir"
        ))
    })
}

fn choose_redis(folders: &[PathBuf]) -> Result<PathBuf, DevError> {
    let names = ["redis-server", "valkey-server"];
    let found = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    found.into_iter().find(|program| is_program(program)).ok_or(DevError::Missing {
        program: "Redis",
        install: "apt-get install redis-server",
        instead: "--redis-url",
    })
}

fn search_path(path: Option<&OsStr>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        path.map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
    folders.extend(COMMON.iter().map(PathBuf::from));
    folders
}

fn postgres_folders(search_path: &[PathBuf]) -> Vec<PathBuf> {
    let versioned =
        VERSIONED.iter().flat_map(|(root, prefix, inner)| versions(Path::new(root), prefix, inner));
    let mut folders = Vec::new();
    for folder in search_path.iter().cloned().chain(versioned) {
        // PATH may hold links: `initdb` and the libraries are beside the real program.
        let Ok(program) = folder.join("postgres").canonicalize() else { continue };
        let Some(real) = program.parent().map(Path::to_owned) else { continue };
        if is_program(&program) && is_program(&real.join("initdb")) && !folders.contains(&real) {
            folders.push(real);
        }
    }
    folders
}

/// Subfolders of `root` whose name is `prefix` and a version number, newest first.
fn versions(root: &Path, prefix: &str, inner: &str) -> Vec<PathBuf> {
    let mut found: Vec<(f64, PathBuf)> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join(inner)))
        })
        .collect();
    found.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    found.into_iter().map(|(_, folder)| folder).collect()
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// `postgres (PostgreSQL) 15.14 (Debian ...)` gives `15`, as the file `PG_VERSION` does.
fn version_of(postgres: &Path) -> Option<String> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let number = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    Some(number.chars().take_while(char::is_ascii_digit).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_the_command_that_installs_it() {
        let error = choose_postgres(Vec::new(), None, |_| None).unwrap_err().to_string();
        assert_eq!(
            error,
            "PostgreSQL is missing: install it with `apt-get install postgresql`, or name a running one with --database-url"
        );
        let error = choose_redis(&[PathBuf::from("/nonexistent")]).unwrap_err().to_string();
        assert!(
            error.starts_with("Redis is missing: install it with `apt-get install redis-server`"),
            "{error}"
        );
    }

    #[test]
    fn data_of_another_version_is_never_opened() {
        let folders = || vec![PathBuf::from("/a"), PathBuf::from("/b")];
        let version = |folder: &Path| Some(if folder == Path::new("/a") { "17" } else { "15" }.to_owned());
        assert_eq!(choose_postgres(folders(), None, version).unwrap(), Path::new("/a"));
        assert_eq!(choose_postgres(folders(), Some("15"), version).unwrap(), Path::new("/b"));
        let error = choose_postgres(folders(), Some("14"), version).unwrap_err().to_string();
        assert!(error.contains("written by PostgreSQL 14, but only 17"), "{error}");
    }

    #[test]
    fn the_newest_version_comes_first() {
        let root = std::env::temp_dir().join(format!("cortex-versions-{}", std::process::id()));
        for version in ["9.6", "15", "17", "common"] {
            fs::create_dir_all(root.join(version)).unwrap();
        }
        let names: Vec<_> = versions(&root, "", "bin");
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(names, ["17", "15", "9.6"].map(|version| root.join(version).join("bin")));
    }
}
