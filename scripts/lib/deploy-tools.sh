# Sourced after setup.sh: what tests/deploy runs, in target/tools/bin, but for what `deploy_go_tools`
# builds. Nothing is downloaded again once it is there.
# Expects $tools, pipx, and Go 1.26 or later.

deploy_helm=v3.22.0
deploy_compose=v2.16.2

# deploy_go_install NAME PACKAGE@VERSION: builds a program into $tools/bin.
deploy_go_install() {
    local name="$1" package="$2" build="$tools/go-build"
    [ -x "$tools/bin/$name" ] && return
    mkdir -p "$build/out" "$tools/bin"
    env -u GOROOT GOPATH="$build" GOCACHE="$build/cache" GOBIN="$build/out" GOFLAGS="-trimpath -modcacherw" GOTOOLCHAIN=local \
        CGO_ENABLED=0 go install "$package" >&2
    mv "$build/out/"* "$tools/bin/$name"
}

# The programs in Go.
deploy_go_tools() {
    deploy_go_install helm "helm.sh/helm/v3/cmd/helm@$deploy_helm"
    deploy_go_install compose-go "github.com/compose-spec/compose-go/v2/cmd@$deploy_compose"
    # A gigabyte that only building needs.
    rm -rf "$tools/go-build"
}

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
