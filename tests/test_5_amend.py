"""A name that arrives in a snapshot after it was taken: there it is, and nothing else differs."""

import os

import pytest
from checking import check_members
from volumes import ROOT, content, make_members, mounted, names

from raidfs.fs.moves import ITEM, Moves
from raidfs.fs.rollback import rollback
from raidfs.store.past import as_view

MOVE = b"m" * 16


async def written(volume, parent, name, data):
    ino = volume.create(parent, name, 0o644, os.O_RDWR, ROOT).ino
    await volume.write(ino, 0, data)
    volume.release(ino)
    volume.forget(ino)
    return ino
