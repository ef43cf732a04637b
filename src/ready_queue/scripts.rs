//! The Lua scripts, put together from their parts.
//!
//! All take the same keys and the same first two arguments (see `scripts/common.lua`); a script that
//! writes begins with the fence.

use std::sync::LazyLock;

use redis::Script;

use crate::planted::{Plant, planted};

macro_rules! unfenced {
    ($($part:literal),+) => {
        concat!(
            include_str!("scripts/common.lua"), "\n",
            $(include_str!(concat!("scripts/", $part)), "\n",)+
        )
    };
}

macro_rules! fenced {
    ($($part:literal),+) => {
        LazyLock::new(|| {
            if planted(Plant::FenceOff) {
                return Script::new(unfenced!($($part),+));
            }
            Script::new(concat!(include_str!("scripts/fence.lua"), "\n", unfenced!($($part),+)))
        })
    };
}

macro_rules! reading {
    ($($part:literal),+) => {
        LazyLock::new(|| Script::new(unfenced!($($part),+)))
    };
}

pub(super) static ENQUEUE: LazyLock<Script> = fenced!("enqueue.lua");
pub(super) static CLAIM: LazyLock<Script> = fenced!("merge.lua", "claim.lua");
pub(super) static CONFIRM: LazyLock<Script> = fenced!("confirm.lua");
pub(super) static PUT_BACK: LazyLock<Script> = fenced!("put_back.lua");
pub(super) static REMOVE: LazyLock<Script> = fenced!("remove.lua");
pub(super) static GENERATION: LazyLock<Script> = fenced!("generation.lua");
pub(super) static BEGIN_REBUILD: LazyLock<Script> = fenced!("begin_rebuild.lua");
pub(super) static RESET: LazyLock<Script> = reading!("reset.lua");
pub(super) static DISCARD: LazyLock<Script> = reading!("discard.lua");
pub(super) static RECOUNT: LazyLock<Script> = fenced!("recount.lua");

pub(super) static VERSION: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/version.lua")));
/// The clock of the server that has the keys; a cluster has several.
pub(super) static TIME: LazyLock<Script> = LazyLock::new(|| Script::new("return redis.call('TIME')"));
pub(super) static PEEK: LazyLock<Script> = reading!("merge.lua", "peek.lua");
pub(super) static COUNTS: LazyLock<Script> = reading!("counts.lua");
pub(super) static AUDIT: LazyLock<Script> = reading!("audit.lua");
