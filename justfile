# Plain cargo works as well: `cargo test --workspace` needs no setting up but PostgreSQL's and Redis' programs.

# Lists these.
default:
    @just --list

# Checks everything and changes nothing.
verify:
    bash deploy/test.sh

# Formats, applies what clippy suggests, and refreshes what is known about the statements.
fix:
    cargo fmt --all
    cargo clippy --workspace --all-targets --features crash-points,planted-defects --fix --allow-dirty --allow-staged
    bash deploy/sqlx-data.sh
    cargo fmt --all

# A cluster of three on this machine.
dev *OPTIONS:
    cargo run --release -- dev {{OPTIONS}}

# Tests whose names contain NAME.
test NAME:
    cargo test --workspace --features crash-points,planted-defects {{NAME}}

# Crates that the build has in more than one version.
duplicates:
    cargo deny check bans
