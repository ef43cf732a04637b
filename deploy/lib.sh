# Shared by the scripts of this folder: what has to be on the machine, and plain messages.
# Sourced with the repository's root as the working directory.
# shellcheck shell=bash

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Cargo's programs, also where the shell's profile does not name them.
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

# The folder with initdb and postgres: what PATH names, else the newest that is installed.
postgres_folder() {
    local program
    if have postgres; then
        program=$(readlink -f "$(command -v postgres)")
        [ -x "${program%/*}/initdb" ] && printf '%s\n' "${program%/*}" && return
    fi
    for program in $(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -rV); do
        [ -x "$program" ] && printf '%s\n' "${program%/*}" && return
    done
    return 1
}

# Installs what is missing where there is apt-get, and names it where there is not. Nothing is done when
# everything is there. PostgreSQL and Redis are wanted as programs: the services that come with their
# packages are kept from starting, because CORTEX runs its own on ports of its own. Whatever else is needed is named by its
# program, or as program=package where the package has another name.
install_missing() {
    have cargo || fail "Rust is missing: install it from https://rustup.rs"
    local packages=()
    have cc || packages+=(gcc libc6-dev)
    postgres_folder >/dev/null || packages+=(postgresql)
    have redis-server || have valkey-server || packages+=(redis-server)
    local extra
    for extra in "$@"; do
        have "${extra%=*}" || [ -x "/usr/sbin/${extra%=*}" ] || packages+=("${extra#*=}")
    done
    [ ${#packages[@]} -eq 0 ] && return
    have apt-get || fail "install these first, under whatever name your system has for them: ${packages[*]}"
    say "Installing ${packages[*]}"
    as_root apt-get update -qq
    without_services env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        fail "this needs root or sudo: $*"
    fi
}

# Runs a command, as root, during which packages start no services; those of PostgreSQL, Redis and PgBouncer
# are not started later either.
without_services() {
    local policy=/usr/sbin/policy-rc.d ours=no status=0
    if [ ! -e "$policy" ]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    as_root "$@" || status=$?
    [ "$ours" = yes ] && as_root rm -f "$policy"
    if [ -d /run/systemd/system ]; then
        as_root systemctl disable --quiet postgresql redis-server pgbouncer 2>/dev/null || true
    fi
    return "$status"
}
