#!/usr/bin/env bash
# Makes the system calls of a real log fail, one after the other, by strace's fault injection: for each call that the
# engine uses, each error, and K = 1, 2, ... up to the number of such calls of the run without faults, a process of
# torture/worker in which the Kth of them fails in each thread. It is a failure if the worker dies, if an error does not
# name file and operation, if a failed flush of data does not latch, if a failed log takes an append or stops to read,
# or if after a reopen anything acknowledged is missing, wrong, doubled or out of place.
#
#   torture/strace.sh            every K, about 1,500 processes
#   torture/strace.sh -every 4   about each fourth K
#   torture/strace.sh -short     a sample of one workload: at most 25 processes, in at most 20 seconds
set -u -o pipefail
cd "$(dirname "$0")/.."

calls="fdatasync fsync fallocate mmap pwrite64 ftruncate openat unlinkat renameat sendfile splice"
# What each of them can really answer.
errors_of() {
  case $1 in
    fsync | unlinkat | sendfile | splice) echo EIO ;;
    mmap) echo ENOMEM ;;
    openat) echo EMFILE EIO ENOSPC ;;
    *) echo EIO ENOSPC ;;
  esac
}
runs="mixed:sync truncate:async delete:none"
every=1 seconds=1000000
case ${1:-} in
  -short) runs="mixed:sync" every=25 seconds=20 ;;
  -every) every=$2 ;;
esac

if ! command -v strace >/dev/null; then
  echo "strace.sh: skipped: strace is not installed"; exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! strace -f -qq -o "$work/try" -e inject=fsync:error=EIO:when=1 true 2>"$work/why"; then
  echo "strace.sh: skipped: strace may not trace here: $(head -1 "$work/why")"; exit 0
fi
go build -o "$work/worker" ./torture/worker || exit 1

failures=0 processes=0 injected=0 latched=0 told=0 logged=0 silent=0 steps=60

# trace NAME STRACE-ARGUMENTS: one run of the worker. Files of the log are given to strace by name, so that the calls of
# Go's runtime are left alone.
trace() {
  rm -rf "$work/log"
  strace -f -qq -y -o "$work/trace" "$@" "$work/worker" -dir "$work/log" -op "$op" -policy "$policy" -steps $steps \
    >"$work/journal" 2>"$work/said"
}

# failed WHAT FILE: says so, and keeps what is needed to look into it.
failed() {
  failures=$((failures + 1))
  echo "FAILED: $op $policy, $call $error when=$k: $1: $(tail -1 "$2")"
  if [[ -n ${KEEP:-} ]]; then
    mkdir -p "$KEEP/$failures" && cp -r "$work/log" "$work/journal" "$work/said" "$work/trace" "$KEEP/$failures/"
  fi
}

inject() {
  trace "${files[@]}" -e trace="$call" -e inject="$call:error=$error:when=$k"
  local status=$? n
  n=$(grep -c '(INJECTED)' "$work/trace")
  processes=$((processes + 1)) injected=$((injected + n))
  if ((status != 0)); then
    failed "the worker" "$work/said"
  fi
  if ((n > 0)); then
    if grep -q '^latched' "$work/said"; then latched=$((latched + 1))
    elif grep -q '^error:' "$work/said"; then told=$((told + 1))
    elif grep -q '^event:' "$work/said"; then logged=$((logged + 1))
    else silent=$((silent + 1)); fi
  fi
  if ! "$work/worker" -dir "$work/log" -op check -policy "$policy" -journal "$work/journal" >"$work/checked" 2>&1; then
    failed "the reopen" "$work/checked"
  fi
}

for run in $runs; do
  op=${run%:*} policy=${run#*:} call=none error=none k=0
  if ! trace -e "trace=${calls// /,}"; then
    failed "the run without faults" "$work/said"
    continue
  fi
  files=(-P "$work/log")
  while read -r file; do files+=(-P "$file"); done < <(grep -o "$work/log/[A-Za-z0-9.]*" "$work/trace" | sort -u)
  cp "$work/trace" "$work/plain"
  for call in $calls; do
    # strace counts in each thread
    most=$(grep -F "$work/log" "$work/plain" | awk -v call="$call" '$2 ~ "^" call "\\(" { n[$1]++ } END { for (t in n) if (n[t] > most) most = n[t]; print most + 0 }')
    for error in $(errors_of "$call"); do
      for ((k = 1 + RANDOM % every; k <= most; k += every)); do
        if ((SECONDS > seconds)); then break 4; fi
        inject
      done
    done
    echo "$op $policy, up to $call: $processes processes, $injected calls failed, $failures failures"
  done
done

cat <<END
$processes processes under strace, in which $injected system calls failed; of these processes
  $latched had a log that failed for good and said so (ErrFailed), and went on reading
  $told had an error of a call, after which the log went on
  $logged had a failure in the background that went to the logger alone
  $silent went on without needing what failed (pwrite instead of a mapping, no blocks ahead, a try again)
$failures failures
END
((failures == 0))
