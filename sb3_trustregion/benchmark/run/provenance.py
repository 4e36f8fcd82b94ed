"""Which code made a result: package versions, git commit, and a hash of each module of ours that takes part."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from sb3_trustregion import ALGORITHMS
from sb3_trustregion.benchmark.mixtures import GYMNASIUM
from sb3_trustregion.benchmark.variants import Variant

PACKAGE = Path(__file__).parents[2]
BASELINES = "sb3_trustregion.benchmark.run.baselines"
DISTRIBUTIONS = ("stable_baselines3", "sb3_contrib", "rl_zoo3", "gymnasium", "torch", "numpy")
# Where a task's entry point has the first word, its results depend on the second package too.
SIMULATORS = {"mujoco": "mujoco", "box2d": "Box2D"}


def package_versions(entry_point: str, backend: str = GYMNASIUM) -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run gives."""
    names = {*DISTRIBUTIONS, backend, *(package for word, package in SIMULATORS.items() if word in entry_point)}
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in sorted(names):
        try:
            # Without the local part: 2.8.0+cpu computes as 2.8.0 does.
            versions[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


def module_hashes(variant: Variant) -> dict[str, str]:
    """Hash of each of our modules that decides what a variant gives, by name, comments and docstrings aside."""
    if variant.algorithm in ("ppo", "trpo"):  # no code of ours takes part
        return {}
    if variant.algorithm not in ALGORITHMS:
        return {BASELINES: _hash(BASELINES)}
    names = [f"sb3_trustregion.{variant.algorithm}"]
    if "judge_class" in variant.hyperparameters:
        names.append(variant.hyperparameters["judge_class"].rpartition(".")[0])
    for part in ("core", "common"):
        names += [f"sb3_trustregion.{part}.{path.stem}" for path in sorted((PACKAGE / part).glob("[!_]*.py"))]
    return {name: _hash(name) for name in names}


@cache
def _hash(module: str) -> str:
    """Hash a module's statements: the same code commented otherwise is the same code."""
    spec: Any = importlib.util.find_spec(module)
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:8]


def git_commit() -> dict[str, Any]:
    """The commit that the package is checked out at, and whether its files differ; nothing without git."""
    commit = _git("rev-parse", "HEAD") if _git("ls-files", "--error-unmatch", "__init__.py") else ""
    if not commit:
        return {}
    return {"commit": commit, "modified": bool(_git("status", "--porcelain", "--", ".", "../hyperparams"))}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
