#!/bin/sh
# Builds each csrc/tests/test_*.c with all of csrc under AddressSanitizer and
# UndefinedBehaviorSanitizer, and those with several threads under ThreadSanitizer too, and runs it.
# Ends with 0 only if every program does. Needs gcc or clang (CC chooses), nothing else.
set -eu
cd "$(dirname "$0")/.."
CC=${CC:-cc}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-g -O1 -std=gnu11 -Wall -Wextra -Wno-unused-parameter -UNDEBUG -fno-omit-frame-pointer
       -fno-sanitize-recover=all -Icsrc"
threaded="columns gate lane pages pages_lane"

build() { # what to build with, and where; a compiler for each processor
    mkdir "$work/$1"
    for source in csrc/*.c; do
        echo "-c $source -o $work/$1/$(basename "$source" .c).o"
    done | xargs -P "$(nproc)" -L 1 "$CC" $flags "-fsanitize=$1"
}

link() { # the same, and the names of programs
    with=$1
    shift
    for name in "$@"; do
        echo "csrc/tests/test_$name.c $work/$with/*.o -o $work/$with/$name -lpthread"
    done | xargs -P "$(nproc)" -I WORDS sh -c "exec $(echo $CC $flags) -fsanitize=$with WORDS"
}

failed=0
told() { # whether it went well, what ran
    if [ "$1" = 0 ]; then echo "sanitize: $2 ok"; else echo "sanitize: $2 FAILED" >&2; failed=1; fi
}

all=$(for test in csrc/tests/test_*.c; do basename "$test" .c | cut -d_ -f2-; done)
build address,undefined
link address,undefined $all
for name in $all; do
    code=0
    (cd "$work" && UBSAN_OPTIONS=print_stacktrace=1 "./address,undefined/$name") || code=$?
    told $code "$name"
done

build thread
link thread $threaded
for name in $threaded; do # the sanitizer wants fewer random addresses than kernels give
    code=0
    (cd "$work" && TSAN_OPTIONS=halt_on_error=1 setarch -R "./thread/$name") || code=$?
    told $code "$name, threads"
done
exit $failed
