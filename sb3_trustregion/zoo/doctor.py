"""``python -m sb3_trustregion.zoo doctor``: what RL Zoo knows of our algorithms, and why not."""

import argparse
import importlib
import importlib.metadata
import platform
import site
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import sb3_trustregion
from sb3_trustregion import ALGORITHMS
from sb3_trustregion.zoo import import_hook, registration

_DISTRIBUTIONS = ("sb3_trustregion", "rl_zoo3", "stable_baselines3", "sb3_contrib", "torch", "gymnasium")
_TABLES = ("ALGOS", "HYPERPARAMS_SAMPLER", "HYPERPARAMS_CONVERTER")
_ZOO_VERSION = "2.9."
_STARTUP_FILE = "sb3_trustregion.start" if sys.version_info >= (3, 15) else "sb3_trustregion.pth"


class Finding(NamedTuple):
    """One line of the report."""

    ok: bool
    text: str

    def __str__(self) -> str:
        return f"  {'ok     ' if self.ok else 'PROBLEM'}  {self.text}"


def main(argv: list[str] | None = None) -> int:
    """Print the report. Returns the exit code: 0 if all is well, 1 if not."""
    argparse.ArgumentParser(prog="python -m sb3_trustregion.zoo doctor", description=__doc__).parse_args(argv)
    healthy = True
    for title, findings in (
        ("versions", check_versions()),
        ("start-up hook", check_hook()),
        ("RL Zoo", check_zoo()),
        ("hyperparameter files", check_hyperparameter_files()),
    ):
        print(title)
        for finding in findings:
            print(finding)
            healthy = healthy and finding.ok
    print("all is well" if healthy else "something is wrong: see PROBLEM above")
    return 0 if healthy else 1


def check_versions() -> Iterator[Finding]:
    """What is installed, and whether RL Zoo is a version that the registration knows."""
    yield Finding(True, f"Python {platform.python_version()} ({sys.executable})")
    for name in _DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(False, f"{name} is not installed")
            continue
        known = name != "rl_zoo3" or version.startswith(_ZOO_VERSION)
        yield Finding(known, f"{name} {version}" + ("" if known else f", {_ZOO_VERSION}x is needed"))


def check_hook() -> Iterator[Finding]:
    """Whether ``python -m rl_zoo3.train`` knows our algorithms, and what makes it so."""
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    files = [str(path) for folder in folders if (path := Path(folder) / _STARTUP_FILE).is_file()]
    location = ", ".join(files) or f"no {_STARTUP_FILE} in {', '.join(folders)}"
    if import_hook.is_disabled():
        yield Finding(True, f"switched off by {import_hook.DISABLE_VARIABLE}: use python -m sb3_trustregion.zoo")
    elif import_hook.is_installed():
        yield Finding(True, f"active ({location})")
    else:
        reason = "its file is there but did not run, or gave up" if files else "reinstall sb3_trustregion"
        yield Finding(False, f"not active ({location}): {reason}, or use python -m sb3_trustregion.zoo")


def check_zoo() -> Iterator[Finding]:
    """What is in RL Zoo's tables, by the hook and after ``register()``."""
    try:
        zoo = importlib.import_module("rl_zoo3.exp_manager")  # imports all three tables: the hook's chance
    except Exception as error:
        yield Finding(False, f"RL Zoo cannot be imported: {_describe(error)}")
        return
    if import_hook.is_installed() and not ALGORITHMS.keys() <= zoo.ALGOS.keys():
        yield Finding(False, "the hook is active, but did not register")
    try:
        registration.register()
    except Exception as error:
        yield Finding(False, f"register() failed: {_describe(error)}")
    for name, class_name in ALGORITHMS.items():
        missing = [table for table in _TABLES if name not in getattr(zoo, table)]
        try:
            ours = getattr(sb3_trustregion, class_name)
        except Exception as error:
            yield Finding(False, f"{name}: {class_name} cannot be imported: {_describe(error)}")
            continue
        if missing:
            yield Finding(False, f"{name}: missing in {', '.join(missing)}")
        else:
            registered = zoo.ALGOS[name]
            yield Finding(registered is ours, f"{name}: {registered.__module__}.{registered.__qualname__}")


def check_hyperparameter_files() -> Iterator[Finding]:
    """Where the default hyperparameters come from."""
    for name in ALGORITHMS:
        path = registration.hyperparameters_path(name)
        yield Finding(path.is_file(), f"{name}: {path}" + ("" if path.is_file() else " is missing"))


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
