# Commands for developers; `just` lists them. `scripts/test` is what CI runs, and needs nothing of this file.

set positional-arguments

tools := "/usr/local/lib/isol8-tests/bin"
export PATH := env("PATH") + ":" + tools

[private]
default:
    @just --list

# Formatting, lints and documentation.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --lib --bin isol8-guest --examples
    scripts/plain-language

# Unit tests of one crate, or of all: without root, Docker or a network, in less than a minute once they are built.
unit *ARGS:
    cargo test --workspace --lib --bins "$@" -- --skip needs_root

# Black-box tests that a part of a name selects, real server, real sandboxes: `just suite sessions::native`. Needs root and Docker.
suite *FILTER:
    cargo build --workspace --example files
    cargo test --test suite --test tables -- "$@"

# A minute under load and faults: `just soak`; an hour: `just soak 3600`. Needs root and Docker.
soak SECONDS="60":
    SOAK_SECONDS={{ SECONDS }} cargo test --test soak

# Runs every block of the documentation, or of the pages named. Needs root and Docker.
docs *PAGES:
    cargo build
    scripts/readme "$@"

# Licences, duplicate crates, known vulnerabilities.
audit:
    scripts/audit

# Fuzz targets side by side: `just fuzz 3600`, `just fuzz 600 proxy_heads`.
fuzz SECONDS="600" *TARGETS:
    scripts/fuzz {{ SECONDS }} {{ TARGETS }}

# Builds the image isol8:full and tries what it holds; takes minutes.
full-image *CONFIG:
    scripts/full-image {{ CONFIG }}

# A benchmark: latency, throughput, stream, files, network.
bench NAME="latency" *ARGS:
    cargo bench --bench {{ NAME }} -- {{ ARGS }}
