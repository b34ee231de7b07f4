# Sourced: gets what a script here needs, or says what cannot be had and ends with status 77.

skip() {
    echo "$(basename "$0"): skipped: $*" >&2
    exit 77
}

# need_tools NAME...: installs the missing ones where that is possible.
need_tools() {
    local tool package missing=()
    for tool in "$@"; do
        command -v "$tool" >/dev/null && continue
        case $tool in
        java | javac) package=openjdk-17-jdk-headless ;;
        mvn) package=maven ;;
        awk) package=mawk ;;
        timeout) package=coreutils ;;
        *) package=$tool ;;
        esac
        missing+=("$package")
    done
    if [ "${#missing[@]}" -gt 0 ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q >/dev/null 2>&1 || true
        DEBIAN_FRONTEND=noninteractive timeout 180 apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || true
    fi
    for tool in "$@"; do
        command -v "$tool" >/dev/null || skip "no $tool here, and it could not be installed"
    done
}

# need_jars: kafka/target has our jar and the ones of Kafka. Offline first: a cache that is complete needs no network.
need_jars() {
    local pom=kafka/pom.xml jar=kafka/target/interop.jar
    if [ -e "$jar" ] && [ -z "$(find "$pom" kafka/src -newer "$jar" -print -quit)" ]; then
        return
    fi
    # Jars of another version must not stay beside the new ones.
    rm -rf kafka/target
    (cd kafka && { mvn -q -B -o package || timeout 240 mvn -q -B package; }) >kafka-build.log 2>&1 ||
        skip "Kafka's jars cannot be had: $(grep -m 1 ERROR kafka-build.log)"
    rm -f kafka-build.log
}
