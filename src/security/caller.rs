//! Roles, and whoever acts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

tokio::task_local! {
    static CURRENT: Caller;
}

/// What a token lets its bearer do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads, and writes jobs.
    Submitter,
    /// Makes a worker's calls, for the workers that it has registered.
    Worker,
    /// Everything.
    Admin,
}

/// What a route or an RPC asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Nothing: probes, metrics and the documentation.
    Open,
    /// To look.
    Read,
    /// To write jobs.
    Submit,
    /// To act as a worker.
    Work,
    /// To change the system itself.
    Administer,
}

/// Who bears a token, and for how long it is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// Whom it names.
    pub caller: Caller,
    /// The time that it has left, beyond which nothing is done on its strength.
    pub good_for: Duration,
}

/// Whoever has a command carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Caller {
    /// Nobody is asked who they are: `security.require_auth` is off.
    Anybody,
    /// Who a token names.
    Known {
        /// The `sub` claim.
        subject: String,
        /// The `role` claim.
        role: Role,
    },
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Submitter, Self::Worker, Self::Admin];

    /// The name in tokens and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Submitter => "submitter",
            Self::Worker => "worker",
            Self::Admin => "admin",
        }
    }

    /// Whether the role suffices.
    pub const fn allows(self, access: Access) -> bool {
        match (self, access) {
            (Self::Admin, _) | (_, Access::Open) => true,
            (Self::Viewer | Self::Submitter, Access::Read) => true,
            (Self::Submitter, Access::Submit) => true,
            (Self::Worker, Access::Work) => true,
            (Self::Viewer, Access::Submit | Access::Work | Access::Administer)
            | (Self::Submitter, Access::Work | Access::Administer)
            | (Self::Worker, Access::Read | Access::Submit | Access::Administer) => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| "must be one of viewer, submitter, worker, admin".to_owned())
    }
}

impl Access {
    /// The roles that have it, for people.
    pub const fn roles(self) -> &'static str {
        match self {
            Self::Open => "everybody",
            Self::Read => "viewer, submitter or admin",
            Self::Submit => "submitter or admin",
            Self::Work => "worker or admin",
            Self::Administer => "admin",
        }
    }
}

impl Caller {
    /// Whether the caller may do what asks for this.
    pub fn may(&self, access: Access) -> bool {
        match self {
            Self::Anybody => true,
            Self::Known { role, .. } => role.allows(access),
        }
    }

    /// Who it is, where that is known.
    pub fn subject(&self) -> Option<&str> {
        match self {
            Self::Anybody => None,
            Self::Known { subject, .. } => Some(subject),
        }
    }

    /// Whether the caller may act for a worker that `owner` has registered. A worker without an owner was
    /// registered while nobody was asked, and is taken over by registering it again.
    pub fn owns(&self, owner: Option<&str>) -> bool {
        match self {
            Self::Anybody | Self::Known { role: Role::Admin, .. } => true,
            Self::Known { subject, .. } => owner == Some(subject),
        }
    }

    /// Runs `work` on behalf of this caller. The identity goes along as a span does, so that no handler can
    /// forget to pass it on; work that is spawned must be given it anew, and has none otherwise.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }

    /// On whose behalf the present task works; nothing outside of [`Self::scope`].
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anybody => f.write_str("anybody"),
            Self::Known { subject, role } => write!(f, "{subject} ({role})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESSES: [Access; 5] =
        [Access::Open, Access::Read, Access::Submit, Access::Work, Access::Administer];

    fn known(subject: &str, role: Role) -> Caller {
        Caller::Known { subject: subject.to_owned(), role }
    }

    #[test]
    fn each_role_may_do_what_the_contract_says_and_no_more() {
        let allowed = |role: Role| ACCESSES.map(|access| role.allows(access));
        assert_eq!(allowed(Role::Viewer), [true, true, false, false, false]);
        assert_eq!(allowed(Role::Submitter), [true, true, true, false, false]);
        assert_eq!(allowed(Role::Worker), [true, false, false, true, false]);
        assert_eq!(allowed(Role::Admin), [true; 5]);
    }

    #[test]
    fn what_people_are_told_of_an_access_is_what_the_roles_have() {
        for access in ACCESSES.into_iter().filter(|access| *access != Access::Open) {
            let told: Vec<_> = access.roles().split(" or ").flat_map(|part| part.split(", ")).collect();
            let have: Vec<_> =
                Role::ALL.into_iter().filter(|role| role.allows(access)).map(Role::as_str).collect();
            assert_eq!(told, have, "{access:?}");
        }
    }

    #[test]
    fn a_worker_token_acts_for_its_own_workers_and_an_admin_for_all() {
        let owns = |caller: Caller| [None, Some("a"), Some("b")].map(|owner| caller.owns(owner));
        assert_eq!(owns(known("a", Role::Worker)), [false, true, false]);
        assert_eq!(owns(known("a", Role::Admin)), [true; 3]);
        assert_eq!(owns(Caller::Anybody), [true; 3]);
    }

    #[tokio::test]
    async fn spawned_work_is_on_nobodys_behalf() {
        assert_eq!(Caller::current(), None);
        let caller = known("a", Role::Viewer);
        let (inside, spawned) = caller
            .clone()
            .scope(async { (Caller::current(), tokio::spawn(async { Caller::current() }).await.unwrap()) })
            .await;
        assert_eq!((inside, spawned), (Some(caller), None));
    }
}
