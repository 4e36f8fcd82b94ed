"""A result is of the code that made it: of its statements, not of its comments."""

from pathlib import Path

import pytest

from sb3_trustregion.benchmark.run import provenance
from sb3_trustregion.benchmark.variants import VARIANTS


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "judged_elsewhere.py"


def hash_of(module: Path, text: str) -> str:
    module.write_text(text)
    provenance._hash.cache_clear()
    return provenance._hash(module.stem)


def test_statements_count_and_comments_do_not(module: Path) -> None:
    one = hash_of(module, '"""Doc."""\ndef f():\n    """Doc."""\n    return 1\n')
    assert hash_of(module, '"""Other."""\ndef f():  # why\n    return 1\n') == one
    assert hash_of(module, "def f():\n    return 2\n") != one


def test_algorithms_depend_on_what_they_share() -> None:
    own = {name: f"sb3_trustregion.{name}" for name in ("adaptive_trpo", "adaptive_ppo")}
    modules = {name: provenance.module_hashes(VARIANTS[name]) for name in own}
    shared = {"sb3_trustregion.core.radius", "sb3_trustregion.common.judge"}
    for name, found in modules.items():
        assert {own[name], *shared} <= set(found)
        assert not [module for module in found if ".zoo" in module or ".benchmark" in module]
    assert own["adaptive_ppo"] not in modules["adaptive_trpo"]
    ablation = provenance.module_hashes(VARIANTS["adaptive_trpo-actual_zero"])
    assert set(ablation) - set(modules["adaptive_trpo"]) == {"sb3_trustregion.benchmark.run.judges"}
    assert set(provenance.module_hashes(VARIANTS["ppo-kl_adaptive"])) == {"sb3_trustregion.benchmark.run.baselines"}
    assert provenance.module_hashes(VARIANTS["ppo-zoo"]) == {}


def test_simulators_count_for_their_tasks() -> None:
    assert "mujoco" in provenance.package_versions("gymnasium.envs.mujoco.hopper_v5:HopperEnv")
    assert "mujoco" not in provenance.package_versions("gymnasium.envs.classic_control:CartPoleEnv")
    assert "+" not in provenance.package_versions("")["torch"]


def test_another_projects_commit_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    assert provenance.git_commit() == {}
