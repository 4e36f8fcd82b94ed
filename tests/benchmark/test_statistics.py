"""rliable's statistics, against what they must be."""

from pathlib import Path

import numpy as np
import pytest
from rliable import metrics

from sb3_trustregion.benchmark import statistics
from sb3_trustregion.benchmark.references import read_references
from sb3_trustregion.benchmark.scores import N_CHECKPOINTS, Collection, collect
from sb3_trustregion.benchmark.statistics import Block, make_block
from tests.benchmark.synthetic import make_grid, write_results

TASKS = ["CartPole-v1", "Pendulum-v1"]
NAMES = ["ppo-default", "npg", "adaptive_trpo"]
QUALITY = {"ppo-default": 0.2, "npg": 0.5, "adaptive_trpo": 0.9}
REPS = 200


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("results")
    write_results(make_grid(folder, TASKS, NAMES, [1000, 1001, 1002], 50_000), QUALITY, ("npg", 1001))
    return collect(folder)


@pytest.fixture(scope="module")
def block(collection: Collection) -> Block:
    return make_block(collection, list(collection.variants.values()), read_references())


def test_the_vectorised_figures_are_rliables() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, size=(5, 7)).astype(float), rng.integers(0, 4, size=(3, 7)).astype(float)
    assert statistics.interquartile_mean(x)[0] == pytest.approx(metrics.aggregate_iqm(x))
    assert statistics.improvement_probability(x, y)[0] == pytest.approx(metrics.probability_of_improvement(x, y))
    curves = rng.normal(size=(5, 7, 4))
    expected = [metrics.aggregate_iqm(curves[..., point]) for point in range(4)]
    np.testing.assert_allclose(statistics.interquartile_mean(curves), expected)


def test_a_failed_run_scores_as_the_random_policy(block: Block) -> None:
    row = block.seeds.index(1001)
    assert (block.scores["evaluation"]["npg"][row] == 0.0).all()
    assert (block.scores["evaluation"]["npg"][row - 1] > 0.2).all()
    assert block.curves["npg"].shape == (3, 2, N_CHECKPOINTS)


def test_better_scores_better(block: Block) -> None:
    found = statistics.interquartile_means(block, "evaluation", REPS)
    assert found["ppo-default"].point < found["adaptive_trpo"].point
    for interval in found.values():
        assert interval.low <= interval.point <= interval.high
    pairs = [("adaptive_trpo", "ppo-default"), ("ppo-default", "adaptive_trpo")]
    chances = statistics.improvements(block, "evaluation", pairs, REPS)
    assert chances[pairs[0]].point == 1.0
    assert chances[pairs[1]].point == 0.0


def test_profiles_fall_from_all_to_none(block: Block) -> None:
    thresholds, shares = statistics.performance_profiles(block, "evaluation", REPS)
    assert thresholds[0] <= 0.0
    assert thresholds[-1] >= 1.0
    for interval in shares.values():
        assert (np.diff(interval.point) <= 0.0).all()
        assert interval.point[-1] == 0.0


def test_the_same_results_give_the_same_intervals(block: Block) -> None:
    once = statistics.interquartile_means(block, "area", REPS)
    assert statistics.interquartile_means(block, "area", REPS) == once


def test_what_is_incomplete_is_left_out(collection: Collection) -> None:
    runs = {key: run for key, run in collection.runs.items() if key != ("Pendulum-v1", "npg", 1002)}
    incomplete = Collection(runs, collection.scores, collection.variants, collection.tasks, collection.seeds)
    found = make_block(incomplete, list(collection.variants.values()), read_references())
    assert found.tasks == ["CartPole-v1"]
    assert found.left_out == ["Pendulum-v1: runs of npg are missing"]
    nothing = make_block(collection, list(collection.variants.values()), {})
    assert nothing.is_empty
    assert all("no references" in reason for reason in nothing.left_out)


def test_results_are_committable(tmp_path: Path) -> None:
    write_results(make_grid(tmp_path, ["Hopper-v5"], ["adaptive_trpo"], [1000], 300_000))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 30_000
