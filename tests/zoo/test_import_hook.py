"""The start-up hook on a stand-in for RL Zoo, in this process."""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sb3_trustregion.zoo import import_hook as imported_at_start_up
from sb3_trustregion.zoo import registration


def load_afresh() -> ModuleType:
    """The hook's module once more: if it is at work in this interpreter, it was imported before coverage began."""
    spec = importlib.util.spec_from_file_location("fresh_import_hook", imported_at_start_up.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


import_hook = load_afresh()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The registration steps that have been taken; each finds the module that it follows executed."""
    taken: list[str] = []

    def take(step: str, module: str) -> None:
        assert sys.modules[module].EXECUTED
        taken.append(step)

    monkeypatch.setattr(import_hook, "REGISTRATION_STEPS", {"toy_zoo": "first", "toy_zoo.tables": "second"})
    monkeypatch.setattr(registration, "first", lambda: take("first", "toy_zoo"), raising=False)
    monkeypatch.setattr(registration, "second", lambda: take("second", "toy_zoo.tables"), raising=False)
    return taken


@pytest.fixture
def toy_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that can be imported, and the hook before the finders that find it."""
    package = tmp_path / "toy_zoo"
    package.mkdir()
    (package / "__init__.py").write_text("EXECUTED = True\n")
    (package / "tables.py").write_text("EXECUTED = True\n")
    (package / "other.py").write_text("EXECUTED = True\n")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(import_hook.DISABLE_VARIABLE, raising=False)
    import_hook.install()
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "toy_zoo"]:
        del sys.modules[name]


def test_each_step_follows_the_import_of_its_module(steps: list[str], toy_zoo: Path) -> None:
    assert steps == []
    importlib.import_module("toy_zoo.other")
    assert steps == ["first"]
    importlib.import_module("toy_zoo.tables")
    assert steps == ["first", "second"]


def test_looking_without_importing_registers_nothing(steps: list[str], toy_zoo: Path) -> None:
    assert importlib.util.find_spec("toy_zoo") is not None
    assert steps == []
    importlib.import_module("toy_zoo")
    assert steps == ["first"]


def test_reloaded_tables_are_filled_again(steps: list[str], toy_zoo: Path) -> None:
    importlib.reload(importlib.import_module("toy_zoo"))
    assert steps == ["first", "first"]


def test_the_module_keeps_the_loader_of_its_kind(steps: list[str], toy_zoo: Path) -> None:
    loader = importlib.import_module("toy_zoo").__spec__.loader
    assert type(loader) is type(importlib.import_module("toy_zoo.other").__spec__.loader)


def test_failing_steps_warn_once_and_leave_the_import_alone(
    steps: list[str], toy_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ImportError("broken on purpose")

    monkeypatch.setattr(registration, "first", fail)
    monkeypatch.setattr(registration, "second", fail)
    with pytest.warns(RuntimeWarning, match="ImportError: broken on purpose.*doctor") as caught:
        importlib.import_module("toy_zoo.tables")
    assert len(caught) == 1
    assert sys.modules["toy_zoo"].EXECUTED
    assert sys.modules["toy_zoo.tables"].EXECUTED
    assert not import_hook.is_installed()


def test_a_step_on_its_way_is_not_taken_once_another_has_failed(
    steps: list[str], toy_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with rl_zoo3.exp_manager, which imports rl_zoo3.hyperparams_opt while it runs itself."""

    def fail() -> None:
        raise ImportError("broken on purpose")

    monkeypatch.setattr(registration, "second", fail)
    monkeypatch.setitem(import_hook.REGISTRATION_STEPS, "toy_zoo.other", "third")
    monkeypatch.setattr(registration, "third", lambda: steps.append("third"), raising=False)
    (toy_zoo / "other.py").write_text("import toy_zoo.tables\n")
    with pytest.warns(RuntimeWarning, match="broken on purpose") as caught:
        importlib.import_module("toy_zoo.other")
    assert len(caught) == 1
    assert steps == ["first"]


def test_a_loader_that_cannot_be_watched_warns(
    steps: list[str], toy_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("toy_zoo")

    class Frozen:
        __slots__ = ()

        def create_module(self, spec: object) -> None:
            return None

        def exec_module(self, module: object) -> None:
            module.EXECUTED = True

    class Finder:
        def find_spec(self, fullname: str, path: object, target: object = None) -> object:
            return importlib.util.spec_from_loader(fullname, Frozen()) if fullname == "toy_zoo" else None

    assert spec is not None
    sys.meta_path.insert(1, Finder())
    with pytest.warns(RuntimeWarning, match="read-only"):
        assert importlib.import_module("toy_zoo").EXECUTED
    assert steps == []


@pytest.mark.filterwarnings("error")
def test_errors_of_the_zoo_itself_come_through(steps: list[str], toy_zoo: Path) -> None:
    (toy_zoo / "tables.py").write_text("raise KeyError('its own fault')\n")
    with pytest.raises(KeyError, match="its own fault"):
        importlib.import_module("toy_zoo.tables")
    assert steps == ["first"]


def test_a_missing_zoo_is_missing(steps: list[str], toy_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(import_hook.REGISTRATION_STEPS, "zoo_that_is_not_there", "first")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("zoo_that_is_not_there")
    assert importlib.util.find_spec("zoo_that_is_not_there") is None


def test_installing_twice_installs_once(steps: list[str], toy_zoo: Path) -> None:
    finders = list(sys.meta_path)
    import_hook.install()
    assert sys.meta_path == finders


@pytest.mark.parametrize(("value", "installed"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_the_environment_variable_switches_it_off(
    steps: list[str], toy_zoo: Path, monkeypatch: pytest.MonkeyPatch, value: str, installed: bool
) -> None:
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[1:])
    monkeypatch.setenv(import_hook.DISABLE_VARIABLE, value)
    import_hook.install()
    assert import_hook.is_installed() is installed


def test_both_start_up_files_name_install() -> None:
    """The second is what Python 3.15 and later read, by pkgutil.resolve_name."""
    folder = Path(__file__).parents[2] / "startup"
    assert pkgutil.resolve_name((folder / "sb3_trustregion.start").read_text().strip()) is imported_at_start_up.install
    (line,) = (folder / "sb3_trustregion.pth").read_text().splitlines()
    assert line.startswith("import ")
    assert line.endswith(f"{imported_at_start_up.__name__}.install()")
