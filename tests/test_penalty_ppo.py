"""PenaltyPPO: its loss, the rule for C, what becomes of C between updates, files and faults."""

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trustregion import AdaptivePPO, PenaltyPPO
from sb3_trustregion.common.guard import STOP_AFTER, UnusableDataError
from sb3_trustregion.common.learning_data import samples_of
from sb3_trustregion.core import penalty
from sb3_trustregion.core.distributions import kl_divergence, preserved_distribution
from sb3_trustregion.core.line_search import StepStatus
from sb3_trustregion.core.penalty import WEIGHTS, adapted, loss_terms, outputs_of
from tests.environments import ACTION_SPACES, OBSERVATION_SPACES, toy_vec_env
from tests.helpers import (
    UPDATE,
    RandomState,
    actor_of,
    all_finite,
    assert_same,
    differs,
    make_model,
    mean_kl,
    n_dimensions,
    randomise,
    state_of,
    train,
)

# --- the loss


def filled(**kwargs: Any) -> tuple[Any, Any, Any]:
    """A model with a full buffer, its samples, and the parameters of the distributions that they come from."""
    model = make_model(PenaltyPPO, **kwargs)
    model.learn(UPDATE, callback=lambda local, _: local["n_steps"] < 31)  # stops short of the update
    _, callback = model._setup_learn(UPDATE)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    samples, _ = samples_of(model.rollout_buffer)
    return model, samples, outputs_of(model.policy, samples.observations)[0]


def moved(model: Any, scale: float = 0.1) -> None:
    """The policy somewhere else."""
    th.manual_seed(1)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(scale * th.randn_like(parameter))


def distribution(model: Any, observations: Any) -> Any:
    with preserved_distribution(model.policy), th.no_grad():
        parts = model.policy.get_distribution(observations).distribution
    return parts if isinstance(parts, list) else [parts]


def test_loss_by_hand() -> None:
    """One state, one dimension: N(0, 1) before, N(½, 1) now; the action was 1, its advantage 2."""
    env = toy_vec_env(action_space=gym.spaces.Box(-1.0, 1.0, (1,)))
    model = make_model(PenaltyPPO, env)
    with th.no_grad():
        for name, value in (("action_net.bias", 0.5), ("value_net.bias", 3.0)):
            model.policy.get_parameter(name).fill_(value)
        model.policy.action_net.weight.zero_()
        model.policy.value_net.weight.zero_()
    samples = samples_of(model.rollout_buffer)[0]._replace(
        actions=th.ones(1, 1),
        observations=th.zeros(1, 3),
        old_values=th.tensor([1.0]),
        old_log_prob=th.tensor([-0.5 - 0.5 * math.log(2.0 * math.pi)]),
        advantages=th.tensor([2.0]),
        returns=th.tensor([1.5]),
    )
    old = th.zeros(1, 1), th.ones(1, 1)
    terms = loss_terms(model.policy, samples, old, True, None)  # a single advantage is not normalised
    assert terms.policy.item() == pytest.approx(-2.0 * math.exp(0.375))
    assert terms.value.item() == pytest.approx(1.5**2)
    assert terms.entropy.item() == pytest.approx(-0.5 - 0.5 * math.log(2.0 * math.pi))
    assert terms.kl.item() == pytest.approx(0.125)
    assert loss_terms(model.policy, samples, old, False, 0.2).value.item() == pytest.approx(0.3**2)
    (slope,) = th.autograd.grad(terms.kl, model.policy.action_net.bias)
    assert slope.item() == pytest.approx(0.5)  # of ½μ²


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_kl_is_that_of_torch(action: str) -> None:
    model, samples, old = filled(env=toy_vec_env(action_space=ACTION_SPACES[action]))
    before = distribution(model, samples.observations)
    assert penalty.mean_kl(model.policy, samples.observations, old) == 0.0
    moved(model)
    terms = loss_terms(model.policy, samples, old, True, None)
    expected = mean_kl(before, distribution(model, samples.observations))
    assert expected > 0.0
    assert terms.kl.item() == pytest.approx(expected, rel=1e-4)
    assert penalty.mean_kl(model.policy, samples.observations, old).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_gradient_of_the_kl(action: str) -> None:
    """By finite differences, in double; what a mask excludes takes no part."""
    model, samples, old = filled(env=toy_vec_env(action_space=ACTION_SPACES[action]))
    moved(model)
    kind, old = model.policy.action_dist, tuple(output[:5].double() for output in old)
    new = [output[:5].double().requires_grad_() for output in outputs_of(model.policy, samples.observations)[0]]
    assert th.autograd.gradcheck(lambda *outputs: kl_divergence(kind, old, outputs), new)
    if action != "box":
        masked, old[0][:, 0] = new[0].masked_fill(th.arange(new[0].shape[1]) == 0, -th.inf), -th.inf
        (gradient,) = th.autograd.grad(kl_divergence(kind, old, (masked, *new[1:])).sum(), new[0])
        assert th.equal(gradient[:, 0], th.zeros(5).double())
        assert bool(th.isfinite(gradient).all() and gradient.any())


class OtherDistributions(ActorCriticPolicy):
    """One that never fills ``action_dist``, and one whose distribution is another than that which it has filled."""

    fills = False

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        if self.fills:
            super()._get_action_dist_from_latent(latent_pi)
        own = DiagGaussianDistribution(2)
        return own.proba_distribution(2.0 * self.action_net(latent_pi), self.log_std)


class FillsFirst(OtherDistributions):
    fills = True


@pytest.mark.parametrize("policy", [OtherDistributions, FillsFirst])
def test_kl_is_of_the_distribution_that_acts(policy: type[Any]) -> None:
    model, samples, old = filled(policy=policy)
    before = distribution(model, samples.observations)
    moved(model)
    expected = mean_kl(before, distribution(model, samples.observations))
    assert loss_terms(model.policy, samples, old, True, None).kl.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"clip_range_vf": 0.2, "ent_coef": 0.01}, {"normalize_advantage": False, "use_sde": True}],
    ids=["plain", "value", "gsde"],
)
def test_without_penalty_it_is_ppo_without_clipping(kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: the same samples in the same order, the same loss."""
    monkeypatch.setattr(penalty.distributions, "kl_divergence", lambda kind, old, new: th.zeros(len(old[0])))
    ours = make_model(PenaltyPPO, **kwargs).learn(3 * UPDATE)
    stock = make_model(PPO, clip_range=math.inf, **kwargs).learn(3 * UPDATE)
    assert_same(state_of(ours.policy), state_of(stock.policy))
    assert ours._n_updates == stock._n_updates


def test_a_clip_range_of_values_set_by_hand_clips() -> None:
    given = make_model(PenaltyPPO, clip_range_vf=0.01).learn(UPDATE)
    by_hand = make_model(PenaltyPPO)
    by_hand.clip_range_vf = 0.01
    assert_same(state_of(by_hand.learn(UPDATE).policy), state_of(given.policy))


def test_the_penalty_holds_the_policy_back() -> None:
    kls = [train(make_model(PenaltyPPO, kl_coef=kl_coef), 1)[0].kl for kl_coef in (1e-4, 10.0, 1000.0)]
    assert kls[0] > 2.0 * kls[1] > 4.0 * kls[2] > 0.0


# --- the rule for C


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0.0, 2.0), (0.66, 2.0), (0.67, 4.0), (1.0, 4.0), (1.5, 4.0), (1.51, 8.0), (math.inf, 8.0), (math.nan, 8.0)],
)
def test_rule(ratio: float, expected: float) -> None:
    assert adapted(4.0, ratio, 1.5, 2.0) == expected
    assert adapted(4.0, ratio, 1.5, 1.0) == 4.0


def test_bounds() -> None:
    assert adapted(WEIGHTS["at_least"], 0.0, 1.5, 2.0) == WEIGHTS["at_least"]
    assert adapted(WEIGHTS["at_most"], math.nan, 1.5, 2.0) == WEIGHTS["at_most"]
    assert adapted(1.0, math.inf, 1.5, 1e300) == WEIGHTS["at_most"]
    assert adapted(1.0, 0.0, 1.5, math.inf) == WEIGHTS["at_least"]


@pytest.mark.parametrize("action", ["box", "discrete"])
def test_each_update_follows_the_rule(action: str) -> None:
    """C as logged is what the update was made with; the KL is per action dimension, as measured from outside."""
    model = make_model(PenaltyPPO, toy_vec_env(action_space=ACTION_SPACES[action]), target_kl=0.02)
    updates = train(model, 8)
    weights = [update.logged["train/kl_coef"] for update in updates] + [model.penalty]
    assert weights[0] == 1.0
    assert len(set(weights)) > 1
    for update, weight, following in zip(updates, weights, weights[1:], strict=False):
        kl = update.logged["train/kl_divergence"]
        assert kl == pytest.approx(update.kl, rel=1e-3, abs=1e-8)
        assert following == weight * (0.5 if kl < 0.02 / 1.5 else 2.0 if kl > 0.02 * 1.5 else 1.0)


def test_target_is_per_dimension() -> None:
    """The same joint KL asks for another C."""
    updates = [train(make_model(PenaltyPPO), 1)[0] for _ in range(2)]
    assert n_dimensions(make_model(PenaltyPPO)) == 2
    kl = updates[0].logged["train/kl_divergence"]
    for target, expected in ((kl / 1.4, 1.0), (kl / 1.6, 2.0), (kl * 1.6, 0.5)):
        model = make_model(PenaltyPPO, target_kl=target)
        train(model, 1)
        assert model.penalty == expected


def test_early_stop() -> None:
    """Off by default; within an epoch where it is asked for, as by stock, and C is raised all the same."""
    model = make_model(PenaltyPPO, target_kl=1e-5)
    train(model, 1)
    assert model._n_updates == model.n_epochs
    stopped = make_model(PenaltyPPO, target_kl=1e-5, early_stop=2.0)
    (update,) = train(stopped, 1)
    assert stopped._n_updates == 1
    assert 0.0 < update.kl < 1.0
    assert stopped.penalty == 2.0
    with pytest.raises(ValueError, match=r"early_stop must be > 1\.5, got 1\.5"):
        make_model(PenaltyPPO, early_stop=1.5)


# --- C between updates, learns and files


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    uninterrupted = make_model(PenaltyPPO)
    train(uninterrupted, 6)
    env = toy_vec_env()
    first = make_model(PenaltyPPO, env)
    train(first, 3)
    assert first.penalty != first.kl_coef
    random_state = RandomState()
    first.save(tmp_path / "model")
    randomise(first.policy)
    second = PenaltyPPO.load(tmp_path / "model", env=env, force_reset=False, device="cpu")
    random_state.restore()
    assert (second.penalty, second.kl_coef) == (first.penalty, 1.0)
    updates = train(second, 3, reset_num_timesteps=False)
    assert updates[0].logged["train/kl_coef"] == first.penalty
    assert second.penalty == uninterrupted.penalty
    assert_same(state_of(second.policy), state_of(uninterrupted.policy))
    assert_same(second.policy.optimizer.state_dict(), uninterrupted.policy.optimizer.state_dict())


def test_what_the_user_gives_wins(tmp_path: Path) -> None:
    model = make_model(PenaltyPPO)
    train(model, 3)
    model.save(tmp_path / "model")
    assert model.penalty != 1.0
    assert PenaltyPPO.load(tmp_path / "model", device="cpu", kl_coef=1.0).penalty == model.penalty
    given = PenaltyPPO.load(tmp_path / "model", env=toy_vec_env(), device="cpu", kl_coef=5.0, target_kl=0.3)
    assert (given.penalty, given.target_kl) == (5.0, 0.3)
    assert train(given, 1)[0].logged["train/kl_coef"] == 5.0
    model.kl_coef = 7
    assert train(model, 1)[0].logged["train/kl_coef"] == 7.0
    kept = model.penalty
    assert train(model, 1)[0].logged["train/kl_coef"] == kept
    model.penalty = 3
    assert train(model, 1)[0].logged["train/kl_coef"] == 3.0
    model.penalty = math.inf
    with pytest.raises(ValueError, match="penalty must be finite"):
        train(model, 1)
    model.kl_coef = math.nan
    with pytest.raises(ValueError, match=r"kl_coef must be >= 0\.0001 and <= 1e\+06, got nan"):
        train(model, 1)


def test_from_stock(tmp_path: Path) -> None:
    """The optimiser goes on; ``target_kl`` is another thing there, where it may be None, too."""
    for target_kl in (None, 0.5):
        stock = make_model(PPO, target_kl=target_kl, clip_range_vf=0.4).learn(UPDATE)
        stock.save(tmp_path / "stock")
        model: Any = PenaltyPPO.from_stock(tmp_path / "stock", toy_vec_env(), device="cpu")
        assert (model.target_kl, model.learning_rate, model.n_epochs, model.clip_range_vf(1.0)) == (0.01, 1e-2, 4, 0.4)
        assert_same(state_of(model.policy), state_of(stock.policy))
        assert_same(model.policy.optimizer.state_dict(), stock.policy.optimizer.state_dict())
        assert train(model, 2)[-1].status is StepStatus.ACCEPTED
    model.save(tmp_path / "ours")
    with pytest.raises(ValueError, match="saved by AdaptivePPO"):
        AdaptivePPO.load(tmp_path / "ours")


# --- faults


def test_update_that_leaves_the_finite_numbers_is_undone() -> None:
    """A learning rate that no network survives: policy and optimiser are what they were, C is doubled."""
    arguments: dict[str, Any] = {"max_grad_norm": 1e9, "kl_coef_factor": 3.0}
    model = make_model(PenaltyPPO, learning_rate=lambda left: 1e-2 if left > 0.4 else 1e30, **arguments)
    updates = train(model, 2)
    assert [update.status for update in updates] == [StepStatus.ACCEPTED, StepStatus.INVALID]
    assert_same(updates[1].after, updates[1].before)
    assert model.penalty == 3.0 * updates[1].logged["train/kl_coef"]
    twin = make_model(PenaltyPPO, learning_rate=1e-2, **arguments)
    train(twin, 1)
    assert_same(model.policy.optimizer.state_dict()["state"], twin.policy.optimizer.state_dict()["state"])
    assert (model.n_invalid, model.n_invalid_in_a_row) == (1, 1)
    assert model.policy.training  # as stock leaves it


@pytest.mark.filterwarnings("ignore:.*updates without a policy step")
def test_lasting_faults_end_training() -> None:
    model = make_model(PenaltyPPO, learning_rate=1e30, max_grad_norm=1e9)
    before = state_of(model.policy)
    with pytest.raises(UnusableDataError):
        train(model, STOP_AFTER + 1)
    assert_same(state_of(model.policy), before)
    assert model.penalty == 2.0**STOP_AFTER


def test_other_errors_are_not_taken_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ValueError("something else")

    model = make_model(PenaltyPPO)
    monkeypatch.setattr(model.policy, "evaluate_actions", broken)
    with pytest.raises(ValueError, match="something else"):
        train(model, 1)


def with_buffer(change: Any) -> Any:
    """A model whose advantages and returns are changed before each update."""
    model = make_model(PenaltyPPO)
    original = model.rollout_buffer.compute_returns_and_advantage

    def changed(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        change(model.rollout_buffer)

    model.rollout_buffer.compute_returns_and_advantage = changed
    return model


def test_faulty_samples_give_way() -> None:
    def spoil(buffer: Any) -> None:
        buffer.advantages[::2] = np.nan
        buffer.returns[1] = np.inf

    model = with_buffer(spoil)
    updates = train(model, 3)
    assert {update.status for update in updates} == {StepStatus.ACCEPTED}
    assert all_finite(state_of(model.policy))


def test_nothing_usable_changes_nothing() -> None:
    model = with_buffer(lambda buffer: buffer.advantages.fill(np.nan))
    (update,) = train(model, 1)
    assert update.status is StepStatus.INVALID
    assert_same(update.after, update.before)
    assert (model.penalty, model.n_invalid) == (1.0, 1)


def test_frozen_actor_tells_nothing_about_the_penalty() -> None:
    model = make_model(PenaltyPPO)
    actor, critic = actor_of(model), state_of(model.policy.value_net)
    for name in actor:
        model.policy.get_parameter(name).requires_grad_(False)
    updates = train(model, 3)
    assert {update.status for update in updates} == {StepStatus.INVALID}
    assert (model.penalty, model.n_invalid) == (1.0, 0)
    after = state_of(model.policy)
    assert_same({name: after[name] for name in actor}, actor)
    assert differs(state_of(model.policy.value_net), critic)


@pytest.mark.parametrize("kind", ["compiled", "replaced"])
def test_policies_of_the_user(kind: str) -> None:
    model = make_model(PenaltyPPO, toy_vec_env(observation_space=OBSERVATION_SPACES["dict"]), "MultiInputPolicy")
    if kind == "compiled":
        model.policy = th.compile(model.policy, backend="eager")
    else:
        model.policy = make_model(PenaltyPPO, model.env, "MultiInputPolicy", seed=1).policy
    updates = train(model, 2)
    assert {update.status for update in updates} == {StepStatus.ACCEPTED}
    assert all(update.logged["train/kl_divergence"] == pytest.approx(update.kl, rel=1e-3) for update in updates)
