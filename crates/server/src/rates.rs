//! How often somebody may ask, and how often guess.
//!
//! Requests of one principal take from buckets that fill evenly: one for reading, one for writing, and
//! so on. Wrong passwords take from others, of the address that they come from and of the name that they
//! are for. Who is right is never kept out for good: buckets fill by themselves, and somebody who has
//! signed in from an address is not kept from it by what others try elsewhere.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use registry::{Class, Peer};
use tokio::sync::Notify;

/// Buckets that are not full, of one kind; more share one.
const BUCKETS_MAX: usize = 20_000;
/// Who signed in from where.
const KNOWN_MAX: usize = 10_000;
/// An address may be that of many people.
const GUESSES_OF_ADDRESS: u32 = 5;
const PERIOD: Duration = Duration::from_secs(60);
/// How long somebody waits for those whose passwords are being compared.
const PATIENCE: Duration = Duration::from_secs(10);
/// Who wait for that at the same time.
const WAITING_MAX: usize = 1_000;

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

/// A password that is being compared. It counts as wrong until it is [taken back](Guess::take_back), so
/// also if nobody waits for the answer any more.
pub(crate) struct Guess {
    taken: Vec<(Option<Guesser>, u32)>,
    rates: Rates,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rates(Arc<Shared>);

struct Shared {
    settings: RateSettings,
    asked: Mutex<Buckets<(Class, Asker)>>,
    guessed: Mutex<Guessed>,
    /// A comparison has come to its end.
    settled: Notify,
    waiting: AtomicUsize,
    known: Mutex<HashSet<(Origin, String)>>,
    refused: AtomicU64,
}

#[derive(Default)]
struct Guessed {
    buckets: Buckets<Guesser>,
    /// Of each bucket: passwords that are being compared.
    compared: HashMap<Option<Guesser>, usize>,
}

impl Rates {
    pub(crate) fn new(settings: RateSettings) -> Self {
        Self(Arc::new(Shared {
            settings,
            asked: Mutex::new(Buckets::default()),
            guessed: Mutex::default(),
            settled: Notify::new(),
            waiting: AtomicUsize::new(0),
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
    /// are compared at once, no more are than there may be wrong ones. If there is nothing left but for
    /// those that are being compared, and may be right, waits for them; else says when there is.
    pub(crate) async fn begin_guess(&self, peer: Peer, name: &str) -> Result<Guess, Duration> {
        self.guess_within(peer, name, PATIENCE).await
    }

    async fn guess_within(
        &self,
        peer: Peer,
        name: &str,
        patience: Duration,
    ) -> Result<Guess, Duration> {
        let guessers = self.guessers(peer, Some(name));
        let deadline = tokio::time::Instant::now() + patience;
        let mut place = None;
        loop {
            let mut settled = pin!(self.0.settled.notified());
            settled.as_mut().enable();
            let refusal = match self.try_guess(&guessers, Instant::now()) {
                Ok(guess) => return Ok(guess),
                Err(refusal) => refusal,
            };
            place = place.or_else(|| Waiting::begin(&self.0.waiting));
            let may_wait = refusal.is_undecided && place.is_some();
            if !may_wait || tokio::time::timeout_at(deadline, settled).await.is_err() {
                self.count_refusal();
                return Err(refusal.wait);
            }
        }
    }

    fn try_guess(&self, guessers: &[(Guesser, u32)], now: Instant) -> Result<Guess, Refusal> {
        let mut guessed = lock(&self.0.guessed);
        let Guessed { buckets, compared } = &mut *guessed;
        let empty = guessers.iter().filter_map(|(guesser, rate)| {
            let (bucket, wait) = buckets.wait(guesser, *rate, now)?;
            Some((wait, compared.contains_key(&bucket)))
        });
        // All buckets that are empty have to fill.
        let refusal = empty
            .reduce(|(wait, waits), (other, other_waits)| (wait.max(other), waits && other_waits));
        if let Some((wait, is_undecided)) = refusal {
            return Err(Refusal { wait, is_undecided });
        }
        let taken = guessers.iter().filter_map(|(guesser, rate)| {
            let bucket = buckets.take(guesser.clone(), *rate, now).ok()?;
            Some((bucket, *rate))
        });
        let taken: Vec<_> = taken.collect();
        for (bucket, _) in &taken {
            *compared.entry(bucket.clone()).or_default() += 1;
        }
        Ok(Guess { taken, rates: self.clone() })
    }

    /// Somebody has shown what nobody can guess, and it was wrong; if that was too often, when the next
    /// try is.
    pub(crate) fn was_wrong(&self, peer: Peer, now: Instant) -> Result<(), Duration> {
        for (guesser, rate) in self.guessers(peer, None) {
            let taken = lock(&self.0.guessed).buckets.take(guesser, rate, now);
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

impl Guess {
    /// It was none: the password was right, or was not compared.
    pub(crate) fn take_back(self) {
        let mut guessed = lock(&self.rates.0.guessed);
        for (bucket, rate) in &self.taken {
            guessed.buckets.give_back(bucket, *rate);
        }
    }
}

impl Drop for Guess {
    fn drop(&mut self) {
        let mut guessed = lock(&self.rates.0.guessed);
        for (bucket, _) in self.taken.drain(..) {
            if let Entry::Occupied(mut compared) = guessed.compared.entry(bucket) {
                *compared.get_mut() -= 1;
                if *compared.get() == 0 {
                    compared.remove();
                }
            }
        }
        drop(guessed);
        self.rates.0.settled.notify_waiters();
    }
}

/// Why no password is compared now.
struct Refusal {
    /// Until there may be one if all that are being compared are wrong.
    wait: Duration,
    /// There may be one sooner.
    is_undecided: bool,
}

/// A place among those who wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Option<Self> {
        let place = Self(waiting);
        (waiting.fetch_add(1, Ordering::Relaxed) < WAITING_MAX).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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

    /// From which bucket it would be, and when there will be one, if there is none.
    fn wait(&self, key: &K, rate: u32, now: Instant) -> Option<(Option<K>, Duration)> {
        let own = Some(key.clone());
        let (bucket, full) = match self.full.get(&own) {
            Some(full) => (own, full),
            None if self.full.len() >= BUCKETS_MAX => (None, self.full.get(&None)?),
            None => return None,
        };
        let then = *full + PERIOD / rate.max(1);
        let wait = then.saturating_duration_since(now).saturating_sub(PERIOD);
        (!wait.is_zero()).then_some((bucket, wait))
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
        begin(rates, peer, name, now).map(Guess::take_back)
    }

    fn wrong(rates: &Rates, peer: Peer, name: &str, now: Instant) -> Result<(), Duration> {
        begin(rates, peer, name, now).map(drop)
    }

    fn begin(rates: &Rates, peer: Peer, name: &str, now: Instant) -> Result<Guess, Duration> {
        let begun = rates.try_guess(&rates.guessers(peer, Some(name)), now);
        begun.map_err(|refusal| refusal.wait)
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
            let guess = || begin(&rates, evil, "ann", now);
            let all: Vec<_> = (0..16).map(|_| scope.spawn(guess)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
        });
        let begun: Vec<_> = threads.into_iter().flatten().collect();
        assert_eq!(begun.len(), 2);
        // What was right costs nothing, in all buckets that were taken from; what is refused neither.
        begun.into_iter().for_each(Guess::take_back);
        for name in ["ann", "bob", "cy", "di", "ed"] {
            for _ in 0..2 {
                assert_eq!(wrong(&rates, evil, name, now), Ok(()), "{name}");
            }
        }
        assert!(wrong(&rates, evil, "flo", now).is_err());
    }

    #[tokio::test]
    async fn who_comes_while_passwords_are_compared_waits_for_them() {
        let (rates, home) = (Rates::new(TWO), peer("192.0.2.1"));
        let first = rates.begin_guess(home, "ann").await.unwrap();
        let second = rates.begin_guess(home, "ann").await.unwrap();
        let third = tokio::spawn({
            let rates = rates.clone();
            async move { rates.begin_guess(home, "ann").await }
        });
        tokio::task::yield_now().await;
        assert!(!third.is_finished());
        // A wrong one makes no room; a right one does.
        drop(first);
        tokio::task::yield_now().await;
        assert!(!third.is_finished());
        second.take_back();
        let third = third.await.unwrap().unwrap();
        // Nobody waits for ever, nor where nothing is undecided.
        let short = Duration::from_millis(50);
        let begun = Instant::now();
        assert!(rates.guess_within(home, "ann", short).await.is_err());
        assert!(begun.elapsed() >= short);
        drop(third);
        let long = tokio::time::timeout(Duration::from_secs(5), rates.begin_guess(home, "ann"));
        assert!(long.await.unwrap().is_err());
        assert_eq!(rates.refused(), 2);
        assert!(lock(&rates.0.guessed).compared.is_empty());
        assert_eq!(rates.0.waiting.load(Ordering::Relaxed), 0);
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
