"""Tasks: whether Gymnasium knows them and can make them."""

import contextlib
import difflib
import importlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium as gym


def check_task(task: str) -> None:
    """
    :param task: id of an environment
    :raises ValueError: where Gymnasium does not know it or cannot make it
    """
    if not isinstance(task, str) or task not in gym.registry:
        close = difflib.get_close_matches(str(task), gym.registry, n=3)
        hint = f" (did you mean {', '.join(close)}?)" if close else ""
        raise ValueError(f"task must be an id that Gymnasium knows, got {task!r}{hint}")
    try:
        make(task).close()
    except Exception as error:
        raise ValueError(f"task must be an environment that can be made, got {task!r}: {error}") from error


def make(task: str) -> gym.Env[Any, Any]:
    """
    :param task: id of an environment
    :return: the environment
    """
    # MuJoCo writes a log where it is loaded.
    with tempfile.TemporaryDirectory() as folder, _within(folder):
        return gym.make(task)


@contextlib.contextmanager
def _within(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def import_packages(packages: Iterable[str]) -> None:
    """
    :param packages: modules that register tasks
    :raises ValueError: where one cannot be imported
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except (ImportError, ValueError, AttributeError) as error:  # the latter two: no name at all
            raise ValueError(f"gym_packages must be modules that can be imported, got {package!r}: {error}") from error


def entry_point(task: str) -> str:
    """
    :param task: id of an environment
    :return: where its class is
    """
    return str(gym.spec(task).entry_point)
