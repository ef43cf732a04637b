#!/usr/bin/env bash
# Brings .sqlx up to date: what PostgreSQL says about the statements in src/storage, so that they are checked
# at compile time without a database. With --check it only compares. Uses a PostgreSQL of its own that is
# gone afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib.sh

programs=$(postgres_folder) || fail "PostgreSQL is missing: install it with apt-get install postgresql"
folder=$(mktemp -d)
user=$(id -un)
# PostgreSQL refuses to run as root.
unprivileged() { "$@"; }
if [ "$(id -u)" -eq 0 ]; then
    user=nobody
    chown "$user" "$folder"
    unprivileged() { runuser -u "$user" -- "$@"; }
fi
server() { (cd "$folder" && unprivileged "$programs/pg_ctl" -s -D "$folder/data" "$@"); }
trap 'server -m immediate stop >/dev/null 2>&1 || true; rm -rf "$folder"' EXIT

(cd "$folder" && unprivileged "$programs/initdb" -D "$folder/data" -A trust -N >/dev/null)
# Reachable through a socket in its folder only, so no port is needed.
server -w -l "$folder/log" -o "-k $folder -c listen_addresses= -c fsync=off" start
for migration in migrations/*.sql; do
    "$programs/psql" -q -v ON_ERROR_STOP=1 -h "$folder" -U "$user" -d postgres -f - <"$migration" >/dev/null
done

mkdir "$folder/sqlx"
# The statements are looked at anew only when the crate is compiled anew.
touch src/lib.rs
DATABASE_URL="postgres://$user@localhost/postgres?host=$folder" SQLX_OFFLINE=false SQLX_OFFLINE_DIR="$folder/sqlx" \
    cargo check --workspace --features crash-points,planted-defects --quiet
[ -n "$(ls "$folder/sqlx")" ] || fail "no statement was recorded"

if [ "${1:-}" = --check ]; then
    diff -r .sqlx "$folder/sqlx" || fail ".sqlx is not up to date: run deploy/sqlx-data.sh"
    echo "$(ls .sqlx | wc -l) statements agree with .sqlx"
else
    mkdir -p .sqlx
    rm -f .sqlx/query-*.json
    cp "$folder/sqlx/"* .sqlx/
    echo "$(ls .sqlx | wc -l) statements in .sqlx"
fi
