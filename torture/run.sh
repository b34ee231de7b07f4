#!/usr/bin/env bash
# Runs all that go test ./... has no time for, each part with a limit of its own:
#
#   sim      1,000,000 distinct states after a power cut or kill, every operation failing, every byte damaged
#   strace   real system calls failing
#   full     real file systems filled up and freed again
#   disk     real file systems on a disk that fails for a moment, and power cuts
#   kill     2,000 kills under each policy
#   soak     20 minutes of everything at once
#
#   torture/run.sh               all of it, two to three hours
#   torture/run.sh -short        a sample of all of it, in less than two minutes
#   torture/run.sh full soak     some parts
#
# What this machine can't do is skipped with its reason. Exit status: 0 if no part failed.
set -u -o pipefail
cd "$(dirname "$0")/.."

short=""
if [[ ${1:-} == -short ]]; then short=1; shift; fi
parts=${*:-sim strace full disk kill soak}
failed=""

# part NAME SECONDS COMMAND...
part() {
  local name=$1 limit=$2 begun=$SECONDS status
  shift 2
  [[ " $parts " == *" $name "* ]] || return
  echo "== $name: $*"
  timeout -k 20 "$limit" "$@"
  status=$?
  if ((status == 124)); then echo "$name took longer than $limit s"; fi
  if ((status != 0)); then failed+=" $name"; fi
  echo "== $name: $((SECONDS - begun)) s"
}

simulation='^(TestCrash|TestInject|TestInjectDiskFull|TestDamageEveryByte|TestDamageEveryLength|TestDamageFiles)$'
if [[ -n $short ]]; then
  # What is built now does not count into the limits below, as it is the same for everybody.
  go build ./... && go test -count=1 -run '^$' . >/dev/null && (cd torture/disk && go test -count=1 -run '^$' .) >/dev/null || exit 1
  part strace 30 torture/strace.sh -short
  part full 25 torture/full.sh ext4 tmpfs limit
  part disk 40 bash -o pipefail -c 'cd torture/disk && go test -count=1 -v . | grep -vE "^(=== | +--- PASS)"'
  part kill 20 torture/kill.sh 20
  part soak 25 go run ./torture/soak -for 12s
else
  part sim 5400 go test -count=1 -timeout 90m -run "$simulation" -v . -torture=1000000
  part strace 3600 torture/strace.sh
  part full 600 torture/full.sh
  part disk 900 bash -o pipefail -c 'cd torture/disk && go test -count=1 -v . -args -all | grep -vE "^(=== | +--- PASS)"'
  part kill 3600 torture/kill.sh
  part soak 1500 go run ./torture/soak -for 20m
fi
if [[ -n $failed ]]; then
  echo "failed:$failed"
  exit 1
fi
echo "nothing failed"
