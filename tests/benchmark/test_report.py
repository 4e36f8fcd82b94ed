"""The page holds what it must, by itself."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from sb3_trustregion.benchmark import cli, plots, tables
from sb3_trustregion.benchmark.page import Code, Fold, Heading, Table, Text, write_page
from sb3_trustregion.benchmark.references import read_references
from sb3_trustregion.benchmark.results import Results
from sb3_trustregion.benchmark.scores import collect
from sb3_trustregion.benchmark.statistics import make_block
from tests.benchmark.synthetic import make_grid, write_results

TASKS = ["Pendulum-v1", "CartPole-v1"]
NAMES = [
    "ppo-zoo",
    "trpo-default",
    "trpo-radius_x20",
    "adaptive_trpo",
    "adaptive_trpo-fixed",
    "adaptive_trpo-radius_x20",
    "adaptive_ppo-tuned",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_results(make_grid(folder, TASKS, NAMES, [1000, 1001, 1002], 50_000), failing=("ppo-zoo", 1001))
    Results(folder).add_command("python -m sb3_trustregion.benchmark run mine.yml")
    assert cli.main(["report", str(folder), "--reps", "50"]) == 0
    return folder / "report"


def test_the_page_is_self_contained(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/png;base64,") == len(list(report.glob("*.png")))
    assert "<script" not in page


@pytest.mark.parametrize(
    "text",
    [
        "Is it better than stock?",
        "With hyperparameters for each task",
        "Does the adaptive radius help?",
        "Does the initial radius matter?",
        "Task by task",
        "Radius, ρ and KL of every run",
        "What it costs",
        "2 of 42 runs failed",
        "Error: &lt;synthetic&gt;",
        "Exploratory: 3 tuning seeds",
        "python -m sb3_trustregion.benchmark run mine.yml",
        "0123456789",
        "torch 2.",
    ],
)
def test_the_page_says(report: Path, text: str) -> None:
    assert text in (report / "report.html").read_text()


@pytest.mark.parametrize(
    "name",
    [
        *("stock-intervals", "stock-improvement", "stock-profiles", "stock-sample-efficiency", "stock-learning-curves"),
        *("tuned-intervals", "radius-adaptive_trpo-intervals", "radius-adaptive_trpo-improvement"),
        *("sensitivity", "runs-Pendulum-v1", "runs-CartPole-v1"),
    ],
)
def test_there_is_a_picture(report: Path, name: str) -> None:
    assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_tables_are_written_beside_it(report: Path) -> None:
    runs = (report / "runs.csv").read_text().splitlines()
    assert len(runs) == 1 + len(TASKS) * len(NAMES) * 3
    assert sum(",failed," in line for line in runs) == 2
    for name in ("aggregate", "improvement", "sample_efficiency", "sensitivity"):
        assert "adaptive_trpo" in (report / f"{name}.csv").read_text()


def test_the_summary_has_tables_and_pictures(report: Path) -> None:
    summary = (report / "summary.md").read_text()
    assert "| AdaptiveTRPO, fixed radius |" in summary
    pictures = re.findall(r"\]\(([^)]+\.png)\)", summary)
    assert "stock-intervals.png" in pictures
    assert all((report / name).is_file() for name in pictures)


def test_a_report_on_nothing_complete_says_so(tmp_path: Path) -> None:
    write_results(make_grid(tmp_path, ["Acrobot-v1"], ["npg"], [1000], 10_000))
    write_results(make_grid(tmp_path, ["CartPole-v1"], ["ppo-default"], [1001], 10_000))
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "elsewhere")]) == 0
    page = (tmp_path / "elsewhere" / "report.html").read_text()
    assert "Left out of what is taken over all tasks: Acrobot-v1: runs of ppo-default, npg are missing" in page
    assert "CartPole-v1" in page


def test_a_report_on_failures_alone_says_why(tmp_path: Path) -> None:
    write_results(make_grid(tmp_path, ["CartPole-v1"], ["npg"], [1000], 10_000), failing=("npg", 1000))
    assert cli.main(["report", str(tmp_path), "--reps", "20"]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "1 of 1 runs failed" in page
    assert "Error: &lt;synthetic&gt;" in page


def test_a_report_needs_a_folder_to_write_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(make_grid(tmp_path, ["CartPole-v1"], ["npg"], [1000], 10_000))
    (tmp_path / "file").touch()
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "file" / "below")]) == 2
    assert "output must be a folder that can be written to" in capsys.readouterr().err


def test_who_failed_is_not_the_best(tmp_path: Path) -> None:
    names, seeds = ["npg", "ppo-default"], [1000, 1001]
    grid = make_grid(tmp_path, ["CartPole-v1"], names, seeds, 10_000)
    for failing, best in ((None, 0), (("npg", 1001), 1)):
        write_results(grid, {"npg": 0.9, "ppo-default": 0.2}, failing)
        collection = collect(tmp_path)
        table = tables.task_table(collection, "CartPole-v1", list(collection.variants.values()))
        assert [row[0] for row in table.rows] == ["PPO, defaults", "NPG"]
        assert {row for row, _ in table.strong} == {1 - best}


def test_who_is_as_good_is_the_best_too() -> None:
    assert tables._best([[500.0, 1.0], [500.0, 2.0], [-np.inf, -np.inf]]) == {(0, 1), (1, 1), (1, 2)}
    assert tables._best([[-np.inf], [-np.inf]]) == set()
    # Where no episode ended there is no mean.
    assert tables._best([[np.nan, 1.0], [2.0, 1.0]]) == {(1, 1), (0, 2), (1, 2)}


def test_seeds_of_a_claim_are_drawn_each_in_its_own_way() -> None:
    styles = [plots._seed_style(index) for index in range(10)]
    assert len({(style.color, str(style.dashes)) for style in styles}) == 10


def test_the_spread_over_radii_is_over_all_of_them_or_none(tmp_path: Path) -> None:
    names = ["trpo-radius_div20", "trpo-default", "trpo-radius_x20"]
    write_results(
        make_grid(tmp_path, ["CartPole-v1"], names, [1000], 10_000), dict(zip(names, (0.8, 0.7, 0.1), strict=True))
    )
    collection = collect(tmp_path)
    family = {"trpo-default": dict(zip((0.05, 1.0, 20.0), names, strict=True))}
    block = make_block(collection, list(collection.variants.values()), read_references())
    [row] = tables.spread_over_radii(block, "evaluation", family, {"trpo-default": "TRPO"}).rows
    means = [block.scores["evaluation"][name].mean() for name in names]
    assert row == ["TRPO", *[tables.number(max(means) - min(means))] * 2]
    # Where a task lacks a radius, it is left out and said to be.
    shutil.rmtree(Results(tmp_path).folder(("CartPole-v1", "trpo-radius_x20", 1000)))
    write_results(make_grid(tmp_path, ["Acrobot-v1"], names, [1000], 10_000))
    assert cli.main(["report", str(tmp_path), "--reps", "20"]) == 0
    summary = (tmp_path / "report" / "summary.md").read_text()
    assert "Left out of what is taken over all tasks: CartPole-v1: runs of trpo-radius_x20 are missing" in summary
    assert "| | Acrobot-v1 | mean |" in summary.replace("|  |", "| |")


def test_texts_are_escaped(tmp_path: Path) -> None:
    table = Table(["", "a < b"], [["x", "`<i>`"]], {(0, 1)})
    page = write_page("<t>", [Text("a & b", is_note=True)], [], tmp_path)
    assert "<h1>&lt;t&gt;</h1>" in page.read_text()
    assert "a &amp; b" in page.read_text()
    from sb3_trustregion.benchmark.page import Section

    parts = [Heading("h"), table, Code("<c>"), Fold("more", [Text("inside")])]
    page = write_page("t", [], [Section("s", parts)], tmp_path)
    assert "<b><code>&lt;i&gt;</code></b>" in page.read_text()
    assert "<pre>&lt;c&gt;</pre>" in page.read_text()
    summary = (tmp_path / "summary.md").read_text()
    assert "| x | **`<i>`** |" in summary
    assert "inside" not in summary
