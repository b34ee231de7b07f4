#!/usr/bin/env bash
# Puts faults back that the engine once had, one at a time, into a copy of the tree, and demands that the fast tests find
# each. A patch in this directory is a fault: its header says what is wrong then, and which tests of go test ./... find it.
#
#   torture/bugs/run.sh                    all of them
#   torture/bugs/run.sh w05 d03-no-fence   those whose names begin so
#   torture/bugs/run.sh -all ...           where the tests of the header find nothing, the whole of go test ./...
#
# The tests of the headers must pass on the tree as it is, which is tried first, and each patch must apply and compile.
# Exit status: 0 if every fault was found.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
here=$PWD

all=""
if [[ ${1:-} == -all ]]; then all=1; shift; fi
patches=()
for name in "${@:-}"; do
  found=""
  for p in torture/bugs/"$name"*.patch; do
    [[ -e $p ]] && patches+=("$p") found=1
  done
  [[ -n $found ]] || { echo "no patch named $name" >&2; exit 2; }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
tree=$work/tree
mkdir "$tree"
{ git ls-files -z --cached --others --exclude-standard 2>/dev/null || find . -type f -not -path '*/.*/*' -print0; } |
  tar --null --ignore-failed-read -cf - -T - 2>/dev/null | tar -xf - -C "$tree" || exit 1
cd "$tree" || exit 1

# tests PATCH: the arguments of go test of its header, a line each.
tests() { sed -n 's/^Tests: *//p' "$here/$1"; }

# compile: the packages with such tests, so that a fault that does not compile is no fault that was found. Without optimizations and symbols,
# which the tests don't need, in two thirds of the time.
flags=(-vet=off -gcflags=-N\ -l -ldflags=-s\ -w)
packages=(. ./internal/commit ./internal/sched)
compile() {
  local p
  for p in "${packages[@]}"; do go test "${flags[@]}" -c -o "$(binary "$p")" "$p" || return; done
}
binary() { [[ $1 == . ]] && echo "$work/seglog.test" || echo "$work/$(basename "$1").test"; }

# try ARGUMENTS...: runs tests that were compiled. The status of a test that fails is not 0.
try() {
  local dir=. args=() a
  if [[ $1 == ./internal/* ]]; then dir=$1; shift; fi
  for a in "$@"; do
    case $a in -run) args+=("-test.run") ;; *) args+=("$a") ;; esac
  done
  (cd "$dir" && timeout -k 5 150 "$(binary "$dir")" -test.timeout 120s -test.failfast "${args[@]}") >"$work/out" 2>&1
}

# reason: the line of the output that says most.
reason() { grep -m 1 -E 'Error:  |schedule-seed|spins, or|^panic: |--- FAIL' "$work/out" | sed 's/^ *//' | cut -c1-150; }

failed=()
fail() { echo "$1: $2"; failed+=("$1"); }

compile || exit 1
while read -r args; do
  begun=$SECONDS
  # shellcheck disable=SC2086 # words
  try $args || { cat "$work/out"; echo "fails on the tree as it is: $args" >&2; exit 1; }
  # shellcheck disable=SC2086
  pattern=$(sed -n 's/^-run \([^ ]*\).*/\1/p' <<<"$args")
  if [[ -n $pattern && -z $("$work/seglog.test" -test.list "$pattern") ]]; then echo "no test: $args" >&2; exit 1; fi
  echo "as it is: $args: ok, $((SECONDS - begun)) s"
done < <(for p in "${patches[@]}"; do tests "$p"; done | sort -u)

for p in "${patches[@]}"; do
  name=$(basename "$p" .patch)
  if ! git apply "$here/$p" 2>"$work/out"; then
    fail "$name" "does not apply: $(head -n 1 "$work/out")"
    continue
  fi
  found="" begun=$SECONDS
  if ! compile >"$work/out" 2>&1; then
    fail "$name" "does not compile: $(sed -n 2p "$work/out")"
  else
    while read -r args; do
      # shellcheck disable=SC2086
      if ! try $args; then found=$args; break; fi
    done < <(tests "$p")
    if [[ -z $found && -n $all ]] && ! go test -vet=off -count=1 -timeout 5m ./... >"$work/out" 2>&1; then found="go test ./..."; fi
    if [[ -n $found ]]; then
      echo "$name: found by $found in $((SECONDS - begun)) s: $(reason)"
    else
      fail "$name" "NOT FOUND"
    fi
  fi
  git apply -R "$here/$p" || exit 1
done
if ((${#failed[@]})); then
  echo "${#failed[@]} of ${#patches[@]} faults not found: ${failed[*]}"
  exit 1
fi
echo "${#patches[@]} of ${#patches[@]} faults found"
