#!/bin/bash
# Runs tests that others wrote with raftstore in the place of the stores that they bring along. Nothing of theirs is copied
# into this repository: the sources are taken from the module cache, or from a clone of raft's repository, into a temporary
# directory, and one file of each is replaced.
#
#	suites/run.sh raft [-run X ...]    all tests of github.com/hashicorp/raft
#	suites/run.sh fuzzy [-run X ...]   raft's fuzzy tests: clusters with cut, slow and reordering networks
#
# fuzzy needs raft's repository, since its module was never published: RAFT_REPO names a clone, else it is cloned from
# GitHub. Exit status 3: the sources can't be had.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
store=$(cd "$here/.." && pwd) # clean paths: go finds nested modules by their length
root=$(cd "$here/../.." && pwd)
suite=${1:?raft or fuzzy}
shift
work=$(mktemp -d)
export GOFLAGS=-mod=mod GOWORK=off
# The tests were written for stores in memory: with election timeouts of 50 ms, a busy disk fails them. So the stores are
# in memory where the system has a file system there.
export SUITE_STORES
SUITE_STORES=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work" "$SUITE_STORES"' EXIT

# raft_source: the version that raftstore requires.
raft_source() {
    local dir
    dir=$(cd "$store" && GOFLAGS= go mod download -json github.com/hashicorp/raft | sed -n 's/^\t"Dir": "\(.*\)".*/\1/p')
    [ -n "$dir" ] || exit 3
    cp -r "$dir" "$work/raft"
    chmod -R u+w "$work/raft"
}

# run_tests: those that fail are run again by themselves, up to three times. raft's tests wait for elections with timeouts of
# 50 ms, and on a busy machine some fail with its own store, too. What fails four times has a reason.
run_tests() {
    local try failed
    if go test -count=1 "$@" . >"$work/out" 2>&1; then
        tail -n 1 "$work/out"
        return
    fi
    for try in 1 2 3; do
        failed=$(sed -n 's/^--- FAIL: \([A-Za-z0-9_]*\) .*/\1/p' "$work/out" | sort -u | paste -sd '|')
        [ -n "$failed" ] || break
        echo "again, since they failed: $failed"
        if go test -count=1 "$@" -run "^($failed)\$" . >"$work/out" 2>&1; then
            tail -n 1 "$work/out"
            return
        fi
    done
    cat "$work/out"
    return 1
}

case $suite in
raft)
    raft_source
    cp "$here/raft/inmem_store.go.txt" "$work/raft/inmem_store.go"
    cp "$here/raft/backend_test.go.txt" "$work/raft/zz_backend_test.go"
    cd "$work/raft"
    go mod edit -require github.com/seglog/seglog/raftstore@v0.0.0 -require github.com/seglog/seglog@v0.0.0 \
        -replace "github.com/seglog/seglog/raftstore=$store" -replace "github.com/seglog/seglog=$root"
    # Left out is what asserts that the store is not monotonic: this one is. TestRaft_UserRestore has each case a second
    # time for such stores. And root may write into directories without permission.
    skip='^TestRaft_LogStoreIsMonotonic$|^TestRaft_UserRestore$/^case'
    [ "$(id -u)" -ne 0 ] || skip+='|^TestFileSS_BadPerm$'
    run_tests -timeout 10m -skip "$skip" "$@"
    ;;
fuzzy)
    raft_source
    repo=${RAFT_REPO:-}
    if [ -z "$repo" ]; then
        repo=$work/clone
        GIT_TERMINAL_PROMPT=0 git clone -q --depth 1 https://github.com/hashicorp/raft "$repo" || exit 3
    fi
    git -C "$repo" archive HEAD fuzzy | tar -x -C "$work/raft" || exit 3
    cd "$work/raft/fuzzy"
    # The suite's transport is older than pre-votes, and without them no leader is elected, whatever the store.
    sed -i 's/config.ShutdownOnRemove = false/&; config.PreVoteDisabled = true/' node.go
    go mod edit -require github.com/seglog/seglog/raftstore@v0.0.0 -require github.com/seglog/seglog@v0.0.0 \
        -require github.com/hashicorp/raft-boltdb@v0.0.0 -replace "github.com/hashicorp/raft-boltdb=$here/boltdb" \
        -replace "github.com/seglog/seglog/raftstore=$store" -replace "github.com/seglog/seglog=$root"
    run_tests -timeout 20m "$@"
    ;;
*)
    echo "$0: no suite $suite" >&2
    exit 2
    ;;
esac
