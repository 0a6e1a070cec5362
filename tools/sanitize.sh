#!/bin/sh
# Builds each csrc/tests/test_*.c with all of csrc under AddressSanitizer and
# UndefinedBehaviorSanitizer, and runs it. Ends with 0 only if every program does. Needs gcc or
# clang (CC chooses), nothing else.
set -eu
cd "$(dirname "$0")/.."
CC=${CC:-cc}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-g -O1 -std=gnu11 -Wall -Wextra -Wno-unused-parameter -UNDEBUG -fno-omit-frame-pointer
       -fsanitize=address,undefined -fno-sanitize-recover=all"

for source in csrc/*.c; do
    # shellcheck disable=SC2086 # the flags are words
    $CC $flags -Icsrc -c "$source" -o "$work/$(basename "$source" .c).o"
done
failed=0
for test in csrc/tests/test_*.c; do
    name=$(basename "$test" .c)
    # shellcheck disable=SC2086
    $CC $flags -Icsrc "$test" "$work"/*.o -o "$work/$name" -lpthread
    if (cd "$work" && UBSAN_OPTIONS=print_stacktrace=1 "./$name"); then
        echo "sanitize: $name ok"
    else
        echo "sanitize: $name FAILED" >&2
        failed=1
    fi
done
exit $failed
