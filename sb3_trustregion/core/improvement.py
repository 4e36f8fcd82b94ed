"""
Step 4 of the trust-region algorithm: what a step promised and what it brought.

``actual`` and ``predicted`` are per-step means in reward units, so that their ratio is the textbook's ρ
(Conn, Gould & Toint 2000, eq. 6.1.7; performance-difference lemma, Kakade & Langford 2002).
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

# Enough block means for a variance with 10 % error, few enough for blocks longer than the correlation time.
TARGET_BLOCKS = 60
# A deviation over fewer parts that are independent (episodes, or blocks as long as noise is held) says too little.
FEWEST_PARTS = 5
# Powers and ratios of what lies between stay finite.
SMALLEST_ESTIMATE, LARGEST_ESTIMATE = 1e-30, 1e30


class Estimate(NamedTuple):
    """A mean and its standard error, both in reward units."""

    mean: float
    stderr: float


class Promise(NamedTuple):
    """
    What a step promised.

    :param gain: of the surrogate on the batch that the step was fitted to, reward units per environment step
    :param gain_stderr: its standard error for a fixed step
    :param linear_gain: gᵀs, of the surrogate's linearisation, same units
    :param reliability: share of the gain that holds on data that the step was not fitted to, at most 1
    :param length: √(2·KL), joint over action dimensions, √nats
    :param used_radius: whether the step went as far as the radius let it, to a policy that its batch can still tell of,
        by advantages that are not a critic's errors
    :param conceded: loss on that batch that PPO's entropy bonus has paid for, same units: it was meant
    """

    gain: float
    gain_stderr: float
    linear_gain: float
    reliability: float
    length: float
    used_radius: bool
    conceded: float = 0.0

    def scaled(self, unit: float) -> "Promise":
        """The same promise in another unit of reward."""
        names = "gain", "gain_stderr", "linear_gain", "conceded"
        return self._replace(**{name: unit * getattr(self, name) for name in names})

    @property
    def predicted(self) -> float:
        """Improvement that is expected on fresh data. Beyond its linear prediction a gain is noise of large ratios."""
        return self.reliability * min(self.linear_gain, self.gain)  # so ordered, min passes NaN on


class Improvement(NamedTuple):
    """
    One judged step.

    :param actual: what the step brought per environment step, in reward units
    :param stderr: standard error of ``actual``
    :param promise: what the step promised
    :param difference: between the whole performances after and before the step, same units: many times noisier, and
        with what the environment did meanwhile; None where ``actual`` is that itself
    """

    actual: float
    stderr: float
    promise: Promise
    difference: Estimate | None = None

    @property
    def whole(self) -> Estimate:
        """The difference of performances, whichever estimate ``actual`` is."""
        return Estimate(self.actual, self.stderr) if self.difference is None else self.difference

    @property
    def predicted(self) -> float:
        """What was promised on fresh data, in the units of ``actual``."""
        return self.promise.predicted

    @property
    def reliability(self) -> float:
        """Share of the gain that was predicted to hold on fresh data, cut to [-1, 1]."""
        return min(max(self.predicted / self.promise.gain, -1.0), 1.0)

    @property
    def ratio(self) -> float:
        """ρ = actual / predicted; NaN where nothing was predicted."""
        return self.actual / self.predicted if self.predicted != 0.0 else math.nan

    @property
    def noise(self) -> float:
        """Standard error of ``actual``, kept off zero, so that it can divide, where anything is not zero."""
        return max(self.stderr, 1e-2 * abs(self.predicted) + 1e-2 * abs(self.actual))

    @property
    def is_informative(self) -> bool:
        """Finite, with room for powers, and not the zero minus zero of a task without rewards."""
        promise = self.promise
        values = (self.actual, self.stderr, self.predicted, promise.gain, promise.gain_stderr, promise.length)
        bounded = all(abs(value) < LARGEST_ESTIMATE for value in values)  # NaN is not
        return bounded and min(self.noise, promise.length) > SMALLEST_ESTIMATE

    @property
    def is_promising(self) -> bool:
        """Whether the step gained on its own batch, as a PPO update need not: else there is no promise to be kept."""
        return self.promise.gain > SMALLEST_ESTIMATE


def blocks_per_env(n_steps: int, n_envs: int) -> int:
    """In how many blocks each environment's T steps are cut: a single series in two at least, for a variance."""
    wanted = max(round(TARGET_BLOCKS / n_envs), 2 if n_envs == 1 else 1)
    return max(min(wanted, n_steps), 1)


def block_ids(n_steps: int, n_envs: int, at_least: int = 1) -> npt.NDArray[np.int64]:
    """Shape (T, N): the block, of so many steps at least, that each belongs to, counted over all environments."""
    n_blocks = max(min(blocks_per_env(n_steps, n_envs), n_steps // at_least), 1)
    within = np.arange(n_steps) * n_blocks // n_steps
    return within[:, None] + n_blocks * np.arange(n_envs)[None, :]


def episode_ids(dones: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Shape (T, N): the (piece of an) episode that each step belongs to, counted over all environments."""
    starts = np.zeros(dones.shape, dtype=np.int64)
    starts[1:] = dones[:-1]
    starts[0] = 1
    ids: npt.NDArray[np.int64] = np.cumsum(starts, axis=0) - 1
    ids[:, 1:] += np.cumsum(ids[-1] + 1)[:-1]
    return ids


def performance(residuals: FloatArray, dones: npt.NDArray[np.bool_], noise_held: int = 1) -> Estimate:
    """
    Mean TD residual of a rollout (T, N), NaN where faulty, with the larger of two standard errors; NaN where most are.

    Blocks of equal length miss what repeats with each episode where few episodes fit a rollout; whole episodes miss
    what happens where they are longer than it. Each sees what the other misses. Blocks are no shorter
    than gSDE holds its noise, ``noise_held`` steps; where that leaves too few the standard error is infinite.
    """
    finite = np.isfinite(residuals)
    if 2 * finite.sum() < finite.size:
        return Estimate(math.nan, math.inf)
    blocks = block_ids(len(finite), finite.shape[1], noise_held)
    if noise_held > 1 and blocks.max() + 1 < FEWEST_PARTS:
        return Estimate(float(residuals[finite].mean()), math.inf)
    by_blocks = batch_means(residuals[finite], blocks[finite])
    by_episodes = batch_means(residuals[finite], episode_ids(dones)[finite])
    if math.isinf(by_episodes.stderr):
        return by_blocks
    return Estimate(by_blocks.mean, max(by_blocks.stderr, by_episodes.stderr))


def own_share(residuals: FloatArray, ratios: FloatArray, dones: npt.NDArray[np.bool_], noise_held: int = 1) -> Estimate:
    """
    What a step brought by itself: the mean of (1 - r)·d with r = π_k/π_{k+1}.

    By the performance-difference lemma (Kakade & Langford 2002, lemma 6.1) a step improves by the mean of d over what
    its policy does. In the same states the old policy's r·d has mean zero, and to take that off takes most of the noise
    with it, and what rewards or transitions have changed by. Shapes are (T, N): d are TD residuals of the rollout after
    the step by the critic before it, NaN where faulty; r is of its actions.
    """
    finite = np.isfinite(residuals)
    # The mean of 1 - r is zero, so what all have in common is noise as well.
    centred = residuals - (residuals[finite].mean() if finite.any() else 0.0)
    return performance((1.0 - ratios) * centred, dones, noise_held)


def alternating_signs(n_steps: int, n_envs: int) -> FloatArray:
    """Shape (T, N): ±1 by blocks, so that neighbours cancel: a mean over ``sign * x`` keeps x's noise, not its mean."""
    n_blocks = max(2 * (blocks_per_env(n_steps, n_envs) // 2), 1)
    within = np.arange(n_steps) * n_blocks // n_steps
    parity = (within[:, None] + np.arange(n_envs)[None, :]) % 2
    return 1.0 - 2.0 * parity.astype(np.float64)


def batch_means(values: FloatArray, blocks: npt.NDArray[np.int64]) -> Estimate:
    """
    Mean of correlated samples, any shape, with its standard error by batch means (Law & Kelton). ``blocks``, same
    shape, are long enough to be independent of each other; where there is but one the standard error is infinite.
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    counts = np.bincount(blocks.ravel())
    present = counts > 0
    counts = counts[present]
    overall = float(flat.mean())
    n_blocks = len(counts)
    if n_blocks < 2:
        return Estimate(overall, math.inf)
    means = np.bincount(blocks.ravel(), weights=flat)[present] / counts
    # Blocks may differ in size: weighed so, this is the standard error of the mean over all samples.
    spread = float(np.sum((counts / counts.mean()) ** 2 * (means - overall) ** 2))
    return Estimate(overall, math.sqrt(spread / (n_blocks * (n_blocks - 1))))


def difference(after: Estimate, before: Estimate) -> Estimate:
    """The difference of two independent estimates, under the new policy and the old one, with its standard error."""
    return Estimate(after.mean - before.mean, math.hypot(after.stderr, before.stderr))


def episode_returns(returns: FloatArray) -> Estimate:
    """Mean return of finished episodes (E,), the model-free alternative to TD residuals; NaN of fewer than five."""
    if len(returns) < FEWEST_PARTS:
        return Estimate(math.nan, math.inf)
    return Estimate(float(np.mean(returns)), float(np.std(returns, ddof=1)) / math.sqrt(len(returns)))


def per_step(estimate: Estimate, lengths: FloatArray) -> Estimate:
    """
    A difference of returns η(π') - η(π), by the lengths (E,) of the episodes of π', in the units of the surrogate.

    η(π') - η(π) is the sum over an episode of π' of the advantages of π (eq. 15 of the overview): over the length of
    that episode it is their mean, the improvement per environment step. One length for both returns: over its own each
    return is the mean reward, which says nothing where rewards are constant and only lengths differ.
    """
    scale = float(np.mean(lengths)) if len(lengths) else math.nan
    return Estimate(estimate.mean / scale, estimate.stderr / scale)
