"""Steps 4 and 5 as one object: judged without an environment and without an algorithm."""

import copy
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trustregion.common.judge import LARGEST_DRIFT, MANY_UNJUDGED, Judge, Snapshot
from sb3_trustregion.common.learning_data import Rollout
from sb3_trustregion.core.improvement import Improvement, Promise, difference, episode_returns, performance
from sb3_trustregion.core.parameters import fingerprint
from sb3_trustregion.core.radius import GIVEN, ROLLBACK_SHRINKAGE, RadiusRule, TrustRegionState
from tests.common.rollouts import ACTOR, make_policy, make_rollout, set_odds
from tests.helpers import assert_same, state_of

PROMISE = Promise(gain=0.25, gain_stderr=0.2, linear_gain=1.5, reliability=1.0, length=0.1, used_radius=True)
RADIUS = 0.01
SGD = {"optimizer_class": th.optim.SGD}

apart_or_joint = pytest.mark.parametrize("joint", [False, True])


def make_judge(kind: type[Judge] = Judge, estimator: str = "rollout", **rule: Any) -> Judge:
    return kind(RadiusRule(**rule), start=RADIUS, given=RADIUS, estimator=estimator)


def descend(policy: ActorCriticPolicy) -> None:
    """One step of the optimiser, wherever to."""
    for parameter in policy.parameters():
        parameter.grad = th.ones_like(parameter)
    policy.optimizer.step()


def take_step(
    judge: Judge, policy: ActorCriticPolicy, rollout: Rollout, joint: bool = False, odds: float = 0.8
) -> Snapshot:
    """
    An update, as an algorithm makes it: the first action becomes more likely, and the critic another one.

    :param judge: is told of it
    :param policy: changed
    :param rollout: that it is computed from
    :param joint: whether actor and critic are one network and one optimiser, as in PPO
    :param odds: probability of the first action from now on
    :return: the policy before
    """
    before = Snapshot.of(policy, None if joint else ACTOR)
    descend(policy)
    with th.no_grad():
        policy.action_net.weight.zero_()
    set_odds(policy, odds)
    judge.expect(PROMISE, rollout, before, policy)
    return before


# A step is kept, or undone


@apart_or_joint
def test_a_step_is_measured_by_the_critic_before_it(joint: bool) -> None:
    """Both rollouts, and with the ends of episodes as they were: it is the difference of mean TD residuals."""
    judge, policy, old = make_judge(), make_policy(), make_policy()
    first = make_rollout(policy)
    take_step(judge, policy, first, joint)
    second, left = make_rollout(policy, seed=1, level=0.3), state_of(policy)
    assert len(second.truncated) > 3
    verdict = judge.review(second, policy)

    with th.no_grad():

        def value(observations: Any) -> Any:
            return (
                old.predict_values(th.as_tensor(observations).reshape(-1, 3)).numpy().reshape(observations.shape[:-1])
            )

        seen, at_ends = value(second.observations), value(second.terminal_observations)
        residuals = second.residuals(seen, value(second.last_observations), at_ends, scale=1.0)
    expected = difference(performance(residuals, second.dones), performance(first.own_residuals(1.0), first.dones))
    assert verdict.measured is not None
    assert verdict.measured.difference is not None
    assert tuple(verdict.measured.difference) == pytest.approx(tuple(expected), rel=1e-5)
    assert verdict.measured.promise == PROMISE
    assert not verdict.undone
    assert verdict.state == judge.state
    assert (judge.state.n_judged, judge.state.n_rollbacks, judge.pending, judge.rejected) == (1, 0, None, None)
    assert_same(state_of(policy), left)


@pytest.mark.parametrize("kwargs", [{}, SGD], ids=["Adam", "SGD"])
@apart_or_joint
def test_a_step_that_was_worse_is_undone(joint: bool, kwargs: dict[str, Any]) -> None:
    """Policy alone, or with the critic and the optimiser that are one with it; bit for bit."""
    judge, policy = make_judge(), make_policy(**kwargs)
    descend(policy)
    set_odds(policy, 0.5)
    before, moments = state_of(policy), policy.optimizer.state_dict()["state"]
    moments = {i: {k: v.clone() for k, v in state.items()} for i, state in moments.items()}
    first = make_rollout(policy, cost=1.0)
    take_step(judge, policy, first, joint)
    left, left_moments = state_of(policy), policy.optimizer.state_dict()
    verdict = judge.review(make_rollout(policy, seed=1, cost=1.0), policy)
    assert verdict.undone
    assert verdict.measured is not None
    assert verdict.measured.actual == pytest.approx(-0.6, abs=0.2)
    assert (verdict.radius, judge.state.n_rollbacks) == (ROLLBACK_SHRINKAGE * RADIUS, 1)
    expected = before if joint else {**left, **{name: before[name] for name in ACTOR}}
    assert_same(state_of(policy), expected)
    assert not th.equal(left["value_net.weight"], before["value_net.weight"])
    assert_same(policy.optimizer.state_dict()["state"], moments if joint else left_moments["state"])
    assert policy.optimizer.param_groups[0]["lr"] == 1e-2


def test_where_nothing_is_pending_there_is_nothing_to_judge() -> None:
    judge, policy = make_judge(), make_policy()
    before = state_of(policy)
    verdict = judge.review(make_rollout(policy), policy)
    assert (verdict.measured, verdict.undone, verdict.radius) == (None, False, RADIUS)
    assert_same(state_of(policy), before)


def test_a_step_is_judged_once() -> None:
    judge, policy = make_judge(), make_policy()
    take_step(judge, policy, make_rollout(policy))
    rollout = make_rollout(policy, seed=1)
    assert judge.review(rollout, policy).measured is not None
    assert judge.review(rollout, policy).measured is None


def test_an_invalid_step_shrinks_the_radius() -> None:
    judge = make_judge()
    judge.shrink()
    assert judge.state.radius == ROLLBACK_SHRINKAGE * RADIUS


# A step is judged only where two rollouts differ by it alone


@th.no_grad()
def another_parameter(policy: ActorCriticPolicy) -> None:
    policy.value_net.bias.add_(1e-3)


def frozen(policy: ActorCriticPolicy) -> None:
    policy.value_net.bias.requires_grad_(False)


def one_more_moment(policy: ActorCriticPolicy) -> None:
    policy.optimizer.param_groups[0]["lr"] = 0.0
    descend(policy)


@pytest.mark.parametrize(
    ("change", "joint", "judged"),
    [
        (another_parameter, False, False),
        (another_parameter, True, False),
        (frozen, False, False),
        (frozen, True, False),
        (one_more_moment, True, False),
        (one_more_moment, False, True),  # the optimiser does not act
    ],
)
def test_the_policy_must_still_be_what_the_step_left(
    change: Callable[[ActorCriticPolicy], None], joint: bool, judged: bool
) -> None:
    judge, policy = make_judge(), make_policy()
    take_step(judge, policy, make_rollout(policy, cost=1.0), joint)
    change(policy)
    left, state = state_of(policy), judge.state
    verdict = judge.review(make_rollout(policy, seed=1, cost=1.0), policy)
    assert (verdict.measured is not None) == verdict.undone == judged
    if not judged:
        assert judge.state == state
        assert_same(state_of(policy), left)


@pytest.mark.parametrize(
    ("before", "after", "judged"),
    [
        ({}, {"starts_fresh": True}, False),  # after a reset episodes are in another phase
        ({"starts_fresh": True}, {"starts_fresh": True}, True),
        ({"starts_fresh": True}, {}, True),
        ({}, {"gamma": 0.95}, True),
        ({}, {"is_recorded": False}, False),
        ({"is_recorded": False}, {}, False),
        ({}, {"scale": 1.01 * LARGEST_DRIFT}, False),
        ({}, {"scale": 0.99 / LARGEST_DRIFT}, False),
        ({}, {"scale": 0.99 * LARGEST_DRIFT}, True),
    ],
)
def test_rollouts_that_differ_otherwise_are_not_compared(
    before: dict[str, Any], after: dict[str, Any], judged: bool
) -> None:
    judge, policy = make_judge(), make_policy()
    take_step(judge, policy, make_rollout(policy, **before))
    assert (judge.review(make_rollout(policy, seed=1, **after), policy).measured is not None) == judged


@pytest.mark.parametrize("estimator", ["rollout", "episodes"])
def test_rewards_are_compared_in_the_unit_of_the_first_rollout(estimator: str) -> None:
    measured = []
    for drift in (1.0, 1.04):
        judge, policy = make_judge(estimator=estimator), make_policy()
        with th.no_grad():
            for parameter in policy.value_net.parameters():
                parameter.zero_()
        take_step(judge, policy, make_rollout(policy, scale=2.0))
        second = make_rollout(policy, seed=1, level=0.5, cost=-3.0, scale=2.0 * drift)
        measured.append(judge.review(second, policy).measured)
    assert measured[0] is not None
    assert measured[0].actual > 0.0
    assert measured[1] is not None
    assert measured[1][:2] == pytest.approx(measured[0][:2], rel=1e-6)


def test_the_user_is_told_of_steps_that_nobody_judges() -> None:
    judge, policy = make_judge(), make_policy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(MANY_UNJUDGED - 1):
            take_step(judge, policy, make_rollout(policy))
            descend(policy)
            judge.review(make_rollout(policy), policy)
    take_step(judge, policy, make_rollout(policy))
    descend(policy)
    with pytest.warns(UserWarning, match="10 steps in a row were judged by nobody, now because the policy has been"):
        judge.review(make_rollout(policy), policy)
    take_step(judge, policy, make_rollout(policy))
    judge.review(make_rollout(policy), policy)
    assert judge.n_unjudged_in_a_row == 0


def test_steps_are_judged_by_the_discount_factor_of_their_time() -> None:
    measured = []
    for gamma in (0.99, 0.5):
        judge, policy = make_judge(), make_policy()
        take_step(judge, policy, make_rollout(policy))
        measured.append(judge.review(make_rollout(policy, seed=1)._replace(gamma=gamma), policy).measured)
    assert measured[0] == measured[1] is not None


def test_faulty_transitions_do_not_count() -> None:
    """Until they are the most."""
    measured = []
    for spoil in (0.0, 1e9):
        judge, policy = make_judge(), make_policy()
        take_step(judge, policy, make_rollout(policy))
        second = make_rollout(policy, seed=1)
        second.faulty[40:60] = True
        second.rewards[40:60] += spoil
        measured.append(judge.review(second, policy).measured)
    assert measured[0] == measured[1]

    take_step(judge, policy, make_rollout(policy, seed=2))
    second = make_rollout(policy, seed=3)
    second.faulty[:100] = True
    state = judge.state
    judge.review(second, policy)
    assert judge.state == TrustRegionState(**{**state.as_dict(), "factor": 1.0})


# Whom to blame


@pytest.mark.parametrize("joint", [False, True])
def test_a_loss_that_the_old_policy_would_have_met_too_is_not_held_against_the_step(joint: bool) -> None:
    judge, policy = make_judge(), make_policy()
    take_step(judge, policy, make_rollout(policy), joint)
    verdict = judge.review(make_rollout(policy, seed=1, level=-5.0), policy)
    assert not verdict.undone
    assert verdict.measured is not None
    assert verdict.measured.difference is not None
    assert verdict.measured.difference.mean == pytest.approx(-5.0, abs=0.1)
    assert abs(verdict.measured.actual) < 3.0 * verdict.measured.stderr < 0.2


def test_of_a_loss_of_both_the_step_answers_for_its_own() -> None:
    judge, policy = make_judge(), make_policy()
    take_step(judge, policy, make_rollout(policy, cost=3.0, n_steps=4000))
    verdict = judge.review(make_rollout(policy, seed=1, level=-1.0, cost=3.0, n_steps=4000), policy)
    assert verdict.measured is not None
    assert verdict.measured.difference is not None
    # The step cost 1.8; that everything pays less by 1 is not its doing.
    assert verdict.measured.actual == pytest.approx(-1.8, abs=0.2)
    assert verdict.measured.difference.mean == pytest.approx(-2.8, abs=0.2)
    assert verdict.undone


def test_a_step_too_far_to_tell_is_held_responsible() -> None:
    """The old policy's actions are hardly among the new one's: nothing can be said for it."""
    judge, policy = make_judge(), make_policy()
    take_step(judge, policy, make_rollout(policy), odds=0.99)
    assert judge.review(make_rollout(policy, seed=1, level=-5.0), policy).undone


def undone(joint: bool = False) -> tuple[Judge, ActorCriticPolicy, TrustRegionState]:
    """After one step too far and a loss; with the state before."""
    judge, policy = make_judge(), make_policy()
    take_step(judge, policy, make_rollout(policy), joint, odds=0.7)
    judge.review(make_rollout(policy, seed=1), policy)
    take_step(judge, policy, make_rollout(policy, seed=2), joint, odds=0.99)
    state = judge.state
    assert judge.review(make_rollout(policy, seed=3, level=-5.0), policy).undone
    return judge, policy, state


@apart_or_joint
def test_where_the_roll_back_brought_nothing_back_the_environment_was_to_blame(joint: bool) -> None:
    """The radius is what it was, and so is the evidence; counters go on."""
    judge, policy, before = undone(joint)
    assert judge.state.radius == ROLLBACK_SHRINKAGE * before.radius
    judge.review(make_rollout(policy, seed=4, level=-5.0), policy)
    assert judge.rejected is None
    assert judge.state == TrustRegionState(
        **{**before.counting_on(judge.state).as_dict(), "factor": 1.0, "rolled_back": False}
    )
    assert (judge.state.n_rollbacks, judge.state.n_judged) == (1, 2)


@apart_or_joint
def test_where_the_roll_back_helped_the_radius_stays_shrunk(joint: bool) -> None:
    judge, policy, before = undone(joint)
    judge.review(make_rollout(policy, seed=4), policy)
    assert judge.rejected is None
    assert judge.state.radius == ROLLBACK_SHRINKAGE * before.radius


@pytest.mark.parametrize("change", [another_parameter, frozen])
def test_where_the_restored_policy_was_changed_the_roll_back_is_not_reviewed(
    change: Callable[[ActorCriticPolicy], None],
) -> None:
    judge, policy, before = undone()
    change(policy)
    judge.review(make_rollout(policy, seed=4, level=-5.0), policy)
    assert judge.rejected is None
    assert judge.state.radius == ROLLBACK_SHRINKAGE * before.radius


def test_a_rollout_without_data_tells_nothing_of_a_roll_back() -> None:
    judge, policy, before = undone()
    rollout = make_rollout(policy, seed=4, level=-5.0)
    rollout.faulty[:] = True
    judge.review(rollout, policy)
    assert judge.state.radius == ROLLBACK_SHRINKAGE * before.radius


# Estimators


def test_episodes_are_compared_by_their_returns_per_step() -> None:
    judge, policy = make_judge(estimator="episodes"), make_policy()
    first = make_rollout(policy, episode_returns=np.array([10.0, 30.0, 20.0, 20.0, 20.0]))
    take_step(judge, policy, first)
    after, lengths = np.array([40.0, 60.0, 50.0, 50.0, 50.0]), np.array([5.0, 15.0, 10.0, 10.0, 10.0])
    second = make_rollout(policy, seed=1, episode_returns=after, episode_lengths=lengths)
    measured = judge.review(second, policy).measured
    returns = difference(episode_returns(second.episode_returns), episode_returns(first.episode_returns))
    assert measured is not None
    assert measured[:2] == pytest.approx((returns.mean / 10.0, returns.stderr / 10.0))
    assert returns.mean == pytest.approx(30.0)


def test_too_few_episodes_are_no_evidence() -> None:
    judge, policy = make_judge(estimator="episodes"), make_policy()
    take_step(judge, policy, make_rollout(policy))
    judge.review(make_rollout(policy, seed=1, episode_returns=np.zeros(1), episode_lengths=np.ones(1)), policy)
    assert judge.state.n_judged == 0


def test_by_the_surrogate_a_step_is_judged_at_once() -> None:
    """Its gain over the linear one; it has no standard error and is never undone."""
    judge, policy = make_judge(estimator="surrogate"), make_policy()
    take_step(judge, policy, make_rollout(policy))
    assert judge.pending is None
    assert (judge.state.n_judged, judge.state.actual, judge.state.predicted) == (1, PROMISE.gain, PROMISE.linear_gain)
    verdict = judge.review(make_rollout(policy, seed=1, level=-5.0, cost=1.0), policy)
    assert (verdict.measured, verdict.undone) == (None, False)


# What the user sets


def configured(judge: Judge, rule: RadiusRule, start: float = RADIUS, estimator: str = "rollout") -> TrustRegionState:
    judge.configure(rule, start, start, estimator)
    return judge.state


def judged_and_pending() -> tuple[Judge, ActorCriticPolicy]:
    judge, policy = make_judge(), make_policy()
    take_step(judge, policy, make_rollout(policy, cost=-2.0), odds=0.6)
    judge.review(make_rollout(policy, seed=1, cost=-2.0), policy)
    assert judge.state.radius > RADIUS
    take_step(judge, policy, make_rollout(policy, seed=2), odds=0.7)
    return judge, policy


def test_the_same_arguments_change_nothing() -> None:
    judge, _ = judged_and_pending()
    state, pending = judge.state, judge.pending
    assert configured(judge, RadiusRule()) == state
    assert judge.pending is pending is not None


def test_another_radius_starts_anew_and_the_pending_step_is_still_judged() -> None:
    judge, policy = judged_and_pending()
    anew = configured(judge, RadiusRule(), start=0.5)
    assert anew == TrustRegionState(radius=0.5, given=0.5, n_judged=1, n_feedback=anew.n_feedback, factor=GIVEN)
    verdict = judge.review(make_rollout(policy, seed=3), policy)
    assert verdict.measured is not None
    assert (verdict.radius, judge.state.factor) == (0.5, 1.0)  # which the next step is to have


def test_new_bounds_and_another_rule_take_hold() -> None:
    judge, policy = judged_and_pending()
    assert configured(judge, RadiusRule(minimum=0.1)).radius == 0.1
    assert configured(judge, RadiusRule(kind="fixed")).radius == RADIUS
    judge.review(make_rollout(policy, seed=3, level=1.0), policy)
    assert (judge.state.radius, judge.state.n_judged) == (RADIUS, 2)


def test_another_estimator_drops_what_was_measured_by_the_one_before() -> None:
    judge, _ = judged_and_pending()
    configured(judge, RadiusRule(), estimator="episodes")
    assert judge.pending is None
    judge, _, _ = undone()
    configured(judge, RadiusRule(), estimator="episodes")
    assert judge.rejected is None


def test_a_forgotten_step_is_not_judged() -> None:
    judge, policy = judged_and_pending()
    judge.forget()
    assert judge.review(make_rollout(policy, seed=3), policy).measured is None


# Judges of one's own


class Blind(Judge):
    """Sees no improvement."""

    def perceive(self, measured: Improvement) -> Improvement:
        return measured._replace(actual=0.0)


class Strict(Judge):
    """Undoes whatever was measured."""

    def decide(self, measured: Improvement | None) -> TrustRegionState:
        return TrustRegionState(**{**super().decide(measured).as_dict(), "rolled_back": measured is not None})


def test_what_a_judge_perceives_is_what_is_judged() -> None:
    judge, policy = make_judge(Blind), make_policy()
    take_step(judge, policy, make_rollout(policy, cost=1.0))
    verdict = judge.review(make_rollout(policy, seed=1, cost=1.0), policy)
    assert verdict.measured is not None
    assert (verdict.measured.actual, verdict.undone, judge.state.actual) == (0.0, False, 0.0)


def test_what_a_judge_decides_is_done() -> None:
    judge, policy = make_judge(Strict), make_policy()
    before = state_of(policy)
    take_step(judge, policy, make_rollout(policy), joint=True)
    assert judge.review(make_rollout(policy, seed=1, level=1.0), policy).undone
    assert_same(state_of(policy), before)
    assert judge.rejected is not None


@pytest.mark.parametrize("kind", [Blind, Strict])
def test_the_surrogate_is_perceived_and_decided_on_too(kind: type[Judge]) -> None:
    judge, policy = make_judge(kind, estimator="surrogate"), make_policy()
    take_step(judge, policy, make_rollout(policy))
    assert (judge.state.actual, judge.state.rolled_back) == ((0.0, False) if kind is Blind else (PROMISE.gain, True))


# Snapshots


@apart_or_joint
def test_what_an_update_left_alone_is_not_held_twice(joint: bool) -> None:
    policy = make_policy(net_arch={"pi": [4], "vf": [4]})
    policy.register_buffer("counts", th.tensor([1, 2]))
    before = Snapshot.of(policy, None if joint else ("action_net.bias", "action_net.weight"))
    with th.no_grad():
        policy.action_net.bias.add_(1.0)
        policy.value_net.bias.add_(1.0)
        policy.counts.add_(1)
    held = before.changed(policy)
    names = {"action_net.bias"} | ({"value_net.bias"} if joint else set())
    assert held.undone.keys() == names
    assert held.kept.keys() == {"action_net.bias", "value_net.bias", "counts"} - names
    held.restore(policy)
    assert policy.counts.tolist() == [2, 3]
    held.restore(policy, with_statistics=True)
    assert policy.counts.tolist() == [1, 2]
    assert before.changed(policy).undone == {}


# Checkpoints


def reloaded(judge: Judge, **rule: Any) -> Judge:
    """Through a file that holds no code, into a judge that knows nothing."""
    file = io.BytesIO()
    th.save(judge.state_dict(), file)
    file.seek(0)
    other = make_judge(**rule)
    other.load_state_dict(th.load(file, weights_only=True))
    return other


def empty() -> tuple[Judge, ActorCriticPolicy]:
    return make_judge(), make_policy()


def pending(joint: bool, **kwargs: Any) -> tuple[Judge, ActorCriticPolicy]:
    judge, policy = make_judge(), make_policy(**kwargs)
    policy.register_buffer("counts", th.tensor([1, 2]))
    descend(policy)
    take_step(judge, policy, make_rollout(policy, seed=5, starts_fresh=True), joint, odds=0.6)
    return judge, policy


def rejected(joint: bool) -> tuple[Judge, ActorCriticPolicy]:
    judge, policy, _ = undone(joint)
    return judge, policy


CASES: dict[str, Callable[[], tuple[Judge, ActorCriticPolicy]]] = {
    "empty": empty,
    "pending apart": lambda: pending(joint=False),
    "pending joint, Adam": lambda: pending(joint=True),
    "pending joint, SGD without a state": lambda: pending(joint=True, **SGD),
    "rejected apart": lambda: rejected(joint=False),
    "rejected joint": lambda: rejected(joint=True),
}
every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_a_judge_comes_back_bit_for_bit(case: str) -> None:
    judge, policy = CASES[case]()
    loaded = reloaded(judge)
    assert loaded.state == judge.state
    for one, other in ((loaded.pending, judge.pending), (loaded.rejected, judge.rejected)):
        assert type(one) is type(other)
        assert_same(one, other)
    assert_same(loaded.state_dict(), judge.state_dict())
    # ... and goes on as the other one.
    rollout, twin = make_rollout(policy, seed=6, level=-5.0, cost=2.0), copy.deepcopy(policy)
    assert_same(loaded.review(rollout, twin), judge.review(rollout, policy))
    assert_same(state_of(twin), state_of(policy))
    assert_same(twin.optimizer.state_dict(), policy.optimizer.state_dict())
    assert_same(loaded.state_dict(), judge.state_dict())


def test_an_undone_optimiser_comes_back_from_a_checkpoint() -> None:
    judge, policy = make_judge(), make_policy()
    descend(policy)
    set_odds(policy, 0.5)
    before = copy.deepcopy(policy.optimizer.state_dict())
    take_step(judge, policy, make_rollout(policy, cost=2.0), joint=True)
    loaded = reloaded(judge)
    assert loaded.review(make_rollout(policy, seed=1, cost=2.0), policy).undone
    assert_same(policy.optimizer.state_dict(), before)


@every_case
def test_all_that_is_saved_is_tensors_and_once(case: str) -> None:
    judge, policy = CASES[case]()
    saved = judge.state_dict()
    own = {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
    for name, tensor in saved.items():
        assert isinstance(tensor, th.Tensor)
        parameter = next((own[key] for key in own if name.endswith(f".{key}")), None)
        if parameter is not None:
            assert tensor.dtype == parameter.dtype
            assert tensor.data_ptr() != parameter.data_ptr()
        elif ".before.optimizer." not in name:
            assert tensor.dtype == th.float64
    held = [name for name in saved if ".undone." in name or ".kept." in name]
    parts = [next(key for key in own if name.endswith(f".{key}")) for name in held]
    assert len(parts) == len(set(parts))
    assert (case == "empty") == (not held) or case == "rejected joint"


@every_case
def test_a_checkpoint_that_lacks_something_is_refused(case: str) -> None:
    judge, _ = CASES[case]()
    saved = judge.state_dict()
    # Parameters may be absent: those that the update left alone are. Of the optimiser not all may be.
    needed = [name for name in saved if not any(f".{part}." in name for part in ("undone", "kept", "optimizer"))]
    assert len(needed) >= 16
    for name in [*needed, *(["pending.before.optimizer"] if "pending joint" in case else [])]:
        without = {key: tensor for key, tensor in saved.items() if key != name and not key.startswith(f"{name}.")}
        with pytest.raises(RuntimeError, match="Missing key"):
            make_judge().load_state_dict(without)


def test_unless_it_need_not_be_complete() -> None:
    judge, _ = CASES["pending apart"]()
    loaded = make_judge()
    loaded.load_state_dict({"state.radius": th.tensor(0.5)}, strict=False)
    assert loaded.state == TrustRegionState(radius=0.5, given=RADIUS)
    with pytest.raises(RuntimeError, match="Missing key"):
        loaded.load_state_dict({})
    judge.load_state_dict({}, strict=False)
    assert judge.pending is not None


def test_what_does_not_fit_its_type_is_seen_and_not_hidden() -> None:
    """A damaged counter stays what it is in the file."""
    saved = make_judge().state_dict()
    loaded = make_judge()
    loaded.load_state_dict({**saved, "state.n_judged": th.tensor(0.5), "state.radius": th.tensor(math.nan)})
    assert loaded.state.n_judged == 0.5
    assert math.isnan(loaded.state.radius)


def test_a_fingerprint_survives_its_way_through_a_file() -> None:
    judge, policy = CASES["pending joint, Adam"]()
    step = reloaded(judge).pending
    assert step is not None
    assert step.left == fingerprint(policy, with_optimizer=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_spoiled_is_what_was_finite_and_is_no_longer(value: float) -> None:
    policy = make_policy()
    policy.register_buffer("mask", th.tensor([0.0, value]))
    policy.register_buffer("statistics", th.zeros(2))
    policy.register_buffer("count", th.tensor(1))
    before = Snapshot.of(policy)
    left = state_of(policy)
    assert not before.undoes_what_is_spoiled(policy)
    for tensor in (*policy.parameters(), policy.statistics):
        with th.no_grad():
            tensor.view(-1)[-1] = value
        assert before.undoes_what_is_spoiled(policy)
        assert_same(state_of(policy), left)
        assert not before.undoes_what_is_spoiled(policy)
        assert not policy.training
