"""Step 4 in an algorithm: what a step promised and what it brought, calibrated, and free of the traps."""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trustregion import AdaptiveTRPO
from sb3_trustregion.core.improvement import Estimate, Improvement, episode_returns, performance
from sb3_trustregion.core.parameters import critic_parameters, snapshot
from sb3_trustregion.core.rollouts import IDENTITY, advantages, appraise
from sb3_trustregion.measurement import PendingStep, Promise, TrustRegionMemory
from sb3_trustregion.recorder import snapshot_normalizer
from tests.environments import ToyEnv, toy_vec_env
from tests.helpers import MEASURING, UPDATE, assert_same, make_model

PROMISE = Promise(Estimate(0.25, 0.5), length=0.1, used_radius=True, gain=1.0, linear_gain=1.5)


class Frozen(AdaptiveTRPO):
    """Learns until it is told to stop; from then on it takes no step, and measures what that brought."""

    is_frozen = True
    measured: list[Improvement]

    def train(self) -> None:
        if not self.is_frozen:
            return super().train()
        rollout, normalizer = self._take_rollout(), self._snapshot_normalizer()
        measured = self._measure_improvement(rollout)
        if measured is not None:
            self.measured.append(measured)
        newest = self._newest(rollout, normalizer)
        self._await_judgement(snapshot(self.policy), None, newest, normalizer, PROMISE)
        self.rollout = rollout


def frozen_model(env: Any = None, **kwargs: Any) -> Any:
    model = make_model(Frozen, env, **kwargs)
    model.measured = []
    return model


def go_on(model: Any, n_updates: int = 1) -> None:
    model.learn(n_updates * model.n_steps * model.n_envs, reset_num_timesteps=False)


def set_critic(model: Any, bias: float) -> None:
    """V(s) = bias everywhere."""
    with th.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(bias)


def set_environments(model: Any, **attributes: Any) -> None:
    for env in model.env.unwrapped.envs:
        for name, value in attributes.items():
            setattr(env.unwrapped, name, value)


# Calibration


@pytest.mark.parametrize(
    ("env_id", "n_steps", "n_learned", "estimator", "least"),
    [
        ("Pendulum-v1", 400, 0, "rollout", 0.4),
        ("Pendulum-v1", 400, 4, "rollout", 0.4),
        # Residuals of a critic that knows nothing cancel over an episode, which is longer than a block.
        ("CartPole-v1", 256, 0, "rollout", 0.05),
        ("CartPole-v1", 256, 4, "rollout", 0.2),
        ("CartPole-v1", 256, 0, "episodes", 0.4),
    ],
)
def test_without_a_step_the_actual_improvement_is_calibrated(
    env_id: str, n_steps: int, n_learned: int, estimator: str, least: float
) -> None:
    """``actual/stderr`` has mean 0 and variance 1, or errs on the safe side, where the policy stays."""
    n_pairs = 12
    env = make_vec_env(env_id, n_envs=4, seed=0)
    model = frozen_model(env, n_steps=n_steps, improvement_estimator=estimator)
    model.is_frozen = False
    go_on(model, n_learned)
    model.memory.pending, model.is_frozen = None, True
    before = snapshot(model.policy)
    go_on(model, 2 * n_pairs)
    assert_same(before, snapshot(model.policy))
    scores = np.array([measured.actual / measured.stderr for measured in model.measured])
    apart = scores[::2]  # neighbours share a rollout
    assert len(apart) == n_pairs
    assert abs(apart.mean()) < 3.0 / math.sqrt(n_pairs)
    assert least < scores.var() < 2.2
    assert not any(abs(scores) > 4.0)


# Traps


def test_an_improvement_is_counted_once() -> None:
    """Each step better by 1 is an improvement of 1: by advantages in place of residuals it would be 1/(1 - γλ)."""
    model = frozen_model(toy_vec_env(reward=0.5, termination=0.0, episode_length=1000), n_steps=200)
    set_critic(model, 0.0)
    go_on(model)
    set_environments(model, reward=1.5)
    go_on(model)
    (measured,) = model.measured
    assert measured.actual == pytest.approx(1.0, abs=1e-6)
    residuals = appraise(model.rollout, model._value_function(), IDENTITY, model.gamma).residuals
    overstated = advantages(residuals, model.rollout.dones, model.gamma, model.gae_lambda).mean()
    assert overstated > 10.0 * residuals.mean()


def test_a_truncation_is_neither_a_fall_nor_a_bonus() -> None:
    """A critic that sees 5 everywhere: truncated steps are as good as all others, by whichever critic is asked."""
    model = frozen_model(toy_vec_env(reward=1.0, termination=0.0, episode_length=7))
    set_critic(model, 5.0)
    go_on(model)
    set_critic(model, -20.0)  # the present critic, which SB3 bootstraps the next rollout with
    go_on(model)
    assert len(model.rollout.truncated) > 4
    (measured,) = model.measured
    assert measured.actual == pytest.approx(0.0, abs=1e-5)
    assert measured.stderr == pytest.approx(0.0, abs=1e-5)
    by_then = appraise(model.rollout, model._value_function(), IDENTITY, model.gamma)
    np.testing.assert_allclose(by_then.residuals, 1.0 + (model.gamma - 1.0) * -20.0, rtol=1e-5)


def test_a_termination_is_a_fall() -> None:
    model = frozen_model(toy_vec_env(reward=1.0, termination=0.0, episode_length=1000))
    set_critic(model, 5.0)
    go_on(model)
    set_environments(model, termination=0.2)
    go_on(model)
    (measured,) = model.measured
    assert len(model.rollout.truncated) == 0
    share = model.rollout.dones.mean()
    assert share > 0.1
    assert measured.actual == pytest.approx(-model.gamma * 5.0 * share, rel=1e-4)


def test_both_rollouts_are_judged_by_the_critic_of_the_first() -> None:
    """Trained on neither: what the present critic has become in the meantime must not matter."""
    measured = []
    for changed in (False, True):
        model = frozen_model()
        go_on(model)
        if changed:
            with th.no_grad():
                for parameter in critic_parameters(model.policy, model.actor):
                    parameter.add_(1.0)
        go_on(model)
        measured += model.measured
    assert measured[0] == measured[1]


def test_both_rollouts_are_in_the_units_of_the_first() -> None:
    """The statistics of ``VecNormalize`` move on, between rollouts and within: the frozen ones are asked."""
    measured, scales = [], []
    for drift in (0.0, 3.0):
        # Observations that do not heed the actions, so that only the units differ.
        env = VecNormalize(toy_vec_env(reward=1.0, termination=0.0, episode_length=1000), clip_obs=1e6, clip_reward=1e6)
        model = frozen_model(env)
        go_on(model)
        scales.append(snapshot_normalizer(env).reward_scale)
        env.obs_rms.mean += drift
        env.ret_rms.var *= 1.0 + drift
        model._last_obs = env.normalize_obs(env.old_obs)
        go_on(model)
        scales.append(snapshot_normalizer(env).reward_scale)
        measured += model.measured
    assert scales[3] > 1.5 * scales[2]
    assert measured[1].actual == pytest.approx(measured[0].actual, abs=1e-4 * measured[0].stderr)
    assert measured[1].stderr == pytest.approx(measured[0].stderr, rel=1e-4)


@pytest.mark.parametrize("estimator", ["rollout", "episodes"])
def test_rewards_are_in_the_units_of_the_first(estimator: str) -> None:
    env = VecNormalize(toy_vec_env(reward=1.0, termination=0.0, episode_length=8), norm_obs=False, clip_reward=1e6)
    model = frozen_model(env, improvement_estimator=estimator)
    set_critic(model, 0.0)
    go_on(model)
    scale = snapshot_normalizer(env).reward_scale
    set_environments(model, reward=4.0)
    go_on(model)
    assert abs(snapshot_normalizer(env).reward_scale / scale - 1.0) > 0.2
    (measured,) = model.measured
    assert measured.actual == pytest.approx(3.0 / scale, rel=1e-5)


def test_short_batches_differ_by_the_phase_of_their_episodes() -> None:
    """The trap that no standard error within a rollout shows: environments that go through a long episode in step."""

    class Phased(ToyEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            phase = self.n_steps / self.episode_length
            observation, _, *rest = super().step(action)
            return observation, math.cos(2.0 * math.pi * phase) + float(observation[0]), *rest

    variance = {}
    for n_steps in (16, 128):
        env = DummyVecEnv([lambda: Monitor(Phased(episode_length=128, termination=0.0))] * 4)
        model = frozen_model(env, n_steps=n_steps)
        set_critic(model, 0.0)
        go_on(model, 17)
        variance[n_steps] = np.var([measured.actual / measured.stderr for measured in model.measured])
    assert variance[16] > 4.0
    assert variance[128] < 2.0


# Estimators


def test_the_rollout_estimator_is_the_difference_of_mean_residuals() -> None:
    model = frozen_model()
    go_on(model)
    first, value_of = model.rollout, model._value_function()
    go_on(model)
    before, after = (
        performance(appraise(rollout, value_of, IDENTITY, model.gamma).residuals, rollout.dones)
        for rollout in (first, model.rollout)
    )
    (measured,) = model.measured
    assert measured.actual == pytest.approx(after.mean - before.mean, rel=1e-9)
    assert measured.stderr == pytest.approx(math.hypot(after.stderr, before.stderr), rel=1e-9)
    assert measured[2:] == (0.25, 0.5, 0.1, True, 1.0)


def test_the_episodes_estimator_is_the_difference_of_returns_per_step() -> None:
    model = frozen_model(improvement_estimator="episodes")
    go_on(model)
    first = model.rollout
    go_on(model)
    before, after = (episode_returns(rollout.episode_returns) for rollout in (first, model.rollout))
    length = model.rollout.episode_lengths.mean()
    (measured,) = model.measured
    assert measured.actual == pytest.approx((after.mean - before.mean) / length, rel=1e-9)
    assert measured.stderr == pytest.approx(math.hypot(after.stderr, before.stderr) / length, rel=1e-9)


@pytest.mark.parametrize(("estimator", "expected"), [("rollout", 0.0), ("episodes", 0.5)])
def test_a_critic_that_knows_nothing_is_blind_to_longer_episodes(estimator: str, expected: float) -> None:
    """CartPole at the start: each step pays 1, and good is what lasts. Episode returns see it."""
    model = frozen_model(toy_vec_env(reward=1.0, termination=0.0, episode_length=4), improvement_estimator=estimator)
    set_critic(model, 0.0)
    go_on(model)
    set_environments(model, episode_length=8)
    go_on(model)
    (measured,) = model.measured
    assert measured.actual == pytest.approx(expected, abs=1e-6)


def test_too_few_episodes_are_no_evidence() -> None:
    model = frozen_model(toy_vec_env(termination=0.0, episode_length=1000), improvement_estimator="episodes")
    go_on(model, 2)
    (measured,) = model.measured
    assert not measured.is_informative
    before = model.region
    model._judge(measured)
    assert model.region.radius == before.radius
    assert model.region.n_judged == 0


@pytest.mark.parametrize("algorithm", MEASURING)
def test_the_surrogate_estimator_judges_at_once_and_by_its_own_batch(algorithm: type[Any]) -> None:
    model = make_model(algorithm, improvement_estimator="surrogate")
    for n_judged in (1, 2, 3):
        go_on(model)
        assert model.memory.pending is None
        assert model.region.n_judged + model.n_invalid == n_judged
        logged = model.logger.name_to_value
        assert logged["train/rho"] == pytest.approx(logged["train/same_batch_ratio"], rel=0.05)
        assert logged["train/improvement_stderr"] == 0.0
    assert model.region.n_rollbacks == 0


# The pending step


def after_one_update(algorithm: type[Any], **kwargs: Any) -> Any:
    model = make_model(algorithm, **kwargs)
    go_on(model)
    assert model.memory.pending is not None
    return model


def another_environment(model: Any) -> None:
    model.set_env(toy_vec_env())


def a_new_training(model: Any) -> None:
    model._setup_learn(UPDATE, reset_num_timesteps=True)


def a_reset(model: Any) -> None:
    model._last_obs = None  # as after loading with force_reset
    model._setup_learn(UPDATE, reset_num_timesteps=False)


def other_parameters(model: Any) -> None:
    model.set_parameters({"policy": model.policy.state_dict()}, exact_match=False)


@pytest.mark.parametrize("algorithm", MEASURING)
@pytest.mark.parametrize("event", [another_environment, a_new_training, a_reset, other_parameters])
def test_a_step_that_cannot_be_judged_any_more_is_dropped(algorithm: type[Any], event: Callable[[Any], None]) -> None:
    model = after_one_update(algorithm)
    region = model.region
    event(model)
    assert model.memory.pending is None
    assert model.region == region
    go_on(model)
    assert model.region.n_judged == region.n_judged


@pytest.mark.parametrize("algorithm", MEASURING)
def test_a_step_is_judged_when_training_goes_on(algorithm: type[Any]) -> None:
    model = after_one_update(algorithm)
    pending = model.memory.pending
    model._setup_learn(UPDATE, reset_num_timesteps=False)
    assert model.memory.pending is pending
    go_on(model)
    assert model.region.n_judged == 1
    assert model.memory.pending is not pending


# Roll-backs that do not help


class Judging(Frozen):
    """Takes no step either, and judges each as if it had."""

    def train(self) -> None:
        rollout, normalizer = self._take_rollout(), self._snapshot_normalizer()
        self._judge(self._measure_improvement(rollout))
        if not self.region.rolled_back:
            newest = self._newest(rollout, normalizer)
            self._await_judgement(snapshot(self.policy), None, newest, normalizer, PROMISE)


class Level(ToyEnv):
    """Rewards about a level that the test sets, in place of a policy that gets better or worse."""

    level = 0.0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return observation, self.level + float(observation[0]), *rest


def judged(levels: list[float]) -> Any:
    """A model after one rollout at each level."""
    model = make_model(Judging, DummyVecEnv([lambda: Monitor(Level())] * 2))
    set_critic(model, 0.0)
    for level in levels:
        set_environments(model, level=level)
        go_on(model)
    return model


def test_a_roll_back_that_helped_changes_nothing_more() -> None:
    model = judged([0.0, -5.0])
    assert model.region.rolled_back
    radius = model.region.radius
    set_environments(model, level=0.0)
    go_on(model)
    assert (model.region.radius, model.region.n_rollbacks) == (radius, 1)
    assert (model.memory.rejected, model.memory.n_vain, model.memory.trend_left) == (None, 0, 0)
    # The next collapse is undone as the first.
    set_environments(model, level=-5.0)
    go_on(model)
    assert model.region.n_rollbacks == 2


def test_where_the_environment_has_become_worse_the_step_is_not_to_blame() -> None:
    """No roll-back brings back what no step has lost: the radius is again what it was."""
    model = judged([0.0])
    radius = model.region.radius
    set_environments(model, level=-5.0)
    go_on(model)
    assert model.region.rolled_back
    assert model.region.radius < radius
    go_on(model)
    assert model.region.radius == radius
    assert (model.region.n_rollbacks, model.region.n_judged, model.memory.n_vain) == (1, 1, 1)
    assert model.memory.trend.mean == pytest.approx(0.0, abs=3.0 * model.memory.trend.stderr)
    go_on(model, 2)
    assert not model.region.rolled_back
    # A collapse is undone nevertheless.
    set_environments(model, level=-10.0)
    go_on(model)
    assert (model.region.rolled_back, model.region.n_rollbacks) == (True, 2)


def test_where_the_environment_goes_on_getting_worse_it_is_allowed_for() -> None:
    """Rejecting one step after another would end all learning: for a while the trend is taken off."""
    model = judged([0.0, -5.0])
    assert model.region.rolled_back
    level, undone = -5.0, []
    for _ in range(16):
        level -= 5.0
        set_environments(model, level=level)
        go_on(model)
        undone.append(model.region.rolled_back)
    assert model.memory.trend.mean == pytest.approx(-5.0, abs=3.0 * model.memory.trend.stderr)
    # The restored policy's rollout shows the trend, which is allowed for over 2 steps, then 4, then 8.
    assert undone == [False] * 3 + [True] + [False] * 5 + [True] + [False] * 6
    set_environments(model, level=level - 15.0)  # 10 more than the trend
    go_on(model)
    assert model.region.rolled_back


@pytest.mark.parametrize("algorithm", MEASURING)
@pytest.mark.parametrize("normalise", [False, True])
def test_the_memory_comes_back_bit_for_bit(algorithm: type[Any], normalise: bool) -> None:
    """Region, pending step, history, through a file that holds no code."""
    env: Any = VecNormalize(toy_vec_env()) if normalise else toy_vec_env()
    reuse = {"n_reused_rollouts": 3} if algorithm is AdaptiveTRPO else {}
    model = make_model(algorithm, env, **reuse)
    go_on(model, 3)
    memory = model.memory
    assert memory.pending is not None
    assert len(memory.rollouts) == (2 if reuse else 0)
    file = io.BytesIO()
    th.save(memory.state_dict(), file)
    file.seek(0)
    loaded = TrustRegionMemory(memory.region)
    loaded.load_state_dict(th.load(file, weights_only=True))
    assert loaded.region == memory.region
    assert isinstance(loaded.pending, PendingStep)
    assert loaded.pending.promise == memory.pending.promise
    assert loaded.pending.baseline == memory.pending.baseline
    assert_same(loaded.state_dict(), memory.state_dict())


def test_a_rejected_step_comes_back_too() -> None:
    memory = judged([0.0, -5.0]).memory
    assert memory.rejected is not None
    loaded = TrustRegionMemory(memory.region)
    loaded.load_state_dict(memory.state_dict())
    assert_same(loaded.state_dict(), memory.state_dict())


def test_an_empty_memory_comes_back() -> None:
    memory = TrustRegionMemory(make_model(AdaptiveTRPO).region)
    loaded = TrustRegionMemory(make_model(AdaptiveTRPO, target_kl=0.02).region)
    loaded.load_state_dict(memory.state_dict())
    assert (loaded.region, loaded.pending, loaded.rollouts) == (memory.region, None, [])


def test_the_pending_step_keeps_the_policy_of_before() -> None:
    """θ_k and V, copied before the step and before the critic's fit."""
    model = make_model(AdaptiveTRPO)
    before = snapshot(model.policy)
    go_on(model)
    assert_same(model.memory.pending.policy, before)
    now = snapshot(model.policy)
    assert all(not th.equal(now[name], before[name]) for name in ("value_net.weight", "action_net.weight"))
