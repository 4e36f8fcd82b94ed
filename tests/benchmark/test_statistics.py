"""rliable's statistics, against what they must be."""

from dataclasses import replace

import numpy as np
import pytest
from rliable import metrics

from sb3_trustregion.benchmark.report import statistics
from sb3_trustregion.benchmark.report.scores import N_CHECKPOINTS, Collection, collect, read_references
from sb3_trustregion.benchmark.report.statistics import Block, estimate, make_block
from tests.benchmark.synthetic import write_results

TASKS = ["CartPole-v1", "Pendulum-v1"]
NAMES = ["ppo-default", "npg", "adaptive_trpo"]
QUALITY = {"ppo-default": 0.2, "npg": 0.5, "adaptive_trpo": 0.9}
REPS = 200


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("results")
    return collect(write_results(folder, TASKS, NAMES, [1000, 1001, 1002], 50_000, QUALITY, ("npg", 1001)))


@pytest.fixture(scope="module")
def block(collection: Collection) -> Block:
    return make_block(collection, collection.variants, read_references())


def test_the_vectorised_figures_are_rliables() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, size=(5, 7)).astype(float), rng.integers(0, 4, size=(3, 7)).astype(float)
    assert statistics.improvement_probability(x, y)[0] == pytest.approx(metrics.probability_of_improvement(x, y))
    curves = rng.normal(size=(5, 7, 4))
    expected = [metrics.aggregate_iqm(curves[..., point]) for point in range(4)]
    np.testing.assert_allclose(statistics.interquartile_mean(curves), expected)


def test_a_failed_run_scores_as_the_random_policy(block: Block) -> None:
    assert (block.scores["NPG"][1] == 0.0).all()
    assert (block.final["NPG"][0] > 0.2).all()
    assert block.curves["NPG"].shape == (3, 2, N_CHECKPOINTS)


def test_better_scores_better(block: Block) -> None:
    points, intervals = estimate(block.scores, statistics.interquartile_mean, REPS)
    assert (points["PPO, defaults"] < points["AdaptiveTRPO"]).all()
    for label, (low, high) in intervals.items():
        assert ((low <= points[label]) & (points[label] <= high)).all()
    best, worst = block.final["AdaptiveTRPO"], block.final["PPO, defaults"]
    chances = estimate({"a": [best, worst], "b": [worst, best]}, statistics.improvement_probability, REPS)
    assert (chances.points["a"][0], chances.points["b"][0]) == (1.0, 0.0)


def test_the_same_results_give_the_same_intervals(block: Block) -> None:
    one, other = (estimate(block.scores, statistics.interquartile_mean, REPS).intervals for _ in range(2))
    assert all((one[label] == other[label]).all() for label in one)


def test_what_is_incomplete_is_left_out(collection: Collection) -> None:
    runs = {key: run for key, run in collection.runs.items() if key != ("Pendulum-v1", "npg", 1002)}
    found = make_block(replace(collection, runs=runs), collection.variants, read_references())
    assert found.tasks == ["CartPole-v1"]
    assert found.left_out == ["Pendulum-v1: runs of npg are missing"]
    assert found.seeds == [1000, 1001, 1002]
    nothing = make_block(collection, collection.variants, {})
    assert nothing.tasks == []
    assert all("no references" in reason for reason in nothing.left_out)


def test_a_seed_that_one_of_them_lacks_is_left_out_for_all(collection: Collection) -> None:
    """A grid that is under way: some are further than others."""
    runs = {key: run for key, run in collection.runs.items() if key[1:] != ("npg", 1001)}
    under_way = replace(collection, runs=runs)
    found = make_block(under_way, collection.variants, read_references())
    assert (found.seeds, found.tasks, found.left_out) == ([1000, 1002], TASKS, [])
    all_of_them = make_block(collection, collection.variants, read_references())
    np.testing.assert_array_equal(found.final["AdaptiveTRPO"], all_of_them.final["AdaptiveTRPO"][[0, 2]])
    others = [variant for variant in collection.variants if variant.name != "npg"]
    assert make_block(under_way, others, read_references()).seeds == [1000, 1001, 1002]
