//! Watches the scripts that write to Redis, by Redis' own stream of commands.
//!
//! Redis is where all of them pass in one order, whoever sent them and however late. What `MONITOR` shows is what was
//! carried out: each script with the epoch that it was given, and after it each command that it came to. So whether a
//! script wrote is seen, and not what the fence in it would say of that. The connection goes past the relays that
//! faults cut.
//!
//! Not shown are keys that Redis throws away for want of memory; the fault that brings this about says so by [`Mark`]s
//! in the stream. What is done while the connection is gone, as after Redis was killed, is not seen either.

mod line;
mod observer;
mod watch;

pub use observer::Mark;
pub use watch::watch;
