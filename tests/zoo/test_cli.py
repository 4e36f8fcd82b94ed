"""``python -m sb3_trustregion.zoo`` in this process; test_commands.py runs it for real."""

import importlib.util
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import rl_zoo3

import sb3_trustregion
from sb3_trustregion import zoo
from sb3_trustregion.zoo import cli, doctor, import_hook, registration


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest"])


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What the doctor prints, with everything in order to begin with."""
    monkeypatch.setattr(import_hook, "is_installed", lambda: True)
    monkeypatch.delenv(import_hook.DISABLE_VARIABLE, raising=False)
    zoo.register()
    return lambda: "\n".join(
        f"{finding.ok} {finding.text}" for check in (doctor.check_hook, doctor.check_zoo) for finding in check()
    )


@pytest.mark.parametrize("command", ["train", "record_video"])
def test_scripts_know_the_algorithms(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in sb3_trustregion.ALGORITHMS)


def test_unknown_commands_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["zoo", "dance"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("sb3_trustregion.zoo", run_name="__main__")
    assert stopped.value.code == 2
    assert "invalid choice: 'dance'" in capsys.readouterr().err


def test_doctor_finds_nothing_wrong(findings: Callable[[], str]) -> None:
    report = findings()
    assert "False" not in report
    assert "adaptive_trpo: sb3_trustregion.adaptive_trpo.AdaptiveTRPO" in report


def test_doctor_returns_whether_all_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "check_hook", lambda: iter([doctor.Finding(True, "fine")]))
    monkeypatch.setattr(doctor, "check_versions", lambda: iter([doctor.Finding(True, "fine")]))
    assert cli.main(["doctor"]) == 0
    assert "PROBLEM" not in capsys.readouterr().out
    monkeypatch.setattr(doctor, "check_hook", lambda: iter([doctor.Finding(False, "not fine")]))
    assert cli.main(["doctor"]) == 1
    assert "PROBLEM  not fine" in capsys.readouterr().out


def test_doctor_checks_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"rl_zoo3": "2.10.0", "torch": "2.13.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    report = list(doctor.check_versions())
    assert doctor.Finding(False, "rl_zoo3 2.10.0, 2.9.x is needed") in report
    assert doctor.Finding(True, "torch 2.13.0") in report
    assert doctor.Finding(False, "gymnasium is not installed") in report


def test_doctor_says_where_the_hook_comes_from(
    findings: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / doctor._STARTUP_FILE).touch()
    monkeypatch.setattr(doctor.site, "getsitepackages", lambda: [str(tmp_path)])
    assert f"True active ({tmp_path / doctor._STARTUP_FILE})" in findings()
    monkeypatch.setattr(import_hook, "is_installed", lambda: False)
    assert "its file is there but did not run, or gave up" in findings()


def test_doctor_says_that_the_hook_is_missing_or_off(
    findings: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.site, "getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(import_hook, "is_installed", lambda: False)
    assert f"False not active (no {doctor._STARTUP_FILE} in {tmp_path}" in findings()
    monkeypatch.setenv(import_hook.DISABLE_VARIABLE, "1")
    assert "True switched off by SB3_TRUSTREGION_NO_HOOK" in findings()


def test_doctor_sees_a_hook_that_did_nothing(findings: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(rl_zoo3.ALGOS, "npg")
    monkeypatch.setattr(registration, "register", lambda: None)
    report = findings()
    assert "False the hook is active, but did not register" in report
    assert "False npg: missing in ALGOS" in report


def test_doctor_sees_a_class_that_is_not_ours(findings: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rl_zoo3.ALGOS, "npg", rl_zoo3.ALGOS["ppo"])
    assert "False npg: stable_baselines3.ppo.ppo.PPO" in findings()


def test_doctor_says_why_registering_fails(findings: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(registration, "register", fail)
    assert "False register() failed: RuntimeError: broken on purpose" in findings()


def test_doctor_says_which_class_is_broken(findings: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "sb3_trustregion", SimpleNamespace())
    assert "False npg: NPG cannot be imported: AttributeError" in findings()


def test_doctor_survives_without_the_zoo(findings: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rl_zoo3.exp_manager", None)
    assert "False RL Zoo cannot be imported: ModuleNotFoundError" in findings()


def test_doctor_checks_the_hyperparameter_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(finding.ok for finding in doctor.check_hyperparameter_files())
    monkeypatch.setattr(registration, "hyperparameters_path", lambda name: tmp_path / f"{name}.yml")
    assert not any(finding.ok for finding in doctor.check_hyperparameter_files())


def test_the_package_says_what_is_there(findings: Callable[[], str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "False" not in findings()
    runpy.run_module("sb3_trustregion", run_name="__main__", alter_sys=True)
    shown = capsys.readouterr().out
    assert shown.startswith(f"sb3_trustregion {sb3_trustregion.__version__}\n")
    for name, class_name in sb3_trustregion.ALGORITHMS.items():
        assert re.search(rf"^  {class_name} +{name} +\w+.{{20,}}$", shown, re.MULTILINE)
        assert f"{name}: sb3_trustregion.{name}.{class_name}" in shown
    assert str(Path("hyperparams") / "<algorithm>.yml") in shown
    assert "README.md" in shown
    assert len(shown.splitlines()) < 30
    for command in re.findall(r"python -m (sb3_trustregion[.\w]*)", shown):
        assert importlib.util.find_spec(command) is not None
