"""The page holds what it must, by itself."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sb3_trustregion.benchmark import cli
from sb3_trustregion.benchmark.report import report as report_module
from sb3_trustregion.benchmark.report import tables
from sb3_trustregion.benchmark.report.page import Page
from sb3_trustregion.benchmark.report.scores import collect, read_references
from sb3_trustregion.benchmark.report.statistics import make_block
from sb3_trustregion.benchmark.results import Results
from sb3_trustregion.benchmark.variants import VARIANTS
from tests.benchmark.synthetic import write_results

TASKS = ["Pendulum-v1", "CartPole-v1"]
SEEDS = [1000, 1001]
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
    results = write_results(folder, TASKS, NAMES, SEEDS, failing=("ppo-zoo", 1001))
    results.add_command("python -m sb3_trustregion.benchmark run mine.yml")
    assert cli.main(["archive", str(folder)]) == 0
    assert cli.main(["report", str(folder), "--reps", "20"]) == 0
    assert not results.runs_folder.exists()
    return folder / "report"


def test_the_page_is_self_contained(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/png;base64,") == len(list(report.glob("*.png")))
    assert "<script" not in page


@pytest.mark.parametrize("name", ["report.html", "summary.md"])
def test_it_says_what_came_of_it(report: Path, name: str) -> None:
    text = (report / name).read_text()
    for wanted in (
        *("Is it better than stock?", "With hyperparameters for each task", "Does the adaptive radius help?"),
        *("Does the initial radius matter?", "Task by task", "Radius, ρ and KL of every run", "What it costs"),
        *("What the rule did", "2 of 28 runs failed", "Exploratory: 2 seeds, for tuning", "0123456789", "torch 2."),
        *("python -m sb3_trustregion.benchmark run mine.yml", "AdaptiveTRPO, fixed radius"),
    ):
        assert wanted in text
    assert ("Error: &lt;synthetic&gt;" if name.endswith("html") else "Error: <synthetic>") in text
    assert "EnvPool" not in text


def test_there_are_pictures(report: Path) -> None:
    named = re.findall(r"\]\(([^)]+\.png)\)", (report / "summary.md").read_text())
    assert sorted(named) == sorted(path.name for path in report.glob("*.png"))
    assert set(named) >= {
        *("stock-intervals.png", "stock-improvement.png", "stock-profiles.png", "stock-sample-efficiency.png"),
        *("stock-learning-curves.png", "tuned-intervals.png", "radius-adaptive_trpo-intervals.png"),
        *("radius-adaptive_trpo-improvement.png", "sensitivity-intervals.png", "runs-Pendulum-v1.png"),
    }


def test_probabilities_of_improvement_are_told_in_figures(report: Path) -> None:
    summary = (report / "summary.md").read_text()
    assert re.search(r"^\| AdaptiveTRPO better than TRPO, defaults \| \**[01]\.\d\d \[", summary, re.MULTILINE)


def test_tables_are_written_beside_it(report: Path) -> None:
    runs = pd.read_csv(report / "runs.csv")
    assert len(runs) == len(TASKS) * len(NAMES) * len(SEEDS)
    assert (runs["status"] == "failed").sum() == 2
    for name in ("aggregate", "improvement", "sample_efficiency"):
        table = pd.read_csv(report / f"{name}.csv")
        assert table["variant"].str.contains("AdaptiveTRPO").any()
        assert (table["low"] <= table["high"]).all()
        assert ("sensitivity" in set(table["section"])) is (name == "aggregate")


def test_a_report_on_nothing_complete_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sb3_trustregion.benchmark.run.grid.check_envpool", lambda tasks: None
    )  # to read, none is needed
    write_results(tmp_path, ["Acrobot-v1"], ["npg"], [1000], backend="envpool")
    write_results(tmp_path, ["CartPole-v1"], ["ppo-default"], [1001], backend="envpool")
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "elsewhere"), "--reps", "20"]) == 0
    page = (tmp_path / "elsewhere" / "report.html").read_text()
    assert "Left out of what is taken over all tasks: Acrobot-v1: runs of ppo-default, npg are missing" in page
    assert "EnvPool, exploration only" in page


def test_a_report_on_failures_alone_says_why(tmp_path: Path) -> None:
    write_results(tmp_path, ["CartPole-v1"], ["npg"], [1000], failing=("npg", 1000))
    assert cli.main(["report", str(tmp_path), "--reps", "20"]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "1 of 1 runs failed" in page
    assert "Error: &lt;synthetic&gt;" in page


def test_before_the_first_run_has_finished_there_is_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Results(tmp_path).add_command("python -m sb3_trustregion.benchmark run")
    assert cli.main(["report", str(tmp_path)]) == 0
    assert f"no run in {tmp_path} has finished yet" in capsys.readouterr().out
    assert not (tmp_path / "report").exists()


def test_a_report_needs_a_folder_to_write_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path, ["CartPole-v1"], ["npg"], [1000])
    (tmp_path / "file").touch()
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "file" / "below")]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_who_failed_is_not_the_best(tmp_path: Path) -> None:
    quality = {"npg": 0.9, "ppo-default": 0.2}
    for failing, best in ((None, "NPG"), (("npg", 1001), "PPO, defaults")):
        results = write_results(tmp_path, ["CartPole-v1"], list(quality), SEEDS, 10_000, quality, failing)
        table = tables.task_table(collect(results), "CartPole-v1")
        assert list(table.index) == ["PPO, defaults", "NPG"]
        assert list(table.index[table["final policy"].str.contains("**", regex=False)]) == [best]


def test_who_is_as_good_is_the_best_too() -> None:
    def best(values: list[list[float]]) -> list[list[bool]]:
        texts = pd.DataFrame([["x"] * 2] * len(values))
        return (tables.bold(texts, np.array(values)) == "**x**").to_numpy().tolist()

    assert best([[500.0, 1.0], [500.0, 2.0], [-np.inf, -np.inf]]) == [[True, False], [True, True], [False, False]]
    assert best([[-np.inf, np.nan]]) == [[False, False]]
    # Where no episode ended there is no mean.
    assert best([[np.nan, 1.0], [2.0, 1.0]]) == [[False, True], [True, True]]


def test_the_spread_over_radii_is_over_all_of_them_or_none(tmp_path: Path) -> None:
    names = ["trpo-radius_div20", "trpo-default", "trpo-radius_x20"]
    quality = dict(zip(names, (0.8, 0.7, 0.1), strict=True))
    results = write_results(tmp_path, ["CartPole-v1"], names, [1000], 10_000, quality)
    collection = collect(results)
    block = make_block(collection, collection.variants, read_references())
    families = {"TRPO": dict(zip((0.05, 1.0, 20.0), block.final, strict=True))}
    means = [scores.mean() for scores in block.final.values()]
    assert tables.spread_over_radii(block, families).loc["TRPO"].tolist() == [tables.number(np.ptp(means))] * 2
    # Where a task lacks a radius, it is left out and said to be.
    shutil.rmtree(results.folder(("CartPole-v1", "trpo-radius_x20", 1000)))
    write_results(tmp_path, ["Acrobot-v1"], names, [1000])
    assert cli.main(["report", str(tmp_path), "--reps", "20"]) == 0
    summary = (tmp_path / "report" / "summary.md").read_text()
    assert "Left out of what is taken over all tasks: CartPole-v1: runs of trpo-radius_x20 are missing" in summary
    assert "|  | Acrobot-v1 | mean |" in summary


def test_texts_are_escaped(tmp_path: Path) -> None:
    page = Page(tmp_path)
    page.add("<t>", "# ")
    page.add("a & b", "> ")
    page.table(pd.DataFrame({"a < b": ["**`<i>`**"]}, index=["x"]))
    page.code("<c>")
    with page.fold("more"):
        page.code("<d>\n\n<e>")
    text = page.write().read_text()
    for wanted in ("&lt;t&gt;</h1>", "a &amp; b", "<code>&lt;c&gt;", "<code>&lt;d&gt;\n\n&lt;e&gt;"):
        assert wanted in text
    assert "<i>" not in text
    assert "| x | **`&lt;i&gt;`** |" in (tmp_path / "summary.md").read_text()


def test_the_parent_is_found_under_a_name_of_its_own() -> None:
    """As grid files give them: with all that it shares with the ablation."""
    large = {"n_envs": 64, "n_steps": 1024}
    parent = replace(VARIANTS["adaptive_trpo"], name="large", hyperparameters=large)
    ablation = VARIANTS["adaptive_trpo-fixed"]
    child = replace(ablation, name="large-fixed", hyperparameters=ablation.hyperparameters | large)
    others = [VARIANTS["trpo-default"], replace(parent, name="other", hyperparameters={"n_envs": 4}), child]
    assert report_module._parent(child, [*others, parent]) == parent
    assert report_module._parent(child, others) is None
    assert report_module._parent(ablation, [*others, VARIANTS["adaptive_trpo"]]) == VARIANTS["adaptive_trpo"]


def test_those_that_have_all_seeds_are_compared_over_all(tmp_path: Path) -> None:
    write_results(tmp_path, ["CartPole-v1"], ["trpo-default", "adaptive_trpo"], [1000, 1001, 1002])
    write_results(tmp_path, ["CartPole-v1"], ["ppo-default"], [1000])
    assert cli.main(["report", str(tmp_path), "--reps", "20"]) == 0
    summary = (tmp_path / "report" / "summary.md").read_text()
    of_three, of_all = summary.split("### Those that have been run with all seeds")
    assert "Over the seeds that all of these have: 1000." in of_three
    assert "over 1 task and 3 seeds" in of_all
    assert "PPO" not in of_all[: of_all.index("better than")]
    means = pd.read_csv(tmp_path / "report" / "aggregate.csv").set_index("section")
    assert set(means.loc["stock-all-seeds", "variant"]) == {"TRPO, defaults", "AdaptiveTRPO"}


def test_no_episode_may_have_ended_yet(tmp_path: Path) -> None:
    """Few steps of several environments whose episodes are long."""
    write_results(tmp_path, TASKS[:1], NAMES[:2], SEEDS[:1], n_timesteps=400)
    assert cli.main(["report", str(tmp_path), "--reps", "20"]) == 0
    assert not list((tmp_path / "report").glob("*learning-curves.png"))
