#!/usr/bin/env bash
# Holds what is served against what is documented: starts three replicas in a temporary folder on free ports, and lets
# schemathesis make up calls from /openapi.json at a follower, valid ones and others, for every operation, with its checks.
# Ends with 1 if one of them finds something, or if fewer calls were made than were asked for.
#
#   bash deploy/openapi-fuzz.sh [options of `schemathesis run`]
#
# BINARY=target/debug/cortex, CASES=5000 (the fewest), EXAMPLES=80 (the most per operation and phase), SEED=1. Needs
# Python 3.10 or newer and PyPI; takes about ten minutes on two idle cores.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib.sh

BINARY=${BINARY:-${CARGO_TARGET_DIR:-target}/debug/cortex}
CASES=${CASES:-5000} EXAMPLES=${EXAMPLES:-80} SEED=${SEED:-1}
PACKAGES=(schemathesis==4.32.5 msgpack==1.2.4)

[ -x "$BINARY" ] || cargo build --bin cortex
folder=$(mktemp -d)
# PostgreSQL may run under another account.
chmod 755 "$folder"
cluster= keeper=
tool="$folder/venv/bin"
stop() {
    trap '' INT TERM HUP
    [ -n "$keeper" ] && kill "$keeper" 2>/dev/null
    [ -n "$cluster" ] && kill -TERM "$cluster" 2>/dev/null && wait "$cluster" || true
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say "Installing ${PACKAGES[*]} into a folder that is gone afterwards"
python3 -m venv "$folder/venv"
"$tool/pip" install --quiet --disable-pip-version-check "${PACKAGES[@]}"

say "Starting three replicas that ask for tokens"
"$BINARY" dev --replicas 3 --workers 0 --auth --data-dir "$folder/data" --http-port 0 --grpc-port 0 --peer-port 0 \
    >"$folder/dev.log" 2>&1 &
cluster=$!
until [ -e "$folder/data/cluster.json" ]; do
    kill -0 "$cluster" 2>/dev/null || { cat "$folder/dev.log" >&2 && fail "the cluster did not start"; }
    sleep 0.1
done
token=$(cat "$folder/data/auth/admin.token")
export CORTEX_TOKEN=$token

# The address and role of each replica, as it says itself.
roles() {
    "$tool/python" - "$folder/data/cluster.json" <<'EOT'
import json, os, sys, urllib.request
for replica in json.load(open(sys.argv[1]))["replicas"]:
    request = urllib.request.Request(f"http://{replica['http']}/api/v1/cluster")
    request.add_header("Authorization", "Bearer " + os.environ["CORTEX_TOKEN"])
    print(replica["http"], json.load(urllib.request.urlopen(request))["role"])
EOT
}
before=$(roles)
printf '%s\n' "$before"
follower=$(awk '$2 == "follower" && !found { print $1; found = 1 }' <<<"$before")

# Made-up calls may move the leadership, too: it is sent away whenever it comes here.
keep_following() {
    while sleep 0.5; do
        grep -qF "$follower leader" <<<"$(roles 2>/dev/null)" || continue
        echo >>"$folder/led"
        curl -sS --max-time 5 -o "$folder/transfer" -X POST -H "Authorization: Bearer $token" "http://$follower/api/v1/cluster/transfer" || true
    done
}
: >"$folder/led"
keep_following &
keeper=$!

# All checks but one: what is deleted stays for the record, by contract. A job is cancelled, a worker is offline until it
# registers again, and both are still shown.
say "Calls at $follower, a follower"
status=0
here=$PWD/deploy/openapi-fuzz
# What schemathesis remembers of a run goes where the run goes.
(cd "$folder" && PYTHONPATH=$here SCHEMATHESIS_HOOKS=hooks PYTHONDONTWRITEBYTECODE=1 \
    "$tool/schemathesis" --config-file "$here/schemathesis.toml" run "http://$follower/openapi.json" \
    --header "Authorization: Bearer $token" --checks all --exclude-checks use_after_free --seed "$SEED" --max-examples "$EXAMPLES" \
    --continue-on-failure "$@" 2>&1) | tee "$folder/report" || status=$?

say "Afterwards"
led=$(wc -l <"$folder/led")
echo "$follower was found leading $led times"
for _ in $(seq 20); do
    after=$(roles)
    grep -qF "$follower follower" <<<"$after" && break
    sleep 0.5
done
printf '%s\n' "$after"
kill "$keeper" || fail "nobody has seen to it that $follower follows"
keeper=
cases=$(sed -n 's/^ *\([0-9]*\) generated.*/\1/p' "$folder/report" | tail -n 1)
if grep -l "panicked" "$folder"/data/replica-*.log; then
    fail "a replica panicked"
fi
grep -qF "$follower follower" <<<"$after" || fail "$follower does not follow any more"
[ "$led" -le 5 ] || fail "$follower led too often for this to have been about a follower"
[ "${cases:-0}" -ge "$CASES" ] || fail "${cases:-no} calls were made, fewer than $CASES"
[ "$status" -eq 0 ] || fail "schemathesis found something; see above"
echo "$cases calls, and nothing found"
