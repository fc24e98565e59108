use crate::sandbox;

#[test]
fn the_doctor_looks_at_the_data_folder() {
    let sandbox = sandbox();
    let told = sandbox.refit(["doctor", "-o", "json"]).run();
    let checks = told.json();
    let names: Vec<_> = checks.as_array().unwrap().iter().map(|check| &check["name"]).collect();
    assert!(names.contains(&&serde_json::json!("data folder")), "{names:?}");
    assert!(!sandbox.data().exists(), "looking changes nothing");
}

#[test]
fn as_root_builds_can_work_on_this_machine() {
    sandbox().refit(["doctor"]).run().success();
}

#[test]
fn a_data_folder_that_cannot_be_is_a_problem() {
    let sandbox = sandbox();
    sandbox.write("file", "");
    let told = sandbox.refit(["doctor", "--data", "file/below", "-o", "json"]).run().code(1);
    assert!(told.stdout.contains("\"problem\""), "{}", told.stdout);
}
