"""The examples run, with few steps, and are as short as they say."""

import runpy
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests.docs.pages import ROOT, shorten

EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}


def run(name: str, monkeypatch: pytest.MonkeyPatch, n_steps: int) -> None:
    matplotlib.use("agg")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(sys, "argv", [name, str(n_steps)])
    runpy.run_path(str(EXAMPLES[name]), run_name="__main__")
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in EXAMPLES if name != "resume_after_a_crash"]
)  # which has its own test
def test_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    shorten(monkeypatch, 5)  # SB3 writes what the third and later ones said of a step
    run(name, monkeypatch, 2048)
    assert capsys.readouterr().out


@pytest.mark.slow
def test_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run("resume_after_a_crash", monkeypatch, 4096)
    capsys.readouterr()
    run("resume_after_a_crash", monkeypatch, 5120)
    assert "going on at 4096 steps" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / "checkpoint_5120_steps.zip").is_file()


@pytest.mark.parametrize("name", EXAMPLES)
def test_is_short_and_listed(name: str) -> None:
    assert len(EXAMPLES[name].read_text(encoding="utf-8").splitlines()) < 40
    assert f"({name}.py)" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert f"../examples/{name}.py" in (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
