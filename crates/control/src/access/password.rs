//! Passwords: those that we make, and those that people choose.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use oci::Digest;
use ring::rand::SecureRandom as _;
use tokio::sync::Semaphore;

use crate::{ControlError, Result};

/// What people choose has so many bytes.
const LEN_MIN: usize = 12;
const LEN_MAX: usize = 1024;

/// Passwords compared at once, and new ones hashed at once: each takes 19 MiB and a processor.
static COMPARED: Semaphore = Semaphore::const_new(2);
static HASHED: Semaphore = Semaphore::const_new(1);

/// Passwords that wait to be compared. Anybody can send wrong ones as often as they like.
static WAITING: Semaphore = Semaphore::const_new(64);

/// A password that nobody can guess: 256 random bits, with a beginning by which scanners find
/// it where it should not be.
pub(super) fn random() -> Result<String> {
    Ok(format!("refit_{}", URL_SAFE_NO_PAD.encode(random_bytes()?)))
}

pub(super) fn random_bytes() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let filled = ring::rand::SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| failed("get random numbers", "the system gives none"))?;
    Ok(bytes)
}

/// What is kept of a random password; it cannot be guessed, so a plain digest hides it.
pub(super) fn digest(password: &str) -> Digest {
    Digest::of(password.as_bytes())
}

/// That a password is none that is guessed at once.
pub(super) fn check(password: &str) -> Result<()> {
    if (LEN_MIN..=LEN_MAX).contains(&password.len()) {
        return Ok(());
    }
    Err(ControlError::Invalid {
        message: format!("a password has {LEN_MIN} to {LEN_MAX} bytes"),
        hint: Some("leave it out, and a random one is made".into()),
    })
}

/// What is kept of a password: its Argon2id hash with salt and costs, as a PHC string.
pub(super) async fn hash(password: String) -> Result<String> {
    on_processor(&HASHED, move || {
        let hash = Argon2::default().hash_password(password.as_bytes());
        hash.map(|hash| hash.to_string())
    })
    .await?
    .map_err(|error| failed("hash a password", error))
}

/// Whether a hash is that of a password. Without a hash it takes as long: nobody learns which
/// accounts there are.
pub(super) async fn is_of(hash: Option<String>, password: String) -> Result<bool> {
    let Ok(_waiting) = WAITING.try_acquire() else { return Err(ControlError::TooManyLogins) };
    on_processor(&COMPARED, move || {
        let argon = Argon2::default();
        let Some(hash) = hash else {
            let _nobody_knows_it = argon.hash_password(password.as_bytes());
            return Ok(false);
        };
        let hash = PasswordHash::new(&hash).map_err(|error| failed("read a password", error))?;
        Ok(argon.verify_password(password.as_bytes(), &hash).is_ok())
    })
    .await?
}

/// The job keeps its permit to its end, also if nobody waits for it any more.
async fn on_processor<T: Send + 'static>(
    permits: &'static Semaphore,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let permit = permits.acquire().await.map_err(|error| failed("hash a password", error))?;
    let job = move || {
        let _permit = permit;
        job()
    };
    tokio::task::spawn_blocking(job).await.map_err(|error| failed("hash a password", error))
}

fn failed(doing: &'static str, error: impl std::fmt::Display) -> ControlError {
    ControlError::Io { doing: doing.into(), source: std::io::Error::other(error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_guesses_without_end_waits_for_nobody_and_leaves_nothing_behind() {
        let guess = || is_of(None, "a guess".into());
        // Those that nobody waits for any more go on, two at a time.
        for _ in 0..10 {
            let guesses = tokio::spawn(guess());
            tokio::task::yield_now().await;
            guesses.abort();
        }
        let all = futures_util::future::join_all((0..100).map(|_| guess())).await;
        let refused = all.iter().filter(|ended| matches!(ended, Err(ControlError::TooManyLogins)));
        let refused = refused.count();
        assert!((36..=46).contains(&refused), "{refused}");
        assert_eq!(WAITING.available_permits(), 64);
        // One after the other, since the places are the process's.
        a_hash_is_of_one_password().await;
    }

    async fn a_hash_is_of_one_password() {
        let first = hash("correct horse battery".into()).await.unwrap();
        let second = hash("correct horse battery".into()).await.unwrap();
        assert!(first.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{first}");
        assert_ne!(first, second);
        for hash in [&first, &second] {
            assert!(is_of(Some(hash.clone()), "correct horse battery".into()).await.unwrap());
            assert!(!is_of(Some(hash.clone()), "correct horse".into()).await.unwrap());
        }
        assert!(!is_of(None, "correct horse battery".into()).await.unwrap());
        assert!(is_of(Some("nonsense".into()), "x".into()).await.is_err());
    }

    #[test]
    fn random_passwords_are_long_and_differ() {
        let [one, other] = [random().unwrap(), random().unwrap()];
        assert!(one.starts_with("refit_") && one.len() == 6 + 43 && one != other);
        assert!(check(&one).is_ok() && check("too short").is_err());
        assert!(check(&"x".repeat(LEN_MAX + 1)).is_err());
    }
}
