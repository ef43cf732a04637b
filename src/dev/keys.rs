//! Keys and tokens of a development cluster that requires tokens.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::DevError;
use crate::domain::ambient::{Ambient, System};
use crate::security::{Issuer, KeyPair, NewToken, Role};

/// How long the tokens are good for. Every start makes new ones.
const TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where the keys are, and the tokens that the cluster itself uses.
pub(super) struct Keys {
    /// With `private.pem`, `public.pem` and a `.token` file for each role. Only the owner can read them.
    pub(super) folder: PathBuf,
    pub(super) public_key: PathBuf,
    pub(super) admin: String,
    pub(super) worker: String,
    /// Tells replicas from strangers.
    pub(super) secret: String,
}

impl Keys {
    /// Makes a pair of keys, unless an earlier run has, and a token for every role.
    pub(super) fn prepare(data_dir: &Path) -> Result<Self, DevError> {
        let folder = data_dir.join("auth");
        let failed = || DevError::io(format!("write to {}", folder.display()));
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed())?;
        let (private_key, public_key) = (folder.join("private.pem"), folder.join("public.pem"));
        let unusable = |error| DevError::Failed(format!("{} cannot be used: {error}", private_key.display()));
        if !(private_key.exists() && public_key.exists()) {
            let pair = KeyPair::generate().map_err(unusable)?;
            write(&public_key, pair.public_pem()).map_err(failed())?;
            write(&private_key, pair.private_pem()).map_err(failed())?;
        }
        let issuer = Issuer::from_pem(&fs::read_to_string(&private_key).map_err(failed())?);
        let issuer = issuer.map_err(unusable)?;
        let token = |role: Role| {
            let subject = role.as_str().to_owned();
            let token = NewToken { subject, role, ttl: TTL, issuer: None, audience: None };
            let token = issuer.issue(&token, System.now()).map_err(unusable)?;
            write(&folder.join(format!("{role}.token")), &token).map_err(failed())?;
            Ok::<_, DevError>(token)
        };
        for role in [Role::Viewer, Role::Submitter] {
            token(role)?;
        }
        let (admin, worker) = (token(Role::Admin)?, token(Role::Worker)?);
        let secret = format!("{}{}", System.uuid().simple(), System.uuid().simple());
        Ok(Self { folder: folder.clone(), public_key, admin, worker, secret })
    }
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_keys_of_an_earlier_run_are_kept_and_nobody_else_can_read_them() {
        let folder = std::env::temp_dir().join(format!("cortex-keys-{}", System.uuid()));
        let first = Keys::prepare(&folder).unwrap();
        let public = fs::read_to_string(&first.public_key).unwrap();
        let second = Keys::prepare(&folder).unwrap();
        assert_eq!(fs::read_to_string(&second.public_key).unwrap(), public);
        for name in ["private.pem", "viewer.token", "submitter.token", "worker.token", "admin.token"] {
            let mode = fs::metadata(second.folder.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
