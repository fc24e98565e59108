//! Every setting there is: its section, key, default and meaning.
//!
//! The one list behind the example file, the check for unknown keys, the environment
//! variables and the defaults.

/// How a value is written in the file, and whether it may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// Text that is never shown.
    Secret,
    /// A number or a boolean: written without quotes.
    Bare,
    List,
}

pub(super) struct Field {
    pub(super) key: &'static str,
    pub(super) kind: Kind,
    pub(super) default: &'static str,
    pub(super) about: &'static str,
}

pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// `[registry.NAME]`: any number of them, each with these fields. Holds a name to show
    /// in the example.
    pub(super) named: Option<&'static str>,
    pub(super) fields: &'static [Field],
}

const fn text(key: &'static str, default: &'static str, about: &'static str) -> Field {
    Field { key, kind: Kind::Text, default, about }
}

const fn bare(key: &'static str, default: &'static str, about: &'static str) -> Field {
    Field { key, kind: Kind::Bare, default, about }
}

const fn list(key: &'static str, about: &'static str) -> Field {
    Field { key, kind: Kind::List, default: "", about }
}

pub(super) const SECTIONS: &[Section] = &[
    Section {
        name: "server",
        about: "Where the server listens, and what it asks of its clients.",
        named: None,
        fields: &[
            text(
                "data",
                "",
                "The data folder. Empty: `/var/lib/refit` as root, else `$XDG_DATA_HOME/refit`. Also `REFIT_DATA`.",
            ),
            text("listen", "127.0.0.1:5000", "Address served in the clear. Empty: none."),
            text(
                "public_url",
                "",
                "Where others reach this server, such as `https://refit.example.com`: the issuer of identity tokens. Empty: runs have none.",
            ),
            text("tls_listen", "", "Address served with TLS. Empty: none."),
            text("tls_cert", "", "Certificate chain for it, a PEM file."),
            text("tls_key", "", "Private key for it, a PEM file."),
            bare(
                "insecure_clear",
                "false",
                "Serve `listen` in the clear although it is no loopback address.",
            ),
            bare(
                "anonymous_loopback",
                "true",
                "Requests from this machine to a loopback name may pull, push and delete without credentials.",
            ),
            bare(
                "admin",
                "true",
                "Keep an `admin` credential in the data folder, made at the first start.",
            ),
            bare("worker_threads", "0", "Threads that serve requests. 0: one per processor."),
            text(
                "shutdown_grace",
                "10s",
                "How long running runs may go on after the signal to stop; then they wait for the next start.",
            ),
        ],
    },
    Section {
        name: "store",
        about: "What is kept, and how long.",
        named: None,
        fields: &[
            text("cache_size_max", "20GiB", "Bound of the build cache."),
            text("garbage_period", "1h", "How often unreachable content is looked for."),
            text("garbage_grace", "1h", "Unreachable content younger than this stays."),
            text(
                "scrub_period",
                "30d",
                "How often all content is read again, to find what is damaged. 0s: only when `refit scrub` asks.",
            ),
            text(
                "scrub_rate",
                "16MiB",
                "Bytes a second that are read at most for that. 0: no bound.",
            ),
            text(
                "copy_keep",
                "30d",
                "Copies of other registries' images that were not pulled for this long go.",
            ),
            text("log_keep", "30d", "How long the text of a run's log is kept."),
            text("run_keep", "400d", "How long a run's record is kept."),
            text("audit_keep", "400d", "How long a record of the audit log is kept."),
        ],
    },
    Section {
        name: "build",
        about: "How runs are executed.",
        named: None,
        fields: &[
            bare("concurrency", "2", "Runs executed at once, per registry."),
            bare("concurrency_total", "4", "Runs executed at once, in all."),
            bare(
                "attempts_max",
                "3",
                "How often a build is begun again that the server's end interrupted.",
            ),
            text("timeout", "1h", "Time limit of a run that asks for none; 5m to 8h."),
            text("queue_keep", "24h", "A run that waits longer than this ends with an error."),
            text(
                "runtime",
                "",
                "Path of an OCI runtime such as `/usr/bin/runc`. Empty: the embedded one.",
            ),
            list("runtime_arguments", "What comes before its command, such as `--platform=kvm`."),
            text("memory", "", "Memory bound of one container, such as `4GiB`. Empty: none."),
            bare("pids", "4096", "Processes and threads of one container. 0: no bound."),
            text("cpus", "", "Processors' worth of time of one container. Empty: no bound."),
            list(
                "images",
                "Policy: images that runs may use, such as `[\"registry\", \"docker.io/library/*\", \"ghcr.io/acme/* signed-by acme\"]`. Empty: all.",
            ),
            list(
                "egress",
                "Policy: where steps may connect to, such as `[\"registry\", \"*.debian.org:80\"]` or `[\"none\"]`. Empty: to all but this machine, containers and metadata services.",
            ),
            text("disk", "", "What a step may write to disk, such as `20GiB`. Empty: no bound."),
            text(
                "disk_reserve",
                "1GiB",
                "Room that steps leave on the disk, or a twentieth of it. `0`: they may fill it.",
            ),
            bare(
                "user_namespaces",
                "true",
                "Root in a container is nobody on the machine, where that is possible.",
            ),
            bare("allow_host_network", "false", "Policy: runs may use the host's network."),
            bare(
                "allow_insecure",
                "false",
                "Policy: `RUN --security=insecure` is root of this machine.",
            ),
            list(
                "allow_addresses",
                "Policy: files, contexts and images that users name may be fetched from these addresses or networks, and webhooks told there, although they are this machine's or link-local.",
            ),
            text(
                "git_known_hosts",
                "/etc/ssh/ssh_known_hosts",
                "Keys of the hosts whose git repositories may be fetched over SSH, in the form of `ssh_known_hosts`. Others are refused.",
            ),
            text(
                "shell_image",
                "",
                "The image with `sh` in which lines of `cmd` with `|`, `>`, `&&` and the like are carried out. Empty: that of `bash`.",
            ),
            text(
                "cache_mounts_size_max",
                "20GiB",
                "Folders of `RUN --mount=type=cache`; those not used for longest go first.",
            ),
            text(
                "compression",
                "gzip",
                "Of layers that builds make, if they ask for no other: `gzip`, `zstd` or `uncompressed`.",
            ),
            text(
                "compression_level",
                "",
                "Its level: 0 to 9 for gzip, 1 to 22 for zstd. Empty: 6 and 3.",
            ),
        ],
    },
    Section {
        name: "tasks",
        about: "How steps of task files are executed.",
        named: None,
        fields: &[
            text(
                "acr_image",
                "",
                "The image that `acr` stands for. Empty: none is needed, its commands are built in.",
            ),
            text(
                "az_image",
                "mcr.microsoft.com/azure-cli:latest",
                "The image that `az` stands for.",
            ),
            text("bash_image", "docker.io/library/bash:5", "The image that `bash` stands for."),
            text(
                "curl_image",
                "docker.io/curlimages/curl:latest",
                "The image that `curl` stands for.",
            ),
            text(
                "cssc_image",
                "mcr.microsoft.com/acr/cssc:latest",
                "The image that `cssc` stands for.",
            ),
        ],
    },
    Section {
        name: "triggers",
        about: "What starts runs of tasks without anybody asking.",
        named: None,
        fields: &[
            text(
                "poll_period",
                "5m",
                "How often repositories are asked for the commits of their branches, for hosts that do not \
                 call; a trigger can say otherwise. `0s`: never.",
            ),
            text(
                "base_poll_period",
                "30m",
                "How often other registries are asked for the tags that tasks are built on, on average: each \
                 time anew between a third of it and twice as long. `0s`: never.",
            ),
            text(
                "base_settle",
                "30s",
                "How long a tag of another registry has to stay another image until that counts: releases \
                 are pushed piece by piece.",
            ),
        ],
    },
    Section {
        name: "network",
        about: "The network of containers.",
        named: None,
        fields: &[text(
            "subnet",
            "10.213.0.0/16",
            "Address range of the bridge of isolated networks.",
        )],
    },
    Section {
        name: "limits",
        about: "A bound on everything that comes from outside.",
        named: None,
        fields: &[
            bare("connections_max", "1024", "Open connections; further ones wait."),
            text("header_timeout", "30s", "Time for a request's head to arrive."),
            text("body_size_max", "4MiB", "Body of a REST request that is not an upload."),
            text("body_stall", "60s", "An upload that brings nothing for this long is ended."),
            text("blob_size_max", "200GiB", "A pushed blob."),
            text("source_size_max", "8GiB", "An uploaded build context, compressed."),
            text("source_keep", "1h", "How long an upload address is valid."),
            text(
                "source_reuse_keep",
                "7d",
                "How long the files of a context are kept after its last use, for the next upload.",
            ),
            text("source_reuse_size_max", "20GiB", "Files of all contexts that are kept so."),
            text("context_size_max", "10GiB", "A build context, unpacked."),
            bare("context_entries_max", "1000000", "Files and folders of a build context."),
            text(
                "download_size_max",
                "10GiB",
                "A file that `ADD` fetches; an archive that is a context.",
            ),
            bare("queue_length_max", "1000", "Runs waiting, per registry."),
            text(
                "log_size_max",
                "16GiB",
                "Log text of one run; what is longer is dropped, and the log says so.",
            ),
            text(
                "read_rate",
                "",
                "Reading requests a minute of one account, token or run, or of one address without credentials. Empty: 10000, or no bound if all that is listened on are loopback addresses. 0: no bound.",
            ),
            text("write_rate", "", "The same for requests that change something. Empty: 2000."),
            text("delete_rate", "", "The same for deletions. Empty: 2000."),
            text(
                "referrers_rate",
                "",
                "The same for lists of referrers, which are read requests too. Empty: 1000.",
            ),
            text("login_rate", "", "The same for tokens of registry clients. Empty: 10000."),
            bare(
                "guess_rate",
                "20",
                "Wrong passwords for one name a minute, and five times as many from one address. 0: no bound.",
            ),
        ],
    },
    Section {
        name: "registry",
        about: "A registry that this server hosts. Without any, there is one named `local`.",
        named: Some("local"),
        fields: &[
            text(
                "login_server",
                "",
                "Its own name, `HOST[:PORT]`. Empty: the address that is listened on.",
            ),
            list("aliases", "Further names of it."),
            list(
                "secret_variables",
                "Variables of the server's environment that its runs may have, as `env://NAME`.",
            ),
            text(
                "secret_folder",
                "",
                "A folder with files that its runs may have, as `file://PATH`. Empty: none.",
            ),
            list(
                "secret_namespaces",
                "Namespaces of the cluster whose secrets its runs may have, as `kubernetes://NAMESPACE/NAME/KEY`.",
            ),
            bare(
                "runs_by_identity",
                "false",
                "Whether its runs may do in it only what the identity may that they name for it. Else all.",
            ),
        ],
    },
    Section {
        name: "image_key",
        about: "A key that images are signed with, for `build.images`.",
        named: Some("acme"),
        fields: &[text(
            "file",
            "",
            "Its public half, a PEM file, such as `cosign.pub`: ECDSA P-256, Ed25519 or RSA.",
        )],
    },
    Section {
        name: "vault",
        about: "A vault with secrets of runs: HashiCorp's (`vault://HOST/...`) or one of the Azure dialect (`https://HOST/secrets/...`).",
        named: Some("\"vault.example.com:8200\""),
        fields: &[
            list(
                "registries",
                "Registries whose runs may use it. To be said where there are several.",
            ),
            text(
                "role",
                "",
                "HashiCorp: the role that runs sign in with, by their identity tokens.",
            ),
            text("auth_path", "jwt", "HashiCorp: where its JWT sign-in is."),
            text("namespace", "", "HashiCorp: its namespace."),
            text(
                "token_url",
                "",
                "Azure: where identity tokens are exchanged for those of the vault.",
            ),
            text("client_id", "", "Azure: the identity that has the federated credential."),
            text(
                "audience",
                "",
                "Whom identity tokens are for. Empty: the vault's address, or `api://AzureADTokenExchange`.",
            ),
            text("token_file", "", "A file with a token for it, instead of signing in."),
            text("ca_file", "", "Certificates to trust besides the system's, a PEM file."),
            bare("plain_http", "false", "It speaks no TLS."),
        ],
    },
    Section {
        name: "trusted_issuer",
        about: "An OpenID Connect issuer whose identity tokens prove to be an account: a CI service, a cluster, another Refit.",
        named: Some("\"https://refit.example.com\""),
        fields: &[
            list(
                "accounts",
                "Who may be which account, each `SUBJECT=ACCOUNT`, such as `registry:local:task:nightly=deployer`.",
            ),
            text("audience", "", "Whom tokens have to be for. Empty: `server.public_url`."),
            text("ca_file", "", "Certificates to trust besides the system's, a PEM file."),
        ],
    },
    Section {
        name: "sign_in",
        about: "An OpenID Connect provider where people sign in (`refit login --oidc`).",
        named: None,
        fields: &[
            text("issuer", "", "Its address, as it says it itself. Empty: nobody signs in so."),
            text("client_id", "", "As which program it knows Refit: a public one, with PKCE."),
            text("claim", "email", "What of its tokens is the name of an account."),
            text("scopes", "openid email", "What it is asked for, parted by spaces."),
            text("session", "8h", "How long somebody is signed in."),
            text(
                "role",
                "",
                "What whoever signs in for the first time is in all registries. Empty: only accounts that are there sign in.",
            ),
            text("ca_file", "", "Certificates to trust besides the system's, a PEM file."),
        ],
    },
    Section {
        name: "kubernetes",
        about: "The cluster that the server is in, for secrets of runs.",
        named: None,
        fields: &[
            text(
                "api",
                "",
                "Address of its API, such as `https://kubernetes.default.svc`. Empty: none.",
            ),
            text(
                "token_file",
                "/var/run/secrets/kubernetes.io/serviceaccount/token",
                "A file with the token of the server's service account.",
            ),
            text(
                "ca_file",
                "",
                "Certificates to trust besides the system's, such as `/var/run/secrets/kubernetes.io/serviceaccount/ca.crt`.",
            ),
        ],
    },
    Section {
        name: "upstream",
        about: "Another registry, that base images come from or whose images are kept.",
        named: Some("\"registry.example.com\""),
        fields: &[
            bare("plain_http", "false", "It speaks no TLS."),
            text("username", "", "User name for it."),
            Field {
                key: "password",
                kind: Kind::Secret,
                default: "",
                about: "Password or access token for it.",
            },
            text("password_file", "", "A file that holds the password."),
            text(
                "pull_through",
                "",
                "Keep its images, in repositories that begin with this name, such as `docker.io`. Empty: no.",
            ),
            bare("push", "false", "Runs of tasks may push images to it, as that user."),
            text("tag_keep", "1m", "For how long it is not asked again what a kept tag means."),
        ],
    },
];

/// Variables of the client and of the program as a whole that begin as a section does.
pub(super) const FOREIGN_VARIABLES: &[&str] = &["REFIT_SERVER"];

pub(super) fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.name == name)
}

impl Section {
    pub(super) fn field(&self, key: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.key == key)
    }
}

/// The candidate that a mistyped word most likely meant, if one is near.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .map(|(_, candidate)| candidate)
}

/// Edits between two words (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replace = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
