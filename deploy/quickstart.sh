#!/usr/bin/env bash
# CORTEX at work on this machine: installs what is missing, builds, starts `cortex dev`, submits jobs at a
# follower, shows what became of them, and keeps running until Ctrl-C.
#
#   bash deploy/quickstart.sh [--exit] [options of `cortex dev`]
#
# --exit stops after the show. Where ports are taken: --http-port 18080 --grpc-port 19090 --peer-port 17070, and the
# same again next time, because the replicas remember where the others are.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib.sh

stay=yes
data_dir=.cortex
options=()
while [ $# -gt 0 ]; do
    case $1 in
        --exit) stay=no ;;
        --data-dir) data_dir=${2:?--data-dir needs a folder} && options+=("$1" "$2") && shift ;;
        --data-dir=*) data_dir=${1#*=} && options+=("$1") ;;
        *) options+=("$1") ;;
    esac
    shift
done

install_missing
say "Building (a few minutes the first time)"
cargo build --release --bin cortex
cortex=${CARGO_TARGET_DIR:-target}/release/cortex

say "Starting three replicas, two workers, PostgreSQL and Redis"
mkdir -p "$data_dir"
begun=$(mktemp)
# A process group of its own: Ctrl-C reaches this script, which then ends the cluster in an orderly way.
set -m
"$cortex" dev "${options[@]}" &
cluster=$!
set +m
# The signal is sent once: a second one would kill the cluster before it is done.
stop() {
    trap '' INT TERM HUP
    kill -TERM "$cluster" 2>/dev/null || true
    wait "$cluster" || true
}
trap 'rm -f "$begun"; stop' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

until [ "$data_dir/cluster.json" -nt "$begun" ]; do
    kill -0 "$cluster" 2>/dev/null || fail "the cluster did not start; the reason is above"
    sleep 0.1
done

endpoints=$(sed -n 's/.*"http": "\(.*\)".*/http:\/\/\1/p' "$data_dir/cluster.json" | paste -sd,)
export CORTEX_ENDPOINT=$endpoints

say "The replicas: one leads, and any of them takes any request"
"$cortex" cluster status
follower=$("$cortex" cluster status | awk '$2 == "follower" { print $3; exit }')

say "20 jobs of 200 ms, submitted at ${follower:+the follower }${follower:-the only replica}"
"$cortex" jobs submit --model demo --input '{"hello": "world"}' --count 20 --wait \
    --endpoint "${follower:+http://}${follower:-$endpoints}"

say "The workers that ran them, four jobs at a time each"
"$cortex" workers list

if [ "$stay" = no ]; then
    say "All shown; stopping"
    exit 0
fi
cat <<EOT

== CORTEX runs until Ctrl-C. Next, in another terminal, in $PWD:

  export PATH="$(cd "$(dirname "$cortex")" && pwd):\$PATH" CORTEX_ENDPOINT=$endpoints
  cortex jobs submit --model demo --input '{"hello": "world"}' --count 1000 --wait
  cortex jobs list --status completed
  curl -s ${endpoints%%,*}/api/v1/jobs/stats/summary
  bash docs/tour/run.sh            # word statistics over this repository, and a leader killed in the middle
EOT
wait "$cluster"
