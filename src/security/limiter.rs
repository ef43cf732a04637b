//! How often one subject, or one address, may call.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::domain::ambient::Ambient;

/// Most callers that are counted apart; those that come on top of them share one count.
const MAX_CALLERS: usize = 50_000;
/// How often callers that have not been heard for long may be forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Requests that one caller may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: NonZeroU32,
    /// At once.
    pub burst: NonZeroU32,
}

/// Counts requests, each caller's apart, in bounded memory.
pub struct Limiter {
    callers: DefaultKeyedRateLimiter<Key>,
    clock: DefaultClock,
    ambient: Arc<dyn Ambient>,
    most: usize,
    swept: Mutex<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Subject(String),
    Address(IpAddr),
    /// Whoever finds no room.
    Others,
}

impl Limiter {
    /// Lets each caller make this many requests.
    pub fn new(rate: Rate, ambient: Arc<dyn Ambient>) -> Self {
        Self::holding(rate, ambient, MAX_CALLERS)
    }

    fn holding(rate: Rate, ambient: Arc<dyn Ambient>, most: usize) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        let swept = Mutex::new(ambient.instant());
        Self { callers: RateLimiter::keyed(quota), clock: DefaultClock::default(), ambient, most, swept }
    }

    /// Takes note of a request of this subject, or else of this address.
    ///
    /// # Errors
    /// How long the caller has to wait.
    pub fn admit(&self, subject: Option<&str>, address: Option<IpAddr>) -> Result<(), Duration> {
        let key = match (subject, address) {
            (Some(subject), _) => Key::Subject(subject.to_owned()),
            (None, Some(address)) => Key::Address(network(address)),
            (None, None) => Key::Others,
        };
        // A key that is counted already is counted with the others while there is no room; that is rare, and
        // gives it no more than its own.
        let key = if self.has_room() { key } else { Key::Others };
        self.callers.check_key(&key).map_err(|wait| wait.wait_time_from(self.clock.now()))
    }

    fn has_room(&self) -> bool {
        if self.callers.len() < self.most {
            return true;
        }
        let now = self.ambient.instant();
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(*swept) >= SWEEP_EVERY {
            *swept = now;
            self.callers.retain_recent();
            self.callers.shrink_to_fit();
        }
        self.callers.len() < self.most
    }
}

/// A client of IPv6 has a whole network of addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ambient::System;

    fn limiter(burst: u32, most: usize) -> Limiter {
        let rate = Rate { per_second: NonZeroU32::MIN, burst: NonZeroU32::new(burst).unwrap() };
        Limiter::holding(rate, Arc::new(System), most)
    }

    #[test]
    fn each_caller_has_a_burst_of_its_own_and_is_then_told_to_wait() {
        let limiter = limiter(3, 100);
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        for _ in 0..3 {
            assert_eq!(limiter.admit(Some("ann"), Some(address)), Ok(()));
        }
        let wait = limiter.admit(Some("ann"), Some(address)).unwrap_err();
        assert!(wait > Duration::from_millis(500) && wait <= Duration::from_secs(1), "{wait:?}");
        assert_eq!(
            limiter.admit(Some("bob"), Some(address)),
            Ok(()),
            "a subject, not its address, is counted"
        );
        assert_eq!(limiter.admit(None, Some(address)), Ok(()));
    }

    #[test]
    fn a_network_of_ipv6_is_one_caller() {
        let limiter = limiter(1, 100);
        let admit = |text: &str| limiter.admit(None, Some(text.parse().unwrap())).is_ok();
        assert!(admit("2001:db8::1"));
        assert!(!admit("2001:db8::2:3:4:5"));
        assert!(admit("2001:db8:0:1::1"));
        assert!(admit("10.0.0.1"));
        assert!(!admit("::ffff:10.0.0.1"));
    }

    #[test]
    fn any_number_of_callers_takes_bounded_memory_and_those_without_room_share_one_count() {
        let limiter = limiter(5, 10);
        let admitted = (0..1000).filter(|n| limiter.admit(Some(&n.to_string()), None).is_ok()).count();
        assert_eq!(admitted, 10 + 5);
        assert!(limiter.callers.len() <= 11, "{}", limiter.callers.len());
    }
}
