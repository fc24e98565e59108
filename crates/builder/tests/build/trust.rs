//! Trust domains: what builds of others leave changes nothing for the registry's own.

use builder::TrustDomain;

use crate::run::{build, with_runtime};

fn fork(name: &str) -> TrustDomain {
    TrustDomain::Untrusted(name.to_owned())
}

/// Gives another result each time, under the same key.
const RANDOM: &str = "FROM registry.test/busybox\nRUN head -c 16 /dev/urandom > /random\n";

#[tokio::test(flavor = "multi_thread")]
async fn as_root_a_fork_changes_nothing_that_trusted_builds_get() {
    let mut fixture = with_runtime().await;
    fixture.enter(&fork("one"));
    let forked = build(&fixture, RANDOM).await.built;
    assert_eq!(build(&fixture, RANDOM).await.built.layers, forked.layers, "it has its own");

    fixture.enter(&TrustDomain::Trusted);
    let trusted = build(&fixture, RANDOM).await.built;
    assert_ne!(trusted.layers, forked.layers);
    assert_eq!(trusted.cost.cache_misses, 1);

    fixture.enter(&fork("two"));
    let other = build(&fixture, RANDOM).await.built;
    assert_eq!(other.layers, trusted.layers, "what is trusted is for all");
    assert_eq!(other.cost.cache_misses, 0);

    // The fork goes on with its own, and so leaves the trusted result alone.
    fixture.enter(&fork("one"));
    let mut request = fixture.request(RANDOM);
    request.no_cache = true;
    fixture.build_request(&request).await;
    fixture.enter(&TrustDomain::Trusted);
    assert_eq!(build(&fixture, RANDOM).await.built.layers, trusted.layers);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root_each_domain_has_cache_folders_of_its_own() {
    let mut fixture = with_runtime().await;
    let note = |who: &str| {
        format!(
            "FROM registry.test/busybox\nENV WHO={who}\n\
             RUN --mount=type=cache,target=/c echo $WHO >> /c/all && cat /c/all\n"
        )
    };
    let mut told = Vec::new();
    for (domain, who) in [
        (TrustDomain::Trusted, "own"),
        (fork("one"), "one"),
        (fork("two"), "two"),
        (fork("one"), "one-again"),
        (TrustDomain::Trusted, "own-again"),
    ] {
        fixture.enter(&domain);
        told.push(build(&fixture, &note(who)).await.events.output());
    }
    assert_eq!(told, ["own\n", "one\n", "two\n", "one\none-again\n", "own\nown-again\n"]);
}
