#!/bin/bash
# Runs other people's Kafka clients, unchanged, against this server on loopback: kcat, librdkafka's performance tool and
# Kafka's own command line tools. Then looks, with strace, at how a fetch leaves the server, kills the server, and copies
# from it to a real broker. What cannot be had here is skipped, and said.
#
# Exit status: 0 unless a check failed. Takes about two minutes. KEEP=1 leaves the working directory behind.
set -uo pipefail
. "$(dirname "$0")/tools/lib.sh" || exit 1

start_server
B=(--bootstrap-server "$SERVER")

kcat_checks() {
    have kcat || { skip "kcat: cannot be had"; return; }
    local sent codec
    sent=$(for i in $(seq 500); do echo "key$i:value $i"; done)
    for codec in none gzip snappy lz4 zstd; do
        kcat -b "$SERVER" -P -K: -t "kcat-$codec" -z "$codec" <<<"$sent" 2>"$W/kcat.err"
        want "kcat: produce and consume, $codec" "$sent" "$(timeout 20 kcat -b "$SERVER" -C -q -e -K: -t "kcat-$codec" 2>&1)"
    done
    kcat -b "$SERVER" -P -t kcat-headers -H color=blue -H size=9 <<<"x" 2>/dev/null
    want "kcat: headers" "color=blue,size=9 x" "$(timeout 20 kcat -b "$SERVER" -C -q -e -t kcat-headers -f '%h %s\n' 2>&1)"
    kcat -b "$SERVER" -P -t kcat-idempotent -X enable.idempotence=true -X acks=all <<<"$sent" 2>"$W/kcat.err"
    want "kcat: idempotent producer" 500 "$(timeout 20 kcat -b "$SERVER" -C -q -e -t kcat-idempotent 2>/dev/null | wc -l)"
    want "kcat: last two" "$(tail -n 2 <<<"$sent")" "$(timeout 20 kcat -b "$SERVER" -C -q -e -K: -t kcat-none -o -2 2>&1)"
    has "kcat: metadata" 'topic "kcat-zstd" with 1 partitions' "$(kcat -b "$SERVER" -L 2>&1)"
    has "kcat: offset by time" 'kcat-zstd \[0\] offset 0' "$(kcat -b "$SERVER" -Q -t kcat-zstd:0:1000000000000 2>&1)"
    want "kcat: group" 500 "$(timeout 30 kcat -b "$SERVER" -G kcat -q -e -X auto.offset.reset=earliest kcat-lz4 2>/dev/null | wc -l)"
    want "kcat: group goes on where it was" 0 "$(timeout 30 kcat -b "$SERVER" -G kcat -q -e -X auto.offset.reset=earliest kcat-lz4 2>/dev/null | wc -l)"
    has "kcat: transactions are refused, with a reason" 'transaction|Transactional' "$(timeout 20 kcat -b "$SERVER" -P -t kcat-none -X transactional.id=x <<<"x" 2>&1)"
}

rdkafka_checks() {
    local source=/usr/share/doc/librdkafka-dev/examples/rdkafka_performance.c
    [ -e "$source" ] || [ -e "$source.gz" ] || install_package librdkafka-dev
    [ -e "$source.gz" ] && gunzip -c "$source.gz" >"$W/rdkafka_performance.c"
    [ -e "$source" ] && cp "$source" "$W/rdkafka_performance.c"
    if ! [ -e "$W/rdkafka_performance.c" ] || ! have cc gcc; then
        skip "rdkafka_performance: librdkafka-dev or a C compiler cannot be had"
        return
    fi
    # The package has the program but not the private headers it takes a clock and some macros from.
    mkdir -p "$W/rd/src" "$W/rd/examples"
    mv "$W/rdkafka_performance.c" "$W/rd/examples/"
    touch "$W/rd/src/rd.h" "$W/rd/examples/rdtime.h"
    cat >"$W/rd/examples/rd.h" <<'EOF'
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
typedef int64_t rd_ts_t;
#define RD_MIN(a, b) ((a) < (b) ? (a) : (b))
#define RD_MAX(a, b) ((a) > (b) ? (a) : (b))
#define rd_snprintf snprintf
static inline rd_ts_t rd_clock(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (rd_ts_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}
EOF
    if ! cc -O1 -w -I/usr/include/librdkafka -o "$W/rdkafka_performance" "$W/rd/examples/rdkafka_performance.c" -lrdkafka -lz 2>"$W/cc.log"; then
        skip "rdkafka_performance: does not compile: $(head -n 1 "$W/cc.log")"
        return
    fi
    local out
    out=$(timeout 60 "$W/rdkafka_performance" -P -b "$SERVER" -t rdkafka -s 1000 -c 200000 2>&1)
    has "rdkafka_performance: produces $(grep -oE '[0-9.]+ MB/s' <<<"$out" | tail -n 1)" '200000 messages (produced|delivered)' "$out"
    out=$(timeout 60 "$W/rdkafka_performance" -C -b "$SERVER" -t rdkafka -p 0 -o beginning -c 200000 2>&1)
    has "rdkafka_performance: consumes $(grep -oE '[0-9.]+ MB/s' <<<"$out" | tail -n 1)" '200000 messages' "$out"
}

topic_checks() {
    has "kafka-topics --create" 'Created topic tools' "$(kafka TopicCommand "${B[@]}" --create --topic tools --partitions 3 --config retention.ms=3600000)"
    has "kafka-topics --create, again" "already exists" "$(kafka TopicCommand "${B[@]}" --create --topic tools)"
    has "kafka-topics --create, what is not supported" 'cleanup.policy can only be delete' "$(kafka TopicCommand "${B[@]}" --create --topic compacted --config cleanup.policy=compact)"
    has "kafka-topics --describe" 'PartitionCount: 3.*retention.ms=3600000' "$(kafka TopicCommand "${B[@]}" --describe --topic tools)"
    has "kafka-topics --list" '^tools$' "$(kafka TopicCommand "${B[@]}" --list)"
    kafka TopicCommand "${B[@]}" --alter --topic tools --partitions 4 >"$W/out"
    has "kafka-topics --alter --partitions" 'PartitionCount: 4' "$(kafka TopicCommand "${B[@]}" --describe --topic tools)"
    local config=(java -cp "$HERE/build/lib/*" -Dorg.slf4j.simpleLogger.defaultLogLevel=error kafka.admin.ConfigCommand "${B[@]}" --entity-type topics --entity-name tools)
    has "kafka-configs --alter" 'Completed updating' "$("${config[@]}" --alter --add-config retention.ms=7200000,segment.bytes=1048576 2>&1)"
    has "kafka-configs --describe" 'retention.ms=7200000' "$("${config[@]}" --describe 2>&1)"
    kafka TopicCommand "${B[@]}" --create --topic gone >"$W/out"
    kafka TopicCommand "${B[@]}" --delete --topic gone >"$W/out"
    want "kafka-topics --delete" 0 "$(kafka TopicCommand "${B[@]}" --list | grep -c '^gone$')"
}

# lag adds up what kafka-consumer-groups says of the topic tools.
lag() { awk '$2 == "tools" {n++; lag += $6} END {print n + 0 " partitions, lag " lag + 0}'; }

console_checks() {
    seq 1000 | kafka ConsoleProducer "${B[@]}" --topic tools >"$W/out"
    want "kafka-console-producer and -consumer" "$(seq 1000)" \
        "$(kafka consumer.ConsoleConsumer "${B[@]}" --topic tools --group readers --from-beginning --max-messages 1000 2>&1 | grep -E '^[0-9]+$' | sort -n)"
    has "kafka-console-consumer, partition and offset" 'Processed a total of 1 messages' \
        "$(kafka consumer.ConsoleConsumer "${B[@]}" --topic kcat-none --partition 0 --offset 7 --max-messages 1)"
    local groups=(consumer.group.ConsumerGroupCommand "${B[@]}")
    has "kafka-consumer-groups --list" '^readers$' "$(kafka "${groups[@]}" --list)"
    want "kafka-consumer-groups --describe: no lag" "4 partitions, lag 0" "$(kafka "${groups[@]}" --describe --group readers | lag)"
    kafka "${groups[@]}" --reset-offsets --group readers --topic tools --to-earliest --execute >"$W/out"
    want "kafka-consumer-groups --reset-offsets" "4 partitions, lag 1000" "$(kafka "${groups[@]}" --describe --group readers | lag)"
    has "kafka-consumer-groups --delete" 'successful' "$(kafka "${groups[@]}" --delete --group readers)"
    want "kafka-get-offsets" "kcat-none:0:500" "$(kafka GetOffsetShell "${B[@]}" --topic kcat-none)"
    echo '{"partitions": [{"topic": "kcat-none", "partition": 0, "offset": 100}], "version": 1}' >"$W/delete.json"
    kafka DeleteRecordsCommand "${B[@]}" --offset-json-file "$W/delete.json" >"$W/out"
    want "kafka-delete-records" "kcat-none:0:100" "$(kafka GetOffsetShell "${B[@]}" --topic kcat-none --time earliest)"
}

perf_checks() {
    local out
    out=$(kafka ProducerPerformance --topic perf --num-records 200000 --record-size 1000 --throughput -1 --producer-props "bootstrap.servers=$SERVER")
    has "kafka-producer-perf-test: $(grep -oE '\([0-9.]+ MB/sec\)' <<<"$out" | tail -n 1)" '^200000 records sent' "$out"
    out=$(kafka ConsumerPerformance "${B[@]}" --topic perf --messages 200000)
    has "kafka-consumer-perf-test: $(tail -n 1 <<<"$out" | awk -F', ' '{print $9}') MB/s fetched" ', 200[0-9]{3}, ' "$out"
}

sendfile_check() {
    have strace || { skip "strace: cannot be had"; return; }
    have kcat || { skip "strace: no kcat to consume with"; return; }
    head -c 50000000 /dev/zero | tr '\0' 'z' | fold -w 10000 | kcat -b "$SERVER" -P -t large -X batch.size=1000000 2>/dev/null
    strace -f -e trace=sendfile,splice,sendmsg,write,writev -o "$W/strace" -p "$SERVER_PID" 2>"$W/strace.err" &
    local tracer=$!
    sleep 1
    if ! kill -0 "$tracer" 2>/dev/null; then
        skip "strace: may not attach here: $(head -n 1 "$W/strace.err")"
        return
    fi
    timeout 60 kcat -b "$SERVER" -C -q -e -t large >"$W/large" 2>/dev/null
    kill -INT "$tracer"
    wait "$tracer" 2>/dev/null
    local by_sendfile by_splice by_copy total said
    # "sendfile(9, 12, [0] => [65536], 65536) = 65536": the last number is what was sent, also where another thread's call
    # comes between and the result stands in a second line. Large sections go into a pipe by one splice and out of it,
    # which is what counts, by another: "splice(13, NULL, 9, NULL, 65536, ...) = 65536".
    read -r by_sendfile by_splice by_copy < <(awk '
        match($0, /(sendfile|splice|sendmsg|write|writev)\(/) {
            call[$1] = substr($0, RSTART, RLENGTH - 1)
            if (call[$1] == "splice" && $0 !~ /splice\([0-9]+, NULL/) call[$1] = ""
        }
        / = [0-9]+$/ {n[call[$1]] += $NF}
        END {print n["sendfile"] + 0, n["splice"] + 0, n["sendmsg"] + n["write"] + n["writev"] + 0}' "$W/strace")
    total=$(wc -c <"$W/large")
    grep -E -m 3 'sendfile|splice' "$W/strace" | sed 's/^/      /'
    said="strace: a consumer of $total bytes got $by_sendfile by sendfile, $by_splice by splice, $by_copy by write and send"
    # A last section of up to 64 KiB may leave in one write with its header, which is faster (Section.SetHeader).
    if [ $((by_sendfile + by_splice + by_copy)) -ge "$total" ] && [ "$by_copy" -lt $((total / 100 + 65536)) ]; then
        ok "$said"
    else
        bad "$said"
    fi
}

kill_check() {
    have kcat || { skip "kill -9: no kcat"; return; }
    local sent
    sent=$(seq 5000)
    kcat -b "$SERVER" -P -t killed -X acks=1 <<<"$sent" 2>/dev/null
    kill -KILL "$SERVER_PID"
    wait "$SERVER_PID" 2>/dev/null
    start_server
    want "kill -9: all that was acknowledged is there" "$sent" "$(timeout 20 kcat -b "$SERVER" -C -q -e -t killed 2>&1)"
}

copy_checks() {
    start_broker
    go build -o "$W/copy" ./copy
    local show='%p %o %T %k %h %S %s\n'
    kcat -b "$SERVER" -P -t moved -K: -H from=here <<<"$(for i in $(seq 3000); do echo "k$i:v$i"; done)" 2>/dev/null
    "$W/copy" -from "$SERVER" -to "$BROKER" -topics moved -to-end 2>"$W/copy.log" || bad "copy: $(tail -n 1 "$W/copy.log")"
    want "copy: to a real broker, offsets, times, keys, headers and values alike" \
        "$(kcat -b "$SERVER" -C -q -e -t moved -f "$show" 2>&1 | md5sum)" "$(timeout 30 kcat -b "$BROKER" -C -q -e -t moved -f "$show" 2>&1 | md5sum)"
    kcat -b "$SERVER" -P -t moved -K: <<<"late:record" 2>/dev/null
    "$W/copy" -from "$SERVER" -to "$BROKER" -topics moved -to-end 2>"$W/copy.log"
    want "copy: started again, goes on from there" 3001 "$(timeout 30 kcat -b "$BROKER" -C -q -e -t moved 2>/dev/null | wc -l)"
}

mirror_check() {
    cat >"$W/mirror.properties" <<EOF
clusters = seglog, cluster
seglog.bootstrap.servers = $SERVER
cluster.bootstrap.servers = $BROKER
seglog->cluster.enabled = true
seglog->cluster.topics = moved
cluster->seglog.enabled = false
seglog->cluster.emit.heartbeats.enabled = false
cluster->seglog.emit.heartbeats.enabled = false
emit.checkpoints.enabled = false
sync.topic.acls.enabled = false
offset-syncs.topic.location = target
replication.factor = 1
offset-syncs.topic.replication.factor = 1
config.storage.replication.factor = 1
offset.storage.replication.factor = 1
status.storage.replication.factor = 1
EOF
    java -Xmx512m -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dlog4j2.level=WARN -cp "$HERE/build/lib/*" \
        org.apache.kafka.connect.mirror.MirrorMaker "$W/mirror.properties" --clusters cluster >"$W/mirror.log" 2>&1 &
    local pid=$! got=0
    PIDS+=("$pid")
    for _ in $(seq 60); do
        got=$(timeout 10 kcat -b "$BROKER" -C -q -e -t seglog.moved 2>/dev/null | wc -l)
        [ "$got" -ge 3001 ] && break
        sleep 1
    done
    want "MirrorMaker: this server as its source" 3001 "$got"
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
}

kcat_checks
rdkafka_checks
if need_kafka; then
    topic_checks
    console_checks
    perf_checks
else
    skip "Kafka's tools: $WHY"
fi
sendfile_check
kill_check
if need_kafka && have kcat; then
    copy_checks
    mirror_check
else
    skip "copy to a real broker: $WHY"
fi
echo "$PASSED passed, $FAILED failed, $SKIPPED skipped"
[ "$FAILED" -eq 0 ]
