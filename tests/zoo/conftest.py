"""Environments to run real command lines in."""

from pathlib import Path

import pytest

from tests.zoo.installations import Installation, build_wheel, install_wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that this source tree makes."""
    return build_wheel(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installation:
    """An environment with the wheel, shared by the tests: they must not change it."""
    return install_wheel(tmp_path_factory.mktemp("installation"), wheel)


@pytest.fixture
def own_installation(tmp_path: Path, wheel: Path) -> Installation:
    """An environment with the wheel for one test, which may spoil it."""
    return install_wheel(tmp_path / "environment", wheel)
