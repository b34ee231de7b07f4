#!/bin/bash
# This server beside a real Kafka broker, on one machine, driven by the same client (./load): 1 GiB of 1 KiB records
# produced and consumed by one and by eight clients. Prints a table of MB/s and of the CPU seconds of the server's process.
# Both leave it to the operating system when to write to disk. Eight producers share the GiB; each of eight consumers
# reads all of it.
#
# ROUNDS=3 are measured, the servers taking turns; one more goes before, to warm up. Takes about 5 minutes.
set -euo pipefail
. "$(dirname "$0")/tools/lib.sh"

need_kafka || { echo "compare.sh: skipped: $WHY" >&2; exit 77; }
go build -o "$W/load" ./load
if [ -z "${INSIDE:-}" ] && [ "$(id -u)" -eq 0 ] && unshare --net true 2>/dev/null; then
    # A network of its own, where congestion control can be one that does not pace, whatever the machine uses: the
    # pacing of BBR hides the difference between ways to send.
    rm -rf "$W"
    INSIDE=1 exec unshare --net "$HERE/compare.sh"
fi
if [ -n "${INSIDE:-}" ]; then
    ip link set lo up
    sysctl -q -w net.ipv4.tcp_congestion_control=cubic 2>/dev/null || sysctl -q -w net.ipv4.tcp_congestion_control=reno
fi
echo "congestion control: $(sysctl -n net.ipv4.tcp_congestion_control)" >&2
start_server
start_broker
ROUNDS=${ROUNDS:-3}
BYTES=${BYTES:-1073741824}

# cpu PID: seconds of processor time so far, user and system.
cpu() { awk -v hz="$(getconf CLK_TCK)" '{sub(/.*\) /, ""); printf "%.2f", ($12 + $13) / hz}' "/proc/$1/stat"; }

# measure NAME ADDRESS PID ROUND WORK CLIENTS [FLAG...]: one line of $W/results.
measure() {
    local before rate
    before=$(cpu "$3")
    rate=$("$W/load" -server "$2" -topic "$5-$4" -clients "$6" -bytes "$BYTES" "${@:7}")
    sleep 0.5 # what the server does afterwards counts, too
    echo "$1 $4 ${7:-consume} $6 ${rate%% *} $(awk -v a="$before" -v b="$(cpu "$3")" 'BEGIN {print b - a}')" >>"$W/results"
}

for round in $(seq 0 "$ROUNDS"); do
    for name in seglog kafka; do
        if [ "$name" = seglog ]; then at=$SERVER pid=$SERVER_PID; else at=$BROKER pid=$BROKER_PID; fi
        measure "$name" "$at" "$pid" "$round" one 1 -produce
        measure "$name" "$at" "$pid" "$round" eight 8 -produce
        measure "$name" "$at" "$pid" "$round" one 1
        measure "$name" "$at" "$pid" "$round" one 8
        for topic in one eight; do
            kafka TopicCommand --bootstrap-server "$at" --delete --topic "$topic-$round" >/dev/null
        done
    done
    echo "round $round of $ROUNDS done" >&2
done

# Medians over the rounds, without round 0.
echo "| work | seglog MB/s | Kafka MB/s | seglog CPU s | Kafka CPU s |"
echo "|---|---|---|---|---|"
for work in "-produce 1" "-produce 8" "consume 1" "consume 8"; do
    row="| ${work#-}"
    [ "${work#* }" = 1 ] && row+=" client" || row+=" clients"
    for column in 5 6; do
        for name in seglog kafka; do
            row+=" | $(awk -v n="$name" -v w="$work" -v c="$column" '$1 == n && $2 > 0 && $3 " " $4 == w {print $c}' "$W/results" |
                sort -n | awk '{v[NR] = $1} END {m = int((NR + 1) / 2); print NR % 2 ? v[m] : (v[m] + v[m + 1]) / 2}')"
        done
    done
    echo "$row |"
done
echo
echo "All rounds (server, round, work, clients, MB/s, CPU seconds):"
sed 's/^/    /' "$W/results"
