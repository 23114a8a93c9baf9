# The index of what can be done here; every recipe is what CI runs.

# List the recipes.
default:
    @just --list

# Everything CI checks.
test:
    scripts/test

# Chart, alerts, dashboards, image and units (needs what scripts/lib/deploy-tools.sh obtains in target/tools/bin).
deploy:
    PATH="$PWD/target/tools/bin:$PATH" cargo test --release --workspace --test deploy

# The pipeline on real servers, end to end.
demo *ARGS:
    scripts/demo {{ARGS}}

# A benchmark by name: `just bench capture`.
bench NAME *ARGS:
    scripts/bench {{NAME}} {{ARGS}}

# Fuzz the commit-log reader: `just fuzz mutation --seconds 600`.
fuzz *ARGS:
    scripts/fuzz {{ARGS}}

# Format everything.
fmt:
    cargo fmt --all

# Lints as errors.
lint:
    cargo clippy --release --workspace --all-targets -- -D warnings

# Rustdoc, private items too, warnings as errors.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --document-private-items

# Licences, sources and the direction of dependencies (needs cargo-deny).
deny:
    cargo deny check
