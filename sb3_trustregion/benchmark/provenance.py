"""Which code made a result: package versions, git commit, and a hash of the modules that an algorithm runs."""

import ast
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
DISTRIBUTIONS = ("stable_baselines3", "sb3_contrib", "rl_zoo3", "gymnasium", "torch", "numpy")
# Where a task's entry point has the first word, its results depend on the second package too.
SIMULATORS = {"mujoco": "mujoco", "box2d": "Box2D"}


def package_versions(entry_point: str) -> dict[str, str]:
    """
    :param entry_point: of the task, as in Gymnasium's registry
    :return: versions of Python and of the packages that decide what a run gives
    """
    names = [*DISTRIBUTIONS, *(package for word, package in SIMULATORS.items() if word in entry_point)]
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in names:
        try:
            # Without the local part: 2.8.0+cpu computes as 2.8.0 does.
            versions[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


@cache
def code_hash(module: str) -> str:
    """
    :param module: absolute name of a module of this package
    :return: hash of its code and of all modules of this package that it imports; comments and docstrings aside
    """
    digest = hashlib.sha256()
    for name, path in sorted(_closure(module).items()):
        digest.update(f"{name}\n{_bare_code(path)}\n".encode())
    return digest.hexdigest()[:16]


@cache
def module_hashes(module: str) -> dict[str, str]:
    """
    :param module: absolute name of a module of this package
    :return: hash of its code and of each module of this package that it imports by name: what algorithms share
    """
    paths = sorted(_closure(module).items())
    return {name: hashlib.sha256(_bare_code(path).encode()).hexdigest()[:8] for name, path in paths}


def _closure(module: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if path is not None and name not in found:
            found[name] = path
            waiting += _imports(path)
    return found


def _path(module: str) -> Path | None:
    package, *parts = module.split(".")
    path = PACKAGE.joinpath(*parts).with_suffix(".py")
    return path if package == PACKAGE.name and parts and path.is_file() else None


def _imports(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports, which it does by absolute names."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _bare_code(path: Path) -> str:
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)


def git_commit() -> dict[str, Any]:
    """:return: the commit that the package is checked out at and whether files of it differ; nothing where no git is"""
    tracked = _git("ls-files", "--error-unmatch", "__init__.py")
    commit = _git("rev-parse", "HEAD") if tracked else ""
    if not commit:
        return {}
    return {"commit": commit, "modified": bool(_git("status", "--porcelain", "--", ".", "../hyperparams"))}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
