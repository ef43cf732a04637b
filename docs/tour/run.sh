#!/usr/bin/env bash
# The README's tour, on a cluster that runs (`bash deploy/quickstart.sh`): word statistics over this
# repository's own files, then the same again, slower, with the leader killed in the middle.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/lib.sh

data_dir=${1:-.cortex}
manifest=$data_dir/cluster.json
target=${CARGO_TARGET_DIR:-target}
PATH="$(realpath "$target")/release:$PATH"
install_missing python3
[ -e "$manifest" ] || fail "no cluster runs in $data_dir: start one with bash deploy/quickstart.sh"

# json FILE EXPRESSION: prints what the expression makes of the document `d`; - is standard input.
json() { python3 -c 'import json, sys; d = json.load(sys.stdin if sys.argv[1] == "-" else open(sys.argv[1])); print(eval(sys.argv[2]))' "$@"; }
endpoints() { json "$manifest" "','.join('http://' + r['$1'] for r in d['replicas'])"; }
export CORTEX_ENDPOINT
CORTEX_ENDPOINT=$(endpoints http)

say "1. A worker that computes word statistics, by a script of ten lines"
# The demo workers take any model; the memory that these jobs ask for, only this one has.
cortex worker --endpoint "$(endpoints grpc)" --name words --models word-stats --memory-gb 1 --slots 4 \
    --exec "python3 $PWD/docs/tour/word_stats.py" 2>"$data_dir/worker-words.log" &
worker=$!
trap 'kill "$worker" 2>/dev/null && wait "$worker" || true' EXIT

# submit FILE SECONDS: a job that reads the file; prints the job's id.
submit() {
    python3 -c 'import json, sys; print(json.dumps({"text": open(sys.argv[1]).read(), "seconds": float(sys.argv[2])}))' "$@" |
        cortex jobs submit --model word-stats --metadata '{"required_memory_gb": 1}' --name "$1" --input - --output json |
        json - "d['id']"
}
wait_for() { cortex jobs watch "$@" >/dev/null; }

say "2. One job for each of the project's documents, and their results"
files=(README.md ARCHITECTURE.md proto/*.proto migrations/*.sql src/leadership.rs src/domain/*.rs)
ids=()
for file in "${files[@]}"; do
    ids+=("$(submit "$file" 0)")
done
wait_for "${ids[@]}"
printf '%-46s %6s %6s %6s  %s\n' file words unique length "most frequent"
for id in "${ids[@]}"; do
    cortex jobs get "$id" --output json | json - "'{:46} {words:6} {unique:6} {average_length:6}  {}'.format(d['name'], ', '.join(d['output_data']['top']), **d['output_data'])"
done

say "3. ${#files[@]} jobs of one second, four at a time; the leader dies in the middle"
completed() { cortex jobs list --status completed --model word-stats --output json | json - "d['total']"; }
before=$(completed)
ids=()
for file in "${files[@]}"; do
    ids+=("$(submit "$file" 1)")
done
until [ "$(completed)" -ge $((before + 4)) ]; do
    sleep 0.2
done
leader=$(cortex cluster status --output json | json - "d['leader']")
pid=$(json "$manifest" "next(r['pid'] for r in d['replicas'] if r['id'] == $leader)")
echo "kill -9 $pid    # replica $leader, the leader"
kill -9 "$pid"
begun=$(date +%s%N)
ids+=("$(submit README.md 0)")
echo "the next submission was accepted $((($(date +%s%N) - begun) / 1000000)) ms later, by the same command"
cortex cluster status
wait_for "${ids[@]}"

say "4. The proof: every job of part 3, and how often each was run"
python3 - "$CORTEX_ENDPOINT" "${ids[@]}" <<'PROOF'
import collections, json, sys, urllib.error, urllib.request

replicas, ids = sys.argv[1].split(","), sys.argv[2:]


def get(path):
    for replica in replicas:
        try:
            return json.load(urllib.request.urlopen(f"{replica}/api/v1{path}", timeout=5))
        except urllib.error.URLError:
            continue  # the one that was killed
    sys.exit("no replica answers")


ends = collections.Counter()
for id in ids:
    ends[get(f"/jobs/{id}")["status"], len(get(f"/jobs/{id}/executions"))] += 1
for (status, executions), jobs in ends.items():
    print(f"{jobs} jobs {status}, with {executions} execution each")
sys.exit(0 if set(ends) == {("completed", 1)} else "that is not what was promised")
PROOF

say "The replica that was killed comes back with: cortex serve --config $data_dir/replica-$leader.yaml"
