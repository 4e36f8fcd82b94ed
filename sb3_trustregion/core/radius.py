"""
Step 5 of the trust-region algorithm: accept or roll back, grow or shrink the radius.

Pure Python on plain numbers. ``update_radius`` is the one seam: a new rule is one function in ``RULES``.

The default rule, ``noise_aware``, fits the textbook's own picture to what was measured: the gain of a step of length
s = √(2·KL) is, to second order,

    predicted = g·s,    actual = predicted - ½κ·s²

so that a step gains most at length g/κ, where the ratio of actual to predicted is 1/2. g (how much improvement a step
of unit length promises) and κ (how much of the promise its length breaks) are ratios of pooled sums over the last
``window`` steps, each step weighed by its own standard error; κ is what ``actual`` lacks against g·s, not against the
single ``predicted``, which is noisier by far. The radius moves towards the longest step that the evidence
does not contradict: g at its upper, κ at its lower confidence limit. Where κ is not known yet the radius grows; where
steps were long enough to hurt the sums say so at once; where nothing is promised any more it shrinks. That a ratio
under noise must be relaxed by the noise is Sun & Nocedal 2022 (arXiv 2201.00973); actual against predicted is Conn,
Gould & Toint 2000, ch. 6.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sb3_trustregion.core.improvement import Improvement

GROWTH = 1.3
SHRINKAGE = 0.6
ROLLBACK_SHRINKAGE = 0.5
# One-sided confidence limits, in standard errors: what may yet be true is given the benefit of the doubt.
SIGNIFICANCE = 1.25
# Residuals are cut here, so that one freak rollout cannot rule the window.
OUTLIER = 5.0


@dataclass(frozen=True)
class RadiusRule:
    """
    Configuration of step 5.

    :param kind: ``"noise_aware"``, ``"textbook"`` (Nocedal & Wright, algorithm 4.1) or ``"fixed"``
    :param window: number of steps over which evidence is pooled, fading exponentially
    :param minimum: lower bound on the radius
    :param maximum: upper bound on the radius
    :param rollback_z: a step is undone when it was worse by more than this many standard errors; None never undoes
    :param exponent: how the radius scales with the length of a step: 2 for a KL (nats), 1 for a clip range
    :raises ValueError: where an argument is out of range
    """

    kind: str = "noise_aware"
    window: int = 50
    minimum: float = 1e-6
    maximum: float = 50.0
    rollback_z: float | None = 3.0
    exponent: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in RULES:
            raise ValueError(f"radius_rule must be one of {sorted(RULES)}, got {self.kind!r}")
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"radius_window must be an integer >= 1, got {self.window!r}")
        if not 0.0 < self.minimum < self.maximum < math.inf:
            raise ValueError(f"radius_bounds must satisfy 0 < lower < upper < inf, got {(self.minimum, self.maximum)}")
        if self.rollback_z is not None and not 0.0 < self.rollback_z < math.inf:
            raise ValueError(f"rollback_z must be None or > 0, got {self.rollback_z}")


@dataclass(frozen=True)
class TrustRegionState:
    """
    All that steps 4 and 5 remember, in plain numbers, so that it is saved and comes back bit for bit.

    :param radius: δ in nats (or the factor on the clip range)
    :param actual: Σ actual improvement, fading over the window
    :param predicted: Σ predicted improvement
    :param variance: Σ squared standard error of ``actual``
    :param promise: Σ predicted/noise
    :param promise_variance: its variance, from the spread of ``predicted`` around g·length
    :param reach: Σ length/noise, so that g = promise/reach
    :param reach_2: Σ length²/noise
    :param reach_3: Σ length³/noise
    :param gain: Σ length·actual/noise, so that ½κ = (g·reach_2 - gain)/reach_3
    :param gain_variance: its variance
    :param chi_square: Σ squared residual of the fit, in standard errors
    :param weight: Σ 1, the effective number of pooled steps
    :param n_judged: steps measured so far
    :param n_rollbacks: steps undone so far
    :param n_feedback: decisions that would have been others with ``actual`` taken for zero
    :param factor: last factor on the radius
    :param rolled_back: whether the last judged step was undone
    """

    radius: float
    actual: float = 0.0
    predicted: float = 0.0
    variance: float = 0.0
    promise: float = 0.0
    promise_variance: float = 0.0
    reach: float = 0.0
    reach_2: float = 0.0
    reach_3: float = 0.0
    gain: float = 0.0
    gain_variance: float = 0.0
    chi_square: float = 0.0
    weight: float = 0.0
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
    def slope(self) -> float:
        """g: improvement promised per unit length of a step, reward per √nat."""
        return self.promise / self.reach if self.reach > 0.0 else 0.0

    @property
    def half_curvature(self) -> float:
        """½κ: improvement lost per squared length of a step, reward per nat."""
        return (self.slope * self.reach_2 - self.gain) / self.reach_3 if self.reach_3 > 0.0 else 0.0

    @property
    def noise_scale(self) -> float:
        """By how much residuals exceed their standard errors (Birge ratio), at least 1: phases, long correlations."""
        return math.sqrt(max(self.chi_square / self.weight, 1.0)) if self.weight >= 5.0 else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers by name, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrustRegionState":
        """
        :param values: what ``as_dict`` gave, perhaps in another version: unknown names are left out
        :return: the state
        """
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


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
    pooled = _pool(state, measured, rule)
    if _is_significantly_worse(measured, rule):
        factor = 1.0 if rule.kind == "fixed" else ROLLBACK_SHRINKAGE ** (rule.exponent / 2)
        undone = _scale(pooled, factor, rule)
        return replace(undone, rolled_back=True, n_rollbacks=state.n_rollbacks + 1)
    decide = RULES[rule.kind]
    factor = decide(pooled, measured)
    without_feedback = decide(replace(pooled, gain=0.0), measured._replace(actual=0.0))
    if not measured.used_radius:
        # A step that stopped short says nothing about how much further it might have gone.
        factor, without_feedback = min(factor, 1.0), min(without_feedback, 1.0)
    changed = _direction(factor) != _direction(without_feedback)
    moved = _scale(pooled, factor ** (rule.exponent / 2), rule)
    return replace(moved, rolled_back=False, n_feedback=state.n_feedback + int(changed))


def shrink_radius(state: TrustRegionState, rule: RadiusRule) -> TrustRegionState:
    """
    Answer a step that was invalid for its length: no trial point within the radius improved the model.

    Not for a batch of NaNs or a gradient of zero: no radius mends those, and shrinking on would leave it useless.

    :param state: before
    :param rule: configuration
    :return: state after
    """
    factor = 1.0 if rule.kind == "fixed" else ROLLBACK_SHRINKAGE ** (rule.exponent / 2)
    return _scale(state, factor, rule)


def _is_significantly_worse(measured: Improvement, rule: RadiusRule) -> bool:
    if rule.rollback_z is None or not measured.stderr > 0.0:
        return False
    # Without noise_scale: residuals of a bending model are no reason to keep a policy that is worse.
    return measured.actual < -rule.rollback_z * measured.stderr


def _pool(state: TrustRegionState, measured: Improvement, rule: RadiusRule) -> TrustRegionState:
    """Add one measured step to the fading sums."""
    fade = 1.0 - 1.0 / rule.window
    noise, length = measured.noise, measured.length
    limit = OUTLIER * (noise + abs(measured.predicted))
    actual = min(max(measured.actual, measured.predicted - limit), measured.predicted + limit)
    surprise = (measured.predicted - state.slope * length) / noise
    residual = (actual - state.slope * length + state.half_curvature * length**2) / noise
    return replace(
        state,
        actual=fade * state.actual + measured.actual,
        predicted=fade * state.predicted + measured.predicted,
        variance=fade**2 * state.variance + measured.stderr**2,
        promise=fade * state.promise + measured.predicted / noise,
        promise_variance=fade**2 * state.promise_variance + surprise**2,
        reach=fade * state.reach + length / noise,
        reach_2=fade * state.reach_2 + length**2 / noise,
        reach_3=fade * state.reach_3 + length**3 / noise,
        gain=fade * state.gain + length * actual / noise,
        gain_variance=fade**2 * state.gain_variance + length**2,
        chi_square=fade * state.chi_square + min(residual**2, OUTLIER**2),
        weight=fade * state.weight + 1.0,
        n_judged=state.n_judged + 1,
    )


def _noise_aware(state: TrustRegionState, measured: Improvement) -> float:
    """Factor on the squared length towards the longest step that the pooled evidence does not contradict."""
    doubt = SIGNIFICANCE * state.noise_scale
    g = state.slope + SIGNIFICANCE * math.sqrt(state.promise_variance) / state.reach
    half_kappa = state.half_curvature - doubt * math.sqrt(state.gain_variance) / state.reach_3
    if g <= 0.0:
        return SHRINKAGE
    if half_kappa <= 0.0:
        return GROWTH
    best_length = g / (2.0 * half_kappa)
    return min(max((best_length / measured.length) ** 2, SHRINKAGE), GROWTH)


def _textbook(state: TrustRegionState, measured: Improvement) -> float:
    """Nocedal & Wright, algorithm 4.1, on the last ratio alone: blind to noise, kept for comparison."""
    ratio = measured.ratio
    if not ratio >= 0.25:
        return 0.25**2
    return 2.0**2 if ratio > 0.75 else 1.0


def _fixed(state: TrustRegionState, measured: Improvement) -> float:
    """The radius stays: the ablation, roll-back still works."""
    return 1.0


def _scale(state: TrustRegionState, factor: float, rule: RadiusRule) -> TrustRegionState:
    radius = min(max(state.radius * factor, rule.minimum), rule.maximum)
    return replace(state, radius=radius if factor != 1.0 else state.radius, factor=factor)


def _direction(factor: float) -> int:
    return (factor > 1.0) - (factor < 1.0)


RULES: dict[str, Callable[[TrustRegionState, Improvement], float]] = {
    "noise_aware": _noise_aware,
    "textbook": _textbook,
    "fixed": _fixed,
}
