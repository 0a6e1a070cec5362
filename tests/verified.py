"""A writer that knows what must be on a volume, for tests that change its members meanwhile.

    with Writer(root, seed) as writer:
        ...                      # whatever is done to the volume
    writer.compare()             # all that was told is there, byte by byte

Every file is written once, at several places in turn, then fsynced; only then it counts as told.
Some are overwritten as a whole, under another name and renamed.
"""

import hashlib
import os
import random
import threading
from pathlib import Path

SIZES = (1, 3000, 4096, 20_000, 70_000, 300_000)
FILES_MAX = 60


class Writer:
    """Writes in a thread until the end of the `with`, or until the volume is killed."""

    def __init__(self, root, seed=0, pause_s=0.002):
        self.root = Path(root)
        self.told = {}  # name -> digest of its content
        self.allowed = {}  # name -> that of the content that may be there instead
        self.error = None
        self.written_bytes = 0
        self._dice = random.Random(f"writer {seed}")
        self._pause_s = pause_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self.stop()
        if kind is None:
            assert self.error is None, self.error

    def stop(self):
        """After the file that it is at; errors are in `error`."""
        self._end.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the writer hangs"

    def _run(self):
        try:
            while not self._end.wait(self._pause_s):
                self._one()
        except OSError as error:
            self.error = error

    def _one(self):
        name = f"file{self._dice.randrange(FILES_MAX)}"
        content = self._dice.randbytes(self._dice.choice(SIZES))
        digest = hashlib.sha256(content).digest()
        self.allowed[name] = digest
        temporary = self.root / f"{name}.new"
        with temporary.open("wb", buffering=0) as file:
            middle = len(content) // 3
            file.seek(middle)
            file.write(content[middle:])
            file.seek(0)
            file.write(content[:middle])
            os.fsync(file.fileno())
        os.rename(temporary, self.root / name)
        handle = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        self.told[name] = digest
        self.written_bytes += len(content)

    def compare(self):
        """Everything that was told is there; of the one that was being written either is right."""
        assert self.told, "nothing was written"
        for name, digest in self.told.items():
            found = hashlib.sha256((self.root / name).read_bytes()).digest()
            assert found in (digest, self.allowed[name]), name
        extra = {path.name for path in self.root.iterdir()} - set(self.told) - set(self.allowed)
        assert all(name.endswith(".new") for name in extra), extra
