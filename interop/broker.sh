#!/bin/bash
# A real Kafka broker (one node, KRaft, on loopback) takes over a seglog directory as a topic and gives it back:
# with and without a clean mark, consumed by Kafka's console consumer and by kcat, produced to by both with every codec,
# stopped, opened by seglog, continued by it, and taken to the broker once more.
#
# Exit status: 0 all as it should be, 1 not, 77 a tool that is needed cannot be had (it says which).
# Takes about a minute. KEEP=1 leaves the working directory behind.
set -euo pipefail
cd "$(dirname "$0")"
. ./need.sh

need_tools go java javac mvn kcat awk timeout
need_jars

LIB=$PWD/kafka/target/lib
W=$(mktemp -d "${TMPDIR:-/tmp}/seglog-broker.XXXXXX")
BROKER_PID=
trap finish EXIT
trap 'exit 1' INT TERM

finish() {
    local status=$?
    if [ -n "$BROKER_PID" ]; then
        kill -KILL "$BROKER_PID" 2>/dev/null || true
    fi
    if [ "$status" -ne 0 ] && [ "$status" -ne 77 ]; then
        echo "broker.sh: failed; the end of the broker's log:" >&2
        tail -n 25 "$W/server.log" >&2 2>/dev/null || true
    fi
    if [ -n "${KEEP:-}" ]; then
        echo "broker.sh: kept $W"
    else
        rm -rf "$W"
    fi
    exit "$status"
}

say() { printf '%s broker.sh: %s\n' "$(date +%H:%M:%S)" "$*"; }
fail() {
    echo "broker.sh: $*" >&2
    exit 1
}

# The JVM starts often and briefly here.
JVM=(java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto
    "-Dlog4j2.configurationFile=$W/log4j2.properties" -cp "$LIB/../interop.jar:$LIB/*")

# free_port: below 32768, where Linux takes the ports of outgoing connections from, which come and go.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

write_config() {
    PORT=$(free_port)
    CONTROLLER=$(free_port)
    cat >"$W/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$PORT,CONTROLLER://127.0.0.1:$CONTROLLER
advertised.listeners=PLAINTEXT://127.0.0.1:$PORT
controller.listener.names=CONTROLLER
log.dirs=$W/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
EOF
    cat >"$W/log4j2.properties" <<EOF
appender.file.type = File
appender.file.name = file
appender.file.fileName = $W/server.log
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{ABSOLUTE} %p %m (%c{1})%n
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
EOF
    # The console tools would write into the broker's log.
    cat >"$W/tools-log4j2.properties" <<EOF
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %p %m%n
rootLogger.level = error
rootLogger.appenderRef.stderr.ref = stderr
EOF
}

tool() { # tool MAIN ARGS...
    timeout 60 "${JVM[@]}" "-Dlog4j2.configurationFile=$W/tools-log4j2.properties" "$@"
}

start_broker() {
    : >"$W/server.log"
    "${JVM[@]}" kafka.Kafka "$W/server.properties" >"$W/server.out" 2>&1 &
    BROKER_PID=$!
    local i
    for i in $(seq 120); do
        kill -0 "$BROKER_PID" 2>/dev/null || fail "the broker ended: $(tail -n 5 "$W/server.out")"
        # Up is when it answers with a leader for the topic, if there is one already.
        if kcat -b "127.0.0.1:$PORT" -L -m 2 2>/dev/null >"$W/metadata" &&
            { [ ! -d "$W/data/$TOPIC-0" ] || grep -q 'partition 0, leader 1' "$W/metadata"; }; then
            return
        fi
        sleep 0.25
    done
    fail "the broker did not come up in 30 s"
}

stop_broker() {
    kill -TERM "$BROKER_PID"
    local i
    for i in $(seq 120); do
        if ! kill -0 "$BROKER_PID" 2>/dev/null; then
            wait "$BROKER_PID" || true
            BROKER_PID=
            [ -e "$W/data/.kafka_cleanshutdown" ] || fail "the broker left no .kafka_cleanshutdown"
            return
        fi
        sleep 0.25
    done
    fail "the broker did not stop in 30 s"
}

# Puts the segment files of DIR in the place of the topic's. Without its mark of a clean stop the broker checks what is
# above its recovery point, and all of it once that is gone too.
install_directory() { # DIR clean|unclean
    local dir=$1 t=$W/data/$TOPIC-0
    rm -f "$t"/*.log "$t"/*.index "$t"/*.timeindex "$t"/*.txnindex "$t"/*.snapshot "$t/leader-epoch-checkpoint"
    cp "$dir"/*.log "$dir"/*.index "$dir"/*.timeindex "$t/"
    case $2 in
    clean) [ -e "$W/data/.kafka_cleanshutdown" ] ;;
    unclean) rm "$W/data/.kafka_cleanshutdown" "$W/data/recovery-point-offset-checkpoint" ;;
    esac
}

# The broker has to have gone the way that was asked for.
check_way() { # DIR clean|unclean
    local recovered segments
    recovered=$(grep -F "$TOPIC-0" "$W/server.log" | grep -c 'Recovering unflushed segment' || true)
    segments=$(ls "$1"/*.log | wc -l)
    case $2 in
    clean) [ "$recovered" -eq 0 ] || fail "a clean start recovered $recovered segments" ;;
    unclean) [ "$recovered" -eq "$segments" ] || fail "an unclean start recovered $recovered of $segments segments" ;;
    esac
    if grep -E ' (WARN|ERROR) ' "$W/server.log" | grep -F "$TOPIC-0" >&2; then
        fail "the broker complains about the directory"
    fi
}

# Every record by kcat and by the console consumer, in the form of `topic list`.
by_kcat() {
    timeout 60 kcat -b "127.0.0.1:$PORT" -C -q -e -J -t "$TOPIC" -p 0 -o beginning \
        -X check.crcs=true -X isolation.level=read_uncommitted | "$TOPIC_TOOL" kcat
}

by_console() { # COUNT
    tool org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "127.0.0.1:$PORT" --topic "$TOPIC" \
        --partition 0 --offset earliest --max-messages "$1" --timeout-ms 20000 \
        --formatter-property print.timestamp=true --formatter-property print.offset=true \
        --formatter-property print.headers=true --formatter-property print.key=true \
        --formatter-property headers.separator=, --formatter-property null.literal=NULL 2>"$W/console.err" |
        awk -F'\t' -v OFS='\t' '{
            sub(/^CreateTime:/, "", $1); sub(/^Offset:/, "", $2)
            if ($3 == "NO_HEADERS") $3 = ""; else gsub(/:/, "=", $3)
            print $2, $1, $4, $5, $3
        }'
}

same() { # WHAT GOT
    diff -q "$W/want" "$2" >/dev/null || {
        diff "$W/want" "$2" | head -n 6 >&2
        fail "$1: not what the directory holds ($(wc -l <"$2") lines, expected $(wc -l <"$W/want"))"
    }
    say "$1: $(wc -l <"$2") records, all equal"
}

# Takes DIR to the broker, reads it there, adds to it there, takes it back into DIR.
round() { # DIR clean|unclean
    local dir=$1 way=$2 t=$W/data/$TOPIC-0 codec n
    say "--- $(basename "$dir") to the broker, $way start"
    "$TOPIC_TOOL" list "$dir" "$START" >"$W/want"
    install_directory "$dir" "$way"
    start_broker
    check_way "$dir" "$way"
    # Where a log starts inside its first segment is in no file that moves along.
    printf '{"version":1,"partitions":[{"topic":"%s","partition":0,"offset":%d}]}' "$TOPIC" "$START" >"$W/delete.json"
    tool org.apache.kafka.tools.DeleteRecordsCommand --bootstrap-server "127.0.0.1:$PORT" \
        --offset-json-file "$W/delete.json" >"$W/delete.out"
    by_kcat >"$W/got"
    same "kcat" "$W/got"
    by_console "$(wc -l <"$W/want")" >"$W/got"
    same "console consumer" "$W/got"

    for codec in none gzip snappy lz4 zstd; do
        seq -f "kcat-$codec-%g:by kcat, $codec" 50 |
            kcat -b "127.0.0.1:$PORT" -P -t "$TOPIC" -p 0 -K : -z "$codec" -H "codec=$codec"
    done
    seq -f "by the console producer %g" 50 | tool org.apache.kafka.tools.ConsoleProducer --bootstrap-server "127.0.0.1:$PORT" \
        --topic "$TOPIC" --compression-codec zstd 2>"$W/console.err"
    # Three transactions of ten records, the second one aborted.
    tool seglog.interop.Main produce "127.0.0.1:$PORT" "$TOPIC" 2>"$W/produce.err" || fail "produce: $(tail -n 3 "$W/produce.err")"
    n=$(($(wc -l <"$W/want") + 330))
    by_kcat >"$W/want"
    [ "$(wc -l <"$W/want")" -eq "$n" ] || fail "after producing there are $(wc -l <"$W/want") records, expected $n"
    stop_broker

    rm "$dir"/*.log "$dir"/*.index "$dir"/*.timeindex "$dir/seglog.state"
    cp "$t"/*.log "$t"/*.index "$t"/*.timeindex "$dir/"
    "$TOPIC_TOOL" verify "$dir" >"$W/report" || fail "seglog finds fault with what the broker left: $(cat "$W/report")"
    "$TOPIC_TOOL" list "$dir" "$START" >"$W/got"
    same "seglog, read-only" "$W/got"
    "$TOPIC_TOOL" append "$dir" 100
    "$TOPIC_TOOL" verify "$dir" >"$W/report" || fail "seglog finds fault with what it added: $(cat "$W/report")"
    "$TOPIC_TOOL" list "$dir" "$START" >"$W/got"
    n=$(wc -l <"$W/got")
    head -n -100 "$W/got" >"$W/got.before"
    same "seglog, opened and 100 added" "$W/got.before"
    say "back in seglog with $n records; $(ls "$dir"/*.log | wc -l) segments, $(ls -A "$dir" | grep -v '^[0-9]' | tr '\n' ' ')"
}

TOPIC=moved
TOPIC_TOOL=$W/topic
go build -o "$TOPIC_TOOL" ./cmd/topic
write_config
"$TOPIC_TOOL" fill "$W/seglog" 3000
"$TOPIC_TOOL" verify "$W/seglog" >"$W/report"
START=$("$TOPIC_TOOL" start "$W/seglog")

say "a broker with an empty topic"
tool kafka.tools.StorageTool format -t "$(tool kafka.tools.StorageTool random-uuid)" -c "$W/server.properties" >"$W/format.out"
start_broker
tool org.apache.kafka.tools.TopicCommand --bootstrap-server "127.0.0.1:$PORT" --create --topic "$TOPIC" \
    --partitions 1 --replication-factor 1 --config retention.ms=-1 --config segment.bytes=1048576 >"$W/create.out"
stop_broker

round "$W/seglog" clean
round "$W/seglog" unclean
say "all as it should be"
