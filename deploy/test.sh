#!/usr/bin/env bash
# Everything that is checked, in one command: formatting, lints, dependencies, statements against a real
# PostgreSQL, and all tests, those of clusters with several processes among them. Installs what is missing,
# changes nothing in the repository, and needs no service: tests start PostgreSQL and Redis of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib.sh

DENY_VERSION=0.20.2
# One set of features for lints and tests, so that nothing is built twice.
FEATURES=(--workspace --features crash-points,planted-defects)

steps=()
current=
begun=0
step() {
    current=$1 begun=$SECONDS
    shift
    say "$current"
    "$@"
    steps+=("$(printf '%5d s  %s' $((SECONDS - begun)) "$current")")
    current=
}
summary() {
    local status=$?
    [ -n "$current" ] && steps+=("$(printf '%5d s  %s: FAILED' $((SECONDS - begun)) "$current")")
    say "Summary"
    printf '%s\n' "${steps[@]}" "$(printf '%5d s  in all' "$SECONDS")"
    exit "$status"
}
trap summary EXIT

# Kept apart from the user's own programs: it is built without optimisation, because it runs for a second.
install_deny() {
    local root=${CARGO_HOME:-$HOME/.cargo}/cortex-tools
    PATH="$root/bin:$PATH"
    cargo deny --version 2>/dev/null && return
    CARGO_PROFILE_DEV_DEBUG=false CARGO_INCREMENTAL=0 \
        cargo install cargo-deny --version "$DENY_VERSION" --locked --debug --quiet --root "$root"
}

check_dependencies() {
    cargo deny --log-level error check bans licenses sources
    # The list of advisories comes over the network; without it the rest is still checked.
    if timeout 60 cargo deny --log-level off fetch db >/dev/null 2>&1; then
        cargo deny --log-level error --offline check advisories
    else
        echo "advisories NOT checked: the RustSec database cannot be fetched from here"
    fi
}

step "install what is missing" install_missing pgbouncer
step "formatting" cargo fmt --all --check
step "formatting of the fuzz targets" cargo fmt --manifest-path fuzz/Cargo.toml --check
step "lints" cargo clippy "${FEATURES[@]}" --all-targets --quiet -- -D warnings
step "statements against PostgreSQL" bash deploy/sqlx-data.sh --check
step "install cargo-deny" install_deny
step "dependencies" check_dependencies
step "build the tests" cargo test "${FEATURES[@]}" --no-run --quiet
step "tests" cargo test "${FEATURES[@]}" --quiet
