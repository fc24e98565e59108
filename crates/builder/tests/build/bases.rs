//! Which images a build records, and as what: section H of the specification's cases.

use builder::BaseRole;
use oci::{Platform, media_type};

use crate::support::{Fixture, base_files};

/// A store with the images `a`, `c` and `n`.
async fn fixture() -> Fixture {
    let fixture = Fixture::empty().await;
    for name in ["a", "c", "n"] {
        let env = [format!("NAME={name}")];
        let env: Vec<&str> = env.iter().map(String::as_str).collect();
        fixture.put_image(name, &base_files(), &env, media_type::OCI_LAYER_GZIP).await;
    }
    fixture
}

/// The bases with a role, without the registry that all of them are in.
fn with(record: &builder::BuildRecord, role: BaseRole) -> Vec<&str> {
    let bases = record.bases.iter().filter(|base| base.role == role);
    bases.map(|base| base.reference.strip_prefix("registry.test/").unwrap()).collect()
}

#[tokio::test]
async fn the_result_stands_on_one_image_through_all_its_stages() {
    let fixture = fixture().await;
    let copies = "COPY --from=b /etc/passwd /b\n";
    let platform = format!("FROM --platform={} R/n AS b\nFROM b\n", Platform::host());
    let twice = "FROM R/a AS x\nFROM R/a:latest AS y\nFROM R/c\n\
                 COPY --from=x /etc/passwd /x\nCOPY --from=y /etc/passwd /y\n";
    for (case, dockerfile, target, runtime, buildtime) in [
        ("h1", "FROM R/a", None, "a:latest", vec![]),
        ("h2", &format!("FROM R/c AS b\nFROM R/a\n{copies}"), None, "a:latest", vec!["c:latest"]),
        // A stage that nothing needs is not built.
        ("h2", "FROM R/c AS b\nFROM R/a", None, "a:latest", vec![]),
        ("h3", "FROM R/a AS x\nFROM x AS y\nFROM y", None, "a:latest", vec![]),
        ("h7", &platform, None, "n:latest", vec![]),
        ("h9", "FROM R/a AS b\nFROM R/c AS d", Some("b"), "a:latest", vec![]),
        // One for each stage; whoever tells them tells each image once.
        ("h13", twice, None, "c:latest", vec!["a:latest"; 2]),
        (
            "a chain beside the one of the result",
            &format!("FROM R/c AS x\nFROM x AS b\nFROM R/a AS y\nFROM y\n{copies}"),
            None,
            "a:latest",
            vec!["c:latest"],
        ),
    ] {
        let dockerfile = dockerfile.replace("R/", "registry.test/");
        let mut request = fixture.request(&format!("{dockerfile}\nLABEL a=b\n"));
        request.target = target.map(str::to_owned);
        let record = fixture.build_request(&request).await.built.record;
        assert_eq!(with(&record, BaseRole::Runtime), [runtime], "{case}");
        assert_eq!(with(&record, BaseRole::Buildtime), buildtime, "{case}");
    }
}

#[tokio::test]
async fn h12_an_image_from_scratch_stands_on_nothing() {
    let record = Fixture::empty().await.build("FROM scratch\nLABEL a=b\n").await.built.record;
    assert_eq!(record.bases, []);
}
