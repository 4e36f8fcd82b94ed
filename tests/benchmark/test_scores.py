"""Scores of runs, and what may be taken together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_trustregion.benchmark import cli
from sb3_trustregion.benchmark.report import scores
from sb3_trustregion.benchmark.report.scores import (
    N_CHECKPOINTS,
    collect,
    last_returns,
    learning_curve,
    read_references,
)
from sb3_trustregion.benchmark.results import RUN_FILE, Results
from sb3_trustregion.benchmark.run.tasks import measure_random
from tests.benchmark.synthetic import write_results


def naive_curve(timesteps: list[int], returns: list[float], n_timesteps: int) -> list[float]:
    curve = []
    for index in range(1, N_CHECKPOINTS + 1):
        point = index * n_timesteps / N_CHECKPOINTS
        window = point - scores.WINDOW * n_timesteps
        recent = [value for step, value in zip(timesteps, returns, strict=True) if window < step <= point]
        past = [value for step, value in zip(timesteps, returns, strict=True) if step <= point]
        curve.append(float(np.mean(recent)) if recent else past[-1] if past else returns[0])
    return curve


@pytest.mark.parametrize("seed", range(5))
def test_a_curve_is_the_mean_of_recent_episodes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    timesteps = np.sort(rng.choice(np.arange(1, 1200), size=rng.integers(1, 40), replace=False))
    returns = rng.normal(size=len(timesteps))
    curve = learning_curve(timesteps.astype(float), returns, 1000)
    np.testing.assert_allclose(curve, naive_curve(timesteps.tolist(), returns.tolist(), 1000))


def test_a_run_without_a_finished_episode_has_no_curve() -> None:
    assert np.isnan(learning_curve(np.array([]), np.array([]), 1000)).all()


def test_episodes_that_end_together_count_together() -> None:
    timesteps = np.repeat([100.0, 200.0, 600.0], 4)
    returns = np.arange(12.0)
    for order in (slice(None), slice(None, None, -1)):
        values = returns.reshape(3, 4)[:, order].ravel()
        assert last_returns(timesteps, values) == np.mean([8.0, 9.0, 10.0, 11.0])
        curve = learning_curve(timesteps, values, 1000)
        # Before the first, at it, long after the second, long after the last.
        assert [curve[index] for index in (0, 4, 20, -1)] == [1.5, 1.5, 5.5, 9.5]


def test_the_last_tenth_of_single_episodes_is_a_tenth() -> None:
    assert last_returns(np.arange(1.0, 41.0), np.arange(40.0)) == np.mean([36.0, 37.0, 38.0, 39.0])
    assert np.isnan(last_returns(np.array([]), np.array([])))


def test_scores_are_of_the_end(tmp_path: Path) -> None:
    results = write_results(tmp_path, ["CartPole-v1"], ["npg"], [1000], 50_000)
    run = next(results.all())
    collection = collect(results)
    row = collection.table.iloc[0]
    returns = run.episodes()["return"].to_numpy()
    assert row["training"] == pytest.approx(returns[-10:].mean())  # of 100
    assert row["evaluation"] == pytest.approx(np.mean(run.record["evaluation"]["returns"]))
    assert row["area"] == pytest.approx(collection.curves[run.key].mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_timesteps": 1}, "number of steps on CartPole-v1: 1, 50000"),
        ({"modules": {"sb3_trustregion.core.radius": "0"}}, r"version of sb3_trustregion\.core\.radius: 0, "),
        ({"backend": "envpool"}, "backend of environments: envpool, gymnasium"),
        ({"hyperparameters": {"n_steps": 1}}, "hyperparameters of npg on CartPole-v1"),
        ({"versions": {"torch": "0.1"}}, "version of torch: 0.1, "),
        ({"seed": 3}, r"kind of seeds: for claims \(0-9\), for tuning"),
    ],
)
def test_what_does_not_belong_together_is_not_taken_together(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_results(tmp_path, ["CartPole-v1"], ["npg"], [1000, 1001], 50_000)
    run = next(Results(tmp_path).all())
    (run.folder / RUN_FILE).write_text(json.dumps(run.record | change))
    with pytest.raises(ValueError, match=message):
        collect(Results(tmp_path))
    assert len(collect(Results(tmp_path), allow_mixed=True).runs) == 2


def test_the_committed_references_are_sound() -> None:
    references = read_references()
    assert references["CartPole-v1"].normalize(500.0) == 1.0
    assert references["CartPole-v1"].normalize(21.61) == 0.0
    for task in ("Acrobot-v1", "MountainCarContinuous-v0", "BipedalWalker-v3", "Humanoid-v5", "Swimmer-v5"):
        assert task in references


def test_the_random_policy_is_as_committed(capsys: pytest.CaptureFixture[str]) -> None:
    mean, stderr = measure_random("CartPole-v1")
    assert mean == pytest.approx(read_references()["CartPole-v1"].random, abs=1e-6)
    assert 0.0 < stderr < 3.0
    assert cli.main(["references", "CartPole-v1"]) == 0
    assert capsys.readouterr().out == "CartPole-v1: random 21.61 (standard error 1.2, 100 episodes)\n"


UNKNOWN = "tasks: {A: {random: n/a, reference: 1}}"


@pytest.mark.parametrize(
    "text", ["{}", "tasks: {A: {random: 1}}", "tasks: {A: {random: 1, reference: 1}}", "- 1", UNKNOWN]
)
def test_malformed_references_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "references.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match="reference"):
        read_references(path)
