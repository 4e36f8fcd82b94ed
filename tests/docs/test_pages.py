"""What the pages say of arguments, defaults, logged values and the source is what the code says."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

import sb3_trustregion
from docs import differences
from sb3_trustregion import ALGORITHMS, AdaptiveTRPO
from tests.docs.pages import PAGES, ROOT, name_of, rows, section
from tests.helpers import make_model, train

ALGORITHM_PAGES = {name: ROOT / "docs" / "algorithms" / f"{name}.md" for name in ALGORITHMS}
ORDER = [
    *("Usage", "Can I use?", "Arguments", "Logged values", "The mathematics", "Results", "What it does not do"),
]
GRIDS = ("exploratory", "million", "large_batches", "clip_starts", "ablations")
each_page = pytest.mark.parametrize("name", ALGORITHMS)
LINK = re.compile(r"\]\(([^)\s]+)\)")
INTERVAL = re.compile(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]")


def of_name(name: str) -> type[Any]:
    algorithm: type[Any] = getattr(sb3_trustregion, ALGORITHMS[name])
    return algorithm


def keys_of(text: str) -> set[str]:
    return {key for row in rows(text) for key in re.findall(r"`(\w+)`", row[0])}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not urlsplit(target).scheme:
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize(
    "name", ["README.md", "docs/index.md", "docs/benchmark.md", "docs/algorithms/adaptive_trpo.md"]
)
def test_intervals_are_those_of_the_report(name: str) -> None:
    """Of the latest grid: figures are copied by hand, and forgotten when it goes on."""
    text = (ROOT / name).read_text(encoding="utf-8").partition("## What was measured of an earlier version")[0]
    summaries = [ROOT / "benchmarks" / grid / "report" / "summary.md" for grid in GRIDS]
    reported = {found for path in summaries for found in INTERVAL.findall(path.read_text(encoding="utf-8"))}
    found = set(INTERVAL.findall(" ".join(text.split())))
    assert found
    assert found <= reported


@each_page
def test_each_algorithm_has_its_page_in_one_order(name: str) -> None:
    text = ALGORITHM_PAGES[name].read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ORDER
    assert name in (ROOT / "docs" / "algorithms" / "index.md").read_text(encoding="utf-8").splitlines()
    assert f"autoclass:: sb3_trustregion.{name}.{ALGORITHMS[name]}" in (ROOT / "docs" / "api.md").read_text()
    assert f"docs/algorithms/{name}.md" in (ROOT / "README.md").read_text(encoding="utf-8")


@each_page
def test_own_arguments_and_their_defaults(name: str) -> None:
    stock = differences.PPO if differences.is_like_ppo(of_name(name)) else differences.TRPO
    shared, every = differences.defaults(stock), differences.defaults(of_name(name))
    own = {key: value for key, value in every.items() if key not in shared}
    found = {row[0].strip("`"): row[1] for row in rows(section(ALGORITHM_PAGES[name], "Arguments"))}
    assert found == own


@each_page
def test_logged_values(name: str) -> None:
    updates = train(make_model(of_name(name)), 4)
    logged = {key.removeprefix("train/") for update in updates for key in update.logged if key.startswith("train/")}
    assert keys_of(section(ALGORITHM_PAGES[name], "Logged values")) == logged


def test_differences_are_those_of_the_signatures() -> None:
    page = differences.PAGE.read_text(encoding="utf-8")
    assert differences.with_table(page) == page, "run python -m docs.differences"


def test_train_is_what_the_page_says() -> None:
    modules = "adaptive_trpo", "adaptive_ppo", "common.judge"
    source = "".join(inspect.getsource(importlib.import_module(f"sb3_trustregion.{name}")) for name in modules)
    page = ROOT / "docs" / "trust_region.md"
    lines = rows(section(page, "The textbook beside `train()`"))
    quoted = [code for *_, ours in lines for code in re.findall("`(.*?)`", ours) if "(" in code]
    assert len(quoted) > 5
    assert [code for code in quoted if code not in source] == []
    train_source = inspect.getsource(AdaptiveTRPO.train)
    assert sum(code in train_source for code in quoted) > 5


def test_house_of_contributing_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    package = ROOT / "sb3_trustregion"
    named = set(re.findall(r"\b(?:core|common|benchmark)/[\w/]+\.py|tests/[\w/]+\.py", text)) - {"tests/test_NAME.py"}
    assert len(named) > 10
    assert [path for path in named if not ((ROOT / path).is_file() or (package / path).is_file())] == []


def test_citation() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == sb3_trustregion.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
