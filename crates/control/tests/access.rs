//! Who may do what: accounts with roles, tokens with scope maps.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use control::{
    Access, AccountKind, AccountName, AccountProperties, Area, AssignedAccount, Assignment, Audit,
    AuditEntry, ChosenIdentity, Clock, ControlError, Holder, Identity, Operation, PasswordSlot,
    Proven, Rights, Role, ScopeMapName, TokenName, TokenProperties, read_scopes,
};
use oci::{RegistryName, RepositoryName};
use uuid::Uuid;

fn local() -> RegistryName {
    RegistryName::default()
}

fn repository(name: &str) -> RepositoryName {
    name.parse().unwrap()
}

fn of(map: &ScopeMapName, enabled: bool) -> TokenProperties {
    TokenProperties { scope_map: map.clone(), enabled, keep: None }
}

struct Server {
    now: Arc<AtomicI64>,
    access: Access,
}

impl Server {
    async fn new() -> Self {
        let now = Arc::new(AtomicI64::new(1_700_000_000_000));
        let time = Arc::clone(&now);
        let clock = Clock::new(move || time.load(Ordering::SeqCst));
        let db = db::Db::in_memory().await.unwrap();
        Self { now, access: Access::open(db, clock).await.unwrap() }
    }

    fn now(&self) -> i64 {
        self.now.load(Ordering::SeqCst)
    }

    fn pass(&self, seconds: i64) {
        self.now.fetch_add(seconds * 1000, Ordering::SeqCst);
    }

    async fn map(&self, name: &str, actions: &[&str]) -> ScopeMapName {
        let (name, actions) = (name.parse().unwrap(), actions.iter().map(ToString::to_string));
        let scopes = read_scopes(&actions.collect::<Vec<_>>()).unwrap();
        self.access.put_scope_map(&local(), &name, "", &scopes, None).await.unwrap();
        name
    }

    /// A token with both passwords.
    async fn token(&self, name: &str, map: &ScopeMapName) -> (TokenName, [String; 2]) {
        let name: TokenName = name.parse().unwrap();
        self.access.put_token(&local(), &name, &of(map, true), None).await.unwrap();
        let made = self.access.make_passwords(&local(), &name, &PasswordSlot::ALL, None).await;
        let made = made.unwrap();
        let [first, second] = &made[..] else { panic!("{} passwords", made.len()) };
        let passwords = [first.password.clone(), second.password.clone()];
        (name, passwords)
    }

    async fn log_in(&self, user: &str, password: &str) -> Option<Proven> {
        self.access.authenticate(Some(&local()), user, password).await.unwrap()
    }

    async fn rights(&self, identity: &Identity, name: &str) -> Vec<&'static str> {
        let name = repository(name);
        let area = Area::Repository(&name);
        self.access.rights(identity, &local(), area).await.unwrap().names().collect()
    }

    async fn account(&self, name: &str) -> (AccountName, String) {
        let name: AccountName = name.parse().unwrap();
        let properties =
            AccountProperties { kind: AccountKind::User, enabled: true, description: "".into() };
        let (account, made) = self.access.create_account(&name, &properties, None).await.unwrap();
        (account.name, made.unwrap())
    }

    /// A service principal as a task has it for an identity.
    async fn principal(&self, name: &str) -> AssignedAccount {
        let name: AccountName = name.parse().unwrap();
        let properties = AccountProperties {
            kind: AccountKind::ServicePrincipal,
            enabled: true,
            description: "".into(),
        };
        let (account, _) = self.access.create_account(&name, &properties, None).await.unwrap();
        AssignedAccount { id: account.id(), name: account.name }
    }

    async fn assign(&self, holder: &str, principal: Uuid, map: &ScopeMapName) {
        let assignment =
            Assignment { holder: holder.parse().unwrap(), principal, scope_map: map.clone() };
        self.access.assign_scope_map(&local(), &assignment).await.unwrap();
    }

    /// What an identity of a task may do in a repository.
    async fn rights_as(&self, identity: ChosenIdentity<'_>, name: &str) -> Vec<&'static str> {
        let granted = self.access.granted_to_identity(identity, &local()).await.unwrap();
        granted.rights(Area::Repository(&repository(name))).names().collect()
    }

    /// Who has which scope map.
    async fn assigned(&self, after: Option<&Holder>, limit: usize) -> Vec<String> {
        let all = self.access.scope_map_assignments(&local(), after, limit).await.unwrap();
        all.iter().map(|one| format!("{} {}", one.holder, one.scope_map)).collect()
    }
}

#[tokio::test]
async fn a_token_may_what_its_scope_map_says_and_only_in_its_registry() {
    let server = Server::new().await;
    let map = server
        .map("team-map", &["repositories/a/*/content/read", "repositories/a/b/content/write"])
        .await;
    let (name, [password, _]) = server.token("team-token", &map).await;
    let proven = server.log_in("TEAM-token", &password).await.unwrap();
    assert_eq!(proven.identity, Identity::Token { registry: local(), name: name.clone() });
    assert_eq!(server.rights(&proven.identity, "a/b").await, ["content/read", "content/write"]);
    assert_eq!(server.rights(&proven.identity, "a/new").await, ["content/read"]);
    assert!(server.rights(&proven.identity, "a").await.is_empty());
    let other: RegistryName = "other".parse().unwrap();
    let name = repository("a/b");
    let area = Area::Repository(&name);
    let elsewhere = server.access.rights(&proven.identity, &other, area).await.unwrap();
    assert_eq!(elsewhere, Rights::NONE);
    assert!(
        server.access.authenticate(Some(&other), "team-token", &password).await.unwrap().is_none()
    );
    assert!(server.access.authenticate(None, "team-token", &password).await.unwrap().is_none());
    // It is for repositories, and for nothing else.
    for operation in Operation::ALL {
        assert!(!server.access.may(&proven.identity, Some(&local()), operation).await.unwrap());
    }
    // What a map says counts at once.
    server.map("team-map", &["repositories/x/metadata/read"]).await;
    assert!(server.rights(&proven.identity, "a/b").await.is_empty());
    assert_eq!(server.rights(&proven.identity, "x").await, ["metadata/read"]);
}

#[tokio::test]
async fn only_who_may_do_all_sees_what_there_is() {
    let server = Server::new().await;
    for (map, all, catalog) in [
        ("_repositories_pull", Rights::CONTENT_READ, Rights::NONE),
        ("_repositories_push", Rights::CONTENT_READ | Rights::CONTENT_WRITE, Rights::NONE),
        ("_repositories_admin", Rights::ALL, Rights::ALL),
    ] {
        let name = format!("t{}", map.replace('_', "-"));
        let (_, [password, _]) = server.token(&name, &map.parse().unwrap()).await;
        let identity = server.log_in(&name, &password).await.unwrap().identity;
        let rights = async |area| server.access.rights(&identity, &local(), area).await.unwrap();
        assert_eq!(rights(Area::AllRepositories).await, all, "{map}");
        assert_eq!(rights(Area::Catalog).await, catalog, "{map}");
    }
}

#[tokio::test]
async fn a_password_ends_with_its_successor_its_expiry_and_its_token() {
    let server = Server::new().await;
    let map = "_repositories_pull".parse().unwrap();
    let (name, [first, second]) = server.token("robot", &map).await;
    assert_ne!(first, second);
    let with_first = server.log_in("robot", &first).await.unwrap();
    let with_second = server.log_in("robot", &second).await.unwrap();
    assert!(server.log_in("robot", "refit_guess").await.is_none());
    assert!(server.log_in("robot", "").await.is_none());
    let holds = async |proven: &Proven| {
        server.access.holds(&proven.identity, &proven.credential).await.unwrap()
    };
    assert!(holds(&with_first).await && holds(&with_second).await);

    // One is replaced, and the other one is not touched.
    let until = Some(server.now() + 60_000);
    let slots = [PasswordSlot::First];
    let new = server.access.make_passwords(&local(), &name, &slots, until).await.unwrap();
    assert!(server.log_in("robot", &first).await.is_none() && !holds(&with_first).await);
    assert!(holds(&with_second).await);
    let [new] = &new[..] else { panic!("{} passwords", new.len()) };
    let with_new = server.log_in("robot", &new.password).await.unwrap();
    server.pass(59);
    assert!(holds(&with_new).await);
    server.pass(1);
    assert!(!holds(&with_new).await && server.log_in("robot", &new.password).await.is_none());
    let past = server.access.make_passwords(&local(), &name, &slots, until).await;
    assert!(matches!(past, Err(ControlError::Invalid { .. })));

    // Switched off, and on again.
    for enabled in [false, true] {
        server.access.put_token(&local(), &name, &of(&map, enabled), None).await.unwrap();
        assert_eq!(holds(&with_second).await, enabled);
        assert_eq!(server.log_in("robot", &second).await.is_some(), enabled);
    }
    // Only what is named stays.
    let keep = TokenProperties { keep: Some(slots.to_vec()), ..of(&map, true) };
    let kept = server.access.put_token(&local(), &name, &keep, None).await.unwrap();
    let kept: Vec<_> = kept.passwords.iter().map(|kept| kept.slot).collect();
    assert_eq!(kept, [PasswordSlot::First]);
    assert!(!holds(&with_second).await);
    server.access.delete_token(&local(), &name).await.unwrap();
    assert!(server.rights(&with_second.identity, "app").await.is_empty());
    // One of the same name begins without passwords.
    server.access.put_token(&local(), &name, &of(&map, true), None).await.unwrap();
    assert!(server.access.token(&local(), &name).await.unwrap().unwrap().passwords.is_empty());
}

#[tokio::test]
async fn maps_of_the_system_and_of_tokens_stay() {
    let server = Server::new().await;
    let map = server.map("some-map", &["repositories/a/content/read"]).await;
    server.token("robot", &map).await;
    let error = server.access.delete_scope_map(&local(), &map).await.unwrap_err();
    assert_eq!(error.to_string(), "scope map `some-map` is that of token `robot`");
    let system: ScopeMapName = "_repositories_pull".parse().unwrap();
    let error = server.access.delete_scope_map(&local(), &system).await.unwrap_err();
    assert!(matches!(error, ControlError::Invalid { .. }), "{error}");
    let error = server.access.put_scope_map(&local(), &system, "", &[], None).await.unwrap_err();
    assert!(matches!(error, ControlError::Invalid { .. }), "{error}");
    let missing: ScopeMapName = "missing".parse().unwrap();
    let token: TokenName = "other-robot".parse().unwrap();
    let error =
        server.access.put_token(&local(), &token, &of(&missing, true), None).await.unwrap_err();
    assert_eq!(error.to_string(), "scope map `missing` not found");
    let reserved: TokenName = "Admin".parse().unwrap();
    let error =
        server.access.put_token(&local(), &reserved, &of(&map, true), None).await.unwrap_err();
    assert_eq!(error.to_string(), "`Admin` is a name of the server's own");

    server.access.delete_token(&local(), &"robot".parse().unwrap()).await.unwrap();
    let names = async |after: Option<&ScopeMapName>, limit| {
        let maps = server.access.scope_maps(&local(), after, limit).await.unwrap();
        maps.iter().map(|map| map.name.to_string()).collect::<Vec<_>>()
    };
    let all = names(None, 10).await;
    assert_eq!(all.len(), 6);
    let first = names(None, 3).await;
    let rest = names(Some(&first[2].parse().unwrap()), 10).await;
    assert_eq!([first, rest].concat(), all);
    server.access.delete_scope_map(&local(), &map).await.unwrap();
    assert_eq!(names(None, 10).await.len(), 5);
    let error = server.access.delete_scope_map(&local(), &map).await.unwrap_err();
    assert!(matches!(error, ControlError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn an_account_is_what_its_role_says_in_each_registry() {
    let server = Server::new().await;
    let (name, password) = server.account("ann@example.org").await;
    let identity = server.log_in("ANN@example.org", &password).await.unwrap().identity;
    let other: RegistryName = "other".parse().unwrap();
    let may = async |registry: Option<&RegistryName>| {
        let mut all = Vec::new();
        for operation in Operation::ALL {
            if server.access.may(&identity, registry, operation).await.unwrap() {
                all.push(operation);
            }
        }
        all
    };
    assert!(may(Some(&local())).await.is_empty() && may(None).await.is_empty());
    for (at, role) in Role::ALL.into_iter().enumerate() {
        server.access.assign_role(&name, Some(&local()), Some(role)).await.unwrap();
        assert_eq!(may(Some(&local())).await, Operation::ALL[..=at], "{role}");
        assert!(may(Some(&other)).await.is_empty() && may(None).await.is_empty());
    }
    // In all registries, and higher in one.
    server.access.assign_role(&name, Some(&local()), Some(Role::Author)).await.unwrap();
    let account = server.access.assign_role(&name, None, Some(Role::Reader)).await.unwrap();
    assert_eq!(account.role(Some(&local())), Some(Role::Author));
    assert_eq!(
        (account.role(Some(&other)), account.role(None)),
        (Some(Role::Reader), Some(Role::Reader))
    );
    assert_eq!(
        server.rights(&identity, "any").await,
        ["content/read", "content/write", "content/delete", "metadata/read"]
    );
    server.access.assign_role(&name, Some(&local()), None).await.unwrap();
    assert_eq!(server.rights(&identity, "any").await, ["content/read", "metadata/read"]);
    server.access.delete_account(&name).await.unwrap();
    assert!(server.rights(&identity, "any").await.is_empty());
    // One of the same name begins without roles.
    server.account("ann@example.org").await;
    assert!(may(None).await.is_empty());
}

#[tokio::test]
async fn an_account_ends_with_its_password_and_its_status() {
    let server = Server::new().await;
    let (name, password) = server.account("ann").await;
    let proven = server.log_in("ann", &password).await.unwrap();
    // Known by now, and right only as a whole.
    assert_eq!(server.log_in("ann", &password).await.unwrap(), proven);
    assert!(server.log_in("ann", &password[1..]).await.is_none());
    assert!(server.log_in("bob", &password).await.is_none());
    let holds = async || server.access.holds(&proven.identity, &proven.credential).await.unwrap();
    assert!(holds().await);
    for enabled in [false, true] {
        server.access.update_account(&name, Some(enabled), None).await.unwrap();
        assert_eq!(holds().await, enabled);
        assert_eq!(server.log_in("ann", &password).await.is_some(), enabled);
    }
    let chosen = Some("correct horse battery".to_owned());
    assert!(server.access.set_password(&name, chosen).await.unwrap().is_none());
    assert!(!holds().await && server.log_in("ann", &password).await.is_none());
    assert!(server.log_in("ann", "correct horse battery").await.is_some());
    let short = server.access.set_password(&name, Some("short".into())).await.unwrap_err();
    assert!(short.to_string().contains("12 to 1024 bytes"), "{short}");
    let properties =
        AccountProperties { kind: AccountKind::User, enabled: true, description: "".into() };
    let again = server.access.create_account(&name, &properties, None).await.unwrap_err();
    assert_eq!(again.to_string(), "account `ann` is there already");
}

#[tokio::test]
async fn an_account_has_a_scope_map_besides_its_role_until_it_is_deleted() {
    let server = Server::new().await;
    let pull = server.map("pull-map", &["repositories/a/*/content/read"]).await;
    let push = server.map("push-map", &["repositories/b/content/write"]).await;
    let ci = server.principal("ci").await;
    let identity = Identity::Account(ci.name.clone());
    let rights = async |name| server.rights(&identity, name).await;
    assert!(rights("a/x").await.is_empty());
    server.assign("account:CI", ci.id, &pull).await;
    assert_eq!(rights("a/x").await, ["content/read"]);
    assert_eq!(server.rights_as(ChosenIdentity::Account(&ci), "a/x").await, ["content/read"]);
    let other: RegistryName = "other".parse().unwrap();
    let elsewhere = server.access.granted(&identity, &other).await.unwrap();
    assert_eq!(elsewhere.rights(Area::Repository(&repository("a/x"))), Rights::NONE);
    // There is one at a time, and it counts together with the role.
    server.assign("account:ci", ci.id, &push).await;
    assert_eq!(server.assigned(None, 9).await, ["account:ci push-map"]);
    assert!(rights("a/x").await.is_empty());
    assert_eq!(rights("b").await, ["content/write"]);
    server.access.assign_role(&ci.name, Some(&local()), Some(Role::Reader)).await.unwrap();
    assert_eq!(rights("b").await, ["content/read", "content/write", "metadata/read"]);
    assert_eq!(rights("a/x").await, ["content/read", "metadata/read"]);
    let held = server.access.delete_scope_map(&local(), &push).await.unwrap_err();
    assert_eq!(held.to_string(), "scope map `push-map` is that of `account:ci`");

    // A run that goes on as one that is switched off has nothing, nor has it as a later one.
    server.access.update_account(&ci.name, Some(false), None).await.unwrap();
    assert!(server.rights_as(ChosenIdentity::Account(&ci), "b").await.is_empty());
    server.access.update_account(&ci.name, Some(true), None).await.unwrap();
    assert!(!server.rights_as(ChosenIdentity::Account(&ci), "b").await.is_empty());
    server.access.delete_account(&ci.name).await.unwrap();
    assert!(server.assigned(None, 9).await.is_empty());
    server.access.delete_scope_map(&local(), &push).await.unwrap();
    server.pass(1);
    let later = server.principal("ci").await;
    assert_ne!(later.id, ci.id);
    assert!(rights("a/x").await.is_empty());
    server.assign("account:ci", later.id, &pull).await;
    assert_eq!(server.rights_as(ChosenIdentity::Account(&later), "a/x").await, ["content/read"]);
    assert!(server.rights_as(ChosenIdentity::Account(&ci), "a/x").await.is_empty());
}

#[tokio::test]
async fn a_scope_map_is_that_of_one_identity_of_a_task() {
    let server = Server::new().await;
    let map = server.map("some-map", &["repositories/a/content/read"]).await;
    let [first, second] = [1, 2].map(Uuid::from_u128);
    let of = async |id| server.rights_as(ChosenIdentity::System(id), "a").await;
    server.assign("task:nightly", first, &map).await;
    assert_eq!(of(first).await, ["content/read"]);
    assert!(of(second).await.is_empty());
    server.assign("task:Nightly", second, &map).await;
    assert_eq!((of(first).await, of(second).await), (vec![], vec!["content/read"]));
    assert_eq!(server.assigned(None, 9).await, ["task:Nightly some-map"]);
    // What is forgotten late is not that of the identity that there is by now.
    let name = "nightly".parse().unwrap();
    server.access.forget_task(&local(), &name, Some(second)).await.unwrap();
    assert_eq!(of(second).await, ["content/read"]);
    server.access.forget_task(&local(), &name, Some(first)).await.unwrap();
    assert!(of(second).await.is_empty() && server.assigned(None, 9).await.is_empty());
    server.assign("task:nightly", second, &map).await;
    server.access.forget_task(&local(), &name, None).await.unwrap();
    assert!(of(second).await.is_empty());
}

#[tokio::test]
async fn those_who_have_scope_maps_are_listed_and_lose_them() {
    let server = Server::new().await;
    let map = server.map("Some-map", &["repositories/a/content/read"]).await;
    let holders = ["account:robot", "task:nightly", "task:robot"];
    for (at, holder) in holders.iter().enumerate() {
        server.assign(holder, Uuid::from_u128(at as u128), &map).await;
    }
    let listed = holders.map(|holder| format!("{holder} Some-map"));
    assert_eq!(server.assigned(None, 9).await, listed);
    assert_eq!(server.assigned(None, 2).await, listed[..2]);
    let after: Holder = "task:Nightly".parse().unwrap();
    assert_eq!(server.assigned(Some(&after), 9).await, listed[2..]);
    let other: RegistryName = "other".parse().unwrap();
    assert!(server.access.scope_map_assignments(&other, None, 9).await.unwrap().is_empty());
    // The task of the same name keeps its own.
    let robot: Holder = "account:ROBOT".parse().unwrap();
    assert!(!server.access.unassign_scope_map(&other, &robot).await.unwrap());
    assert!(server.access.unassign_scope_map(&local(), &robot).await.unwrap());
    assert!(!server.access.unassign_scope_map(&local(), &robot).await.unwrap());
    assert_eq!(server.assigned(None, 9).await, listed[1..]);
    let system: ScopeMapName = "_repositories_pull".parse().unwrap();
    server.assign("task:nightly", Uuid::from_u128(1), &system).await;
    assert_eq!(server.assigned(None, 1).await, ["task:nightly _repositories_pull"]);

    let missing = Assignment {
        holder: after,
        principal: Uuid::from_u128(1),
        scope_map: "missing-map".parse().unwrap(),
    };
    let error = server.access.assign_scope_map(&local(), &missing).await.unwrap_err();
    assert_eq!(error.to_string(), "scope map `missing-map` not found");
    for text in ["robot", "token:robot", "account:a b", "task:"] {
        assert!(text.parse::<Holder>().is_err(), "{text}");
    }
}

#[tokio::test]
async fn what_was_changed_meanwhile_is_not_changed_back() {
    let server = Server::new().await;
    let (wide, narrow) = (
        server.map("Wide-map", &["repositories/*/content/write"]).await,
        server.map("narrow-map", &["repositories/a/content/read"]).await,
    );
    let (name, _) = server.token("robot", &wide).await;
    let known = server.access.token(&local(), &name).await.unwrap().unwrap();
    assert_eq!(known.scope_map.as_str(), "Wide-map");
    server.access.put_token(&local(), &name, &of(&narrow, false), Some(&known)).await.unwrap();
    let late = server.access.put_token(&local(), &name, &of(&wide, true), Some(&known)).await;
    assert!(matches!(late, Err(ControlError::Conflict { .. })), "{late:?}");
    let token = server.access.token(&local(), &name).await.unwrap().unwrap();
    assert_eq!((token.scope_map, token.enabled), (narrow.clone(), false));
    server.access.delete_token(&local(), &name).await.unwrap();
    let late = server.access.put_token(&local(), &name, &of(&wide, true), Some(&known)).await;
    assert!(matches!(late, Err(ControlError::Conflict { .. })), "{late:?}");

    let known = server.access.scope_map(&local(), &narrow).await.unwrap().unwrap();
    server.map("narrow-map", &[]).await;
    let scopes = &known.scopes;
    let late = server.access.put_scope_map(&local(), &narrow, "", scopes, Some(&known)).await;
    assert!(matches!(late, Err(ControlError::Conflict { .. })), "{late:?}");

    // Each says only what it changes.
    let (name, _) = server.account("ann").await;
    server.access.update_account(&name, Some(false), None).await.unwrap();
    let account = server.access.update_account(&name, None, Some("of us")).await.unwrap();
    assert_eq!((account.enabled, account.description.as_str()), (false, "of us"));
}

#[tokio::test]
async fn the_audit_log_is_a_chain_also_when_its_beginning_has_gone() {
    let now = Arc::new(AtomicI64::new(1_700_000_000_000));
    let time = Arc::clone(&now);
    let clock = Clock::new(move || time.load(Ordering::SeqCst));
    let log = Audit::open(db::Db::in_memory().await.unwrap(), clock).await.unwrap();
    let entry = |number: i64| AuditEntry {
        registry: Some(local()),
        principal: "ann \"x\"\n".into(),
        action: "push".into(),
        target: format!("app:{number}"),
        outcome: "x".repeat(5_000),
    };
    // At the same time, too.
    for _ in 0..3 {
        let all = (0..10).map(|number| log.append(entry(number)));
        for appended in futures_util::future::join_all(all).await {
            appended.unwrap();
        }
        now.fetch_add(1_000, Ordering::SeqCst);
    }
    let check = async |first: i64, count: usize| {
        let records = log.list(0, 100).await.unwrap();
        assert_eq!((records[0].number, records.len()), (first, count));
        for (before, record) in records.iter().zip(&records[1..]) {
            assert_eq!(record.number, before.number + 1);
            assert_eq!(record.digest, oci::Digest::of(record.line.as_bytes()));
            assert!(record.line.ends_with(&format!("\"previous\":\"{}\"}}", before.digest)));
            assert!(record.line.len() < 2_000);
        }
    };
    check(1, 30).await;
    let start = now.load(Ordering::SeqCst) - 3_000;
    assert_eq!(log.remove_before(start).await.unwrap(), 0);
    assert_eq!(log.remove_before(start + 1_500).await.unwrap(), 20);
    check(21, 10).await;
    assert_eq!(log.remove_before(start + 9_000).await.unwrap(), 10);
    let last = log.list(0, 1).await.unwrap();
    assert!(last.is_empty());
    // It does not begin anew.
    log.append(entry(1)).await.unwrap();
    let record = &log.last(5).await.unwrap()[0];
    assert_eq!(record.number, 31);
    assert!(record.line.contains("\"previous\":\"sha256:"), "{}", record.line);
}
