"""
Step 5 of the trust-region algorithm: accept or roll back, grow or shrink the radius.

Pure functions of plain numbers. ``update_radius`` is the one seam: a new rule is one function in ``RULES``.

The default rule, ``bayesian``, asks how the ratio falls with the length of a step, s = √(2·KL). To second order

    actual = predicted·(1 - θ·s)

(the model is linear, the truth bends), so that a step gains most where half of its promise is kept, at length 1/(2θ).
θ is a ratio of sums over the last ``window`` steps, each step weighed by its own standard error. At some thousand
samples an update these say little for hundreds of updates, while practice has long known which lengths are good: the
logarithm of the best length has a normal prior there, θ and its standard error make a posterior of it, and at each
update the radius goes a share of the way to the posterior's mean. Where evidence is weak that is a way back to what is
known to be good, from either side; in large batches evidence decides. What a single step promises on fresh data is
mostly noise, hence a promise is what the step gained on its own batch times the reliability of such gains over the
window. Where rewards or transitions drift, which shows in what the old policy would have gained or lost as well, steps
are judged by their own share alone. That a ratio under noise must be relaxed by the noise is Sun & Nocedal 2022 (arXiv
2201.00973); actual against predicted is Conn, Gould & Toint 2000, ch. 6.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sb3_trustregion.core.improvement import Improvement

ROLLBACK_SHRINKAGE = 0.5
# Half of the promise kept is where a quadratic gains most, whatever its curvature.
TARGET_RATIO = 0.5
# Of a gain on the batch that a step was fitted to, at least so much is taken for real.
LEAST_RELIABILITY = 0.02
# Residuals are cut here, so that one freak rollout cannot rule the window.
OUTLIER = 5.0
# Standard deviation of the prior: the best length is within a factor of two of what is known to be good, or of four.
PRIOR_WIDTH = math.log(2.0)
# Of the way to the posterior's mean, at each update: from twenty times too long or too short in some fifteen.
SHARE_OF_THE_WAY = 0.2
# Where the posterior is taken, in standard deviations of the prior.
GRID = np.linspace(-6.0, 6.0, 601)
# In standard errors, so that squares stay finite.
LARGEST_SURPRISE = 1e6
# Standard errors of the environment's own share from which on it is believed to change. Where that is a mistake, the
# steps' own share is good evidence all the same.
CHANGE_SIGNIFICANCE = 2.0


@dataclass(frozen=True)
class RadiusRule:
    """
    Configuration of step 5.

    :param kind: ``"bayesian"``, ``"textbook"`` (Nocedal & Wright, algorithm 4.1), ``"fixed"``, or a function of your
        own, from the pooled evidence and the last judged step to the factor on the squared length of a step
    :param window: number of steps over which evidence is pooled, fading exponentially
    :param minimum: lower bound on the radius
    :param maximum: upper bound on the radius
    :param rollback_z: a step is undone when it was worse by more than this many standard errors; None never undoes
    :param exponent: how the radius scales with the length of a step: 2 for a KL (nats), 1 for a clip range
    :param prior: radius that is known to be good, where the evidence is weak
    :raises ValueError: where an argument is out of range
    """

    kind: "str | Decision" = "bayesian"
    window: int = 50
    minimum: float = 1e-6
    maximum: float = 50.0
    rollback_z: float | None = 3.0
    exponent: float = 2.0
    prior: float = 0.01

    def __post_init__(self) -> None:
        if not callable(self.kind) and not (isinstance(self.kind, str) and self.kind in RULES):
            raise ValueError(f"radius_rule must be a function or one of {sorted(RULES)}, got {self.kind!r}")
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"radius_window must be an integer >= 1, got {self.window!r}")
        if not 0.0 < self.minimum < self.maximum < math.inf:
            raise ValueError(f"radius_bounds must satisfy 0 < lower < upper < inf, got {(self.minimum, self.maximum)}")
        if self.rollback_z is not None and not 0.0 < self.rollback_z < math.inf:
            raise ValueError(f"rollback_z must be None or > 0, got {self.rollback_z}")
        if not 0.0 < self.prior < math.inf:
            raise ValueError(f"radius_prior must be > 0 and finite, got {self.prior}")

    def decide(self, state: "TrustRegionState", measured: Improvement) -> float:
        """Factor on the squared length of a step."""
        if callable(self.kind):
            return self.kind(state, measured)
        return RULES[self.kind](state, measured, self)


@dataclass(frozen=True)
class TrustRegionState:
    """
    All that steps 4 and 5 remember, in plain numbers, so that it is saved and comes back bit for bit.

    :param radius: δ in nats per action dimension (or the factor on the clip range)
    :param given: what the user gave to start from: where that is another one now, the radius starts anew
    :param actual: Σ actual improvement, fading over the window
    :param predicted: Σ predicted improvement
    :param variance: Σ squared standard error of ``actual``
    :param reliability: Σ predicted improvement/gain on the step's own batch
    :param weight: Σ 1, the effective number of pooled steps
    :param promised: Σ length·expected/noise
    :param gained: Σ length·actual/noise
    :param gained_variance: its variance
    :param changed: Σ length·(share of actual that is the environment's)/noise
    :param drift: Σ (share of actual that is the environment's)/noise: what tells that the environment changes
    :param drift_variance: its variance
    :param leverage: Σ length²·expected/noise, so that θ = (promised - gained)/leverage
    :param n_judged: steps measured so far
    :param n_rollbacks: steps undone so far
    :param n_feedback: decisions that would have been others with ``actual`` taken for zero
    :param factor: last factor on the radius
    :param rolled_back: whether the last judged step was undone
    """

    radius: float
    given: float = math.nan
    actual: float = 0.0
    predicted: float = 0.0
    variance: float = 0.0
    reliability: float = 0.0
    weight: float = 0.0
    promised: float = 0.0
    gained: float = 0.0
    gained_variance: float = 0.0
    changed: float = 0.0
    drift: float = 0.0
    drift_variance: float = 0.0
    leverage: float = 0.0
    n_judged: int = 0
    n_rollbacks: int = 0
    n_feedback: int = 0
    factor: float = 1.0
    rolled_back: bool = False

    @property
    def pooled_ratio(self) -> float:
        """Σ actual / Σ predicted over the window, never a mean of ratios; NaN before the first step."""
        return self.actual / self.predicted if self.predicted != 0.0 else math.nan

    @property
    def pooled_ratio_stderr(self) -> float:
        """Standard error of ``pooled_ratio``, from that of ``actual`` alone."""
        return math.sqrt(self.variance) / abs(self.predicted) if self.predicted != 0.0 else math.nan

    @property
    def environment_changes(self) -> bool:
        """Whether rewards or transitions drift over the window: what they took is not held against the steps."""
        return self.drift**2 > CHANGE_SIGNIFICANCE**2 * self.drift_variance

    @property
    def gained_by_steps(self) -> float:
        """``gained``, less what the environment gave or took where it changes."""
        return self.gained - (self.changed if self.environment_changes else 0.0)

    @property
    def pooled_reliability(self) -> float:
        """Share of gains that holds on fresh data, over the window."""
        return max(self.reliability / self.weight, LEAST_RELIABILITY) if self.weight > 0.0 else 1.0

    def counting_on(self, other: "TrustRegionState") -> "TrustRegionState":
        """The same state with the counters of another."""
        return replace(self, n_judged=other.n_judged, n_rollbacks=other.n_rollbacks, n_feedback=other.n_feedback)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers by name, for a checkpoint."""
        return asdict(self)


def update_radius(state: TrustRegionState, measured: Improvement | None, rule: RadiusRule) -> TrustRegionState:
    """
    Judge the last step: the next radius, and whether the step is rolled back.

    :param state: before
    :param measured: what the step promised and brought; None where there was nothing to judge
    :param rule: configuration
    :return: state after; ``rolled_back`` tells whether the step must be undone
    """
    if measured is None or not measured.is_informative:
        return replace(state, factor=1.0, rolled_back=False)
    pooled = _pool(state, measured, rule) if measured.is_promising else state
    if _is_significantly_worse(measured, pooled, rule):
        factor = 1.0 if rule.kind == "fixed" else ROLLBACK_SHRINKAGE ** (rule.exponent / 2)
        undone = _scale(pooled, factor, rule)
        return replace(undone, rolled_back=True, n_rollbacks=state.n_rollbacks + 1)
    if not measured.is_promising:
        return replace(state, factor=1.0, rolled_back=False)
    factor = rule.decide(pooled, measured)
    without_feedback = rule.decide(replace(pooled, gained=0.0, changed=0.0), measured._replace(actual=0.0))
    if not measured.promise.used_radius:
        # A step that stopped short says nothing about how much further it might have gone.
        factor, without_feedback = min(factor, 1.0), min(without_feedback, 1.0)
    changed = _direction(factor) != _direction(without_feedback)
    moved = _scale(pooled, factor ** (rule.exponent / 2), rule)
    return replace(moved, rolled_back=False, n_feedback=state.n_feedback + int(changed))


def restarted(state: TrustRegionState, rule: RadiusRule, start: float, given: float) -> TrustRegionState:
    """
    Heed what the user has set since: another initial radius, other bounds, a radius that is to stay.

    Evidence about another radius is forgotten, counters go on.
    """
    if given != state.given:
        return TrustRegionState(radius=start, given=given).counting_on(state)
    radius = start if rule.kind == "fixed" else min(max(state.radius, rule.minimum), rule.maximum)
    return replace(state, radius=radius)


def shrink_radius(state: TrustRegionState, rule: RadiusRule) -> TrustRegionState:
    """
    Answer a step that was invalid for its length: no trial point within the radius improved the model.

    Not for a batch of NaNs or a gradient of zero: no radius mends those, and shrinking on would leave it useless.
    """
    factor = 1.0 if rule.kind == "fixed" else ROLLBACK_SHRINKAGE ** (rule.exponent / 2)
    return _scale(state, factor, rule)


def _is_significantly_worse(measured: Improvement, pooled: TrustRegionState, rule: RadiusRule) -> bool:
    z = rule.rollback_z
    if z is None or not measured.stderr > 0.0:
        return False
    # Of this step alone: what the steps before it brought is no reason to keep a policy that is worse.
    if not measured.actual < -z * measured.stderr:
        return False
    if measured.attribution is None:
        return True
    own, change = measured.attribution
    if not (pooled.environment_changes or abs(change.mean) > z * change.stderr):
        return True
    return own.mean < -z * own.stderr


def _pool(state: TrustRegionState, measured: Improvement, rule: RadiusRule) -> TrustRegionState:
    """Add one measured step to the fading sums."""
    fade = 1.0 - 1.0 / rule.window
    noise, length = measured.noise, measured.promise.length
    state = replace(
        state,
        reliability=fade * state.reliability + measured.reliability,
        weight=fade * state.weight + 1.0,
    )
    expected = state.pooled_reliability * measured.promise.gain
    limit = OUTLIER * (noise + expected)
    actual = _within(measured.actual, expected, limit)
    change, change_stderr = 0.0, 0.0
    if measured.attribution is not None:
        change = actual - _within(measured.attribution.own.mean, expected, limit)
        change_stderr = measured.attribution.change.stderr
    return replace(
        state,
        actual=fade * state.actual + measured.actual,
        predicted=fade * state.predicted + measured.predicted,
        variance=fade**2 * state.variance + measured.stderr**2,
        promised=fade * state.promised + length * expected / noise,
        gained=fade * state.gained + length * actual / noise,
        gained_variance=fade**2 * state.gained_variance + length**2,
        changed=fade * state.changed + length * change / noise,
        drift=fade * state.drift + change / noise,
        drift_variance=fade**2 * state.drift_variance + (change_stderr / noise) ** 2,
        leverage=fade * state.leverage + length**2 * expected / noise,
        n_judged=state.n_judged + 1,
    )


def _bayesian(state: TrustRegionState, measured: Improvement, rule: RadiusRule) -> float:
    """Factor on the squared length towards the posterior's mean of the logarithm of the best length."""
    length = measured.promise.length
    # Of a step as long as the last one: what it fails to keep of its promise, and the standard error of that.
    lost = length * (state.promised - state.gained_by_steps) / state.leverage
    stderr = length * math.sqrt(state.gained_variance) / state.leverage
    # Logarithm of the best length over the present one.
    best = math.log(rule.prior / state.radius) / rule.exponent + PRIOR_WIDTH * GRID
    surprise = np.clip((lost - (1.0 - TARGET_RATIO) * np.exp(-best)) / stderr, -LARGEST_SURPRISE, LARGEST_SURPRISE)
    log_posterior = -0.5 * (GRID**2 + surprise**2)
    mean = np.average(best, weights=np.exp(log_posterior - log_posterior.max()))
    return math.exp(2.0 * SHARE_OF_THE_WAY * float(mean))


def _textbook(state: TrustRegionState, measured: Improvement, rule: RadiusRule) -> float:
    """Nocedal & Wright, algorithm 4.1, on the last ratio alone: blind to noise, kept for comparison."""
    ratio = measured.ratio
    if not ratio >= 0.25:
        return 0.25**2
    return 2.0**2 if ratio > 0.75 else 1.0


def _fixed(state: TrustRegionState, measured: Improvement, rule: RadiusRule) -> float:
    """The radius stays: the ablation, roll-back still works."""
    return 1.0


def _scale(state: TrustRegionState, factor: float, rule: RadiusRule) -> TrustRegionState:
    radius = min(max(state.radius * factor, rule.minimum), rule.maximum)
    return replace(state, radius=radius if factor != 1.0 else state.radius, factor=factor)


def _within(value: float, middle: float, limit: float) -> float:
    return min(max(value, middle - limit), middle + limit)


def _direction(factor: float) -> int:
    return (factor > 1.0) - (factor < 1.0)


Decision = Callable[[TrustRegionState, Improvement], float]
RULES: dict[str, Callable[[TrustRegionState, Improvement, RadiusRule], float]] = {
    "bayesian": _bayesian,
    "textbook": _textbook,
    "fixed": _fixed,
}
