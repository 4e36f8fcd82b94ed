"""What takes time, and is the same for all tests."""

import importlib.metadata
from functools import cache

import pytest

_VERSION = cache(importlib.metadata.version)


@pytest.fixture(autouse=True)
def _versions_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each specification asks for those of all packages, which do not change while tests run."""
    monkeypatch.setattr(importlib.metadata, "version", _VERSION)
