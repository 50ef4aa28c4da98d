#!/usr/bin/env bash
# A Locust master without a web page and some workers on this machine. Workers on other machines take the same environment
# and ROLE=worker MASTER=address.
#   URL=http://server:30000 MIX=fast=70,full=30 USERS=256 deploy/locust/run.sh
#   ROLE=master WORKERS=8 URL=http://server:30000 deploy/locust/run.sh                # waits for eight workers
#   ROLE=worker MASTER=10.0.0.9 WORKERS=4 deploy/locust/run.sh                        # on another machine
# TIME (2m), RAMP (users per second), PROMPTS (random:128), OUTPUT_LEN (64), OUT (files CSV, page), PORT (5557).
set -euo pipefail
cd "$(dirname "$0")/../.."

# Options of our locustfile are read from the environment, so that master and workers cannot differ.
export MOE_OPT_PROFILE_MIX=${MIX:-full=100} MOE_OPT_PROMPTS=${PROMPTS:-random:128} MOE_OPT_OUTPUT_LEN=${OUTPUT_LEN:-64}
workers=${WORKERS:-2}
users=${USERS:-64}
port=${PORT:-5557}
locust=${LOCUST:-locust}

worker() { "$locust" -f loadtest/locustfile.py --worker --master-host "$1" --master-port "$port" --processes "$workers"; }
master() {
    "$locust" -f loadtest/locustfile.py --master --master-bind-port "$port" --expect-workers "$workers" --headless \
        --host "${URL:?the server, such as http://server:30000}" --users "$users" --spawn-rate "${RAMP:-$users}" \
        --run-time "${TIME:-2m}" --only-summary ${OUT:+--csv "$OUT/locust" --html "$OUT/locust.html"}
}

[ -z "${OUT:-}" ] || mkdir -p "$OUT"
case ${ROLE:-both} in
    worker) worker "${MASTER:?the address of the master}" ;;
    master) master ;;
    both)
        worker 127.0.0.1 &
        trap 'kill %1 2>/dev/null || true' EXIT
        master
        ;;
    *) echo "ROLE: got ${ROLE}, allowed: both, master, worker" >&2; exit 2 ;;
esac
