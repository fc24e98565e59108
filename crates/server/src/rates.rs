//! How often somebody may ask, and how often guess.
//!
//! Requests of one principal take from buckets that fill evenly: one for reading, one for writing, and
//! so on. Wrong passwords take from others, of the address that they come from and of the name that they
//! are for. Who is right is never kept out for good: buckets fill by themselves, and somebody who has
//! signed in from an address is not kept from it by what others try elsewhere.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use registry::{Class, Peer};

/// Buckets that are not full, of one kind; more share one.
const BUCKETS_MAX: usize = 20_000;
/// Who signed in from where.
const KNOWN_MAX: usize = 10_000;
/// An address may be that of many people.
const GUESSES_OF_ADDRESS: u32 = 5;
const PERIOD: Duration = Duration::from_secs(60);

/// Requests a minute; none: as many as come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateSettings {
    pub read: Option<u32>,
    pub write: Option<u32>,
    pub delete: Option<u32>,
    pub referrers: Option<u32>,
    pub login: Option<u32>,
    /// Wrong passwords for one name.
    pub guess: Option<u32>,
}

impl RateSettings {
    fn of(&self, class: Class) -> Option<u32> {
        match class {
            Class::Read => self.read,
            Class::Write => self.write,
            Class::Delete => self.delete,
            Class::Referrers => self.referrers,
            Class::Login => self.login,
        }
    }
}

/// Where a request comes from: of IPv6, the network that one machine has for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Origin(IpAddr);

impl Origin {
    /// Nothing over the socket, which only the server's own user can open.
    fn of(peer: Peer) -> Option<Self> {
        match peer {
            Peer::Unix => None,
            Peer::Unknown => Some(Self(Ipv4Addr::UNSPECIFIED.into())),
            Peer::Tcp(address) => Some(Self(match address.ip().to_canonical() {
                IpAddr::V4(address) => address.into(),
                IpAddr::V6(address) => {
                    Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
                }
            })),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Asker {
    Principal(String),
    Anonymous(Origin),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Guesser {
    Origin(Origin),
    Name(String),
    /// A name that was signed in with from there.
    Known(Origin, String),
}

/// A password that is being compared. It counts as wrong until it is [taken back](Rates::take_back), so
/// also if nobody waits for the answer any more.
#[derive(Debug)]
pub(crate) struct Guess {
    taken: Vec<(Option<Guesser>, u32)>,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rates(Arc<Shared>);

struct Shared {
    settings: RateSettings,
    asked: Mutex<Buckets<(Class, Asker)>>,
    guessed: Mutex<Buckets<Guesser>>,
    known: Mutex<HashSet<(Origin, String)>>,
    refused: AtomicU64,
}

impl Rates {
    pub(crate) fn new(settings: RateSettings) -> Self {
        Self(Arc::new(Shared {
            settings,
            asked: Mutex::new(Buckets::default()),
            guessed: Mutex::new(Buckets::default()),
            known: Mutex::default(),
            refused: AtomicU64::new(0),
        }))
    }

    /// Requests that were refused so far.
    pub(crate) fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Whether one more request may be answered; if not, when. `principal` is none for whoever shows
    /// no credentials.
    pub(crate) fn ask(
        &self,
        principal: Option<&str>,
        peer: Peer,
        class: Class,
        now: Instant,
    ) -> Result<(), Duration> {
        let (Some(rate), Some(origin)) = (self.0.settings.of(class), Origin::of(peer)) else {
            return Ok(());
        };
        let asker = match principal {
            Some(name) => Asker::Principal(name.to_owned()),
            None => Asker::Anonymous(origin),
        };
        let taken = lock(&self.0.asked).take((class, asker), rate, now).map(drop);
        taken.inspect_err(|_| self.count_refusal())
    }

    /// Takes what a wrong password costs, before one is compared that somebody can guess: however many
    /// are compared at once, no more are than there may be wrong ones. If there is nothing left, says
    /// when there is.
    pub(crate) fn begin_guess(
        &self,
        peer: Peer,
        name: &str,
        now: Instant,
    ) -> Result<Guess, Duration> {
        let guessers = self.guessers(peer, Some(name));
        let mut guessed = lock(&self.0.guessed);
        let waits = guessers.iter().filter_map(|(guesser, rate)| guessed.wait(guesser, *rate, now));
        if let Some(wait) = waits.max() {
            self.count_refusal();
            return Err(wait);
        }
        let taken = guessers.into_iter().filter_map(|(guesser, rate)| {
            let bucket = guessed.take(guesser, rate, now).ok()?;
            Some((bucket, rate))
        });
        Ok(Guess { taken: taken.collect() })
    }

    /// It was none: the password was right, or was not compared.
    pub(crate) fn take_back(&self, guess: Guess) {
        let mut guessed = lock(&self.0.guessed);
        for (bucket, rate) in guess.taken {
            guessed.give_back(&bucket, rate);
        }
    }

    /// Somebody has shown what nobody can guess, and it was wrong; if that was too often, when the next
    /// try is.
    pub(crate) fn was_wrong(&self, peer: Peer, now: Instant) -> Result<(), Duration> {
        for (guesser, rate) in self.guessers(peer, None) {
            let taken = lock(&self.0.guessed).take(guesser, rate, now);
            taken.inspect_err(|_| self.count_refusal())?;
        }
        Ok(())
    }

    /// Somebody was right.
    pub(crate) fn was_right(&self, peer: Peer, name: &str) {
        if let (Some(origin), Some(_)) = (Origin::of(peer), self.0.settings.guess) {
            let mut known = lock(&self.0.known);
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            known.insert((origin, name.to_ascii_lowercase()));
        }
    }

    /// Whose buckets a guess takes from, and how fast they fill.
    fn guessers(&self, peer: Peer, name: Option<&str>) -> Vec<(Guesser, u32)> {
        let (Some(rate), Some(origin)) = (self.0.settings.guess, Origin::of(peer)) else {
            return Vec::new();
        };
        let of_origin = (Guesser::Origin(origin), rate.saturating_mul(GUESSES_OF_ADDRESS));
        match name.map(str::to_ascii_lowercase) {
            None => vec![of_origin],
            Some(name) if lock(&self.0.known).contains(&(origin, name.clone())) => {
                vec![(Guesser::Known(origin, name), rate)]
            }
            Some(name) => vec![of_origin, (Guesser::Name(name), rate)],
        }
    }

    fn count_refusal(&self) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Buckets that hold what comes in within a minute, and fill evenly. A full one is not kept.
struct Buckets<K> {
    /// When each is full again. Those for whom there is no room have one together.
    full: HashMap<Option<K>, Instant>,
    /// When full ones were last looked for.
    swept: Option<Instant>,
}

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self { full: HashMap::new(), swept: None }
    }
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    /// Takes one, and says from which bucket, or else when there will be one.
    fn take(&mut self, key: K, rate: u32, now: Instant) -> Result<Option<K>, Duration> {
        let mut key = Some(key);
        if !self.full.contains_key(&key) && !self.has_room(now) {
            key = None;
        }
        let full = self.full.get(&key).map_or(now, |full| (*full).max(now));
        let then = full + PERIOD / rate.max(1);
        match then.saturating_duration_since(now).saturating_sub(PERIOD) {
            Duration::ZERO => {
                self.full.insert(key.clone(), then);
                Ok(key)
            }
            wait => Err(wait),
        }
    }

    /// Puts one back. A bucket that is not kept any more is full.
    fn give_back(&mut self, key: &Option<K>, rate: u32) {
        if let Some(full) = self.full.get_mut(key) {
            *full = full.checked_sub(PERIOD / rate.max(1)).unwrap_or(*full);
        }
    }

    /// When there will be one, if there is none.
    fn wait(&self, key: &K, rate: u32, now: Instant) -> Option<Duration> {
        let full = match self.full.get(&Some(key.clone())) {
            Some(full) => full,
            None if self.full.len() >= BUCKETS_MAX => self.full.get(&None)?,
            None => return None,
        };
        let then = *full + PERIOD / rate.max(1);
        let wait = then.saturating_duration_since(now).saturating_sub(PERIOD);
        (!wait.is_zero()).then_some(wait)
    }

    fn has_room(&mut self, now: Instant) -> bool {
        let is_full = self.full.len() >= BUCKETS_MAX;
        let is_due = self.swept.is_none_or(|swept| now > swept + Duration::from_secs(1));
        if is_full && is_due {
            self.full.retain(|_, full| *full > now);
            self.swept = Some(now);
        }
        self.full.len() < BUCKETS_MAX
    }
}

/// As `Retry-After` tells it.
pub(crate) fn seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000).max(1) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: RateSettings = RateSettings {
        read: Some(2),
        write: None,
        delete: None,
        referrers: None,
        login: None,
        guess: Some(2),
    };

    fn peer(address: &str) -> Peer {
        Peer::Tcp((address.parse::<IpAddr>().unwrap(), 1).into())
    }

    #[test]
    fn each_principal_has_a_bucket_that_fills_evenly() {
        let (rates, begin) = (Rates::new(TWO), Instant::now());
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let read = |name: Option<&str>, peer, now| rates.ask(name, peer, Class::Read, now);
        let [here, there] = [peer("192.0.2.1"), peer("192.0.2.2")];
        assert_eq!(read(Some("ann"), here, at(0)), Ok(()));
        assert_eq!(read(Some("ann"), there, at(0)), Ok(()));
        assert_eq!(read(Some("ann"), here, at(0)), Err(Duration::from_secs(30)));
        // Others, other classes, and addresses of those who have no name.
        assert_eq!(read(Some("bob"), here, at(0)), Ok(()));
        assert_eq!(rates.ask(Some("ann"), here, Class::Write, at(0)), Ok(()));
        for address in [here, there, peer("2001:db8::1"), peer("::ffff:192.0.2.3")] {
            assert_eq!(read(None, address, at(0)), Ok(()));
            assert_eq!(read(None, address, at(0)), Ok(()));
            assert!(read(None, address, at(0)).is_err());
        }
        assert!(read(None, peer("2001:db8::ffff:2"), at(0)).is_err());
        assert_eq!(read(None, Peer::Unix, at(0)), Ok(()));
        // One is back after half a minute, both after a whole one.
        assert_eq!(read(Some("ann"), here, at(29)), Err(Duration::from_secs(1)));
        assert_eq!(read(Some("ann"), here, at(30)), Ok(()));
        assert!(read(Some("ann"), here, at(30)).is_err());
        assert_eq!(read(Some("ann"), here, at(200)), Ok(()));
        assert_eq!(read(Some("ann"), here, at(200)), Ok(()));
        assert!(read(Some("ann"), here, at(200)).is_err());
        assert_eq!(rates.refused(), 9);
        assert_eq!([1, 999, 1000, 1001].map(|n| seconds(Duration::from_millis(n))), [1, 1, 1, 2]);
    }

    /// A password that is not compared after all.
    fn may_guess(rates: &Rates, peer: Peer, name: &str, now: Instant) -> Result<(), Duration> {
        rates.begin_guess(peer, name, now).map(|guess| rates.take_back(guess))
    }

    fn wrong(rates: &Rates, peer: Peer, name: &str, now: Instant) -> Result<(), Duration> {
        rates.begin_guess(peer, name, now).map(drop)
    }

    #[test]
    fn guesses_are_bounded_by_name_and_by_address_and_keep_nobody_out_who_was_there() {
        let (rates, now) = (Rates::new(TWO), Instant::now());
        let [home, evil] = [peer("192.0.2.1"), peer("203.0.113.9")];
        rates.was_right(home, "Ann");
        for _ in 0..2 {
            assert_eq!(may_guess(&rates, evil, "ann", now), Ok(()));
            assert_eq!(wrong(&rates, evil, "ann", now), Ok(()));
        }
        assert_eq!(may_guess(&rates, evil, "ANN", now), Err(Duration::from_secs(30)));
        assert!(may_guess(&rates, peer("203.0.113.10"), "ann", now).is_err());
        assert_eq!(may_guess(&rates, home, "ann", now), Ok(()));
        // Other names from the same address, up to five times as many.
        for name in ["bob", "cy", "di", "ed", "flo", "gus", "hal", "ida"] {
            assert_eq!(wrong(&rates, evil, name, now), Ok(()), "{name}");
        }
        assert!(may_guess(&rates, evil, "jo", now).is_err());
        assert!(rates.was_wrong(evil, now).is_err());
        assert_eq!(may_guess(&rates, home, "jo", now), Ok(()));
        // Who was there may be wrong there too, and not without end.
        for _ in 0..2 {
            assert_eq!(wrong(&rates, home, "ann", now), Ok(()));
        }
        assert!(may_guess(&rates, home, "ann", now).is_err());
        let later = now + PERIOD;
        assert_eq!(may_guess(&rates, home, "ann", later), Ok(()));
        assert_eq!(may_guess(&rates, evil, "ann", later), Ok(()));
        assert_eq!(wrong(&rates, Peer::Unix, "ann", now), Ok(()));
    }

    #[test]
    fn guesses_at_once_are_no_more_than_those_one_after_another() {
        let (rates, now) = (Rates::new(TWO), Instant::now());
        let evil = peer("203.0.113.9");
        let threads = std::thread::scope(|scope| {
            let guess = || rates.begin_guess(evil, "ann", now);
            let all: Vec<_> = (0..16).map(|_| scope.spawn(guess)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
        });
        let begun: Vec<_> = threads.into_iter().flatten().collect();
        assert_eq!(begun.len(), 2);
        // What was right costs nothing, in all buckets that were taken from; what is refused neither.
        begun.into_iter().for_each(|guess| rates.take_back(guess));
        for name in ["ann", "bob", "cy", "di", "ed"] {
            for _ in 0..2 {
                assert_eq!(wrong(&rates, evil, name, now), Ok(()), "{name}");
            }
        }
        assert!(wrong(&rates, evil, "flo", now).is_err());
    }

    #[test]
    fn buckets_are_bounded() {
        let (mut buckets, now) = (Buckets::default(), Instant::now());
        for key in 0..2 * BUCKETS_MAX {
            let _ = buckets.take(key, 1, now);
        }
        assert_eq!(buckets.full.len(), BUCKETS_MAX + 1);
        // Those without room share one, which is empty by now; full ones make room.
        assert!(buckets.take(usize::MAX, 1, now).is_err());
        assert_eq!(buckets.take(usize::MAX, 1, now + 2 * PERIOD), Ok(Some(usize::MAX)));
        assert_eq!(buckets.full.len(), 1);
    }
}
