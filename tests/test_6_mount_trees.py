"""Trees of thousands of files on a real mount: copied, compared, packed, compiled, run, from memory
and again after a new mount with members missing."""

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from mounting import run

pytestmark = pytest.mark.mount

PROJECT = Path(__file__).resolve().parent.parent
LIBRARY = Path(sysconfig.get_path("stdlib"))
LEFT_OUT = ("site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3")


def copy_library(target):
    """The sources of Python's own library: thousands of files of all sizes."""
    words = [f"--exclude={name}" for name in LEFT_OUT]
    packing = subprocess.Popen(["tar", "cf", "-", *words, "."], cwd=LIBRARY, stdout=subprocess.PIPE)
    subprocess.run(["tar", "xpf", "-"], cwd=target, stdin=packing.stdout, check=True, timeout=120)
    packing.stdout.close()
    assert packing.wait() == 0


def add_oddities(root):
    """What a tree of sources seldom has: links of both kinds, modes, times, holes, bytes."""
    (root / "odd").mkdir(mode=0o1750)
    odd = root / "odd"
    (odd / "program").write_text("#!/bin/sh\necho ran\n")
    (odd / "program").chmod(0o4711)
    os.link(odd / "program", odd / "same program")
    os.symlink("program", odd / "soft")
    os.symlink("../nowhere", odd / "dangling")
    os.mkfifo(odd / "fifo", 0o640)
    with (odd / "sparse").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
    (odd / "empty").touch()
    name = os.fsencode(odd) + b"/\xff\xfe \n\t"
    Path(os.fsdecode(name)).write_bytes(b"bytes")
    os.setxattr(odd / "empty", "user.colour", b"blue")
    os.utime(odd / "empty", ns=(1_111_111_111_222_333_444, 999_999_999_888_777_666))
    os.utime(odd / "soft", ns=(5, 7), follow_symlinks=False)
    os.chown(odd / "soft", 12, 34, follow_symlinks=False)
    os.utime(odd, ns=(1, 2_000_000_000_000_000_001))


def facts(root):
    """Everything that a faithful copy keeps, but content: path -> facts. Hard links show as the
    first path of their file."""
    found, first = {}, {}
    for place, directories, files in os.walk(os.fsencode(root)):
        for name in [*directories, *files]:
            path = os.path.join(place, name)
            told = os.lstat(path)
            relative = os.path.relpath(path, os.fsencode(root))
            kept = [told.st_mode, told.st_uid, told.st_gid, told.st_mtime_ns]
            if stat.S_ISLNK(told.st_mode):
                kept.append(os.readlink(path))
            else:
                kept += [(n, os.getxattr(path, n)) for n in sorted(os.listxattr(path))]
            if not stat.S_ISDIR(told.st_mode):
                kept += [told.st_nlink, told.st_size, first.setdefault(told.st_ino, relative)]
            found[relative] = tuple(kept)
    return found


def assert_same(one, other):
    """Content by diff(1), all else by `facts`."""
    run("diff", "-r", "--no-dereference", "--exclude=fifo", one, other, timeout_s=120)
    ours, theirs = facts(one), facts(other)
    different = {name for name in ours | theirs if ours.get(name) != theirs.get(name)}
    # which name of a hard-linked file is met first is the directory's order
    loose = {n for n in different if n in ours and n in theirs and ours[n][:-1] == theirs[n][:-1]}
    assert different == loose, [(n, ours.get(n), theirs.get(n)) for n in sorted(different)][:10]
    assert len(groups(ours)) == len(groups(theirs))


def groups(found):
    return {kept[-1] for kept in found.values() if not stat.S_ISDIR(kept[0])}


@pytest.mark.slow
def test_a_library_of_sources_copied_compared_packed_and_run(workshop, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    copy_library(source)
    add_oddities(source)
    volume = workshop.volume(5, level="6", size=2 << 30, mounted=True)
    copy = volume.mountpoint / "copy"
    run("cp", "-a", source, copy, timeout_s=120)
    assert len(facts(copy)) > 1000
    assert_same(source, copy)

    archive = volume.mountpoint / "copy.tar"
    run("tar", "--acls", "--xattrs", "-cf", archive, "-C", copy, ".", timeout_s=120)
    run("tar", "-df", archive, "-C", copy, timeout_s=120)
    unpacked = volume.mountpoint / "unpacked"
    unpacked.mkdir()
    part = ["./asyncio", "./email", "./encodings", "./json", "./odd"]
    run("tar", "--acls", "--xattrs", "-xpf", archive, "-C", unpacked, *part, timeout_s=120)
    for name in part:
        assert_same(source / name, unpacked / name)
    volume.unmount()
    volume.check()

    for lost in volume.members[1:3]:
        shutil.rmtree(lost)
    volume.check()
    volume.mount("degraded")
    assert_same(source, copy)
    run_python_from(copy)
    run("rm", "-rf", unpacked, timeout_s=120)
    assert not unpacked.exists()
    assert sorted(path.name for path in volume.mountpoint.iterdir()) == ["copy", "copy.tar"]
    volume.unmount()
    volume.check()


def run_python_from(library):
    """An interpreter whose library lies on the mount compiles and imports what is there."""
    code = (
        "import compileall, json, email.message, unittest, xml.dom.minidom, http.client\n"
        f"assert json.__file__.startswith({str(library)!r}), json.__file__\n"
        f"assert compileall.compile_dir({str(library / 'json')!r}, quiet=1)\n"
        f"assert compileall.compile_dir({str(library / 'asyncio')!r}, quiet=1)\n"
        "print('ran from the mount')"
    )
    dynamic = sysconfig.get_config_var("DESTSHARED")
    env = {**os.environ, "PYTHONPATH": f"{library}:{dynamic}"}
    done = run(sys.executable, "-S", "-c", code, env=env)
    assert done.stdout == "ran from the mount\n"
    assert list((library / "json" / "__pycache__").glob("*.pyc"))


MAKEFILE = """\
CFLAGS = -O0 -std=gnu11 -w -Isource
OBJECTS = $(patsubst source/%.c,build/%.o,$(wildcard source/*.c))
TESTS = $(patsubst source/tests/%.c,build/%,$(wildcard source/tests/test_*.c))
all: $(TESTS)
build/%.o: source/%.c
\t$(CC) $(CFLAGS) -c $< -o $@
build/test_%: source/tests/test_%.c build/objects.a
\t$(CC) $(CFLAGS) $< build/objects.a -o $@ -lpthread
build/objects.a: $(OBJECTS)
\t$(AR) rcs $@ $^
"""


@pytest.mark.slow
def test_this_project_compiled_and_its_c_tests_run_from_the_mount(workshop):
    volume = workshop.volume(4, level="rs:2+2", size=512 << 20, mounted=True)
    root = volume.mountpoint
    run("cp", "-a", PROJECT / "csrc", root / "source")
    (root / "Makefile").write_text(MAKEFILE)
    (root / "build").mkdir()
    run("make", "-j2", "-C", root, timeout_s=200)
    again = run("make", "-C", root)
    assert "Nothing to be done" in again.stdout  # times are as make needs them
    tests = sorted((root / "build").glob("test_*"))
    assert len(tests) >= 3
    volume.unmount()
    volume.mount()
    for test in tests:
        run(test, cwd=root / "build")
    volume.unmount()
    volume.check()


def test_smoke_a_small_tree(workshop, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copytree(LIBRARY / "json", source / "json", ignore=shutil.ignore_patterns("__pycache__"))
    add_oddities(source)
    volume = workshop.volume(3, mounted=True)
    run("cp", "-a", source, volume.mountpoint / "copy")
    assert_same(source, volume.mountpoint / "copy")
    volume.unmount()
    volume.mount()
    assert_same(source, volume.mountpoint / "copy")
    done = run(volume.mountpoint / "copy" / "odd" / "soft")
    assert done.stdout == "ran\n"
    volume.unmount()
    volume.check()
