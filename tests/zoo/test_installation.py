"""Installing and uninstalling, as pip does it."""

import json
import zipfile
from pathlib import Path

import pytest

from tests.zoo.installations import ALGORITHMS, ROOT, Installation, create_installation

pytestmark = pytest.mark.slow

LIST_TABLES = """
import json, rl_zoo3.exp_manager as zoo
tables = (zoo.ALGOS, zoo.HYPERPARAMS_SAMPLER, zoo.HYPERPARAMS_CONVERTER)
print(json.dumps([list(table) for table in tables]))
"""
LIST_MODULES = "import json, sys; print(json.dumps(sorted(sys.modules)))"
LIST_FINDERS = "import sys; print([type(finder).__name__ for finder in sys.meta_path])"


def assert_registered_by_hook(installation: Installation) -> None:
    tables = json.loads(installation.run("-c", LIST_TABLES).stdout)
    assert [set(ALGORITHMS) <= set(table) for table in tables] == [True, True, True]


@pytest.fixture
def editable(tmp_path: Path) -> Installation:
    installation = create_installation(tmp_path / "environment")
    options = ("--no-deps", "--no-index", "--ignore-installed", "--no-build-isolation")
    installation.pip("install", *options, "--editable", ROOT)
    return installation


def test_wheel_ships_the_data_files_and_nothing_else_at_its_root(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"sb3_trustregion/hyperparams/{name}.yml" for name in ALGORITHMS} <= set(names)
    assert "sb3_trustregion/py.typed" in names
    at_root = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert at_root == {"sb3_trustregion", "sb3_trustregion.pth", "sb3_trustregion.start"}


def test_wheel_registers(installation: Installation) -> None:
    assert_registered_by_hook(installation)


def test_editable_registers_from_the_source_tree(editable: Installation) -> None:
    assert_registered_by_hook(editable)
    code = "from sb3_trustregion.zoo.registration import hyperparameters_path as p; print(p('npg'))"
    assert Path(editable.run("-c", code).stdout.strip()) == ROOT / "hyperparams" / "npg.yml"
    assert not (editable.site_packages / "sb3_trustregion").exists()


def test_uninstalling_a_wheel_leaves_nothing(own_installation: Installation) -> None:
    assert own_installation.installed_files()
    assert "RegistrationFinder" in own_installation.run("-c", LIST_FINDERS).stdout
    own_installation.pip("uninstall", "--yes", "sb3_trustregion")
    assert own_installation.installed_files() == []
    refused = own_installation.zoo("train", "--algo", "npg", cwd=own_installation.folder, check=False)
    assert refused.returncode == 2
    assert "invalid choice: 'npg'" in refused.stderr
    assert "trustregion" not in refused.stderr


def test_uninstalling_an_editable_install_leaves_nothing(editable: Installation) -> None:
    assert editable.installed_files()
    editable.pip("uninstall", "--yes", "sb3_trustregion")
    assert editable.installed_files() == []
    started = editable.run("-c", LIST_FINDERS)
    assert "RegistrationFinder" not in started.stdout
    assert started.stderr == ""


def test_starting_the_interpreter_loads_the_hook_and_nothing_else(installation: Installation) -> None:
    with_hook = set(json.loads(installation.run("-c", LIST_MODULES).stdout))
    ours = {name for name in with_hook if name.startswith("sb3_trustregion")}
    assert ours == {"sb3_trustregion", "sb3_trustregion.zoo", "sb3_trustregion.zoo.import_hook"}
    heavy = {"torch", "numpy", "rl_zoo3", "gymnasium", "stable_baselines3", "optuna", "typing", "inspect"}
    assert not heavy & with_hook
