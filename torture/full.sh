#!/usr/bin/env bash
# Fills a disk and makes room again, without reopening the log: on a 16 MiB ext4 on a loop device, on small xfs and
# btrfs ones (btrfs is written by pwrite, not through a mapping), on a tmpfs, and under a file size limit. torture/worker
# demands that the append that finds no room says so (file, operation, ENOSPC) and stores nothing, that all is read
# meanwhile, and that appends work again once there is room: first a file of somebody else goes, then the log's own
# oldest half. Then the disk is filled a third time and the log closed, and after a reopen everything must be there.
#
#   torture/full.sh              all
#   torture/full.sh ext4 tmpfs   some of: ext4 xfs btrfs tmpfs limit
#
# Needs root and loop devices; each part that the machine can't do is skipped with the reason.
set -u -o pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d) failures=0 device=""
clean() {
  mountpoint -q "$work/mnt" && umount "$work/mnt"
  [[ -n $device ]] && losetup -d "$device"
  device=""
}
trap 'clean; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
mkdir "$work/mnt"
go build -o "$work/worker" ./torture/worker || exit 1

parts=${*:-ext4 xfs btrfs tmpfs limit}
wanted() { [[ " $parts " == *" $1 "* ]]; }
skip() { echo "$name: skipped: $1"; }

# fill POLICY: the worker on what is mounted, and the proof afterwards with a bit of room.
fill() {
  local policy=$1 dir=$work/mnt/log ballast=$work/mnt/ballast spare=$work/mnt/spare filler=$work/mnt/filler free
  rm -rf "$dir" "$ballast" "$spare" "$filler"
  sync -f "$work/mnt"
  free=$(df --output=avail -B 1M "$work/mnt" | tail -1)
  ((free > 18)) && head -c $((free - 16))M /dev/zero >"$filler" # larger ones too have 16 MiB for all the rest
  head -c 4M /dev/zero >"$ballast"
  head -c 3M /dev/zero >"$spare"
  sync -f "$work/mnt"
  if ! "$work/worker" -dir "$dir" -op fill -policy "$policy" -ballast "$ballast" -spare "$spare" >"$work/journal" 2>"$work/said"; then
    failures=$((failures + 1))
    echo "$name, $policy: FAILED: $(grep -v '^event:' "$work/said" | tail -1)"
    if [[ -n ${KEEP:-} ]]; then
      df "$work/mnt"
      ls -la "$dir"
      cat "$work/said"
    fi
    return
  fi
  rm -f "$spare" "$filler"
  prove "$policy" "$dir"
}

prove() {
  if ! "$work/worker" -dir "$2" -op check -policy "$1" -journal "$work/journal" >"$work/checked" 2>&1; then
    failures=$((failures + 1))
    echo "$name, $1: FAILED after the reopen: $(tail -1 "$work/checked")"
    return
  fi
  echo "$name, $1: $(grep -c '^full' "$work/said") times full ($(grep -c '^refused' "$work/journal") appends refused)," \
    "$(grep -o 'again after .*' "$work/said" | tr '\n' ' ')| $(grep '^good' "$work/checked" | head -1)"
}

on_device() {
  name=$1
  local size=$2
  shift 2
  if ((EUID != 0)); then skip "needs root"; return; fi
  if ! command -v "mkfs.$name" >/dev/null; then skip "mkfs.$name is not installed"; return; fi
  truncate -s "$size" "$work/image"
  if ! device=$(losetup -f --show "$work/image" 2>"$work/why"); then
    device=""; skip "no loop device: $(head -1 "$work/why")"
  elif ! "mkfs.$name" "$@" "$device" >"$work/why" 2>&1; then skip "mkfs: $(tail -1 "$work/why")"
  elif ! mount -t "$name" "$device" "$work/mnt" 2>"$work/why"; then skip "mount: $(head -1 "$work/why")"
  else
    for policy in sync async none; do fill $policy; done
  fi
  clean
  rm -f "$work/image"
}

wanted ext4 && on_device ext4 16M -q
wanted xfs && on_device xfs 300M -q # the least that mkfs.xfs makes
wanted btrfs && on_device btrfs 120M -q -M # mixed block groups, as small ones have

name=tmpfs
if ! wanted tmpfs; then :
elif ((EUID != 0)); then skip "needs root"
elif ! mount -t tmpfs -o size=16M tmpfs "$work/mnt" 2>"$work/why"; then skip "mount: $(head -1 "$work/why")"
else
  for policy in sync async none; do fill $policy; done
fi
clean

# A limit on the size of a file: EFBIG. It is raised from outside once the worker has met it.
name="file size limit"
if ! wanted limit; then :
elif ! command -v prlimit >/dev/null; then skip "prlimit is not installed"; else
  for policy in sync async none; do
    rm -rf "$work/log"
    touch "$work/ballast"
    (ulimit -S -f 2048; exec "$work/worker" -dir "$work/log" -op fill -policy $policy -ballast "$work/ballast" -rounds 1 -segment $((8 << 20))) \
      >"$work/journal" 2>"$work/said" &
    worker=$!
    for ((i = 0; i < 600; i++)); do
      [[ -e $work/ballast ]] || break # the worker removes it when it has met the limit
      sleep 0.05
    done
    prlimit --pid $worker --fsize=unlimited:unlimited 2>/dev/null
    if wait $worker; then prove $policy "$work/log"; else
      failures=$((failures + 1))
      echo "$name, $policy: FAILED: $(grep -v '^event:' "$work/said" | tail -1)"
    fi
  done
fi
echo "$failures failures"
((failures == 0))
