"""Fixtures that many tests share. What a test needs and does not find is a failure, not a skip."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mounting import Workshop


@pytest.fixture
def workshop(tmp_path, request):
    """A place for volumes that may be mounted; everything is taken away at the end."""
    with Workshop(tmp_path) as shop:
        shop.forks = request.node.get_closest_marker("processes") is None
        yield shop


@pytest.fixture(autouse=True)
def own_runtime_directory(tmp_path_factory, monkeypatch):
    """No test sees, or disturbs, volumes that are mounted on this machine."""
    if "RAIDFS_RUNTIME_DIR" not in os.environ:
        monkeypatch.setenv("RAIDFS_RUNTIME_DIR", str(tmp_path_factory.getbasetemp() / "run"))


def pytest_collection_modifyitems(items):
    """Tests run floor by floor, so that the first failure is the one nearest to its cause."""
    items.sort(key=lambda item: item.path.name)
    for item in items:
        if "workshop" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.mount)
