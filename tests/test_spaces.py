"""Every algorithm on whatever SB3's on-policy algorithms take: spaces, extractors, policies, buffers, vector envs."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize
from torch import nn

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from sb3_trustregion.core import surrogate
from sb3_trustregion.core.line_search import StepStatus
from tests.environments import ACTION_SPACES, OBSERVATION_SPACES, POLICIES, VECTOR, maker, toy_vec_env
from tests.helpers import (
    ALGORITHMS,
    MEASURING,
    N_ENVS,
    N_STEPS,
    actor_names,
    actor_of,
    assert_healthy,
    assert_same,
    make_model,
    shared,
    state_of,
    train,
)
from tests.networks import Dropout, LayeredExtractor, OddlyNamedPolicy, PolicyWithExtraHead

EXTRACTORS = {"image": {"features_dim": 8}, "dict": {"cnn_output_dim": 8}}
# Every action space with vector, image and dictionary; the other observations, and extractors that are not shared (only
# those of images have parameters), with one each.
CASES = [
    *[(action, observation, False) for action in ACTION_SPACES for observation in ("vector", "image", "dict")],
    *[("box", observation, False) for observation in OBSERVATION_SPACES if observation not in ("vector", *EXTRACTORS)],
    *[("box", observation, True) for observation in EXTRACTORS],
]

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@pytest.mark.parametrize(
    ("algorithm", "action", "observation", "separate"),
    [
        (algorithm, *case)
        for algorithm in ALGORITHMS
        for case in CASES
        # What they share need not be gone through for each.
        if algorithm is AdaptiveTRPO
        or case[1] == "vector"
        or (algorithm is AdaptivePPO and case[0] == "box")
        or (algorithm is PenaltyPPO and case == ("box", "dict", False))
    ],
)
def test_trains_on_every_space(algorithm: type[Any], action: str, observation: str, separate: bool) -> None:
    env = toy_vec_env(observation_space=OBSERVATION_SPACES[observation], action_space=ACTION_SPACES[action])
    policy_kwargs = {
        "net_arch": [8],
        "share_features_extractor": not separate,
        "features_extractor_kwargs": EXTRACTORS.get(observation, {}),
    }
    policy = POLICIES.get(observation, "MlpPolicy")
    size = {"n_steps": 8, "batch_size": 8} if observation in EXTRACTORS else {}  # their networks take their time
    model = make_model(algorithm, env, policy, policy_kwargs=policy_kwargs, **size)

    assert_healthy(model, train(model, 2))

    actions, _ = model.predict(env.reset(), deterministic=True)
    assert all(env.action_space.contains(one) for one in np.asarray(actions, env.action_space.dtype))


@pytest.mark.parametrize(
    ("algorithm", "policy_kwargs"),
    shared([{}, {"squash_output": True}, {"full_std": False}, {"use_expln": True}], AdaptiveTRPO, AdaptivePPO),
    ids=str,
)
def test_gsde(algorithm: type[Any], policy_kwargs: dict[str, Any]) -> None:
    arguments = {"use_sde": True, "sde_sample_freq": 4}
    model = make_model(algorithm, policy_kwargs={"net_arch": [8], **policy_kwargs}, **arguments)
    assert_healthy(model, train(model))


def test_actor_is_known_by_what_it_does_not_by_its_name() -> None:
    model = make_model(AdaptiveTRPO, policy=OddlyNamedPolicy)
    assert "mlp_extractor.value_free_actor.0.weight" in actor_names(model)
    assert not any("judge" in name or "value_net" in name for name in actor_names(model))


@each_algorithm
def test_custom_network(algorithm: type[Any]) -> None:
    model = make_model(algorithm, policy=OddlyNamedPolicy)
    start = state_of(model.policy)
    assert_healthy(model, train(model))
    assert not any(th.equal(start[name], tensor) for name, tensor in state_of(model.policy).items())


@each_algorithm
def test_extra_heads_are_left_alone(algorithm: type[Any]) -> None:
    model = make_model(algorithm, policy=PolicyWithExtraHead)
    start = state_of(model.policy)
    assert_healthy(model, train(model))
    untouched = {name for name, tensor in state_of(model.policy).items() if th.equal(start[name], tensor)}
    assert untouched == {"world_model.weight", "world_model.bias", "frozen"}


LAYERS: list[dict[str, Any]] = [
    {"layer": Dropout},
    {"layer": nn.BatchNorm1d},
    {"layer": nn.BatchNorm1d, "affine": False},
]


@pytest.mark.parametrize(
    ("algorithm", "extractor", "separate"),
    [
        *((AdaptiveTRPO, layer, separate) for layer in LAYERS for separate in (False, True)),
        *((AdaptivePPO, layer, False) for layer in LAYERS[:2]),
    ],
    ids=str,
)
def test_layers_that_know_training_mode(algorithm: type[Any], extractor: dict[str, Any], separate: bool) -> None:
    policy_kwargs = {
        "net_arch": [8],
        "features_extractor_class": LayeredExtractor,
        "features_extractor_kwargs": extractor,
        "share_features_extractor": not separate,
    }
    model = make_model(algorithm, policy_kwargs=policy_kwargs)
    assert_healthy(model, train(model, 3))


SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("image", {"features_extractor_kwargs": {"features_dim": 8}}),
    "dict": ("dict", {"features_extractor_kwargs": {"cnn_output_dim": 8}}),
    "batch_norm": ("vector", {"features_extractor_kwargs": {"layer": nn.BatchNorm1d}}),
    "bare_batch_norm": ("vector", {"features_extractor_kwargs": {"layer": nn.BatchNorm1d, "affine": False}}),
}


@pytest.mark.parametrize(("algorithm", "kind"), shared(reversed(SHARED), others=(NPG,)))
def test_critic_leaves_a_shared_extractor_to_the_actor(algorithm: type[Any], kind: str) -> None:
    """The last word on KL is the step's: the critic's fit, however long, changes nothing of what acts."""
    observation, extractor = SHARED[kind]
    own = {"features_extractor_class": LayeredExtractor} if observation == "vector" else {}
    policy_kwargs = {"net_arch": [8], "share_features_extractor": True, **extractor, **own}
    states = []
    for learning_rate in (0.0, 4e-3):
        env = toy_vec_env(observation_space=OBSERVATION_SPACES[observation])
        sizes = {"n_critic_updates": 10, "n_steps": 16, "batch_size": 16, "learning_rate": learning_rate}
        policy = POLICIES.get(observation, "MlpPolicy")
        model = make_model(algorithm, env, policy, policy_kwargs=policy_kwargs, **sizes)
        (update,) = train(model, 1)
        assert th.equal(update.before["value_net.weight"], update.after["value_net.weight"]) == (learning_rate == 0.0)
        acting = {*actor_names(model), *(name for name, _ in model.policy.named_buffers())}
        assert any(name.startswith("features_extractor") for name in acting)
        states.append({name: update.after[name] for name in acting})
    assert_same(*states)


class MonteCarloBuffer(RolloutBuffer):
    """
    Advantages of its own.

    :param scale: on them
    """

    def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
        self.scale = scale
        super().__init__(*args, **kwargs)

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        following = last_values.numpy().flatten() * (1.0 - dones)
        for t in reversed(range(self.buffer_size)):
            self.returns[t] = self.rewards[t] + self.gamma * following
            following = self.returns[t] * (1.0 - self.episode_starts[t])
        self.advantages = self.scale * (self.returns - self.values)


@each_algorithm
def test_custom_rollout_buffer(algorithm: type[Any]) -> None:
    model = make_model(algorithm, rollout_buffer_class=MonteCarloBuffer)
    assert_healthy(model, train(model))


@pytest.mark.filterwarnings("ignore:.*updates without a policy step")
@each_algorithm
def test_custom_rollout_buffer_has_the_last_word_on_advantages(algorithm: type[Any]) -> None:
    arguments = {"rollout_buffer_class": MonteCarloBuffer, "rollout_buffer_kwargs": {"scale": 0.0}}
    model = make_model(algorithm, **arguments)
    start = actor_of(model)
    updates = train(model)
    assert_same(start, actor_of(model))
    assert updates[-1].logged["train/value_loss"] > 0.0  # returns are its own too


def wrapped(kind: str) -> VecEnv:
    if kind == "plain":
        return toy_vec_env()
    if kind == "normalized_dict":
        space = spaces.Dict({"vector": VECTOR, "other": spaces.Box(-9.0, 9.0, (2,))})
        return VecNormalize(toy_vec_env(observation_space=space), norm_obs_keys=["vector"])
    normalized = VecNormalize(toy_vec_env())
    return VecFrameStack(normalized, 3) if kind == "stacked" else normalized


@pytest.mark.parametrize(("algorithm", "kind"), shared(["normalized_dict", "plain", "normalized", "stacked"]))
def test_wrapped_environments(algorithm: type[Any], kind: str) -> None:
    model = make_model(algorithm, wrapped(kind), "MultiInputPolicy" if "dict" in kind else "MlpPolicy")
    updates = train(model)
    assert_healthy(model, updates)
    assert updates[-1].logged["train/n_samples"] == N_STEPS * N_ENVS


@pytest.mark.slow
def test_processes_change_nothing() -> None:
    """The same parameters from environments in processes of their own."""
    env = SubprocVecEnv([maker()] * N_ENVS, start_method="fork")  # has everything imported
    try:
        for algorithm in ALGORITHMS:
            apart = make_model(algorithm, env)
            assert_healthy(apart, train(apart))
            together = make_model(algorithm)
            train(together)
            assert_same(state_of(apart.policy), state_of(together.policy))
    finally:
        env.close()


@pytest.fixture
def _small_fisher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Fisher matrix be taken over fewer states than these batches have."""
    monkeypatch.setattr(surrogate, "LEAST_FISHER_STATES", 8)


@pytest.mark.usefixtures("_small_fisher")
@pytest.mark.parametrize(
    ("algorithm", "factors", "action"),
    [
        *((AdaptiveTRPO, (2, 4), action) for action in ACTION_SPACES),
        *(
            (algorithm, factors, "box")
            for algorithm, factors in ((AdaptiveTRPO, (2, 1)), (NPG, (1, 4)), (NPG, (1, 1000)))
        ),
    ],
    ids=str,
)
def test_sub_sampling(algorithm: type[Any], factors: tuple[int, int], action: str) -> None:
    batch, fisher = factors
    env = toy_vec_env(action_space=ACTION_SPACES[action])
    model = make_model(algorithm, env, sub_sampling_factor=batch, fisher_sub_sampling_factor=fisher)
    updates = train(model)
    assert_healthy(model, updates)
    assert updates[-1].logged["train/n_samples"] == N_STEPS * N_ENVS // batch


@pytest.mark.parametrize(
    ("radius_rule", "improvement_estimator"),
    [("noise_aware", "surrogate"), ("noise_aware", "episodes"), ("textbook", "rollout"), ("fixed", "rollout")],
)
@pytest.mark.parametrize("algorithm", MEASURING)
def test_every_rule_with_every_estimator(algorithm: type[Any], radius_rule: str, improvement_estimator: str) -> None:
    chosen = {"radius_rule": radius_rule, "improvement_estimator": improvement_estimator}
    model = make_model(algorithm, **chosen, radius_window=3, radius_prior=0.001)
    initial = model.region.radius
    updates = train(model, 4)
    assert_healthy(model, updates)
    assert model.region.n_judged >= 3
    if radius_rule == "fixed":
        assert model.region.radius == initial
    else:
        assert model.region.radius != initial
    if improvement_estimator == "surrogate":
        assert all(update.status is not StepStatus.REJECTED for update in updates)
