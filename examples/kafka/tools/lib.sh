# Sourced by check.sh and compare.sh: Kafka's own programs, the two servers, and the counting of checks.

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
W=$(mktemp -d "${TMPDIR:-/tmp}/seglog-kafka.XXXXXX")
PIDS=()

finish() {
    local status=$?
    for pid in "${PIDS[@]}"; do { kill -KILL "$pid" && wait "$pid"; } 2>/dev/null || true; done
    if [ -n "${KEEP:-}" ]; then echo "kept $W"; else rm -rf "$W"; fi
    exit "$status"
}
trap finish EXIT
trap 'exit 1' INT TERM

PASSED=0 FAILED=0 SKIPPED=0
ok() { PASSED=$((PASSED + 1)); echo "ok    $*"; }
bad() { FAILED=$((FAILED + 1)); echo "FAIL  $*"; }
skip() { SKIPPED=$((SKIPPED + 1)); echo "skip  $*"; }

# want NAME EXPECTED GOT
want() {
    if [ "$2" = "$3" ]; then ok "$1"; else
        bad "$1"
        printf '      want: %s\n      got:  %s\n' "$(head -c 400 <<<"$2")" "$(head -c 400 <<<"$3")"
    fi
}

# has NAME PATTERN TEXT: some line matches.
has() {
    if grep -qE -- "$2" <<<"$3"; then ok "$1"; else
        bad "$1"
        printf '      no line matches %s in:\n%s\n' "$2" "$(tail -n 5 <<<"$3" | cut -c1-300)"
    fi
}

# install_package NAME, where that is possible.
install_package() {
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return
    apt-get update -q >/dev/null 2>&1 || true
    DEBIAN_FRONTEND=noninteractive timeout 180 apt-get install -q -y --no-install-recommends "$1" >/dev/null 2>&1
}

# have TOOL [PACKAGE]: it is here, or could be installed.
have() {
    command -v "$1" >/dev/null && return
    install_package "${2:-$1}" || true
    command -v "$1" >/dev/null
}

# need_kafka: Kafka's jars are in build/lib, or WHY says why not. A cache that is complete needs no network.
need_kafka() {
    WHY="no Java or no Maven here"
    have java openjdk-17-jre-headless && have mvn maven || return
    [ "$HERE/build/lib" -nt "$HERE/tools/pom.xml" ] && return
    rm -rf "$HERE/build/lib"
    local get=(mvn -q -B -f "$HERE/tools/pom.xml" dependency:copy-dependencies "-DoutputDirectory=$HERE/build/lib")
    "${get[@]}" -o >"$W/mvn.log" 2>&1 || timeout 300 "${get[@]}" >"$W/mvn.log" 2>&1 || {
        WHY="Kafka's jars cannot be had: $(grep -m 1 ERROR "$W/mvn.log")"
        rm -rf "$HERE/build/lib"
        return 1
    }
    touch "$HERE/build/lib"
}

# kafka CLASS ARG...: one of Kafka's command line tools.
kafka() {
    timeout 90 java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=error \
        -Dlog4j2.level=ERROR -cp "$HERE/build/lib/*" "org.apache.kafka.tools.$1" "${@:2}" 2>&1
}

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

await_port() {
    for _ in $(seq 300); do
        (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
        sleep 0.1
    done
    echo "nothing listens on port $1:" >&2
    tail -n 20 "$2" >&2
    exit 1
}

# start_server [FLAG...]: ours, on $SERVER, as process $SERVER_PID. Started again it finds what it had.
start_server() {
    : "${SERVER:=127.0.0.1:$(free_port)}"
    "$W/kafka" -dir "$W/data" -listen "$SERVER" "$@" >>"$W/server.log" 2>&1 &
    SERVER_PID=$!
    PIDS+=("$SERVER_PID")
    await_port "${SERVER#*:}" "$W/server.log"
}

# start_broker: Kafka's, one node, on $BROKER, as process $BROKER_PID, with the heap that its start script gives it.
start_broker() {
    local controller
    BROKER=127.0.0.1:$(free_port)
    controller=127.0.0.1:$(free_port)
    cat >"$W/broker.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@$controller
listeners=PLAINTEXT://$BROKER,CONTROLLER://$controller
advertised.listeners=PLAINTEXT://$BROKER
controller.listener.names=CONTROLLER
log.dirs=$W/broker
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
log.segment.bytes=134217728
EOF
    local jvm=(java -Xms1G -Xmx1G -XX:+UseG1GC -server -Dorg.slf4j.simpleLogger.defaultLogLevel=error -Dlog4j2.level=ERROR -cp "$HERE/build/lib/*")
    "${jvm[@]}" kafka.tools.StorageTool format -t MkU3OEVBNTcwNTJENDM2Qk -c "$W/broker.properties" >"$W/broker.log" 2>&1
    "${jvm[@]}" kafka.Kafka "$W/broker.properties" >>"$W/broker.log" 2>&1 &
    BROKER_PID=$!
    PIDS+=("$BROKER_PID")
    await_port "${BROKER#*:}" "$W/broker.log"
}

cd "$HERE"
go build -o "$W/kafka" .
