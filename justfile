# Commands for developers; `just` lists them. `scripts/test` is what CI runs, and needs nothing of this file.

tools := "/usr/local/lib/isol8-tests/bin"
export PATH := env("PATH") + ":" + tools

[private]
default:
    @just --list

# Formatting, lints and documentation.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Unit tests of one crate, or of all.
unit *ARGS:
    cargo test --workspace --lib --bins {{ ARGS }}

# Black-box tests: real server, real sandboxes. Needs root and Docker.
suite *FILTER:
    cargo test --test suite -- {{ FILTER }}

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
