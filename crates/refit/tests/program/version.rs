use expect_test::expect;

use crate::sandbox;

#[test]
fn the_version_is_told_without_a_server() {
    let told = sandbox().refit(["version"]).run().success();
    assert!(told.stdout.starts_with(concat!("refit ", env!("CARGO_PKG_VERSION"))));
    assert_eq!(told.stderr, "");
    let told = sandbox().refit(["version", "-o", "json"]).run().success();
    assert_eq!(told.json()["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_form_of_output_is_known() {
    let run = |form: &str| sandbox().refit(["version", "-o", form]).run();
    assert!(run("yaml").success().stdout.starts_with("version: "));
    assert!(run("tsv").success().stdout.starts_with("refit "));
    assert_eq!(run("none").success().stdout, "");
    expect![[r#"
        exit: 2
        -- stdout --
        -- stderr --
        error: invalid value 'xml' for '--output <FORMAT>': expected `json`, `yaml`, `tsv`, `table` or `none`

        For more information, try '--help'.
    "#]]
    .assert_eq(&run("xml").snapshot());
}
