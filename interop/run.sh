#!/bin/bash
# Everything in this directory, for CI: the tests against Kafka's storage classes, then broker.sh. Installs what is
# missing when run as root where there is apt-get; skips what cannot be had and says why. Under six minutes.
#
# Exit status: 0 nothing failed (skipped or not), 1 something did.
set -uo pipefail
cd "$(dirname "$0")"

(
    . ./need.sh
    need_tools java javac mvn
    need_jars
)
case $? in
0 | 77) ;; # the tests say so too
*) exit 1 ;;
esac

# Getting the jars may have taken long: what is left of the time is shared out.
left() { echo $((350 - SECONDS)); }

status=0
go test -count=1 -timeout "$(($(left) * 3 / 5))s" ./... || status=1
timeout --kill-after=10 "$(left)" ./broker.sh
case $? in
0 | 77) ;;
*) status=1 ;;
esac
exit $status
