"""A result is of the code that made it: of its statements, not of its comments."""

from pathlib import Path

import pytest

from sb3_trustregion.benchmark import provenance


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.py").write_text("from mine.b import f\nimport os\n")
    (folder / "b.py").write_text('"""Doc."""\ndef f():\n    """Doc."""\n    return 1\n')
    (folder / "c.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "PACKAGE", folder)
    provenance.code_hash.cache_clear()
    yield folder
    provenance.code_hash.cache_clear()


def hash_of(module: str) -> str:
    provenance.code_hash.cache_clear()
    return provenance.code_hash(module)


def test_comments_and_other_modules_do_not_count(package: Path) -> None:
    before = hash_of("mine.a")
    (package / "b.py").write_text('"""Other."""\ndef f():  # why\n    return 1\n')
    (package / "c.py").write_text("x = 2\n")
    assert hash_of("mine.a") == before


def test_code_that_is_imported_counts(package: Path) -> None:
    before = hash_of("mine.a")
    (package / "b.py").write_text("def f():\n    return 2\n")
    assert hash_of("mine.a") != before


def test_algorithms_depend_on_the_mathematics() -> None:
    ablations = provenance.module_hashes("sb3_trustregion.benchmark.ablations")
    for name in ("adaptive_trpo", "adaptive_ppo"):
        modules = provenance.module_hashes(f"sb3_trustregion.{name}")
        assert {f"sb3_trustregion.{name}", "sb3_trustregion.core.radius"} <= set(modules)
        assert not {module for module in modules if ".zoo" in module or ".benchmark" in module}
        assert modules.items() <= ablations.items()
    assert "sb3_trustregion.adaptive_ppo" not in provenance.module_hashes("sb3_trustregion.adaptive_trpo")


def test_simulators_count_for_their_tasks() -> None:
    assert "mujoco" in provenance.package_versions("gymnasium.envs.mujoco.hopper_v5:HopperEnv")
    assert "mujoco" not in provenance.package_versions("gymnasium.envs.classic_control:CartPoleEnv")
    assert "+" not in provenance.package_versions("")["torch"]


def test_another_projects_commit_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    assert provenance.git_commit() == {}
