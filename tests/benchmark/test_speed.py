"""The programs of ``benchmarks/`` run and say what they measured; how fast anything is, is no matter of a test."""

import csv
import os
import warnings
from pathlib import Path
from queue import Queue

import pytest

from benchmarks import long_run
from benchmarks.speed import __main__ as program
from benchmarks.speed import growth, memory
from benchmarks.speed.growth import exponents
from benchmarks.speed.plan import QUICK
from benchmarks.speed.rows import Pairs, Row, Spread, verdict
from benchmarks.speed.updates import gain_row, loss_row

FIELDS = (
    "section", "what", "setting", "unit", "peer_name", "n", "ours", "ours_low", "ours_high", "peer", "peer_low",
    "peer_high", "ratio", "ratio_low", "ratio_high", "goal", "reached",
)  # fmt: skip
GOALS = {
    "policy step", "critic fit", "train()", "learn()", "peak memory of train()",
    "held-out gain at the same KL, means ± stderr", "critic's loss on the next rollout",
}  # fmt: skip


@pytest.mark.slow
def test_every_question_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, and of the tiny sizes only the first updates."""
    monkeypatch.setattr("sys.argv", ["benchmarks.speed", "--quick", "--output", str(tmp_path)])
    monkeypatch.setattr(program, "QUICK", QUICK._replace(n_updates=4))
    monkeypatch.setattr(growth, "MOST_UPDATES", 3)
    monkeypatch.setattr(memory, "N_REPEATS", 1)
    monkeypatch.setattr(memory, "peak", measured_here)
    with warnings.catch_warnings():
        program.main()
    assert "not run here" in capsys.readouterr().out
    with (tmp_path / "speed.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames or ()) == FIELDS
    measured = {row["what"] for row in rows if row["goal"]}
    assert measured >= GOALS - {"peak memory of train()"}  # which takes Linux
    assert {row["peer_name"] for row in rows if row["what"] == "learn()"} == {"TRPO", "PPO"}
    sections = {row["section"] for row in rows if row["setting"] == "exponent"}
    assert sections == {"growth in samples", "growth in parameters", "growth in action dimensions"}
    timed = [row for row in rows if row["unit"] in ("ms", "samples/s")]
    assert all(float(row["ours"]) > 0.0 and float(row["peer"]) > 0.0 and int(row["n"]) > 0 for row in timed)
    lines = (tmp_path / "speed.md").read_text().splitlines()
    assert sum(line.startswith("|") for line in lines) == 4 + len([row for row in rows if not row["setting"].isdigit()])
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def measured_here(kind: str, width: int, n_steps: int, device: str) -> float:
    """Without a process of its own, so that it is not what the update alone needs."""
    results: Queue[float] = Queue()
    memory.measure(kind, width, n_steps, device, results)
    return max(results.get_nowait(), 1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not os.access(memory.CLEAR_REFS, os.W_OK), reason="the peak is read as Linux tells it")
def test_memory_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in memory.ALLOCATION:
        monkeypatch.setenv(name, "1")  # so that it is as before afterwards
    assert memory.peak("ours", 64, 1024, "cpu") > 0.0


def test_ratios_are_of_neighbours() -> None:
    pairs = Pairs()
    for ours, peer in ((1.0, 10.0), (2.0, 10.0), (30.0, 100.0)):
        pairs.add(ours, peer)
    row = pairs.row("update", "this", "here", "ms", "<= 0.2")
    assert (row.ours.middle, row.peer.middle) == (2.0, 10.0)
    assert row.ratio is not None
    assert row.ratio.middle == pytest.approx(0.2)
    assert (row.reached, row.n) == ("yes", 3)


@pytest.mark.parametrize(
    ("value", "goal", "reached"),
    [(0.5, "<= 0.5", "yes"), (0.51, "<= 0.5", "no"), (1.0, "> 1.0", "no"), (1.1, "> 1.0", "yes"), (9.0, "", "")],
)
def test_verdict(value: float, goal: str, reached: str) -> None:
    assert verdict(value, goal) == reached


def paired(ours: list[float], peer: list[float]) -> Pairs:
    pairs = Pairs()
    for one, other in zip(ours, peer, strict=True):
        pairs.add(one, other)
    return pairs


def ratio_of(row: Row) -> float:
    assert row.ratio is not None
    return row.ratio.middle


def test_gains_and_losses_are_judged_by_their_standard_errors() -> None:
    level, worse = paired([1.0, 3.0, 2.0], [2.0, 1.0, 3.0]), paired([1.0, 1.1, 1.0], [2.0, 2.2, 2.0])
    assert (gain_row(level, "").reached, gain_row(worse, "").reached) == ("yes", "no")
    assert ratio_of(gain_row(worse, "")) == pytest.approx(0.5)
    better, higher = worse, paired(worse.peer, worse.ours)
    assert (loss_row(better, "").reached, loss_row(higher, "").reached) == ("yes", "no")
    assert ratio_of(loss_row(higher, "")) == pytest.approx(2.0)


def test_exponents_of_a_power() -> None:
    assert exponents([1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0]) == pytest.approx(Spread(1.0, 1.0, 1.0))


def test_a_long_run_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_run, "BLOCK", 2)
    rows = long_run.measure("adaptive_ppo", 8)
    assert [row.updates for row in rows] == [2, 4, 6, 8]
    assert all(row.ms_per_update > 0.0 and row.rss_mib > 0.0 for row in rows)
    assert "MiB per 1,000 updates" in long_run.summary(rows)
