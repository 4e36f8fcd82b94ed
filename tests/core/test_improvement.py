import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_trustregion.core.improvement import (
    FEWEST_PARTS,
    TARGET_BLOCKS,
    Estimate,
    Improvement,
    Promise,
    alternating_signs,
    batch_means,
    block_ids,
    blocks_per_env,
    difference,
    episode_ids,
    episode_returns,
    own_share,
    per_step,
    performance,
)

Array = npt.NDArray[np.float64]
Dones = npt.NDArray[np.bool_]
PROMISE = Promise(gain=2.0, gain_stderr=0.2, linear_gain=3.0, reliability=0.5, length=0.3, used_radius=True)
STEP = Improvement(actual=0.5, stderr=0.1, promise=PROMISE)

sizes = st.tuples(st.integers(1, 300), st.integers(1, 80))


def autoregressive(rng: np.random.Generator, shape: tuple[int, ...], coefficient: float) -> Array:
    """Series along the first axis whose neighbours are correlated, of unit variance."""
    series = np.empty(shape)
    series[0] = rng.standard_normal(shape[1:])
    scale = math.sqrt(1.0 - coefficient**2)
    for t in range(1, len(series)):
        series[t] = coefficient * series[t - 1] + scale * rng.standard_normal(shape[1:])
    return series


def random_dones(rng: np.random.Generator, n_steps: int, n_envs: int, mean_length: float) -> Dones:
    return rng.random((n_steps, n_envs)) < 1.0 / mean_length


# Blocks and means


@given(sizes)
def test_blocks_are_consecutive_and_of_one_environment(size: tuple[int, int]) -> None:
    n_steps, n_envs = size
    ids = block_ids(n_steps, n_envs)
    n_blocks = blocks_per_env(n_steps, n_envs)
    assert ids.shape == size
    for env in range(n_envs):
        assert np.unique(ids[:, env]).tolist() == list(range(env * n_blocks, (env + 1) * n_blocks))
        assert np.all(np.diff(ids[:, env]) >= 0)
        lengths = np.unique(ids[:, env], return_counts=True)[1]
        assert lengths.max() - lengths.min() <= 1


@pytest.mark.parametrize(
    ("n_steps", "n_envs", "expected"),
    [(2048, 1, TARGET_BLOCKS), (1024, 2, 30), (512, 8, 8), (128, 1000, 1), (2, 1, 2), (1, 1, 1), (10, 2, 10)],
)
def test_number_of_blocks(n_steps: int, n_envs: int, expected: int) -> None:
    assert blocks_per_env(n_steps, n_envs) == expected


def test_the_mean_is_over_all_samples_and_the_error_by_blocks() -> None:
    values = np.array([[1.0, 5.0], [3.0, 5.0], [8.0, 2.0]])
    blocks = np.array([[0, 2], [0, 2], [1, 3]])
    # Block means 2, 8, 5, 2 of sizes 2, 1, 2, 1; overall mean 4
    spread = (2 / 1.5) ** 2 * 4 + (1 / 1.5) ** 2 * 16 + (2 / 1.5) ** 2 * 1 + (1 / 1.5) ** 2 * 4
    estimate = batch_means(values, blocks)
    assert estimate.mean == pytest.approx(4.0)
    assert estimate.stderr == pytest.approx(math.sqrt(spread / (4 * 3)))


def test_the_error_of_equal_blocks_is_the_textbooks() -> None:
    values = np.random.default_rng(0).standard_normal((40, 3))
    means = values.reshape(4, 10, 3).mean(axis=1)
    blocks = (np.arange(40) // 10)[:, None] + 4 * np.arange(3)
    assert batch_means(values, blocks).stderr == pytest.approx(means.std(ddof=1) / math.sqrt(12))


def test_numbers_of_absent_blocks_do_not_count() -> None:
    values, blocks = np.array([1.0, 2.0, 4.0]), np.array([0, 3, 9])
    assert batch_means(values, blocks) == pytest.approx(batch_means(values, np.arange(3)))


def test_one_block_leaves_the_error_unknown() -> None:
    assert batch_means(np.ones(5), np.zeros(5, dtype=np.int64)) == Estimate(1.0, math.inf)


@pytest.mark.parametrize("n_envs", [1, 4, 100])
@pytest.mark.parametrize("coefficient", [0.0, 0.7])
def test_batch_means_are_calibrated(n_envs: int, coefficient: float) -> None:
    """Mean over standard error has variance 1, on white noise and on noise with a memory."""
    rng, n_steps, n_repeats = np.random.default_rng(1), 2000 // min(n_envs, 8), 300
    series = autoregressive(rng, (n_steps, n_repeats, n_envs), coefficient)
    blocks = block_ids(n_steps, n_envs)
    estimates = [batch_means(series[:, i], blocks) for i in range(n_repeats)]
    scores = np.array([estimate.mean / estimate.stderr for estimate in estimates])
    assert abs(scores.mean()) < 4.0 / math.sqrt(n_repeats)
    assert 0.75 < scores.var() < 1.35


# Episodes


def test_episodes_are_numbered_through() -> None:
    dones = np.array([[0, 1], [1, 0], [0, 0], [0, 1]], dtype=bool)
    assert episode_ids(dones).tolist() == [[0, 2], [0, 3], [1, 3], [1, 3]]


@given(size=sizes, seed=st.integers(0, 1000), mean_length=st.floats(1.0, 100.0))
def test_an_episode_ends_where_it_is_done(size: tuple[int, int], seed: int, mean_length: float) -> None:
    dones = random_dones(np.random.default_rng(seed), *size, mean_length)
    ids = episode_ids(dones)
    assert ids[0, 0] == 0
    assert np.array_equal(np.diff(ids, axis=0) == 1, dones[:-1])
    assert np.array_equal(np.diff(ids, axis=0) == 0, ~dones[:-1])
    assert np.array_equal(ids[0, 1:], ids[-1, :-1] + 1)


def with_luck(rng: np.random.Generator, n_steps: int, n_envs: int, length: int) -> tuple[Array, Dones]:
    """Whole episodes in turn, some luckier than others from start to end."""
    offset = rng.integers(length, size=n_envs)
    phase = (np.arange(n_steps)[:, None] + offset) // length
    luck = rng.standard_normal((n_steps // length + 2, n_envs))
    dones = (np.arange(n_steps)[:, None] + offset + 1) % length == 0
    return luck[phase, np.arange(n_envs)] + rng.standard_normal((n_steps, n_envs)), dones


def scores_of(rollouts: list[tuple[Array, Dones]]) -> Array:
    """Differences between neighbours over their standard errors: what ``actual`` is where no step is taken."""
    estimates = [performance(*rollout) for rollout in rollouts]
    pairs = zip(estimates[1::2], estimates[::2], strict=True)
    differences = [difference(after, before) for after, before in pairs]
    return np.array([difference.mean / difference.stderr for difference in differences])


def test_without_a_step_the_actual_improvement_is_calibrated() -> None:
    """Calibration on a synthetic process: correlated residuals, episodes with luck, phases that sum to nothing."""
    rng, rollouts = np.random.default_rng(2), []
    for _ in range(400):
        residuals, dones = with_luck(rng, 512, 4, length=60)
        rollouts.append((residuals + 2.0 * autoregressive(rng, (512, 4), 0.6), dones))
    scores = scores_of(rollouts)
    assert abs(scores.mean()) < 4.0 / math.sqrt(len(scores))
    assert 0.7 < scores.var() < 1.3


def test_the_larger_of_two_errors_counts() -> None:
    rng = np.random.default_rng(3)
    residuals, dones = with_luck(rng, 1000, 4, length=100)
    by_blocks = batch_means(residuals, block_ids(1000, 4))
    by_episodes = batch_means(residuals, episode_ids(dones))
    assert by_episodes.stderr > 1.3 * by_blocks.stderr
    assert performance(residuals, dones) == Estimate(by_blocks.mean, by_episodes.stderr)

    slow = autoregressive(rng, (1000, 4), 0.95)
    short = random_dones(rng, 1000, 4, mean_length=3.0)
    by_blocks, by_episodes = batch_means(slow, block_ids(1000, 4)), batch_means(slow, episode_ids(short))
    assert by_blocks.stderr > 1.5 * by_episodes.stderr
    assert performance(slow, short) == Estimate(by_blocks.mean, by_blocks.stderr)


def test_blocks_alone_would_take_luck_for_improvement() -> None:
    rng = np.random.default_rng(4)
    rollouts = [with_luck(rng, 600, 4, length=100) for _ in range(300)]
    assert 0.6 < scores_of(rollouts).var() < 1.5
    by_blocks = [batch_means(residuals, block_ids(600, 4)) for residuals, _ in rollouts]
    assert np.var([estimate.mean / estimate.stderr for estimate in by_blocks]) > 2.0


def test_one_long_episode_falls_back_on_blocks() -> None:
    residuals = np.random.default_rng(5).standard_normal((100, 1))
    dones = np.zeros((100, 1), dtype=bool)
    assert performance(residuals, dones) == batch_means(residuals, block_ids(100, 1))
    assert performance(residuals, dones).stderr < 1.0


@pytest.mark.parametrize(("n_faulty", "is_known"), [(0, True), (49, True), (51, False), (100, False)])
def test_faulty_transitions_are_left_out_while_they_are_few(n_faulty: int, is_known: bool) -> None:
    residuals, dones = np.random.default_rng(8).standard_normal((100, 1)), np.zeros((100, 1), dtype=bool)
    expected = residuals[n_faulty:].mean() if is_known else math.nan
    residuals[:n_faulty] = math.nan
    estimate = performance(residuals, dones)
    assert estimate.mean == pytest.approx(expected, nan_ok=True)
    assert math.isfinite(estimate.stderr) == is_known


def test_batches_much_shorter_than_an_episode_differ_by_phase() -> None:
    """The trap that no standard error within a rollout shows: environments that go through a long episode in step."""
    rng, length, part = np.random.default_rng(6), 200, 25

    def rollouts(n_steps: int) -> list[tuple[Array, Dones]]:
        starts = np.arange(100) * n_steps
        made = []
        for start in starts:
            phase = (start + np.arange(n_steps))[:, None] % length
            residuals = np.cos(2.0 * np.pi * phase / length) + rng.standard_normal((n_steps, 8))
            made.append((residuals, np.broadcast_to(phase == length - 1, residuals.shape)))
        return made

    assert scores_of(rollouts(part)).var() > 4.0
    assert scores_of(rollouts(length)).var() < 1.5


def test_parts_are_as_long_as_the_noise_is_held() -> None:
    """One draw for 25 steps: by shorter blocks the mean of zero would be significantly above or below it."""
    rng, dones = np.random.default_rng(0), np.zeros((200, 2), dtype=bool)
    held = [np.repeat(rng.standard_normal((8, 2)), 25, axis=0) for _ in range(400)]
    scores = [
        [estimate.mean / estimate.stderr for estimate in (performance(x, dones, n) for x in held)] for n in (1, 25)
    ]
    assert np.std(scores[0]) > 1.4
    assert np.std(scores[1]) < 1.2


@pytest.mark.parametrize(("n_envs", "known"), [(1, False), (FEWEST_PARTS - 1, False), (FEWEST_PARTS, True)])
def test_noise_of_a_whole_rollout_is_one_part_of_each_environment(n_envs: int, known: bool) -> None:
    residuals, dones = np.random.default_rng(0).standard_normal((100, n_envs)), np.zeros((100, n_envs), dtype=bool)
    dones[9::10] = True
    assert math.isfinite(performance(residuals, dones, 100).stderr) == known
    assert math.isfinite(own_share(residuals, np.ones((100, n_envs)), dones, 100).stderr) == known


def test_episode_returns() -> None:
    estimate = episode_returns(np.array([10.0, 30.0, 20.0, 10.0, 30.0]))
    assert estimate == pytest.approx(Estimate(20.0, 10.0 / math.sqrt(5)))


def test_a_difference_of_returns_is_told_per_step_of_the_new_episodes() -> None:
    assert per_step(Estimate(60.0, 6.0), np.array([10.0, 20.0])) == pytest.approx(Estimate(4.0, 0.4))


def test_longer_episodes_of_constant_reward_are_an_improvement() -> None:
    """CartPole's case, for which the estimator is there: each return over its own length would always be 1."""
    before, after = np.array([20.0, 30.0] * 3), np.array([40.0, 60.0] * 3)
    improvement = per_step(difference(episode_returns(after), episode_returns(before)), lengths=after)
    assert improvement.mean == pytest.approx(25.0 / 50.0)


@pytest.mark.parametrize("n", [0, 1, FEWEST_PARTS - 1])
def test_too_few_episodes_tell_nothing(n: int) -> None:
    estimate = per_step(episode_returns(np.ones(n)), np.ones(n))
    assert math.isnan(estimate.mean)
    assert not math.isfinite(estimate.stderr)
    assert not STEP._replace(actual=estimate.mean, stderr=estimate.stderr).is_informative


# Signs


@given(sizes)
def test_signs_alternate_by_blocks_and_balance(size: tuple[int, int]) -> None:
    n_steps, n_envs = size
    signs = alternating_signs(n_steps, n_envs)
    assert signs.shape == size
    assert set(np.unique(signs)) <= {-1.0, 1.0}
    if min(n_steps, blocks_per_env(n_steps, n_envs)) >= 2:
        changes = np.flatnonzero(np.diff(signs[:, 0])) + 1
        lengths = np.diff([0, *changes, n_steps])
        assert lengths.max() - lengths.min() <= 1
        assert len(lengths) % 2 == 0
        assert abs(signs.sum(axis=0)).max() <= len(lengths) / 2
    else:  # one block each: environments take turns
        assert np.array_equal(signs, np.broadcast_to(1.0 - 2.0 * (np.arange(n_envs) % 2), size))


def test_signs_keep_the_noise_and_not_the_mean() -> None:
    rng = np.random.default_rng(7)
    signs = alternating_signs(1200, 2)
    samples = 5.0 + rng.standard_normal((1000, 1200, 2))
    signed = (signs * samples).mean(axis=(1, 2))
    assert abs(signed.mean()) < 4.0 * signed.std() / math.sqrt(1000)
    assert signed.var() == pytest.approx(samples.mean(axis=(1, 2)).var(), rel=0.2)


# Improvement


def test_a_difference_adds_variances() -> None:
    assert difference(Estimate(3.0, 0.3), Estimate(1.0, 0.4)) == pytest.approx(Estimate(2.0, 0.5))


def promising(**changes: Any) -> Improvement:
    return STEP._replace(promise=PROMISE._replace(**changes))


@pytest.mark.parametrize(
    ("gain", "linear_gain", "predicted"), [(2.0, 3.0, 1.0), (2.0, 1.0, 0.5), (-2.0, 3.0, -1.0), (2.0, -1.0, -0.5)]
)
def test_a_promise_is_the_reliable_share_of_a_gain_within_the_linear_one(
    gain: float, linear_gain: float, predicted: float
) -> None:
    assert promising(gain=gain, linear_gain=linear_gain).predicted == predicted


def test_the_ratio_is_actual_over_predicted() -> None:
    assert STEP.ratio == pytest.approx(0.5)
    assert promising(reliability=-0.5).ratio == pytest.approx(-0.5)


def test_without_a_prediction_there_is_no_ratio() -> None:
    assert math.isnan(promising(reliability=0.0).ratio)


@pytest.mark.parametrize(("reliability", "share"), [(0.5, 0.5), (-0.5, -0.5), (0.0, 0.0), (9.0, 1.0), (-9.0, -1.0)])
def test_the_share_of_the_gain_on_its_own_batch(reliability: float, share: float) -> None:
    assert promising(reliability=reliability).reliability == share
    assert promising(reliability=reliability, linear_gain=1e-9).reliability == pytest.approx(0.0, abs=1e-8)


def test_noise_is_kept_off_zero() -> None:
    assert STEP.noise == 0.1
    assert STEP._replace(stderr=0.0).noise == pytest.approx(0.015)
    assert promising(reliability=0.0)._replace(stderr=0.0, actual=0.0).noise == 0.0


@pytest.mark.parametrize("field", ["actual", "stderr"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e31, -1e200])
def test_a_measurement_without_room_for_powers_does_not_inform(field: str, value: float) -> None:
    assert STEP.is_informative
    assert not STEP._replace(**{field: value}).is_informative


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in ("gain", "gain_stderr", "length") for value in (math.nan, math.inf, -math.inf)),
        *(("reliability", math.nan), ("reliability", -math.inf), ("linear_gain", math.nan), ("linear_gain", -math.inf)),
        *(("length", 0.0), ("length", 1e-160)),
    ],
)
def test_a_promise_that_is_not_finite_or_goes_nowhere_does_not_inform(field: str, value: float) -> None:
    assert not promising(**{field: value}).is_informative


@pytest.mark.parametrize(("gain", "expected"), [(1.0, True), (1e-20, True), (0.0, False), (-1.0, False)])
def test_only_a_gain_on_the_own_batch_is_a_promise(gain: float, expected: bool) -> None:
    assert promising(gain=gain).is_promising == expected


def test_a_task_without_rewards_does_not_inform() -> None:
    assert not promising(gain=0.0)._replace(actual=0.0, stderr=0.0).is_informative


@given(
    actual=st.floats(-1e6, 1e6),
    gain=st.floats(-1e6, 1e6).filter(bool),
    scale=st.floats(1e-3, 1e3),
)
def test_the_ratio_has_no_units(actual: float, gain: float, scale: float) -> None:
    one = promising(gain=gain, linear_gain=gain)._replace(actual=actual)
    other = promising(gain=scale * gain, linear_gain=scale * gain)._replace(actual=scale * actual)
    assert other.ratio == pytest.approx(one.ratio, rel=1e-9)


# Whose a loss is


class Loss(NamedTuple):
    """A rollout whose residuals fell, and what the old policy would have done."""

    residuals: Array
    ratios: Array
    dones: Dones


def loss(of_step: float, of_environment: float, seed: int = 0) -> Loss:
    """
    The new policy takes one of two actions with probability 0.8, the old one took it with 0.5.

    That action costs ``of_step`` more than the old policy's mean, the other one pays the same: zero at the old policy.
    """
    rng = np.random.default_rng(seed)
    taken = rng.random((2000, 4)) < 0.8
    residuals = np.where(taken, -of_step, of_step) - of_environment + 0.1 * rng.standard_normal(taken.shape)
    return Loss(residuals, np.where(taken, 0.5 / 0.8, 0.5 / 0.2), np.zeros(taken.shape, dtype=bool))


@pytest.mark.parametrize("of_environment", [0.0, 2.0])
@pytest.mark.parametrize("of_step", [0.0, 1.0])
def test_a_loss_of_the_environment_is_not_the_steps(of_step: float, of_environment: float) -> None:
    fell = loss(of_step, of_environment)
    own = own_share(*fell)
    assert own.mean == pytest.approx(-0.6 * of_step, abs=4.0 * own.stderr)
    assert own.stderr < 0.02
    # What all residuals have in common adds no noise either.
    assert own == pytest.approx(own_share(*fell._replace(residuals=fell.residuals + 1e3)), rel=1e-6, abs=1e-6)


def test_the_own_share_is_calibrated() -> None:
    """By its own standard error, over many steps whose truth is known."""
    shares = [own_share(*loss(1.0, 0.5, seed)) for seed in range(200)]
    scores = np.array([(share.mean + 0.6) / share.stderr for share in shares])
    assert abs(scores.mean()) < 4.0 / math.sqrt(len(scores))
    assert 0.8 < scores.std() < 1.2


def test_the_own_share_knows_more_than_the_difference() -> None:
    """A short step among actions that pay very differently, in states that do too."""
    rng = np.random.default_rng(0)
    taken = rng.random((2000, 4)) < 0.55
    residuals = np.where(taken, 0.1, -0.1) + rng.standard_normal(taken.shape)
    dones = np.zeros(taken.shape, dtype=bool)
    own = own_share(residuals, np.where(taken, 0.5 / 0.55, 0.5 / 0.45), dones)
    assert own.mean == pytest.approx(0.01, abs=4.0 * own.stderr)
    assert own.stderr < 0.2 * performance(residuals, dones).stderr


def test_faulty_transitions_say_nothing_of_the_step() -> None:
    fell = loss(1.0, 0.0)
    holed = np.where(np.arange(2000)[:, None] % 10 == 0, np.nan, fell.residuals)
    own = own_share(holed, fell.ratios, fell.dones)
    assert own.mean == pytest.approx(-0.6, abs=4.0 * own.stderr)
    assert math.isnan(own_share(np.full_like(holed, np.nan), fell.ratios, fell.dones).mean)
