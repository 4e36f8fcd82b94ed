"""Environments, batches and policies at the edge, and mathematics that breaks down."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TransformReward
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.core.fisher import FisherProduct
from sb3_trustregion.core.line_search import StepStatus
from sb3_trustregion.core.surrogate import Evaluation, Surrogate
from tests.environments import toy_vec_env
from tests.faults.checks import assert_finite
from tests.faults.environments import Target, healthy
from tests.helpers import (
    ALGORITHMS,
    MEASURING,
    Update,
    actor_of,
    assert_same,
    differs,
    make_model,
    satisfy_critic,
    shared,
    state_of,
    train,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:You have specified a mini-batch size",
    "ignore:.*updates without a policy step in a row",
    "ignore:.*leaves a last mini-batch of one",
)
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
NATURAL = (NPG, AdaptiveTRPO)


def assert_within_radius(model: Any, updates: list[Update]) -> None:
    """Parameters stay finite, move only by steps that were accepted, and those keep to the radius."""
    assert_finite(model, largest=1e30)
    for update in updates:
        moved = differs(actor_of(model, update.before), actor_of(model, update.after))
        assert moved <= (update.status is not StepStatus.INVALID)
        if isinstance(model, AdaptiveTRPO) and update.status is StepStatus.ACCEPTED:
            assert update.kl <= update.logged["train/radius"] * (1.0 + 1e-3) + 1e-6


@pytest.mark.parametrize(("algorithm", "reward", "normalize"), shared([(0.0, False), (1.0, True)]))
def test_constant_rewards(algorithm: type[Any], reward: float, normalize: bool) -> None:
    env = toy_vec_env(reward=reward)
    model = make_model(algorithm, VecNormalize(env) if normalize else env)
    updates = train(model, 5)
    assert_within_radius(model, updates)
    assert_finite(model, largest=1e6)
    assert len(updates) == 5


@pytest.mark.parametrize(
    ("algorithm", "ends"), shared([{"length": 1}, {"length": None}, {"length": 1, "terminates": True}]), ids=str
)
def test_episodes_without_end_and_of_one_step(algorithm: type[Any], ends: dict[str, Any]) -> None:
    model = make_model(algorithm, VecNormalize(DummyVecEnv([healthy(**ends)] * 2)))
    updates = train(model, 4)
    assert_within_radius(model, updates)
    assert_finite(model, largest=1e6)
    assert updates[-1].status is StepStatus.ACCEPTED


@pytest.mark.parametrize("estimator", ["rollout", "episodes"])
@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_no_episode_to_judge_by(algorithm: type[Any], estimator: str) -> None:
    """Where no episode ends, their returns say nothing: no step is undone, none is held for good."""
    model = make_model(algorithm, DummyVecEnv([healthy(length=None)] * 2), improvement_estimator=estimator)
    updates = train(model, 4)
    assert [update.status for update in updates] == [StepStatus.ACCEPTED] * 4
    assert model.region.n_judged == (3 if estimator == "rollout" else 0)


@pytest.mark.parametrize("space", [spaces.Discrete(1), spaces.MultiDiscrete([1, 1])], ids=str)
@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_single_action(algorithm: type[Any], space: spaces.Space[Any]) -> None:
    """Nothing to decide: the actor stays as it is, and that is no error."""
    model = make_model(algorithm, DummyVecEnv([healthy(action_space=space)] * 2))
    start = actor_of(model)
    updates = train(model, 12)
    assert_within_radius(model, updates)
    assert_finite(model, largest=1e6)
    probabilities = model.policy.get_distribution(th.zeros(1, 3)).mode()
    assert not probabilities.any()
    if algorithm not in NATURAL:  # has weights of the actor that no gradient reaches, and steps of zero length
        assert all(update.kl == pytest.approx(0.0, abs=1e-6) for update in updates)
    else:
        assert_same(actor_of(model), start)
        assert model.n_invalid == 12


@pytest.mark.parametrize(
    ("algorithm", "log_std", "use_sde"), shared([(-60.0, False), (-20.0, False), (20.0, False), (60.0, True)])
)
def test_extreme_standard_deviation(algorithm: type[Any], log_std: float, use_sde: bool) -> None:
    model = make_model(algorithm, DummyVecEnv([healthy()] * 2), use_sde=use_sde)
    with th.no_grad():
        initial = model.policy.log_std.clone()
        model.policy.log_std.fill_(log_std)
    updates = train(model, 5)
    assert_within_radius(model, updates)
    assert len(updates) == 5
    # And back to work once it is sane again.
    with th.no_grad():
        model.policy.log_std.copy_(initial)
    updates = train(model, 3, reset_num_timesteps=False)
    assert_within_radius(model, updates)
    assert updates[-1].status is StepStatus.ACCEPTED


@pytest.mark.parametrize(
    ("algorithm", "n_envs", "n_steps", "batch_size"),
    shared([(1, 2, 1), (2, 1, 2), (1, 3, 2)], AdaptiveTRPO, AdaptivePPO),
)
def test_smallest_batches(algorithm: type[Any], n_envs: int, n_steps: int, batch_size: int) -> None:
    arguments = {"normalize_advantage": False} if algorithm not in NATURAL and batch_size == 1 else {}
    env = VecNormalize(DummyVecEnv([healthy()] * n_envs))
    model = make_model(algorithm, env, n_steps=n_steps, batch_size=batch_size, **arguments)
    updates = train(model, 12)
    assert_within_radius(model, updates)
    assert any(update.status is StepStatus.ACCEPTED for update in updates)


def certain(model: Any) -> None:
    """Of three actions always the first, so surely that single precision knows of no gradient."""
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(th.tensor([1e4, -1e4, -1e4]))


@each_algorithm
def test_vanishing_gradient(algorithm: type[Any]) -> None:
    """The actor stays as it is, the critic learns, and there is no end to it by an error."""
    model = make_model(algorithm, DummyVecEnv([healthy(action_space=spaces.Discrete(3))] * 2))
    certain(model)
    start, critic = actor_of(model), state_of(model.policy.value_net)
    updates = train(model, 12)
    assert_within_radius(model, updates)
    assert_same(actor_of(model), start)
    assert differs(state_of(model.policy.value_net), critic)
    if algorithm in MEASURING:  # where no step was taken there is nothing to grow by
        assert all(update.logged["train/radius"] == updates[0].logged["train/radius"] for update in updates)


@each_algorithm
def test_gradients_too_small_to_be_squared(algorithm: type[Any]) -> None:
    env = DummyVecEnv([lambda: Monitor(TransformReward(Target(), lambda reward: 1e-30 * float(reward)))] * 2)
    model = make_model(algorithm, env, normalize_advantage=False)
    satisfy_critic(model, 0.0)
    assert_within_radius(model, train(model, 6))


def dead_network(model: Any) -> None:
    """No unit of the actor's last hidden layer ever fires: no gradient reaches what is before it."""
    with th.no_grad():
        layer = model.policy.mlp_extractor.policy_net[-2]
        layer.weight.zero_()
        layer.bias.fill_(-100.0)


def no_variance(model: Any) -> None:
    """The largest log std of which single precision can neither square the precision nor add a mean to it."""
    with th.no_grad():
        model.policy.log_std.fill_(-44.0)


def saturated(model: Any) -> None:
    """Actions far outside of what the environment takes, and all of them equal."""
    with th.no_grad():
        model.policy.action_net.bias.fill_(1e6)
        model.policy.log_std.fill_(-10.0)


@pytest.mark.parametrize(
    ("algorithm", "spoil"), shared([no_variance, dead_network, saturated], AdaptiveTRPO, AdaptivePPO)
)
def test_singular_fisher_matrix(algorithm: type[Any], spoil: Callable[[Any], None]) -> None:
    kwargs: dict[str, Any] = {"cg_damping": 0.0} if algorithm in NATURAL else {}
    kwargs["policy_kwargs"] = {"net_arch": [8], "activation_fn": th.nn.ReLU}
    model = make_model(algorithm, DummyVecEnv([healthy()] * 2), **kwargs)
    spoil(model)
    updates = train(model, 4)
    assert_within_radius(model, updates)
    if spoil is dead_network:
        assert all(update.status is StepStatus.ACCEPTED for update in updates)  # the bias still learns


BROKEN_PRODUCTS: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "negative": lambda v: -v,
    "zero": th.zeros_like,
    "nan": lambda v: v * math.nan,
    "infinite": lambda v: v * math.inf,
    "tiny": lambda v: 1e-38 * v,
    "not symmetric": lambda v: v.flip(0),
}


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [*((AdaptiveTRPO, kind) for kind in BROKEN_PRODUCTS), (NPG, "nan"), (NPG, "not symmetric"), (AdaptivePPO, "nan")],
)
def test_broken_curvature(monkeypatch: pytest.MonkeyPatch, algorithm: type[Any], kind: str) -> None:
    """Whatever the Fisher product returns: no NaN, no step outside the radius, and back to work when it is over."""
    model = make_model(algorithm, DummyVecEnv([healthy()] * 2))
    train(model, 1)
    with monkeypatch.context() as patch:
        patch.setattr(FisherProduct, "__call__", lambda self, v: BROKEN_PRODUCTS[kind](v))
        updates = train(model, 2, reset_num_timesteps=False)
    assert_within_radius(model, updates)
    if algorithm in NATURAL and kind in ("negative", "zero", "nan", "infinite"):
        assert [update.status for update in updates] == [StepStatus.INVALID] * 2
    (update,) = train(model, 1, reset_num_timesteps=False)
    # NPG has no radius: it may have gone so far that there is no gradient.
    assert update.status is StepStatus.ACCEPTED or (algorithm is NPG and kind == "not symmetric")


@pytest.mark.parametrize(("gain", "radius"), [(-1.0, 1e-3), (0.0, 0.01), (math.nan, 1e-3)])
def test_line_search_that_never_succeeds(monkeypatch: pytest.MonkeyPatch, gain: float, radius: float) -> None:
    """
    The policy stays, the radius shrinks to its bound and no further, unless no length makes a difference; the critic
    learns, and it is told.
    """
    model = make_model(AdaptiveTRPO, DummyVecEnv([healthy()] * 2), radius_bounds=(1e-3, 1.0))
    start, critic = actor_of(model), state_of(model.policy.value_net)
    with monkeypatch.context() as patch:
        patch.setattr(Surrogate, "at", lambda self, to: Evaluation(gain, 0.0, 1e-4 * (not to.equal(self.origin)), 1.0))
        with pytest.warns(UserWarning, match="without a policy step in a row, now because the line search found no"):
            updates = train(model, 15)
    assert_same(actor_of(model), start)
    assert differs(state_of(model.policy.value_net), critic)
    assert [update.logged["train/n_invalid"] for update in updates] == list(range(1, 16))
    assert model.region.radius == radius
    assert_finite(model)
    (update,) = train(model, 1, reset_num_timesteps=False)
    assert update.status is StepStatus.ACCEPTED


@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_a_million_parameters(algorithm: type[Any]) -> None:
    kwargs = {} if algorithm in NATURAL else {"n_epochs": 1}
    model = make_model(algorithm, DummyVecEnv([healthy()] * 2), policy_kwargs={"net_arch": [1000, 1000]}, **kwargs)
    assert sum(tensor.numel() for tensor in actor_of(model).values()) > 1e6
    updates = train(model, 2)
    assert_within_radius(model, updates)
    assert any(update.status is StepStatus.ACCEPTED for update in updates)


# By the last one neither losses nor parameters overflow, only the squares of gradients in Adam's memory.
@pytest.mark.parametrize(("algorithm", "rate"), shared([1e30, 1e9], AdaptiveTRPO, AdaptivePPO))
def test_critic_that_diverges(algorithm: type[Any], rate: float) -> None:
    """A learning rate that no critic survives: what it did is undone, and it learns when the rate is sane again."""
    rates = [1e-3]
    kwargs = {"policy_kwargs": {"net_arch": [8], "activation_fn": th.nn.ReLU}, "n_steps": 64}
    model = make_model(algorithm, DummyVecEnv([healthy()] * 2), learning_rate=lambda progress: rates[-1], **kwargs)
    train(model, 1)
    rates.append(rate)
    if algorithm not in NATURAL:
        (update,) = train(model, 1, reset_num_timesteps=False)
        assert update.status is StepStatus.INVALID
        assert_same(update.after, update.before)
    else:
        with pytest.warns(UserWarning, match="the critic's fit left the finite numbers and was undone"):
            (update,) = train(model, 1, reset_num_timesteps=False)
        assert "train/value_loss" not in update.logged
        assert update.status is StepStatus.ACCEPTED  # the actor's step does not depend on the critic's fit
        assert_same(update.after["value_net.weight"], update.before["value_net.weight"])
    rates.append(1e-3)
    assert_finite(model, largest=1e6)
    for update in train(model, 3, reset_num_timesteps=False):
        assert update.status is StepStatus.ACCEPTED
        assert differs({"critic": update.after["value_net.weight"]}, {"critic": update.before["value_net.weight"]})
