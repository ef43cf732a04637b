#!/usr/bin/env bash
# Throws made-up bytes at what reads bytes from outside, one target of fuzz/ after the other, and ends with 1 if one of
# them finds something: the input is then in fuzz/artifacts, and belongs into fuzz/corpus once the product is mended,
# where tests run it ever after.
#
#   SECONDS_EACH=600 bash deploy/fuzz.sh [targets]
#
# SECONDS_EACH=60, SANITIZER=none: the product has no unsafe code, so what a sanitizer would see is in libraries alone, and
# `address` makes all of it several times slower. Builds the whole tree for it, into fuzz/target (about 3 GiB); what was
# found worth keeping stays in fuzz/target/corpus until then.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib.sh

SECONDS_EACH=${SECONDS_EACH:-60} SANITIZER=${SANITIZER:-none}
FUZZ_VERSION=0.13.2
TARGETS=(rest_bodies retry_policy capabilities raft_log token)
[ $# -eq 0 ] || TARGETS=("$@")

have cargo || fail "Rust is missing: install it from https://rustup.rs"
have c++ || fail "a C++ compiler is missing, for the fuzzer itself: install g++"
# As in deploy/test.sh, apart from the user's own programs.
root=${CARGO_HOME:-$HOME/.cargo}/cortex-tools
PATH="$root/bin:$PATH"
cargo fuzz --version >/dev/null 2>&1 ||
    CARGO_PROFILE_DEV_DEBUG=false CARGO_INCREMENTAL=0 \
        cargo install cargo-fuzz --version "$FUZZ_VERSION" --locked --debug --quiet --root "$root"

toolchain=()
if cargo +nightly --version >/dev/null 2>&1; then
    toolchain=(+nightly)
elif [ "$SANITIZER" = none ]; then
    # What nightly is wanted for is the sanitizer.
    echo "without a nightly toolchain: $(cargo --version)"
else
    fail "SANITIZER=$SANITIZER needs a nightly toolchain: rustup toolchain install nightly --profile minimal"
fi

say "Building"
cargo "${toolchain[@]}" fuzz build -s "$SANITIZER"
# Damaged logs are written to files all the time.
[ -n "${TMPDIR:-}" ] || [ ! -w /dev/shm ] || export TMPDIR=/dev/shm

results=()
status=0
for target in "${TARGETS[@]}"; do
    say "$target, $SECONDS_EACH s"
    mkdir -p "fuzz/target/corpus/$target"
    log=fuzz/target/$target.log
    outcome=fine
    # New inputs go into the first folder; the second one is only read.
    cargo "${toolchain[@]}" fuzz run -s "$SANITIZER" "$target" "fuzz/target/corpus/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$SECONDS_EACH" -timeout=20 -rss_limit_mb=3072 -print_final_stats=1 -verbosity=1 \
        >"$log" 2>&1 || outcome=FAILED
    number() { grep -o "$1[^0-9]*[0-9]*" "$log" | tail -1 | grep -o '[0-9]*$' || echo 0; }
    results+=("$(printf '%-14s %12s executions  %6s edges  %7s features  %s' "$target" \
        "$(number 'stat::number_of_executed_units')" "$(number ' cov:')" "$(number ' ft:')" "$outcome")")
    if [ "$outcome" = FAILED ]; then
        status=1
        tail -30 "$log"
    fi
done
say "Summary"
printf '%s\n' "${results[@]}"
exit "$status"
