//! Config, manifest and record of what is built.

use expect_test::expect;
use oci::media_type;

use crate::support::*;

/// What images have that set none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[tokio::test]
async fn an_image_without_layers_is_an_image() {
    let fixture = Fixture::empty().await;
    let run = fixture.build("FROM scratch\nENV A=1\nCMD [\"/a\"]").await;
    assert!(run.built.layers.is_empty());
    let config = run.config();
    assert_eq!(config.config.env, [PATH, "A=1"]);
    assert_eq!(config.config.cmd, Some(vec!["/a".to_owned()]));
    assert_eq!(config.created.as_deref(), Some("2023-11-14T22:13:20Z"));
    assert_eq!(config.history.len(), 2);
}

#[tokio::test]
async fn the_base_s_config_and_history_are_kept() {
    let fixture = Fixture::empty().await;
    fixture.put_image("base", &base_files(), &["OLD=1"], media_type::OCI_LAYER_ZSTD).await;
    fixture.write("x", "x");
    let run =
        fixture.build("FROM registry.test/base\nENV NEW=2\nCOPY x /\nEXPOSE 80\nLABEL a=b").await;
    let config = run.config();
    assert_eq!(config.config.env, ["OLD=1", PATH, "NEW=2"]);
    assert_eq!(config.config.cmd, Some(vec!["/bin/sh".to_owned()]));
    let history: Vec<_> = (config.history.iter())
        .map(|line| {
            let (by, at) = (line.created_by.as_deref(), line.created.as_deref());
            format!("{} {} {}", at.unwrap(), by.unwrap(), line.empty_layer)
        })
        .collect();
    expect![[r#"
        2001-02-03T04:05:06Z the test false
        2001-02-03T04:05:06Z ENV NEW=2 true
        2023-11-14T22:13:20Z COPY x / false
        2023-11-14T22:13:20Z EXPOSE 80 true
        2023-11-14T22:13:20Z LABEL a=b true"#]]
    .assert_eq(&history.join("\n"));
    assert_eq!(run.built.layers[0].descriptor.media_type, media_type::OCI_LAYER_ZSTD);
}

#[tokio::test]
async fn docker_bases_become_oci_images() {
    for docker in [media_type::DOCKER_LAYER_GZIP, media_type::DOCKER_LAYER_TAR] {
        let fixture = Fixture::empty().await;
        fixture.put_image("base", &base_files(), &[], docker).await;
        let run = fixture.build("FROM registry.test/base\nWORKDIR /new").await;
        assert!(run.built.layers[0].descriptor.media_type.starts_with("application/vnd.oci."));
        assert_eq!(fixture.files(&run.built).await.at("new"), "755 0:0 folder");
    }
}

#[tokio::test]
async fn images_that_are_not_there_are_named() {
    let fixture = Fixture::with_base().await;
    expect![[r#"
        error: image `base` is not in this registry and pulling is not configured
         --> Dockerfile:1:1
          |
        1 | FROM base
          | ^^^^^^^^^
        hint: this registry has that image under its own name: `registry.test/base`
    "#]]
    .assert_eq(&fixture.error("FROM base").await);
    let error = fixture.error("FROM scratch\nCOPY --from=registry.test/gone /x /").await;
    assert!(error.contains("image `registry.test/gone` is not in this registry"), "{error}");
}

#[tokio::test]
async fn the_record_says_what_was_used() {
    let fixture = Fixture::with_base().await;
    fixture.write("x", "x");
    let run = fixture
        .build(
            "FROM registry.test/base AS tool\nFROM registry.test/base\nCOPY x /\n\
             COPY --from=tool /tmp /t",
        )
        .await;
    let record = &run.built.record;
    let json = serde_json::to_string(record).unwrap();
    assert_eq!(serde_json::from_str::<builder::BuildRecord>(&json).unwrap(), *record);
    let bases: Vec<_> =
        record.bases.iter().map(|b| (b.stage, b.role, b.reference.as_str())).collect();
    let reference = "registry.test/base:latest";
    assert_eq!(
        bases,
        [(0, builder::BaseRole::Buildtime, reference), (1, builder::BaseRole::Runtime, reference)]
    );
    assert!(record.context.is_some());
    assert_eq!(record.steps.len(), 2);
    assert_eq!(record.output.layers.len(), 3);
}

#[tokio::test]
async fn secret_arguments_are_in_no_history_and_no_record() {
    let fixture = Fixture::empty().await;
    let mut request = fixture.request("FROM scratch\nARG KEY\nARG OTHER=1\nENV A=1");
    request.build_args.insert("KEY".to_owned(), "hunter2".to_owned());
    let public = fixture.build_request(&request).await;
    request.secret_args.insert("KEY".to_owned());
    let secret = fixture.build_request(&request).await;
    assert_ne!(public.built.record.definition, secret.built.record.definition);
    let json = serde_json::to_string(&secret.built.record).unwrap();
    assert!(!json.contains("hunter2"));
    assert!(!String::from_utf8_lossy(&secret.built.config).contains("hunter2"));
}

#[tokio::test]
async fn checks_warn_and_end_a_build_that_wants_so() {
    let fixture = Fixture::empty().await;
    let run = fixture.build("FROM scratch AS One\nLABEL a=b\n").await;
    let told = "Dockerfile:1: Stage name 'One' should be lowercase (StageNameCasing)";
    assert_eq!(run.events.warnings(), [told]);
    let request = fixture.request("# check=error=true\nFROM scratch AS One\nLABEL a=b\n");
    let (result, events) = fixture.try_build(&request).await;
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "Stage name 'One' should be lowercase (StageNameCasing)");
    assert_eq!((error.at().unwrap().line, error.is_users()), (2, true));
    assert_eq!(events.warnings().len(), 1);
    let request = fixture
        .request("# check=skip=StageNameCasing;error=true\nFROM scratch AS One\nLABEL a=b\n");
    fixture.try_build(&request).await.0.unwrap();
}

#[tokio::test]
async fn arguments_that_nothing_declares_are_warned_of() {
    let fixture = Fixture::empty().await;
    let mut request = fixture.request("FROM scratch\nENV A=1");
    request.build_args.insert("COLOUR".to_owned(), "red".to_owned());
    let run = fixture.build_request(&request).await;
    assert_eq!(run.events.warnings().len(), 1);
    assert!(run.events.warnings()[0].contains("`COLOUR`"));
}

#[tokio::test]
async fn an_image_for_another_platform_is_warned_of() {
    let fixture = Fixture::with_base().await;
    let own = oci::Platform::host();
    let told = |line: u32| {
        format!(
            "Dockerfile:{line}: Base image registry.test/base was pulled with platform \"{own}\", \
             expected \"linux/s390x\" for current build (InvalidBaseImagePlatform)"
        )
    };
    for (dockerfile, lines) in [
        ("FROM registry.test/base\nLABEL a=b", vec![1]),
        ("FROM registry.test/base AS one\nFROM one\nLABEL a=b", vec![1]),
        ("FROM scratch\nCOPY --from=registry.test/base /etc /etc", vec![2]),
        ("FROM --platform=$BUILDPLATFORM registry.test/base\nLABEL a=b", vec![]),
        ("# check=skip=InvalidBaseImagePlatform\nFROM registry.test/base\nLABEL a=b", vec![]),
        ("FROM scratch\n# check=skip=all\nCOPY --from=registry.test/base /etc /etc", vec![]),
    ] {
        let mut request = fixture.request(dockerfile);
        request.platform = oci::Platform::new("linux", "s390x", None);
        let run = fixture.build_request(&request).await;
        let expected: Vec<String> = lines.into_iter().map(told).collect();
        assert_eq!(run.events.warnings(), expected, "{dockerfile}");
    }
    let mut request = fixture.request("# check=error=true\nFROM registry.test/base\nCOPY absent /");
    request.platform = oci::Platform::new("linux", "s390x", None);
    let error = fixture.try_build(&request).await.0.unwrap_err();
    assert!(error.to_string().ends_with("(InvalidBaseImagePlatform)"), "{error}");
}

#[tokio::test]
async fn a_variable_that_neither_the_base_nor_the_stage_sets_is_warned_of() {
    let fixture = Fixture::empty().await;
    let oci = media_type::OCI_LAYER_GZIP;
    fixture.put_image("base", &base_files(), &["COLOUR=red"], oci).await;
    fixture.put_image("bare", &base_files(), &[], oci).await;
    let dockerfile = "FROM registry.test/base AS one
LABEL a=$COLOUR b=$PATH c=$COLOR
FROM one
ENV OWN=1
LABEL d=$COLOUR e=$OWN f=$NONE
FROM registry.test/bare
COPY --from=one /etc /etc
LABEL g=$COLOUR h=${UNKNOWN_HERE:-default}
";
    let run = fixture.build_request(&fixture.request(dockerfile)).await;
    // What is told first depends on which image is there first; the middle stage is not built.
    let mut warnings = run.events.warnings();
    warnings.sort();
    let expected = [
        "Dockerfile:2: Usage of undefined variable '$COLOR' (did you mean $COLOUR?) (UndefinedVar)",
        "Dockerfile:5: Usage of undefined variable '$NONE' (UndefinedVar)",
        "Dockerfile:8: Usage of undefined variable '$COLOUR' (UndefinedVar)",
        "Dockerfile:8: Usage of undefined variable '$UNKNOWN_HERE' (UndefinedVar)",
    ];
    assert_eq!(warnings, expected);
}

#[tokio::test]
async fn nothing_is_said_of_variables_that_triggers_may_set() {
    let fixture = Fixture::with_base().await;
    let dockerfile = "FROM registry.test/base AS base
ONBUILD ENV APP=/srv
";
    fixture.publish("triggers", &fixture.build(dockerfile).await.built).await;
    for dockerfile in [
        "FROM registry.test/triggers\nWORKDIR $APP\n".to_owned(),
        format!("{dockerfile}FROM base\nWORKDIR $APP\n"),
    ] {
        let run = fixture.build(&dockerfile).await;
        assert_eq!(run.events.warnings(), Vec::<String>::new(), "{dockerfile}");
    }
}

/// A store with `registry.test/base`, `registry.test/other`, both of which builds have read, and
/// `registry.test/liar`: the second one's layer under the first one's diff ID.
async fn with_liar() -> Fixture {
    let fixture = Fixture::with_base().await;
    let other =
        [file("etc/passwd", 0o644, (0, 0), b"app:x:7:7::/:\n"), folder("bin", 0o700, (7, 7))];
    fixture.put_image("other", &other, &[], media_type::OCI_LAYER_GZIP).await;
    let claimed = vec![oci::Digest::of(&tar(&base_files()))];
    fixture.put_claiming("liar", &[&other], claimed, &[], media_type::OCI_LAYER_GZIP).await;
    fixture.write("x", "x");
    std::fs::write(fixture.context().join("x.tar"), tar(&[file("y", 0o644, (0, 0), b"y")]))
        .unwrap();
    for image in ["base", "other"] {
        fixture.build(&format!("FROM registry.test/{image}\nCOPY --chown=app x /")).await;
    }
    fixture
}

#[tokio::test]
async fn what_an_image_says_of_its_layers_is_checked_before_anything_is_kept_for_it() {
    let mut fixture = with_liar().await;
    for instruction in ["COPY --chown=app x /", "ADD x.tar /bin/", "WORKDIR /n"] {
        for base in
            ["FROM registry.test/liar", "FROM registry.test/base AS b\nFROM registry.test/liar"]
        {
            let error = fixture.error(&format!("{base}\n{instruction}")).await;
            assert!(error.contains("a layer of the image is not usable"), "{instruction}: {error}");
            assert!(error.contains("it unpacks to sha256:"), "{instruction}: {error}");
            fixture.restart().await;
        }
    }
    let error = fixture.error("FROM scratch\nCOPY --from=registry.test/liar /bin /").await;
    assert!(error.contains("it unpacks to sha256:"), "{error}");
}
