# Sourced by the scripts beside this folder, from the repository's root: installs what is missing and reports steps.

# need PACKAGE COMMAND: installs the Debian package when the command is not there. Asks for nothing.
need() {
    local package="$1" command="$2"
    command -v "$command" >/dev/null && return
    if ! command -v apt-get >/dev/null; then
        echo "setup: '$command' is missing, and there is no apt-get to install it: install $package" >&2
        exit 69
    fi
    local -a as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "setup: '$command' is missing: as root, run apt-get install $package" >&2
            exit 69
        fi
        as_root=(sudo)
    fi
    echo "setup: '$command' is missing, installing the package $package" >&2
    if [ -z "${setup_lists_are_fresh:-}" ]; then
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2
        setup_lists_are_fresh=yes
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >&2
}

# step TITLE COMMAND…: runs the command and says how long it took; ends the script when it fails.
step() {
    local title="$1" began="$SECONDS"
    shift
    echo "== $title" >&2
    "$@" || {
        local status=$?
        echo "== $title: failed after $((SECONDS - began)) s" >&2
        exit "$status"
    }
    echo "== $title: $((SECONDS - began)) s" >&2
}

if ! command -v cargo >/dev/null && [ -r "$HOME/.cargo/env" ]; then
    source "$HOME/.cargo/env"
fi
if ! command -v cargo >/dev/null; then
    echo "setup: cargo is missing: install Rust with rustup, the toolchain in rust-toolchain.toml follows by itself" >&2
    exit 69
fi

# To build librdkafka and what else is C.
need gcc gcc
need g++ g++
need make make
# To run Cassandra and Kafka, and to get them.
need openjdk-17-jdk-headless java
need maven mvn
# To unpack PostgreSQL, and to give Vault a certificate.
need openssl openssl
need unzip unzip
need xz-utils xz
