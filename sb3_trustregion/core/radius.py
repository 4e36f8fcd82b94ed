"""
Step 5 of the trust-region algorithm: accept or roll back, grow or shrink the radius.

Pure functions of plain numbers. ``update_radius`` is the one seam: a new rule is one function in ``RULES``.

The default, ``noise_aware``, goes to a radius known to be good (``prior``) as far as evidence allows. To second order

    actual = predicted·(1 - θ·s)

for a step of length s = √(2·KL), with θ a ratio of sums over the last ``window`` steps, each weighed by its own
standard error. A step gains most where half of its promise is kept, and three quarters of that where three quarters or
one quarter is kept, the thresholds of the textbook: where θ is known so well, steps are to be no shorter than the one
and no longer than the other. A promise is what a step gained on its own batch times the reliability of such gains over
the window, which for longer steps is taken as large as it may be. Why, and what failed, is in ``docs/radius.md``. That
a ratio under noise must be relaxed by the noise is Sun & Nocedal 2022 (arXiv 2201.00973); actual against predicted is
Conn, Gould & Toint 2000, ch. 6; that a greedy choice of the step is too short is Wu et al. 2018 (arXiv 1803.02021).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from sb3_trustregion.core.improvement import Improvement

ROLLBACK_SHRINKAGE = 0.5
# Where half of the promise is kept a step gains most; at either of these three quarters of that.
SHORTEST_KEEPS, LONGEST_KEEPS = 0.75, 0.25
# Of a gain on the batch that a step was fitted to, at least so much is taken for real.
LEAST_RELIABILITY = 0.02
# Residuals are cut here, so that one freak rollout cannot rule the window.
OUTLIER = 5.0
# Standard errors of θ and of the reliability to their bounds.
DOUBT = 2.0
# Share of the way to the length aimed at (in the logarithm) that is gone at each update, and of the way back to the
# prior: from twenty times its radius, or a twentieth, in some five updates.
SHARE_OF_THE_WAY, SHARE_OF_THE_WAY_BACK = 0.2, 0.5
# Evidence on steps of one length is not trusted beyond this factor on it.
FARTHEST = 4.0
# In the place of a factor, which is none: the radius is one that the user has given since.
GIVEN = -1.0


@dataclass(frozen=True)
class RadiusRule:
    """
    Configuration of step 5.

    :param kind: ``"noise_aware"``, ``"textbook"`` (Nocedal & Wright, algorithm 4.1), ``"fixed"``, or a function of your
        own, from the pooled evidence and the last judged step to the factor on the squared length of a step
    :param window: number of steps over which evidence is pooled, fading exponentially
    :param minimum: lower bound on the radius
    :param maximum: upper bound on the radius
    :param rollback_z: a step is undone when it was worse by more than this many standard errors; None never undoes
    :param exponent: how the radius scales with the length of a step: 2 for a KL (nats), 1 for a clip range
    :param prior: radius that is known to be good, where the evidence is weak
    :raises ValueError: where an argument is out of range
    """

    kind: "str | Decision" = "noise_aware"
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
        """Factor on the squared length of a step; a ``ValueError`` where a function returns none."""
        if not callable(self.kind):
            return RULES[self.kind](state, measured, self)
        returned: Any = self.kind(state, measured)
        try:
            factor = float(returned)
        except (TypeError, ValueError):
            factor = math.nan
        if not factor >= 0.0:
            raise ValueError(f"radius_rule must return a factor >= 0, got {returned!r}")
        return factor


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
    :param reliability_squares: Σ of its squares
    :param weight: Σ 1, the effective number of pooled steps
    :param promised: Σ length·gain/noise, gains on each step's own batch
    :param gained: Σ length·actual/noise
    :param gained_variance: its variance
    :param leverage: Σ length²·gain/noise, so that θ = (promised - gained/reliability)/leverage
    :param n_judged: steps measured so far
    :param n_rollbacks: steps undone so far
    :param n_feedback: decisions that would have been others with ``actual`` taken for zero
    :param factor: last factor on the radius; ``GIVEN`` where the user has given another radius since
    :param rolled_back: whether the last judged step was undone
    """

    radius: float
    given: float = math.nan
    actual: float = 0.0
    predicted: float = 0.0
    variance: float = 0.0
    reliability: float = 0.0
    reliability_squares: float = 0.0
    weight: float = 0.0
    promised: float = 0.0
    gained: float = 0.0
    gained_variance: float = 0.0
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
    def pooled_reliability(self) -> float:
        """Share of gains that holds on fresh data, over the window."""
        return max(self.reliability / self.weight, LEAST_RELIABILITY) if self.weight > 0.0 else 1.0

    @property
    def largest_reliability(self) -> float:
        """What that share may be at most, by its spread from step to step, with one more step that said 1."""
        if not self.weight > 0.0:
            return 1.0
        mean = self.reliability / self.weight
        variance = max(self.reliability_squares / self.weight - mean**2, 0.0) + (1.0 - mean) ** 2 / self.weight
        return min(self.pooled_reliability + DOUBT * math.sqrt(variance / self.weight), 1.0)

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
    if state.factor == GIVEN:  # whatever the last step says of another radius, the next is to have the one given
        rule = replace(rule, kind="fixed")
    if measured is None or not measured.is_informative:
        return replace(state, factor=1.0, rolled_back=False)
    pooled = _pool(state, measured, rule) if measured.is_promising else state
    if _is_significantly_worse(measured, rule.rollback_z):
        return replace(shrink_radius(pooled, rule), rolled_back=True, n_rollbacks=state.n_rollbacks + 1)
    if not measured.is_promising:
        return replace(state, factor=1.0, rolled_back=False)
    factor = rule.decide(pooled, measured)
    without_feedback = factor
    if not callable(rule.kind):  # one of the user's own may remember what it is asked
        without_feedback = rule.decide(replace(pooled, gained=0.0), measured._replace(actual=0.0))
    if not measured.promise.used_radius:
        # A step that stopped short says nothing about how much further it might have gone.
        factor, without_feedback = min(factor, 1.0), min(without_feedback, 1.0)
    changed = (factor > 1.0, factor < 1.0) != (without_feedback > 1.0, without_feedback < 1.0)
    moved = _scale(pooled, factor ** (rule.exponent / 2), rule)
    return replace(moved, rolled_back=False, n_feedback=state.n_feedback + int(changed))


def restarted(state: TrustRegionState, rule: RadiusRule, start: float, given: float) -> TrustRegionState:
    """Heed another start (evidence on others is forgotten, counters go on), other bounds, a radius that is to stay."""
    if given != state.given:
        state = TrustRegionState(radius=start, given=given, factor=GIVEN).counting_on(state)
    radius = start if rule.kind == "fixed" else min(max(state.radius, rule.minimum), rule.maximum)
    return replace(state, radius=radius)


def shrink_radius(state: TrustRegionState, rule: RadiusRule) -> TrustRegionState:
    """Answer a step invalid for its length; NaN or a gradient of zero would shrink the radius on for nothing."""
    factor = 1.0 if rule.kind == "fixed" else ROLLBACK_SHRINKAGE ** (rule.exponent / 2)
    return _scale(state, factor, rule)


def _is_significantly_worse(measured: Improvement, z: float | None) -> bool:
    """
    Judge this step alone: what the steps before it brought is no reason to keep a policy that is worse.

    Both the whole performance and the step's own share of it must be worse: a small loss that is well known is no
    collapse, and a loss that is not the step's own doing is not mended by undoing it. Nor is one that was meant.
    """
    estimates, meant = ((measured.actual, measured.stderr), measured.whole), -measured.promise.conceded
    return z is not None and all(stderr > 0.0 and mean < meant - z * stderr for mean, stderr in estimates)


def _pool(state: TrustRegionState, measured: Improvement, rule: RadiusRule) -> TrustRegionState:
    """Add one measured step to the fading sums."""
    fade = 1.0 - 1.0 / rule.window
    noise, length = measured.noise, measured.promise.length
    state = replace(
        state,
        reliability=fade * state.reliability + measured.reliability,
        reliability_squares=fade * state.reliability_squares + measured.reliability**2,
        weight=fade * state.weight + 1.0,
    )
    gain = measured.promise.gain
    expected = state.pooled_reliability * gain
    limit = OUTLIER * (noise + expected)
    actual = min(max(measured.actual, expected - limit), expected + limit)
    return replace(
        state,
        actual=fade * state.actual + measured.actual,
        predicted=fade * state.predicted + measured.predicted,
        variance=fade**2 * state.variance + measured.stderr**2,
        promised=fade * state.promised + length * gain / noise,
        gained=fade * state.gained + length * actual / noise,
        gained_variance=fade**2 * state.gained_variance + length**2,
        leverage=fade * state.leverage + length**2 * gain / noise,
        n_judged=state.n_judged + 1,
    )


def _noise_aware(state: TrustRegionState, measured: Improvement, rule: RadiusRule) -> float:
    """Factor on the squared length, a share of the way towards the prior as far as the evidence allows."""
    length = measured.promise.length
    known = length * (rule.prior / state.radius) ** (1.0 / rule.exponent)
    doubt = DOUBT * math.sqrt(state.gained_variance)
    most_bend = (state.promised - (state.gained - doubt) / state.largest_reliability) / state.leverage
    least_bend = (state.promised - (state.gained + doubt) / state.pooled_reliability) / state.leverage
    too_short = min(_length_that_keeps(SHORTEST_KEEPS, most_bend), FARTHEST * length)
    too_long = max(_length_that_keeps(LONGEST_KEEPS, least_bend), length / FARTHEST)
    aim = min(max(known, too_short), too_long)
    share = SHARE_OF_THE_WAY_BACK if aim == known else SHARE_OF_THE_WAY
    return math.pow(aim / length, 2.0 * share)


def _length_that_keeps(share: float, bend: float) -> float:
    """The length s at which 1 - θ·s = share; infinite where longer steps keep all of their promise."""
    return (1.0 - share) / bend if bend > 0.0 else math.inf


def _textbook(state: TrustRegionState, measured: Improvement, rule: RadiusRule) -> float:
    """Decide by Nocedal & Wright, algorithm 4.1, on the last ratio alone: blind to noise, kept for comparison."""
    ratio = measured.ratio
    if not ratio >= 0.25:
        return 0.25**2
    return 2.0**2 if ratio > 0.75 else 1.0


def _scale(state: TrustRegionState, factor: float, rule: RadiusRule) -> TrustRegionState:
    radius = min(max(state.radius * factor, rule.minimum), rule.maximum)
    return replace(state, radius=radius if factor != 1.0 else state.radius, factor=factor)


Decision = Callable[[TrustRegionState, Improvement], float]
RULES: dict[str, Callable[[TrustRegionState, Improvement, RadiusRule], float]] = {
    "noise_aware": _noise_aware,
    "textbook": _textbook,
    "fixed": lambda state, measured, rule: 1.0,  # an ablation, in which roll-back still works
}
