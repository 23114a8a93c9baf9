# Sourced after setup.sh: what tests/deploy runs, in target/tools/bin. Nothing is downloaded again once it is there.
# Expects $tools, and pipx.

deploy_helm=v3.22.0
deploy_compose=v2.16.2
# What both are built with, where no Go is installed that is new enough.
deploy_go=go1.26.8

# deploy_go_command: prints a `go` that can build them. Debian's may be too old even to fetch a newer one by itself.
deploy_go_command() {
    need golang-go go
    local build="$1" info folder
    if go env GOVERSION | grep -qE '^go(1\.(2[6-9]|[3-9][0-9])|[2-9])'; then
        command -v go
        return
    fi
    # The Go project's own builds, as a module, checked against the checksum database.
    info="$(cd "$build" && GOPATH="$build" GOFLAGS=-modcacherw \
        go mod download -json "golang.org/toolchain@v0.0.1-$deploy_go.linux-$(dpkg --print-architecture)")"
    folder="$(jq -r .Dir <<<"$info")"
    # Modules have no executables.
    chmod -R +x "$folder/bin" "$folder/pkg/tool"
    echo "$folder/bin/go"
}

# deploy_go_install NAME PACKAGE@VERSION: builds a program into $tools/bin.
deploy_go_install() {
    local name="$1" package="$2" build="$tools/go-build" go
    [ -x "$tools/bin/$name" ] && return
    mkdir -p "$build/out" "$tools/bin"
    go="$(deploy_go_command "$build")"
    env -u GOROOT GOPATH="$build" GOCACHE="$build/cache" GOBIN="$build/out" GOFLAGS="-trimpath -modcacherw" GOTOOLCHAIN=local \
        CGO_ENABLED=0 "$go" install "$package" >&2
    mv "$build/out/"* "$tools/bin/$name"
}

deploy_go_install helm "helm.sh/helm/v3/cmd/helm@$deploy_helm"
deploy_go_install compose-go "github.com/compose-spec/compose-go/v2/cmd@$deploy_compose"
# A gigabyte that only building needs.
rm -rf "$tools/go-build"

# The program alone: the package would start a server.
if ! command -v promtool >/dev/null && [ ! -x "$tools/bin/promtool" ]; then
    folder="$(mktemp -d)"
    if (cd "$folder" && apt-get download prometheus >&2 && dpkg-deb -x prometheus_*.deb .); then
        mkdir -p "$tools/bin"
        mv "$folder/usr/bin/promtool" "$tools/bin/promtool"
    else
        need prometheus promtool
    fi
    rm -r "$folder"
fi
need systemd systemd-analyze
if [ ! -x "$tools/bin/kubernetes-validate" ]; then
    PIPX_HOME="$tools" PIPX_BIN_DIR="$tools/bin" pipx install kubernetes-validate==1.31.0 >&2
fi
