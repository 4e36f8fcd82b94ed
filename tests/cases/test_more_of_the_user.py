"""What users do to policies and losses that stock takes: it is taken here too, or refused by name."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import BernoulliDistribution, DiagGaussianDistribution, Distribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Beta, Independent

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from tests.cases.tasks import UPDATE, Bandit, bandit_model, probability
from tests.environments import ACTION_SPACES, toy_vec_env
from tests.helpers import ALGORITHMS, make_model, state_of, train
from tests.helpers import UPDATE as TOY_UPDATE

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


# An entropy bonus


class EntropyBonus(BaseCallback):
    """Wanted once the task is learned."""

    def __init__(self, ent_coef: float) -> None:
        super().__init__()
        self.ent_coef = ent_coef

    def _on_training_start(self) -> None:
        self.model.ent_coef = self.ent_coef  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


def test_an_entropy_bonus_may_cost_reward() -> None:
    """What PPO's loss gives up for entropy is no step gone wrong: it goes where stock's goes, to 0.54."""
    model = bandit_model(AdaptivePPO, make_vec_env(lambda: Bandit(0.0, 1.0), n_envs=10, seed=0), n_steps=100)
    assert probability(model.learn(8000), 1) > 0.9
    model.learn(6000, callback=EntropyBonus(3.0), reset_num_timesteps=False)
    assert model.region.n_rollbacks <= 1  # a first step may go further than the bonus is worth
    assert probability(model, 1) < 0.6


# Distributions


class Whole(DiagGaussianDistribution):
    """Of all dimensions at once, as PyTorch has it."""

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> Any:
        self.distribution = Independent(th.distributions.Normal(mean_actions, log_std.exp().expand_as(mean_actions)), 1)
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return self.distribution.log_prob(actions)

    def entropy(self) -> th.Tensor:
        return self.distribution.entropy()


class WholeBernoulli(BernoulliDistribution):
    """The same of bits."""

    def proba_distribution(self, action_logits: th.Tensor) -> Any:
        self.distribution = Independent(th.distributions.Bernoulli(logits=action_logits), 1)  # type: ignore[assignment]
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return self.distribution.log_prob(actions)

    def entropy(self) -> th.Tensor:
        return self.distribution.entropy()

    def mode(self) -> th.Tensor:
        return th.round(self.distribution.base_dist.probs)  # type: ignore[attr-defined]


class WholePolicy(ActorCriticPolicy):
    """A policy that acts by those."""

    def _build(self, lr_schedule: Any) -> None:
        kind = Whole if isinstance(self.action_dist, DiagGaussianDistribution) else WholeBernoulli
        self.action_dist = kind(int(np.prod(self.action_space.shape)))
        super()._build(lr_schedule)


@each_algorithm
@pytest.mark.parametrize("space", ["box", "multi_binary"])
def test_dimensions_may_be_one_event(algorithm: type[Any], space: str) -> None:
    """The same steps as dimension by dimension, but for the order of sums."""
    trained, kwargs = [], {"net_arch": [8], **({"log_std_init": -0.3} if space == "box" else {})}
    for policy in (WholePolicy, "MlpPolicy"):
        env = toy_vec_env(action_space=ACTION_SPACES[space])
        model = make_model(algorithm, env, policy, policy_kwargs=kwargs)
        train(model, 2)
        trained.append(state_of(model.policy))
    for name, tensor in trained[0].items():
        assert th.allclose(tensor, trained[1][name], rtol=1e-3, atol=1e-4), name


class OneSigma(ActorCriticPolicy):
    """One σ for all dimensions."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.log_std = th.nn.Parameter(th.zeros(1))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))


@each_algorithm
def test_one_sigma_for_all_dimensions(algorithm: type[Any]) -> None:
    model = make_model(algorithm, policy=OneSigma, policy_kwargs={"net_arch": [8], "log_std_init": None})
    assert model.policy.log_std.item() == pytest.approx(-0.5)
    train(model, 2)
    assert model.policy.log_std.item() != pytest.approx(-0.5, abs=1e-6)


class BetaDistribution(Distribution):
    """Of bounded actions, as recipes have it."""

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def proba_distribution(self, alpha_beta: th.Tensor) -> "BetaDistribution":  # type: ignore[override]
        alpha, beta = th.nn.functional.softplus(alpha_beta).chunk(2, dim=-1)
        self.distribution = Beta(1.0 + alpha, 1.0 + beta)
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return self.distribution.log_prob(((actions + 1.0) / 2.0).clamp(1e-4, 1.0 - 1e-4)).sum(dim=-1)

    def entropy(self) -> th.Tensor:
        return self.distribution.entropy().sum(dim=-1)

    def sample(self) -> th.Tensor:
        return 2.0 * self.distribution.sample() - 1.0

    def mode(self) -> th.Tensor:
        return 2.0 * self.distribution.mean - 1.0

    def actions_from_params(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def log_prob_from_params(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class BetaPolicy(ActorCriticPolicy):
    """Acts within the bounds."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_dist = BetaDistribution()  # type: ignore[assignment]
        self.action_net = th.nn.Linear(self.mlp_extractor.latent_dim_pi, 2 * int(np.prod(self.action_space.shape)))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(self.action_net(latent_pi))  # type: ignore[call-arg]


def test_what_cannot_be_judged_is_trained_as_by_stock() -> None:
    """AdaptivePPO needs no KL for PPO's update; the others say by name what they lack."""
    trained = []
    for algorithm, expected in ((PPO, None), (AdaptivePPO, "cannot be judged.*BetaDistribution. ε stays")):
        model = make_model(algorithm, policy=BetaPolicy)
        if expected is None:
            model.learn(3 * TOY_UPDATE)
        else:
            with pytest.warns(UserWarning, match=expected):
                model.learn(3 * TOY_UPDATE)
        trained.append(state_of(model.policy))
    assert all(th.equal(trained[0][name], trained[1][name]) for name in trained[0])
    for other in (NPG, AdaptiveTRPO, PenaltyPPO):
        with pytest.raises(ValueError, match=r"must be one of .*, got BetaDistribution"):
            make_model(other, policy=BetaPolicy)


# Features


class Scaled(ActorCriticPolicy):
    """Makes features of its own: SB3's ``get_distribution`` goes past them."""

    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return 5.0 * super().extract_features(obs, features_extractor)


class Extractor(th.nn.Module):
    """Knows both at once alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.latent_dim_pi, self.latent_dim_vf = th.nn.Linear(3, 8), 8, 8

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        latent = self.net(features).tanh()
        return latent, latent


class BothAtOnce(ActorCriticPolicy):
    """A body without ``forward_actor``, which PPO never asks for."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = Extractor()  # type: ignore[assignment]

    def predict_values(self, obs: Any) -> th.Tensor:
        return self.value_net(self.mlp_extractor(self.extract_features(obs))[1])


@pytest.mark.parametrize("policy", [Scaled, BothAtOnce])
def test_what_get_distribution_does_not_see(policy: type[ActorCriticPolicy]) -> None:
    model = make_model(AdaptivePPO, policy=policy)
    with pytest.warns(UserWarning, match="cannot be judged: get_distribution is not what evaluate_actions evaluates"):
        model.learn(2 * TOY_UPDATE)
    with pytest.raises(ValueError, match="policy must tell by get_distribution"):
        make_model(PenaltyPPO, policy=policy).learn(TOY_UPDATE)


# Numbers


@each_algorithm
@pytest.mark.parametrize("batch_size", [np.int32(16), None])
def test_a_batch_size_that_is_set_later(algorithm: type[Any], batch_size: Any) -> None:
    model = make_model(algorithm)
    model.batch_size = batch_size
    assert len(train(model, 2)) == 2


# A policy that is certain


@pytest.mark.filterwarnings("ignore:.*updates without a policy step in a row")
def test_certainty_is_not_the_radius_fault() -> None:
    """Where one action is left every gain is rounding, and no smaller radius mends that."""
    model = bandit_model(AdaptiveTRPO, make_vec_env(lambda: Bandit(0.0, 1.0), n_envs=10, seed=0))
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(th.tensor([-8.0, 8.0]))
    start = model.region.radius
    model.learn(12 * UPDATE)
    assert model.n_invalid > 0
    assert model.region.radius > start / 4.0


# At unusual moments, and at the edge


def test_a_file_that_is_saved_within_the_epochs(tmp_path: Path) -> None:
    """As by the handler of a signal: it holds the user's schedule, and the factor on it."""
    model = make_model(AdaptivePPO, clip_range=lambda progress: 0.2 * progress)
    model.judge.state = dataclasses.replace(model.judge.state, radius=0.5)
    radii = []

    def save(*_: Any) -> None:
        radii.append(model.region.radius)
        model.save(tmp_path / "model")

    model.policy.optimizer.register_step_post_hook(save)
    train(model)
    assert 0.5 <= radii[-1] < 1.0
    loaded = AdaptivePPO.load(tmp_path / "model", device="cpu")
    assert [loaded.clip_range(progress) for progress in (1.0, 0.5, 0.1)] == [0.2, 0.1, 0.1 * 0.2]
    assert loaded.region.radius == radii[-1]


def test_a_clip_range_that_is_set_within_the_epochs() -> None:
    model = make_model(AdaptivePPO)
    model.policy.optimizer.register_step_post_hook(lambda *_: setattr(model, "clip_range", 0.1))
    train(model, 2)
    assert model.clip_range == 0.1


@each_algorithm
def test_the_mode_of_a_policy_that_nothing_is_learned_by(algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    train(model, 1)
    assert model.policy.training
    model.policy.set_training_mode(False)
    model.learn(0, reset_num_timesteps=False)
    assert not model.policy.training


def test_the_widest_box() -> None:
    largest = np.finfo(np.float64).max
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(AdaptiveTRPO, toy_vec_env(2, action_space=spaces.Box(-largest, largest, (2,), np.float64)))
