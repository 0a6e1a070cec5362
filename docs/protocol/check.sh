#!/usr/bin/env bash
# Checks marker.pml and move.pml exhaustively with spin: what has to hold, holds; what is sabotaged,
# fails.
#   docs/protocol/check.sh           seconds for each variant
#   docs/protocol/check.sh --quick   two that hold and two that fail
#   docs/protocol/check.sh --long    larger ones too: minutes, and up to 6 GiB of memory
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
bad=0
model=marker.pml

run() { # run holds|"ASSERTION THAT FAILS" FLAG...
    local expected="$1" found
    shift
    spin -a "$@" "$here/$model" >spin.out 2>&1 || { cat spin.out >&2; exit 2; }
    gcc -w -O1 -DSAFETY -DCOLLAPSE -DMEMLIM=6000 -o pan pan.c
    ./pan -m1000000 -n >pan.out 2>&1 || true
    if grep -q "max search depth too small\|reached -DMEMLIM\|out of memory" pan.out; then
        found="not searched to the end"
    elif grep -q "errors: 0$" pan.out; then
        found="holds"
    else
        found="$(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' pan.out)"
    fi
    local states
    states="$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.out)"
    echo "$model ${*:-(as it is)}: $states states: ${found:-no verdict}"
    if [[ -z "$found" || "$found" != *"$expected"* ]]; then
        echo "  expected: $expected" >&2
        bad=1
    fi
}

if [[ "${1:-}" == --quick ]]; then
    run holds -DMSGS=1
    run holds -DCRASH -DMSGS=0 -DOPS=1
    run "prefix" -DNO_GATE -DMSGS=0 -DOPS=2
    run "shown" -DCRASH -DDECISION_FORGOTTEN -DMSGS=0 -DOPS=1
    model=move.pml
    run holds -DCRASH=2
    run "s_shown" -DCRASH=1 -DNOT_HIDDEN_AGAIN
    run "places" -DNOT_RECORDED
    exit "$bad"
fi
run holds
run holds -DTIMEOUTS -DMSGS=0 -DOPS=2
run holds -DCRASH -DMSGS=1 -DOPS=1
run holds -DCRASH -DMSGS=0 -DOPS=2
run "prefix" -DNO_GATE -DMSGS=0
run "phase" -DLOSE_MARKER -DMSGS=0 -DOPS=2
run "cut_sent" -DNO_RECORD -DMSGS=1 -DOPS=1
run "shown" -DCRASH -DPREPARED_FORGOTTEN -DMSGS=0 -DOPS=1
run "shown" -DCRASH -DDECISION_FORGOTTEN -DMSGS=0 -DOPS=1
model=move.pml
run holds
run holds -DCRASH=1
run holds -DCRASH=2
run "s_shown" -DCRASH=1 -DNOT_HIDDEN_AGAIN
run "s_shown" -DCRASH=1 -DGIVEN_EARLY
run "s_shown" -DCRASH=1 -DTAKEN_EARLY
run "places" -DNOT_RECORDED
run "places" -DNOT_RECORDED_UNLINKED
run "places" -DNOT_DELIVERED
run "places" -DCRASH=1 -DSAID_LATE
model=marker.pml
if [[ "${1:-}" == --long ]]; then
    run holds -DSNAPSHOTS=2 -DMSGS=0 -DOPS=2
    run holds -DCRASH -DTIMEOUTS -DMSGS=0 -DOPS=2
    run holds -DCRASH -DMSGS=2 -DOPS=2
fi
exit "$bad"
