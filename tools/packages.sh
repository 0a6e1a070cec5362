#!/usr/bin/env bash
# Makes sure that this machine has the system packages that raidfs needs.
#   tools/packages.sh build|test
# Looks for what is used (a command, a header), not for package names, so it also serves other
# distributions; only installing is Debian's. As root what is missing is installed; others are
# told the command.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
purpose="${1:-build}"
python="${PYTHON:-python3}"
packages=()

need() { # need PACKAGE TEST...: PACKAGE goes on the list unless TEST succeeds
    local package="$1"
    shift
    if ! "$@" >/dev/null 2>&1; then packages+=("$package"); fi
}
have() { command -v "$1"; }
python_header() {
    "$python" -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))'
}

need gcc have gcc
need libc6-dev test -e /usr/include/stdio.h
need pkg-config have pkg-config
need libfuse3-dev pkg-config --exists fuse3
need fuse3 have fusermount3
need python3 have "$python"
need python3-venv "$python" -c 'import ensurepip, venv'
need python3-dev python_header
need mount have losetup
if [[ "$purpose" == test ]]; then
    need fio have fio
    need acl have getfacl
    need attr have setfattr
    need sqlite3 have sqlite3
    need git have git
    need e2fsprogs have mkfs.ext4
    need xfsprogs have xfs_io
    need diffutils have diff
    need rsync have rsync
    need spin have spin
    need procps have ps
    need groff-base have groff
    need man-db have man
    need systemd have systemd-analyze
fi
if [[ ${#packages[@]} -gt 0 ]]; then
    if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
        echo "these packages are missing: ${packages[*]}" >&2
        echo "install them, e.g.: sudo apt-get install --no-install-recommends ${packages[*]}" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q </dev/null
    apt-get install -q -y --no-install-recommends "${packages[@]}" </dev/null
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "raidfs needs Python 3.11 or newer; $python is $("$python" -V)." \
        "Run: make PYTHON=/path/to/python3.11 build" >&2
    exit 1
fi
