#!/bin/sh
# Compiles the kernels and their C tests for 64-bit Arm and runs them under emulation, on machines
# that are not Arm. Needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user (Debian's names).
set -eu
cd "$(dirname "$0")/.."
CC=${CC:-aarch64-linux-gnu-gcc}
for command in "$CC" qemu-aarch64; do
    if ! command -v "$command" >/dev/null; then
        echo "cross_arm: $command is not installed; on Debian:" \
            "apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user" >&2
        exit 1
    fi
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
kernels="csrc/gf256.c csrc/gf256_x86.c csrc/gf256_arm.c csrc/crc32c.c csrc/encode.c csrc/self_test.c
         csrc/cells.c"
for name in test_erasure test_cells; do
    # shellcheck disable=SC2086 # the kernels are words
    "$CC" -O3 -std=gnu11 -Wall -Wextra -static -Icsrc $kernels "csrc/tests/$name.c" -o "$work/$name"
    (cd "$work" && qemu-aarch64 "./$name")
    echo "cross_arm: $name ok"
done
