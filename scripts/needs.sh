# Sourced by the other scripts: installs what is missing and says what it installs.

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# as_root COMMAND...: runs a command as root, by sudo where we are not.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# need_packages PACKAGE...: installs the Debian packages that are missing.
need_packages() {
  local package missing=()
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  command -v apt-get >/dev/null || fail "these Debian packages are needed: ${missing[*]}"
  say "installing Debian packages: ${missing[*]}"
  as_root apt-get -qq update ||
    fail "the Debian package mirror does not answer; it is needed once, for: ${missing[*]}"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null ||
    fail "could not install: ${missing[*]}"
}

# need_github_examples: GitHub's own examples of webhooks, as its package of them has them; they are no part of
# this repository.
need_github_examples() {
  export REFIT_GITHUB_EXAMPLES=${REFIT_GITHUB_EXAMPLES:-$PWD/target/github-examples/package}
  [ -e "$REFIT_GITHUB_EXAMPLES/api.github.com/index.json" ] && return
  command -v npm >/dev/null || need_packages npm
  local folder=$PWD/target/github-examples
  mkdir -p "$folder"
  say "fetching GitHub's examples of webhooks"
  (cd "$folder" && npm pack --silent @octokit/webhooks-examples@7.6.1 >/dev/null && tar -xzf octokit-*.tgz) ||
    fail "the npm registry does not answer; it is needed once, for @octokit/webhooks-examples"
}

# need_docker: docker's client and daemon. The daemon is not started as a service: the tests run
# their own, and a service would change the machine's firewall.
need_docker() {
  command -v dockerd >/dev/null && command -v docker >/dev/null && return
  local policy=/usr/sbin/policy-rc.d packages=(docker.io)
  as_root apt-get -qq update || true
  # A package of its own since Debian 13.
  apt-cache show docker-cli >/dev/null 2>&1 && packages+=(docker-cli)
  if [ -e $policy ]; then
    need_packages "${packages[@]}"
    return
  fi
  printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin $policy
  need_packages "${packages[@]}"
  as_root rm -f $policy
}

# need_emulation: programs for arm64 run on this machine, wherever its files are.
need_emulation() {
  [ "$(uname -m)" = aarch64 ] && return
  need_packages qemu-user-static binfmt-support
  [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || as_root update-binfmts --enable qemu-aarch64 ||
    fail "the kernel takes no emulator: is binfmt_misc there?"
}

# need_rust: checks for cargo; Rust is the one thing that we do not install.
need_rust() {
  [ -d "$HOME/.cargo/bin" ] && PATH=$HOME/.cargo/bin:$PATH
  command -v cargo >/dev/null || fail "Rust is needed: install it from https://rustup.rs and try again"
}

# What compiling needs: a C compiler and linker for SQLite, zstd and ring.
BUILD_PACKAGES=(gcc libc6-dev make ca-certificates git)
