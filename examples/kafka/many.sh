#!/bin/bash
# What partitions cost: a server each with 1, 100 and 1,000 of them whose produce requests are flushed, driven by eight
# producers (./load) that spread 400,000 records of 1 KiB over all partitions, 125 of each on their way at a time. Prints how
# fast that is, how many flushes the disk was asked for, what the idle and the busy server hold, and how long it takes to
# create the topic, to stop and to start again.
#
# The disk counts the flushes of all its users, so nothing else should run. PARTITIONS="1 1000", BYTES and FLAGS, more flags of
# the server, change what is measured. Takes about two minutes; the data is below TMPDIR.
set -euo pipefail
FLAGS=${FLAGS:-}
. "$(dirname "$0")/tools/lib.sh"

go build -o "$W/load" ./load
PARTITIONS=${PARTITIONS:-1 100 1000}
BYTES=${BYTES:-409600000}

# disk_flushes: how many the disk under $W has done, or nothing where that is not to be had.
disk_flushes() {
    local disk
    disk=$(readlink -f "/sys/dev/block/$(stat -c %Hd:%Ld "$W")" 2>/dev/null) || return 0
    [ -e "$disk/partition" ] && disk=$(dirname "$disk")
    awk '{print $16}' "$disk/stat" 2>/dev/null || true
}

# status FIELD: of the server's process, as a number.
status() { awk -v name="$1:" '$1 == name {print $2}' "/proc/$SERVER_PID/status"; }
descriptors() { ls "/proc/$SERVER_PID/fd" | wc -l; }
cpu() { awk -v hz="$(getconf CLK_TCK)" '{sub(/.*\) /, ""); printf "%.2f", ($12 + $13) / hz}' "/proc/$SERVER_PID/stat"; }
now() { date +%s.%N; }
minus() { awk -v a="$1" -v b="$2" 'BEGIN {printf "%.2f", a - b}'; }

echo "| partitions | records/s | p50 | p99 | flushes of the disk | CPU s | memory, MiB | threads | idle: memory, MiB | descriptors | CPU s in 5 s | created in, s | stopped | started | consumed |"
echo "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
for n in $PARTITIONS; do
    rm -rf "$W/data"
    # shellcheck disable=SC2086
    start_server -set flush.messages=1 $FLAGS
    began=$(now)
    "$W/load" -server "$SERVER" -topic many -partitions "$n" -produce -bytes 1024 >/dev/null
    created=$(minus "$(now)" "$began")
    sleep 2
    before=$(cpu)
    sleep 5
    idle="$(($(status VmRSS) / 1024)) | $(descriptors) | $(minus "$(cpu)" "$before")"
    before=$(cpu) flushes=$(disk_flushes)
    rate=$("$W/load" -server "$SERVER" -topic many -exists -produce -clients 8 -spread -buffered 125 -linger 0 -bytes "$BYTES")
    flushes=$(($(disk_flushes) - flushes))
    busy="$flushes | $(minus "$(cpu)" "$before") | $(($(status VmRSS) / 1024)) | $(status Threads)"
    began=$(now)
    kill -INT "$SERVER_PID"
    wait "$SERVER_PID"
    stopped=$(minus "$(now)" "$began") began=$(now)
    start_server -set flush.messages=1 $FLAGS
    started=$(minus "$(now)" "$began")
    read_at=$("$W/load" -server "$SERVER" -topic many -bytes "$BYTES")
    kill -INT "$SERVER_PID"
    wait "$SERVER_PID"
    echo "| $n | $(sed -E 's|.* s, (.*) records/s, .* p50 (.*) p99 (.*)|\1 \| \2 \| \3|' <<<"$rate") | $busy | $idle | $created | $stopped | $started | ${read_at%%,*} |"
done
