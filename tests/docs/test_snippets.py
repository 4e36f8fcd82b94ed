"""README, CONTRIBUTING and docs: every snippet runs as it stands but for long training, each in an empty folder."""

import re
import runpy
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import joblib
import pytest

from tests.benchmark.here import train_here
from tests.docs.pages import ROOT, Snippet, shorten, snippets

pytestmark = pytest.mark.slow

PYTHON = snippets("python")
SHELL = snippets("sh")
# Blocks of other kinds hold no commands that could be run here: a picture, addresses of machines, what Sphinx reads.
OTHERS = {"", "text"}


def commands(snippet: Snippet) -> list[str]:
    """Lines of a shell snippet without comments."""
    lines = [re.sub(r"(^|\s+)#.*$", "", line).strip() for line in snippet.text.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("snippet", PYTHON, ids=str)
@pytest.mark.filterwarnings("ignore:You are trying to run PPO on the GPU")
def test_python_runs(snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    program = tmp_path / "snippet.py"
    program.write_text(snippet.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(program), run_name="__main__")


@pytest.mark.parametrize("snippet", [one for one in SHELL if any("python" in line for line in commands(one))], ids=str)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_shell_runs(snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    All but what installs, which ``test_what_is_installed_exists`` looks at.

    In this process, which has imported what takes seconds; tests/zoo and tests/benchmark start others.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    if snippet.page != "docs/benchmark.md":  # where all steps must be made
        shorten(monkeypatch)
    train_here(monkeypatch, tmp_path / "scratch")
    for line in commands(snippet):
        program, *words = shlex.split(line)
        if program == "export":
            monkeypatch.setenv(*words[0].split("=", 1))
        elif program == "python":
            assert words[0] == "-m"
            monkeypatch.setattr(sys, "argv", words[1:])
            try:
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            except SystemExit as stopped:
                assert not stopped.code, line  # noqa: PT017


@pytest.mark.parametrize("snippet", SHELL, ids=str)
def test_what_is_installed_exists(snippet: Snippet) -> None:
    """Targets of the Makefile and extras of the package: they are not built and installed once more for this."""
    extras = set(metadata("sb3_trustregion").get_all("Provides-Extra") or [])
    for line in commands(snippet):
        program, *words = shlex.split(line)
        if program == "make":
            result = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
        elif program == "pip":
            for extra in re.findall(r"\.\[([\w,]+)\]", line):
                assert set(extra.split(",")) <= extras
        else:
            assert program in ("python", "export"), f"{snippet}: nothing tests {line!r}"


def test_snippets_are_found() -> None:
    assert len(PYTHON) > 8
    assert len(SHELL) > 5
    assert len({one.page for one in PYTHON}) > 6


def test_no_snippet_hides_behind_another_name() -> None:
    """Whatever is fenced is run, or is a picture, or is read by Sphinx."""
    fences = [line for page in {one.page for one in PYTHON + SHELL} for line in (ROOT / page).read_text().splitlines()]
    languages = {line.removeprefix("```") for line in fences if line.startswith("```")}
    assert {name for name in languages if not name.startswith("{")} <= {"python", "sh", *OTHERS}
