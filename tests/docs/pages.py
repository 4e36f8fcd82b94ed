"""The pages of the documentation and the snippets in them."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples" / "README.md"])
# A program for a long run, which `tests/faults/test_table.py` runs with other numbers.
ELSEWHERE = {"docs/faults.md"}
LONGEST = 256


def shorten(monkeypatch: pytest.MonkeyPatch, n_rollouts: int = 2) -> None:
    """Rollouts are short until the end of the test, and two make a training: the second judges a step."""
    make, set_up = OnPolicyAlgorithm.__init__, BaseAlgorithm._setup_learn

    def with_short_rollouts(self: Any, *args: Any, n_steps: int, **kwargs: Any) -> None:
        make(self, *args, n_steps=min(n_steps, LONGEST), **kwargs)  # type: ignore[misc]

    def shortened(self: Any, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        return set_up(self, min(total_timesteps, n_rollouts * self.n_steps * self.n_envs), *args, **kwargs)

    monkeypatch.setattr(OnPolicyAlgorithm, "__init__", with_short_rollouts)
    monkeypatch.setattr(BaseAlgorithm, "_setup_learn", shortened)


class Snippet(NamedTuple):
    """
    A fenced block.

    :param page: relative to the root
    :param line: where it begins
    :param language: after the fence
    :param text: what is in it
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def snippets(language: str) -> list[Snippet]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 1
            found.append(Snippet(name_of(page), line, match[1], match[2]))
    return [one for one in found if one.language == language and one.page not in ELSEWHERE]


def section(page: Path, title: str) -> str:
    """What stands under a heading of the second level."""
    parts = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (found,) = [part.partition("\n")[2] for part in parts if part.partition("\n")[0] == title]
    return found


def rows(text: str) -> list[list[str]]:
    """Cells of the rows of a table that are not heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
