#!/usr/bin/env bash
# Makes the secrets of docker/compose.yaml, once: random ones, in docker/secrets, which git does not see.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p secrets
chmod 0700 secrets
for name in postgres-password api-token metrics-token; do
    [ -e "secrets/$name" ] && continue
    # Containers read it as users of their own; the folder keeps others out.
    (umask 0222; od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "secrets/$name")
done
echo "docker/secrets: the API's token is $(pwd)/secrets/api-token"
