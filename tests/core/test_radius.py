"""
The radius: a table of inputs and outputs, and what any rule must do, on an objective of known noise.

The objective is a noisy quadratic: a step of length s, radius δ = s²/2, improves by g·s - ½κ·s². It is shown in two
regimes: where a good step's improvement is a fifth of its standard error, as by episode returns, and where it is one
and a half of them, as a thousand samples tell of a step's own share; and in a third where it is six of them.
"""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_trustregion.core.improvement import Estimate, Improvement, Promise
from sb3_trustregion.core.radius import (
    FARTHEST,
    GIVEN,
    LEAST_RELIABILITY,
    OUTLIER,
    ROLLBACK_SHRINKAGE,
    RULES,
    SHARE_OF_THE_WAY,
    SHARE_OF_THE_WAY_BACK,
    RadiusRule,
    TrustRegionState,
    restarted,
    shrink_radius,
    update_radius,
)

RULE = RadiusRule()
START = TrustRegionState(radius=0.01, given=0.01)

Array = npt.NDArray[np.float64]
Alteration = Callable[[Improvement, np.random.Generator], Improvement]


def step(
    actual: float = 1.0,
    stderr: float = 0.1,
    predicted: float = 1.0,
    gain: float = 1.0,
    length: float = 0.5,
    used_radius: bool = True,
) -> Improvement:
    """A step that promised 1, and 1 on its own batch too, and kept it."""
    reliability = predicted / gain if gain != 0.0 else 1.0
    return Improvement(actual, stderr, Promise(gain, 0.1, 2.0 * abs(gain), reliability, length, used_radius))


def with_promise(measured: Improvement, **changes: Any) -> Improvement:
    """The same with another promise."""
    return measured._replace(promise=measured.promise._replace(**changes))


def met_by(change: float, measured: Improvement) -> Improvement:
    """The same step, while the environment gave or took something: the difference is of both."""
    return measured._replace(difference=Estimate(measured.actual + change, 0.1))


# The table


def decided(rule: RadiusRule, **changes: Any) -> float:
    """By what the first step ever judged scales the radius."""
    return update_radius(START, step(**changes), rule).radius / START.radius


@pytest.mark.parametrize("exponent", [1.0, 2.0])
@pytest.mark.parametrize("off", [1 / 20, 1.0, 5.0])
def test_without_evidence_the_radius_goes_to_the_prior(off: float, exponent: float) -> None:
    """A share of the way in the logarithm, from either side."""
    rule = replace(RULE, exponent=exponent, prior=START.radius / off)
    assert decided(rule, actual=0.0, stderr=1e6) == pytest.approx(off**-SHARE_OF_THE_WAY_BACK, rel=1e-3)


@pytest.mark.parametrize(
    ("kept", "prior", "aim"),
    [
        # By hand: θ·s = 1 - kept; the length that keeps 3/4 is (1/4)/θ, the one that keeps 1/4 is (3/4)/θ.
        (0.5, 0.1, 0.5),
        (0.5, 0.7, 0.7),
        (0.5, 1.0, 1.0),
        (0.5, 1.4, 1.4),
        (0.5, 9.0, 1.5),
        (0.75, 0.1, 1.0),
        (0.75, 1.0, 1.0),
        (0.9, 1.0, 2.5),
        (0.1, 1.0, 0.75 / 0.9),
        (0.1, 0.01, 0.25 / 0.9),
        (-0.5, 1.0, 0.5),
        (-9.0, 1.0, 1.0 / FARTHEST),
        (1.5, 1.0, FARTHEST),
        (1.5, 9.0, 9.0),
    ],
)
def test_where_evidence_is_strong_the_prior_is_kept_within_bounds(kept: float, prior: float, aim: float) -> None:
    """Lengths over that of the step; the radius goes with their square."""
    rule = replace(RULE, rollback_z=None, prior=START.radius * prior**2)
    state = replace(START, promised=1e8, gained=kept * 1e8, gained_variance=1e4, leverage=0.5e8)
    factor = update_radius(state, step(actual=kept), rule).factor
    share = SHARE_OF_THE_WAY_BACK if aim == prior else SHARE_OF_THE_WAY
    assert factor == pytest.approx(aim ** (2.0 * share), rel=1e-3)


def test_the_better_a_step_the_longer_the_next() -> None:
    rule = replace(RULE, rollback_z=None)
    factors = [decided(rule, actual=actual) for actual in np.linspace(-9.0, 9.0, 50)]
    assert (np.diff(factors) > -1e-9).all()
    assert factors[0] == pytest.approx(FARTHEST ** (-2.0 * SHARE_OF_THE_WAY))
    assert factors[-1] == pytest.approx(FARTHEST ** (2.0 * SHARE_OF_THE_WAY))
    assert 1.0 in factors


@pytest.mark.parametrize(
    ("ratio", "factor"),
    [(9.0, 16.0 / 4.0), (0.76, 4.0), (0.75, 1.0), (0.5, 1.0), (0.25, 1.0), (0.24, 1 / 16), (-9.0, 1 / 16)],
)
def test_textbook_table(ratio: float, factor: float) -> None:
    """Nocedal & Wright, algorithm 4.1, for the norm √(2δ): a quarter, as it was, twice."""
    rule = replace(RULE, kind="textbook", rollback_z=None)
    assert decided(rule, actual=ratio) == pytest.approx(factor)
    assert decided(rule, actual=ratio, stderr=99.0) == pytest.approx(factor)


@pytest.mark.parametrize("actual", [9.0, 0.5, -9.0])
def test_a_fixed_radius_stays(actual: float) -> None:
    rule = replace(RULE, kind="fixed")
    assert decided(rule, actual=actual) == 1.0
    assert shrink_radius(START, rule) == START


def test_a_fixed_radius_still_rolls_back() -> None:
    after = update_radius(START, step(actual=-9.0), replace(RULE, kind="fixed"))
    assert (after.rolled_back, after.n_rollbacks, after.radius) == (True, 1, START.radius)


@pytest.mark.parametrize(("exponent", "power"), [(2.0, 1.0), (1.0, 0.5)])
def test_a_clip_range_moves_by_the_root(exponent: float, power: float) -> None:
    """A KL goes with the squared length of a step, a clip range with the length."""
    rule = replace(RULE, exponent=exponent)
    for actual in (1.0, 0.0):
        factor = decided(RULE, actual=actual, stderr=0.01)
        assert decided(rule, actual=actual, stderr=0.01) == pytest.approx(factor**power)
        assert abs(math.log(factor)) > 0.05
    assert decided(rule, actual=-9.0) == pytest.approx(ROLLBACK_SHRINKAGE**power)
    assert shrink_radius(START, rule).radius == pytest.approx(START.radius * ROLLBACK_SHRINKAGE**power)


@pytest.mark.parametrize("kind", RULES)
def test_nothing_to_judge_changes_nothing(kind: str) -> None:
    rule = replace(RULE, kind=kind)
    before = update_radius(START, step(actual=-9.0), rule)
    assert before.rolled_back
    for nothing in (None, step(actual=math.nan), step(stderr=math.inf), step(length=0.0)):
        assert update_radius(before, nothing, rule) == replace(before, rolled_back=False, factor=1.0)


def test_sums_fade_over_the_window() -> None:
    rule, state = replace(RULE, window=4, rollback_z=None), START
    for i in range(6):
        state = update_radius(state, step(actual=0.1 * i, predicted=1.0 + i, gain=10.0), rule)
    fades = [0.75 ** (5 - i) for i in range(6)]
    assert state.actual == pytest.approx(sum(f * 0.1 * i for i, f in enumerate(fades)))
    assert state.predicted == pytest.approx(sum(f * (1.0 + i) for i, f in enumerate(fades)))
    assert state.variance == pytest.approx(sum(f**2 * 0.01 for f in fades))
    assert state.weight == pytest.approx(sum(fades))
    assert state.reliability == pytest.approx(sum(f * (0.1 + 0.1 * i) for i, f in enumerate(fades)))
    assert state.n_judged == 6


def test_a_window_of_one_forgets_all_but_the_last() -> None:
    rule = replace(RULE, window=1)
    state = update_radius(update_radius(START, step(predicted=7.0), rule), step(), rule)
    assert (state.actual, state.predicted, state.weight) == (1.0, 1.0, 1.0)


def test_the_pooled_ratio_is_a_ratio_of_sums() -> None:
    state = update_radius(START, step(actual=0.5, predicted=1e-6), replace(RULE, rollback_z=None))
    for _ in range(5):
        state = update_radius(state, step(actual=0.4), RULE)
    assert state.pooled_ratio == pytest.approx(state.actual / state.predicted)
    assert 0.4 < state.pooled_ratio < 0.55  # the mean of ratios is 80,000
    assert state.pooled_ratio_stderr == pytest.approx(math.sqrt(state.variance) / state.predicted)


def test_before_the_first_step_there_is_no_ratio() -> None:
    assert math.isnan(START.pooled_ratio)
    assert math.isnan(START.pooled_ratio_stderr)
    assert START.pooled_reliability == 1.0


def test_the_share_of_promises_is_kept_off_zero() -> None:
    state = START
    for _ in range(5):
        state = update_radius(state, step(predicted=-1.0), RULE)
    assert state.pooled_reliability == LEAST_RELIABILITY


@pytest.mark.parametrize("surprise", [1e9, -1e9])
def test_one_freak_rollout_does_not_rule_the_window(surprise: float) -> None:
    rule = replace(RULE, rollback_z=None)
    state = START
    for _ in range(20):
        state = update_radius(state, step(actual=0.5), rule)
    # A standard error that does not see it, and the largest surprise that counts.
    freak = update_radius(state, step(actual=surprise, stderr=0.1), rule)
    noise = step(actual=surprise).noise
    expected = step().promise.length * (1.0 + math.copysign(OUTLIER * (noise + 1.0), surprise)) / noise
    assert freak.gained == pytest.approx(state.gained * (1.0 - 1.0 / rule.window) + expected)
    assert abs(expected) < 7.0


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("kind", "best", "radius_rule must be a function or one of .*, got 'best'"),
        ("window", 0, "radius_window must be an integer >= 1, got 0"),
        ("window", 2.5, "radius_window must be an integer >= 1, got 2.5"),
        ("window", True, "radius_window must be an integer >= 1, got True"),
        ("minimum", 0.0, r"radius_bounds must satisfy 0 < lower < upper < inf, got \(0.0, 50.0\)"),
        ("minimum", 50.0, "radius_bounds must satisfy"),
        ("minimum", math.nan, "radius_bounds must satisfy"),
        ("maximum", math.inf, "radius_bounds must satisfy"),
        ("rollback_z", 0.0, r"rollback_z must be None or > 0, got 0.0"),
        ("rollback_z", -1.0, "rollback_z must be None or > 0"),
        ("rollback_z", math.inf, "rollback_z must be None or > 0"),
        ("rollback_z", math.nan, "rollback_z must be None or > 0"),
        ("prior", 0.0, r"radius_prior must be > 0 and finite, got 0\.0"),
        ("prior", math.nan, "radius_prior must be > 0 and finite"),
    ],
)
def test_a_rule_out_of_range_is_refused(argument: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RadiusRule(**{argument: value})


# Checkpoints


def some_state() -> TrustRegionState:
    state = update_radius(replace(START, radius=1.0), step(), RULE)
    for i in range(20):
        state = update_radius(state, met_by(0.1, step(actual=math.sin(i), predicted=math.pi / (i + 1))), RULE)
    return update_radius(state, step(actual=-9.0), RULE)


def test_a_state_comes_back_bit_for_bit() -> None:
    state = some_state()
    assert all(getattr(state, field.name) != field.default for field in fields(state) if field.name != "rolled_back")
    assert TrustRegionState(**state.as_dict()) == state


def test_a_state_is_of_plain_numbers() -> None:
    assert {type(value) for value in some_state().as_dict().values()} == {float, int, bool}


# What the user sets


def test_another_initial_radius_starts_anew_but_counters_go_on() -> None:
    rule, state = replace(RULE, maximum=0.5), replace(some_state(), given=0.01)
    anew = restarted(state, rule, start=0.02, given=0.02)
    assert anew == TrustRegionState(radius=0.02, given=0.02, factor=GIVEN).counting_on(state)
    assert anew.n_judged == state.n_judged > 0
    assert anew.weight == 0.0


def test_the_same_initial_radius_changes_nothing() -> None:
    state = replace(some_state(), given=0.01)
    assert restarted(state, RULE, start=0.01, given=0.01) == state


@pytest.mark.parametrize(("bounds", "radius"), [((0.1, 0.5), 0.5), ((2.0, 3.0), 2.0), ((0.1, 3.0), 1.0)])
def test_new_bounds_take_hold_at_once(bounds: tuple[float, float], radius: float) -> None:
    state = TrustRegionState(radius=1.0, given=1.0, gained=7.0)
    rule = RadiusRule(minimum=bounds[0], maximum=bounds[1])
    assert restarted(state, rule, start=1.0, given=1.0) == replace(state, radius=radius)


def test_a_radius_that_is_to_stay_is_the_initial_one() -> None:
    state = TrustRegionState(radius=1.0, given=0.01, gained=7.0)
    assert restarted(state, replace(RULE, kind="fixed"), start=0.01, given=0.01) == replace(state, radius=0.01)


def test_a_rule_may_be_a_function() -> None:
    """From the pooled evidence, this step included, and the step to the factor on its squared length."""
    seen = []

    def own(state: TrustRegionState, measured: Improvement) -> float:
        seen.append((state, measured))
        return 4.0 if measured.actual > 0.5 else 0.5

    measured = step(actual=0.75)
    after = update_radius(START, measured, RadiusRule(own, exponent=1.0))
    assert after.radius == pytest.approx(2.0 * START.radius)
    assert seen[0][1] == measured
    assert (seen[0][0].actual, seen[0][0].n_judged) == (0.75, 1)
    # It may remember what it is asked: so it is not asked what it would say to no improvement.
    assert (len(seen), after.n_feedback) == (1, 0)
    assert update_radius(START, step(used_radius=False), RadiusRule(own)).radius == START.radius
    assert update_radius(START, step(actual=-9.0), RadiusRule(own)).rolled_back
    assert shrink_radius(START, RadiusRule(own)).radius == ROLLBACK_SHRINKAGE * START.radius


@pytest.mark.parametrize("returned", [-0.5, math.nan, None, "much"])
def test_a_function_must_return_a_factor(returned: Any) -> None:
    with pytest.raises(ValueError, match=f"radius_rule must return a factor >= 0, got {returned!r}"):
        update_radius(START, step(), RadiusRule(lambda *_: returned))


# What any rule must do


class Objective(NamedTuple):
    """
    A noisy quadratic.

    :param regime: improvement of the best step in standard errors
    :param reliable: share of the gain on its own batch that holds on fresh data
    :param slope: g
    :param curvature: κ
    """

    regime: float
    reliable: float
    slope: float = 1.0
    curvature: float = 1.0

    @property
    def best_radius(self) -> float:
        return 0.5 * (self.slope / self.curvature) ** 2

    @property
    def noise(self) -> float:
        """Standard error of the measured improvement, the same for all curvatures and slopes."""
        return 0.5 / self.regime

    def improvement(self, radius: float) -> float:
        length = math.sqrt(2.0 * radius)
        return self.slope * length - 0.5 * self.curvature * length**2

    def measure(self, radius: float, rng: np.random.Generator) -> Improvement:
        """What a step that uses its radius promises and brings."""
        length, noise = math.sqrt(2.0 * radius), self.noise
        promise_noise = 0.4 * noise * length
        return step(
            actual=self.improvement(radius) + noise * rng.standard_normal(),
            stderr=noise,
            predicted=self.slope * length + promise_noise * rng.standard_normal(),
            gain=length / self.reliable,
            length=length,
        )


NOISY, CLEAR = Objective(regime=0.2, reliable=0.25), Objective(regime=1.5, reliable=0.8)
PLAIN = Objective(regime=6.0, reliable=0.9)
where_it_shows = pytest.mark.parametrize("objective", [CLEAR, PLAIN], ids=["clear", "plain"])
both_regimes = pytest.mark.parametrize("objective", [NOISY, CLEAR], ids=["noisy", "clear"])
N_RUNS = 20


def run(
    objective: Objective,
    start: float,
    n_updates: int,
    seed: int,
    rule: RadiusRule | None = None,
    alter: Alteration | None = None,
    disturb: dict[int, float] | None = None,
) -> list[TrustRegionState]:
    """
    Optimise for some updates.

    :param objective: what is optimised
    :param start: first radius in units of the best
    :param n_updates: how often
    :param seed: of all noise
    :param rule: the rule; by default practice knows the best radius
    :param alter: what is done to each measurement
    :param disturb: factors on the radius before some of the updates
    :return: the state after each update
    """
    rng, states = np.random.default_rng(seed), []
    rule = rule or replace(RULE, prior=objective.best_radius)
    state = TrustRegionState(radius=start * objective.best_radius)
    for update in range(n_updates):
        state = replace(state, radius=state.radius * (disturb or {}).get(update, 1.0))
        measured = objective.measure(state.radius, rng)
        state = update_radius(state, alter(measured, rng) if alter else measured, rule)
        states.append(state)
    return states


def radii(objective: Objective, start: float, n_updates: int, n_runs: int = N_RUNS, **kwargs: Any) -> Array:
    """Radii in units of the best after each update, shape (runs, updates)."""
    runs = [run(objective, start, n_updates, seed, **kwargs) for seed in range(n_runs)]
    return np.array([[state.radius / objective.best_radius for state in states] for states in runs])


@cache
def calm(objective: Objective) -> Array:
    """150 updates from the best radius, undisturbed: what others are compared with."""
    return radii(objective, 1.0, 150)


def within(one: Array, other: Array, factor: float) -> npt.NDArray[np.bool_]:
    return np.abs(np.log(one / other)) < math.log(factor)


@both_regimes
@pytest.mark.parametrize("wrong", [1 / 20, 20.0])
def test_1_it_comes_back_to_where_it_would_have_been(objective: Objective, wrong: float) -> None:
    """From a first radius that is wrong by 20×, within a few dozen updates."""
    off, right = radii(objective, wrong, 60), calm(objective)[:, :60]
    assert np.median(np.abs(np.log(off[:, 0] / right[:, 0]))) > math.log(4.0)
    assert within(np.median(off[:, 40:], axis=0), np.median(right[:, 40:], axis=0), 2.0).all()
    assert within(off[:, 59], right[:, 59], 3.0).mean() >= 0.8
    # ... which is a good place to be.
    gained = [objective.improvement(radius * objective.best_radius) for radius in np.median(off[:, 40:], axis=0)]
    assert min(gained) > 0.4 * objective.improvement(objective.best_radius)


@both_regimes
@pytest.mark.parametrize("wrong", [1 / 20, 20.0])
def test_1_it_comes_back_also_in_the_middle_of_a_run(objective: Objective, wrong: float) -> None:
    """With sums that are full of what was before."""
    disturbed, undisturbed = radii(objective, 1.0, 150, disturb={80: wrong}), calm(objective)
    assert not within(disturbed[:, 80], undisturbed[:, 80], 4.0).any()
    assert within(np.median(disturbed[:, 120:], axis=0), np.median(undisturbed[:, 120:], axis=0), 1.5).all()
    assert within(disturbed[:, 149], undisturbed[:, 149], 3.0).mean() >= 0.8


@both_regimes
def test_1_no_run_is_lost_to_bad_luck_at_the_start(objective: Objective) -> None:
    """An unlucky draw among the first steps is forgotten: it must not hold the radius down for good."""
    assert radii(objective, 1 / 20, 80, n_runs=80)[:, 79].min() > 0.05


@pytest.mark.parametrize(("wrong", "settled"), [(1 / 4, 0.5**2), (4.0, 1.5**2), (20.0, 1.5**2)])
def test_2_where_evidence_is_clear_a_wrong_prior_does_not_matter(wrong: float, settled: float) -> None:
    """No shorter than the shortest length that gains three quarters of the most, no longer than the longest."""
    rule = replace(RULE, prior=wrong * PLAIN.best_radius)
    reached = float(np.median(radii(PLAIN, wrong, 120, rule=rule)[:, 60:]))
    assert reached == pytest.approx(settled, rel=0.3)
    assert PLAIN.improvement(reached * PLAIN.best_radius) > 0.7 * PLAIN.improvement(PLAIN.best_radius)


def test_2_a_prior_that_is_far_too_short_is_left_in_time() -> None:
    """Short steps gain little, so it takes many of them to know that they keep their promises."""
    rule = replace(RULE, prior=PLAIN.best_radius / 20.0)
    reached = np.median(radii(PLAIN, 1 / 20, 300, rule=rule), axis=0)
    assert reached[149] > 0.09
    assert reached[299] > 0.13


def test_2_a_promise_is_not_kept_for_being_thought_too_small() -> None:
    """The share of gains that is real is known from a few noisy steps alone at first: no reason to go further."""

    class Unsure(Objective):
        def measure(self, radius: float, rng: np.random.Generator) -> Improvement:
            measured = super().measure(radius, rng)
            return with_promise(measured, reliability=self.reliable + 0.5 * rng.standard_normal())

    reached = radii(Unsure(regime=6.0, reliable=0.25), 1.0, 15).max(axis=1)
    assert np.quantile(reached, 0.9) < 1.5


@pytest.mark.parametrize("wrong", [1 / 4, 4.0])
def test_2_in_noise_the_prior_holds_the_radius(wrong: float) -> None:
    """... but where it does harm."""
    rule = replace(RULE, prior=wrong * NOISY.best_radius)
    settled = np.median(radii(NOISY, 1.0, 120, rule=rule)[:, 100:])
    assert settled == pytest.approx(wrong, rel=0.01) if wrong < 1.0 else 1.0 < settled < wrong


def test_2_it_heeds_the_standard_error() -> None:
    """The same loss speaks against the radius where it is sure, and not where it is noise."""
    for actual in (0.1, 0.0):
        assert decided(RULE, actual=actual, stderr=0.02) < 0.95
        assert decided(RULE, actual=actual, stderr=50.0) == 1.0


@pytest.mark.parametrize(("z", "rolled_back"), [(0.0, False), (2.9, False), (3.1, True), (50.0, True)])
def test_2_inconclusive_evidence_does_not_roll_back(z: float, rolled_back: bool) -> None:
    for kind in RULES:
        after = update_radius(START, step(actual=-0.1 * z), replace(RULE, kind=kind))
        assert after.rolled_back == rolled_back


def test_2_it_pools_sums_not_ratios() -> None:
    """A step that promised next to nothing has a ratio of any size; its sums weigh next to nothing."""
    tiny = step(predicted=1e-3, gain=1e-3, length=5e-4, actual=-0.05, used_radius=False)
    assert tiny.ratio == pytest.approx(-50.0)
    plain = tainted = START
    for i in range(20):
        plain = update_radius(plain, step(actual=0.3), RULE)
        tainted = update_radius(tainted, step(actual=0.3), RULE)
        if i % 5 == 0:
            tainted = update_radius(tainted, tiny, replace(RULE, window=10**9))
    last = step(actual=0.3)
    assert update_radius(tainted, last, RULE).factor == pytest.approx(update_radius(plain, last, RULE).factor, rel=0.02)


def test_2_what_one_step_cannot_say_many_can() -> None:
    """A loss of half a standard error: noise once, evidence after some of it."""
    loss = step(actual=-0.5, stderr=1.0)
    state = update_radius(START, loss, RULE)
    assert state.factor == 1.0
    for _ in range(49):
        state = update_radius(replace(state, radius=START.radius), loss, RULE)
    assert state.factor < 0.9


def test_3_the_radius_follows_the_truth() -> None:
    """The same promises, another curvature: only ``actual`` tells, and the radius goes where steps gain."""
    rule = replace(RULE, prior=0.5)
    for curvature in (2.0, 0.5):
        shape = PLAIN._replace(curvature=curvature)
        settled = np.median(radii(shape, 1.0, 120, n_runs=12, rule=rule)[:, 60:]) * shape.best_radius
        assert shape.improvement(settled) > 0.7 * shape.improvement(shape.best_radius) > 0.0
        assert shape.improvement(0.5) < 0.76 * shape.improvement(shape.best_radius)


def nothing_measured(measured: Improvement, rng: np.random.Generator) -> Improvement:
    return measured._replace(actual=0.0)


def promise_kept(measured: Improvement, rng: np.random.Generator) -> Improvement:
    return measured._replace(actual=measured.predicted)


class Shuffled:
    """Replaces each actual improvement by another one of an earlier run, whose radius stayed."""

    def __init__(self, objective: Objective, at: float) -> None:
        rng = np.random.default_rng(99)
        self.pool = [objective.measure(at * objective.best_radius, rng).actual for _ in range(150)]

    def __call__(self, measured: Improvement, rng: np.random.Generator) -> Improvement:
        return measured._replace(actual=float(rng.choice(self.pool)))


@where_it_shows
def test_3_it_is_feedback(objective: Objective) -> None:
    """Without what was measured it would go elsewhere: down without improvements, up without disappointments."""
    true = np.median(calm(objective)[:, 100:])
    assert np.median(radii(objective, 1.0, 150, n_runs=8, alter=nothing_measured)[:, 100:]) < 0.5 * true
    assert np.median(radii(objective, 1.0, 150, n_runs=8, alter=promise_kept)[:, 100:]) > 2.0 * true


def test_3_shuffled_improvements_lead_elsewhere() -> None:
    """The right sizes, of other steps: of a length that is far too short."""
    rule, shuffled = replace(RULE, prior=PLAIN.best_radius / 20), Shuffled(PLAIN, at=1 / 20)
    settled = [np.median(radii(PLAIN, 1.0, 80, rule=rule, alter=alter)[:, 60:]) for alter in (None, shuffled)]
    assert settled[1] < 0.5 * settled[0]


@where_it_shows
def test_3_the_decisions_that_feedback_made_are_counted(objective: Objective) -> None:
    rule = replace(RULE, prior=4.0 * objective.best_radius)
    for seed in range(5):
        state = run(objective, 1.0, 100, seed, rule)[-1]
        assert state.n_feedback >= 15
        assert state.n_judged == 100
        assert run(objective, 1.0, 100, seed, rule, nothing_measured)[-1].n_feedback == 0


@pytest.mark.parametrize(
    ("kind", "actual", "counted"),
    [
        ("noise_aware", 1.0, 1),  # grows; at zero it would shrink
        ("noise_aware", 0.5, 1),  # stays
        ("noise_aware", -0.2, 0),  # shrinks either way
        ("textbook", 0.8, 1),
        ("textbook", 0.5, 1),
        ("textbook", 0.2, 0),
        ("fixed", 1.0, 0),
    ],
)
def test_3_a_decision_counts_if_zero_would_have_made_another(kind: str, actual: float, counted: int) -> None:
    rule = replace(RULE, kind=kind)
    assert update_radius(START, step(actual=actual), rule).n_feedback == counted


@both_regimes
def test_4_a_collapse_is_undone_at_once(objective: Objective) -> None:
    for seed in range(N_RUNS):
        state = run(objective, 1.0, 40, seed)[-1]
        collapse = objective.measure(state.radius, np.random.default_rng(seed))._replace(actual=-6.0 * objective.noise)
        after = update_radius(state, collapse, RULE)
        assert after.rolled_back
        assert after.n_rollbacks == state.n_rollbacks + 1
        assert after.radius == pytest.approx(ROLLBACK_SHRINKAGE * state.radius)
        assert not update_radius(after, None, RULE).rolled_back


def test_4_a_collapse_is_undone_whatever_the_step_promised() -> None:
    """A PPO update may lose on its own batch: then there is no ratio, and still a collapse."""
    for gain in (0.0, -1.0):
        worse = step(actual=-9.0, predicted=gain, gain=gain)
        after = update_radius(START, worse, RULE)
        assert (after.rolled_back, after.n_rollbacks) == (True, 1)
        assert after.radius == pytest.approx(ROLLBACK_SHRINKAGE * START.radius)
        harmless = update_radius(START, worse._replace(actual=-0.1), RULE)
        assert harmless == START


def test_4_noise_is_not_undone() -> None:
    """Steps that change nothing at all: three standard errors are met once in 740 times."""

    def unchanged(measured: Improvement, rng: np.random.Generator) -> Improvement:
        return measured._replace(actual=measured.stderr * rng.standard_normal())

    n_rollbacks = sum(run(NOISY, 1.0, 60, seed, alter=unchanged)[-1].n_rollbacks for seed in range(100))
    assert 0 < n_rollbacks <= 20  # of 6000


def test_4_none_never_undoes() -> None:
    for kind in RULES:
        after = update_radius(START, step(actual=-1e6), replace(RULE, kind=kind, rollback_z=None))
        assert not after.rolled_back
        assert after.n_rollbacks == 0


def test_4_without_a_standard_error_nothing_is_undone() -> None:
    """The surrogate on its own batch has none."""
    assert not update_radius(START, step(actual=-9.0, stderr=0.0), RULE).rolled_back


def test_4_what_a_rejected_step_taught_stays() -> None:
    after = update_radius(START, step(actual=-9.0), RULE)
    assert after.gained < 0.0
    assert after.actual == -9.0
    assert after.n_judged == 1


@pytest.mark.parametrize("kind", ["noise_aware", "textbook"])
def test_5_an_invalid_step_shrinks_the_radius_and_teaches_nothing(kind: str) -> None:
    rule, state = replace(RULE, kind=kind), some_state()
    after = shrink_radius(state, rule)
    assert after == replace(state, radius=ROLLBACK_SHRINKAGE * state.radius, factor=ROLLBACK_SHRINKAGE)


@pytest.mark.parametrize("kind", RULES)
def test_6_it_grows_only_when_the_step_used_the_radius(kind: str) -> None:
    rule = replace(RULE, kind=kind, rollback_z=None)
    assert decided(rule, used_radius=False) == 1.0
    if kind != "fixed":
        assert decided(rule, used_radius=True) > 1.0
        assert decided(rule, used_radius=False, actual=-9.0) == decided(rule, actual=-9.0) < 1.0


@both_regimes
def test_6_steps_that_stop_short_do_not_blow_the_radius_up(objective: Objective) -> None:
    """A search that never goes further than a tenth of the best, whatever it may."""

    def short(measured: Improvement, rng: np.random.Generator) -> Improvement:
        return with_promise(objective.measure(0.1 * objective.best_radius, rng), used_radius=False)

    assert radii(objective, 1.0, 100, n_runs=5, alter=short).max() <= 1.0


def test_7_the_default_bounds_span_decades() -> None:
    assert math.log10(RULE.maximum / RULE.minimum) >= 4.0


any_float = st.one_of(st.floats(), st.floats(-10.0, 10.0), st.just(0.0))
improvements = st.one_of(
    st.none(),
    st.builds(step, any_float, any_float.map(abs), any_float, any_float, any_float, st.booleans()),
    st.builds(
        step, st.floats(-1, 1), st.floats(0, 1), st.floats(-1, 1), st.floats(-0.1, 1), st.floats(0, 2), st.booleans()
    ),
)


@settings(max_examples=100)
@given(
    kind=st.sampled_from(list(RULES)),
    window=st.integers(1, 100),
    exponent=st.sampled_from([1.0, 2.0]),
    steps=st.lists(st.tuples(improvements, st.booleans()), max_size=30),
)
def test_7_the_radius_stays_within_its_bounds(
    kind: str, window: int, exponent: float, steps: list[tuple[Improvement | None, bool]]
) -> None:
    """Whatever is measured, finite or not, in any order."""
    rule = RadiusRule(kind=kind, window=window, minimum=1e-3, maximum=1.0, exponent=exponent)
    state = TrustRegionState(radius=0.01, given=0.01)
    for measured, is_invalid in steps:
        before = state
        state = shrink_radius(state, rule) if is_invalid else update_radius(state, measured, rule)
        assert rule.minimum <= state.radius <= rule.maximum
        assert all(math.isfinite(value) for value in state.as_dict().values())
        assert 0 <= state.n_judged - before.n_judged <= 1
        assert 0 <= state.n_rollbacks - before.n_rollbacks <= state.rolled_back
        assert 0 <= state.n_feedback - before.n_feedback <= 1


def test_7_a_bound_is_no_end() -> None:
    """At either bound it goes on, and comes back."""
    rule = RadiusRule(minimum=0.1, maximum=1.0, rollback_z=None, window=5, prior=0.3)
    state = TrustRegionState(radius=1.0)
    for actual, expected in ((-1.0, 0.1), (1.0, 1.0), (-1.0, 0.1)):
        for _ in range(40):
            s = math.sqrt(2.0 * state.radius)
            state = update_radius(state, step(actual=actual * s, predicted=s, gain=s, length=s), rule)
        assert state.radius == expected


@pytest.mark.parametrize(
    ("own", "change", "undone"),
    [
        (0.0, -9.0, False),  # the environment's
        (1.0, -9.0, False),
        (-9.0, -9.0, True),  # of both: the step answers for its own
        (-9.0, 0.0, True),
        (-0.4, -0.4, True),
        (-0.4, 0.2, False),  # of a loss that is hardly to be seen
    ],
)
def test_a_loss_that_is_the_environments_is_not_undone(own: float, change: float, undone: bool) -> None:
    assert update_radius(START, met_by(change, step(actual=own)), RULE).rolled_back == undone


def test_what_the_environment_gives_or_takes_is_not_put_down_to_steps() -> None:
    with_change, without = START, START
    for change in (-3.0, 3.0, -9.0):
        with_change = update_radius(with_change, met_by(change, step()), RULE)
        without = update_radius(without, step(), RULE)
    assert with_change == without


@both_regimes
def test_where_nothing_is_promised_harm_alone_decides(objective: Objective) -> None:
    """Pure noise for a gradient: every step still gains on its own batch, none brings anything, long ones hurt."""

    def noise_only(measured: Improvement, rng: np.random.Generator) -> Improvement:
        promise = measured.promise
        promised = objective.slope * promise.length
        nothing = with_promise(measured, reliability=(measured.predicted - promised) / promise.gain)
        return nothing._replace(actual=measured.actual - promised)

    promising = calm(objective)[:, 75:]
    hopeless = radii(objective, 1.0, 150, alter=noise_only)[:, 75:]
    assert np.median(hopeless) < 0.8 * np.median(promising)
    assert hopeless.max() < 0.2 * RULE.maximum / objective.best_radius


def test_the_textbook_rule_is_lost_in_noise() -> None:
    """Why there is another: at a fifth of a standard error it shrinks for ever."""
    rule = replace(RULE, kind="textbook")
    assert np.median(radii(NOISY, 1.0, 100, rule=rule)[:, 99]) < 1e-3
    assert np.median(calm(NOISY)[:, 99]) > 0.5
