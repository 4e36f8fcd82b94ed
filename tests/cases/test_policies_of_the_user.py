"""Policies that the user brings, replaces, compiles or extends are trained as they are; constructing calls none."""

import copy
import io
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_trustregion import AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.core.line_search import StepStatus
from tests.helpers import (
    ALGORITHMS,
    MEASURING,
    actor_names,
    all_finite,
    assert_same,
    differs,
    make_model,
    shared,
    state_of,
    train,
)
from tests.networks import LayeredExtractor, OddlyNamedPolicy

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def new_policy(model: Any, policy: type[ActorCriticPolicy] = ActorCriticPolicy, **kwargs: Any) -> ActorCriticPolicy:
    return policy(model.observation_space, model.action_space, model.lr_schedule, **kwargs)


def replaced(model: Any) -> None:
    model.policy = new_policy(model, net_arch=[5])


def of_other_names(model: Any) -> None:
    model.policy = new_policy(model, OddlyNamedPolicy)


def without_sharing(model: Any) -> None:
    kwargs = {"features_extractor_class": LayeredExtractor, "features_extractor_kwargs": {"layer": th.nn.LayerNorm}}
    model.policy = new_policy(model, net_arch=[], share_features_extractor=False, **kwargs)


def copied(model: Any) -> None:
    with th.no_grad():  # what stock PPO's policy needs after training
        model.policy.get_distribution(th.zeros(1, 3))
    model.policy = copy.deepcopy(model.policy)


def compiled(model: Any) -> None:
    model.policy = th.compile(model.policy, backend="eager")


def compiled_in_place(model: Any) -> None:
    model.policy.compile(backend="eager")


def compiled_submodules(model: Any) -> None:
    model.policy.mlp_extractor = th.compile(model.policy.mlp_extractor, backend="eager")
    model.policy.action_net = th.compile(model.policy.action_net, backend="eager")


def extended(model: Any) -> None:
    model.policy.action_net = th.nn.Sequential(th.nn.Linear(8, 5), th.nn.Tanh(), th.nn.Linear(5, 2))
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=3e-4)


def with_another_critic(model: Any) -> None:
    model.policy.value_net = th.nn.Sequential(th.nn.Linear(8, 5), th.nn.ReLU(), th.nn.Linear(5, 1))
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=3e-4)


def with_weight_norm(model: Any) -> None:
    th.nn.utils.parametrizations.weight_norm(model.policy.action_net)
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=3e-4)


def with_spectral_norm(model: Any) -> None:
    th.nn.utils.parametrizations.spectral_norm(model.policy.action_net)
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=3e-4)


def with_tied_layers(model: Any) -> None:
    model.policy.mlp_extractor.value_net = model.policy.mlp_extractor.policy_net
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=3e-4)


CHANGES = [
    replaced,
    of_other_names,
    without_sharing,
    copied,
    compiled,
    compiled_in_place,
    compiled_submodules,
    extended,
    with_another_critic,
    with_weight_norm,
    with_spectral_norm,
    with_tied_layers,
]
COMPILED = (compiled, compiled_in_place, compiled_submodules)


SETTINGS = [
    *[(AdaptiveTRPO, change, True) for change in CHANGES],
    *[(AdaptivePPO, change, True) for change in (of_other_names, without_sharing, *COMPILED[1:], with_tied_layers)],
    *[(AdaptiveTRPO, change, False) for change in (compiled, extended)],
    *[(algorithm, replaced, False) for algorithm in ALGORITHMS],
]


@pytest.mark.parametrize(("algorithm", "change", "late"), SETTINGS)
def test_what_is_there_is_trained(algorithm: type[Any], change: Callable[[Any], None], late: bool) -> None:
    model = make_model(algorithm)
    if late:
        train(model, 2)
    change(model)
    before = state_of(model.policy)
    updates = train(model, 3, reset_num_timesteps=False)
    assert [update.status for update in updates if update.status is not StepStatus.ACCEPTED] == []
    assert all_finite(state_of(model.policy))
    after = state_of(model.policy)
    trained = {name for name, parameter in model.policy.named_parameters() if parameter.requires_grad}
    trained = {name.removeprefix("_orig_mod.") for name in trained}
    assert {name for name in trained if th.equal(before[name], after[name])} == set()
    if algorithm in MEASURING:
        assert "train/rho" in updates[1].logged


@pytest.mark.parametrize(("algorithm", "change"), shared(COMPILED, others=(AdaptivePPO,)))
def test_compiled_policies_learn_the_same(algorithm: type[Any], change: Callable[[Any], None]) -> None:
    plain, other = make_model(algorithm), None
    plain.learn(3 * 64)
    other = make_model(algorithm)
    change(other)
    other.learn(3 * 64)
    assert_same(list(state_of(other.policy).values()), list(state_of(plain.policy).values()))


@pytest.mark.parametrize(("algorithm", "change"), shared([compiled_in_place, copied]))
def test_then_saved_and_loaded(algorithm: type[Any], change: Callable[[Any], None]) -> None:
    model = make_model(algorithm)
    change(model)
    train(model, 2)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = algorithm.load(file, env=model.get_env(), device="cpu")
    assert_same(state_of(loaded.policy), state_of(model.policy))
    updates = train(loaded, 2, reset_num_timesteps=False)
    assert differs(updates[0].before, updates[1].after)


@each_algorithm
def test_a_replaced_policy_saved_and_set_again(algorithm: type[Any]) -> None:
    """SB3 builds the policy that the arguments tell of: who replaced it must do so again."""
    model = make_model(algorithm)
    replaced(model)
    train(model, 2)
    parameters = copy.deepcopy(model.get_parameters())
    other = make_model(algorithm)
    replaced(other)
    other.set_parameters(parameters)
    assert_same(state_of(other.policy), state_of(model.policy))
    updates = train(other, 2)
    assert differs(updates[0].before, updates[1].after)


class Prices(gym.Env[Any, Any]):
    """A product's number from 0 to 9 and its price, in a space of any numbers."""

    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (2,)), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def _observe(self) -> Any:
        return np.array([self.np_random.integers(10), self.np_random.uniform(1, 5)], np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observe(), float(action), bool(self.np_random.random() < 0.1), False, {}


class Encoder(BaseFeaturesExtractor):
    """Fine on what there is, not on what the space says there may be; counts its calls."""

    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__(space, 9)
        self.products = th.nn.Embedding(10, 8)
        self.n_calls = 0

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.n_calls += 1
        return th.cat([self.products(x[:, 0].long()), x[:, 1:].log()], dim=1)


class Widening(BaseFeaturesExtractor):
    """A layer."""

    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__(space, 6)
        self.layer = th.nn.Linear(3, 6)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(x).tanh()


@each_algorithm
def test_constructing_does_not_call_the_policy(algorithm: type[Any]) -> None:
    env = Prices()
    env.action_space.sample = env.observation_space.sample = None  # type: ignore[method-assign,assignment]
    model = make_model(algorithm, env, n_steps=64, policy_kwargs={"features_extractor_class": Encoder})
    assert model.policy.features_extractor.n_calls == 0
    state = th.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    model._heed_arguments()
    assert th.equal(state[0], th.get_rng_state())
    model.save(file := io.BytesIO())
    file.seek(0)
    loaded = algorithm.load(file, device="cpu")
    assert loaded.policy.features_extractor.n_calls == 0
    assert [update.status for update in train(model, 3)] == [StepStatus.ACCEPTED] * 3


@each_algorithm
def test_constructing_draws_no_more_random_numbers_than_stock(algorithm: type[Any]) -> None:
    from stable_baselines3 import PPO

    states = []
    for one in (algorithm, PPO):
        make_model(one)
        states.append((th.get_rng_state().tolist(), np.random.get_state()[1].tolist()))  # noqa: NPY002
    assert states[0] == states[1]


@each_algorithm
def test_other_names_are_no_obstacle(algorithm: type[Any]) -> None:
    model = make_model(algorithm, policy=OddlyNamedPolicy)
    assert not any("judge" in name or "value_net" in name for name in actor_names(model))


@each_algorithm
@pytest.mark.parametrize("frozen", [False, True])
def test_another_shared_extractor_has_all_of_its_names(algorithm: type[Any], frozen: bool) -> None:
    """SB3 keeps it under three, of which users know the one that acts."""
    model = make_model(algorithm, policy_kwargs={"net_arch": [8], "features_extractor_class": Widening})
    policy, pretrained = model.policy, Widening(model.observation_space)
    policy.features_extractor = pretrained.requires_grad_(not frozen)
    policy.optimizer = th.optim.Adam(policy.parameters(), lr=1e-3)
    before = state_of(pretrained)
    with pytest.warns(UserWarning, match="policy.features_extractor was replaced"):
        updates = train(model, 3)
    assert policy.pi_features_extractor is policy.vf_features_extractor is policy.features_extractor is pretrained
    assert differs(before, state_of(pretrained)) != frozen
    assert [update.status for update in updates] == [StepStatus.ACCEPTED] * 3


def test_a_shared_extractor_may_be_compiled() -> None:
    model = make_model(AdaptiveTRPO)
    extractor = model.policy.features_extractor
    model.policy.features_extractor = th.compile(extractor, backend="eager")
    model.learn(1)
    assert model.policy.pi_features_extractor is extractor
