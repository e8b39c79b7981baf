#!/bin/sh
# Ray Serve runs this in HAProxy's place (RAY_SERVE_HAPROXY_BINARY_PATH) on a server for this machine
# only. Serve's template opens HAProxy's statistics and metrics on all interfaces and has no setting
# for it; here they are moved to 127.0.0.1 before HAProxy reads its configuration.
# Called as: haproxy_on_localhost.sh -db -f CONFIG …
set -eu
sed -i -E 's/^( *bind )(\*)?:/\1127.0.0.1:/' "$3"
exec "$EMBEDDING_SERVER_HAPROXY" "$@"
