"""Installing and uninstalling, as pip does it."""

import json
import zipfile
from pathlib import Path

import pytest

from tests.zoo.installations import ALGORITHMS, ROOT, Installation, create_installation

pytestmark = pytest.mark.slow

LIST_TABLES = """
import json, rl_zoo3.exp_manager as zoo
from sb3_trustregion.zoo.registration import hyperparameters_path
tables = (zoo.ALGOS, zoo.HYPERPARAMS_SAMPLER, zoo.HYPERPARAMS_CONVERTER)
print(json.dumps([list(table) for table in tables]))
print(hyperparameters_path("npg"))
"""
LIST_MODULES = "import json, sys; print(json.dumps(sorted(sys.modules)))"
LIST_FINDERS = "import sys; print([type(finder).__name__ for finder in sys.meta_path])"


def test_wheel_ships_the_data_files_and_nothing_else_at_its_root(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"sb3_trustregion/hyperparams/{name}.yml" for name in ALGORITHMS} <= set(names)
    assert "sb3_trustregion/py.typed" in names
    at_root = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert at_root == {"sb3_trustregion", "sb3_trustregion.pth", "sb3_trustregion.start"}


def test_editable_registers_from_the_source_tree_and_leaves_nothing(tmp_path: Path) -> None:
    """What a wheel registers, test_commands.py uses."""
    editable = create_installation(tmp_path / "environment")
    options = ("--no-deps", "--no-index", "--ignore-installed", "--no-build-isolation")
    editable.pip("install", *options, "--editable", ROOT)
    *_, tables, place = editable.run("-c", LIST_TABLES).stdout.splitlines()
    assert [set(ALGORITHMS) <= set(table) for table in json.loads(tables)] == [True, True, True]
    assert Path(place) == ROOT / "hyperparams" / "npg.yml"
    assert not (editable.site_packages / "sb3_trustregion").exists()
    assert editable.installed_files()
    assert_uninstalled_without_a_trace(editable)


def test_uninstalling_a_wheel_leaves_nothing(own_installation: Installation) -> None:
    assert own_installation.installed_files()
    assert "RegistrationFinder" in own_installation.run("-c", LIST_FINDERS).stdout
    assert_uninstalled_without_a_trace(own_installation)


def assert_uninstalled_without_a_trace(installation: Installation) -> None:
    """No file, no hook, no word about it."""
    installation.pip("uninstall", "--yes", "sb3_trustregion")
    assert installation.installed_files() == []
    started = installation.run("-c", LIST_FINDERS)
    assert "RegistrationFinder" not in started.stdout
    assert started.stderr == ""


def test_starting_the_interpreter_loads_the_hook_and_nothing_else(installation: Installation) -> None:
    with_hook = set(json.loads(installation.run("-c", LIST_MODULES).stdout))
    ours = {name for name in with_hook if name.startswith("sb3_trustregion")}
    assert ours == {"sb3_trustregion", "sb3_trustregion.zoo", "sb3_trustregion.zoo.import_hook"}
    heavy = {"torch", "numpy", "rl_zoo3", "gymnasium", "stable_baselines3", "optuna", "typing", "inspect"}
    assert not heavy & with_hook
