#!/usr/bin/env bash
# Kills (kill -9) a process that appends, rolls, deletes, truncates, resets or recovers, 2,000 times under each policy,
# at random points, and proves after each what is left: kill_test.go, longer than go test runs it.
#
#   torture/kill.sh              2,000 under each policy
#   torture/kill.sh 100          100
set -u -o pipefail
cd "$(dirname "$0")/.."
exec go test -count=1 -timeout 2h -run '^TestKill$' -v . -kills "${1:-2000}"
