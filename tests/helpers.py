"""Small models, what happened in each of their updates, and their parameters bit for bit."""

import copy
import inspect
import random
import signal
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from sb3_trustregion.common.judge import Judge, Snapshot
from sb3_trustregion.common.learning_data import Rollout
from sb3_trustregion.core.functional import uncompiled
from sb3_trustregion.core.improvement import Promise
from sb3_trustregion.core.line_search import StepStatus
from sb3_trustregion.core.parameters import actor_parameters
from tests.environments import toy_vec_env

ALGORITHMS = (NPG, AdaptiveTRPO, AdaptivePPO, PenaltyPPO)
MEASURING = (AdaptiveTRPO, AdaptivePPO)
N_STEPS = 32
N_ENVS = 2
UPDATE = N_STEPS * N_ENVS  # time steps

State = dict[str, th.Tensor]


def shared(values: Iterable[Any], *chiefs: type[Any], others: tuple[type[Any], ...] = ALGORITHMS) -> list[Any]:
    """
    Cases of what algorithms share, which need not be gone through for each: everything for some, the first for others.

    :param values: tuples of what comes after the algorithm, or one such thing each
    :param chiefs: the algorithms that everything is for, by default AdaptiveTRPO
    :param others: what the first is for, beside those
    """
    tuples = [value if isinstance(value, tuple) else (value,) for value in values]
    chiefs = chiefs or (AdaptiveTRPO,)
    first = [(other, *tuples[0]) for other in others if other not in chiefs]
    return [(chief, *value) for chief in chiefs for value in tuples] + first


class PlainBuffer(RolloutBuffer):
    """Hands out what it holds, and yet in a way of its own."""

    def _get_samples(self, batch_inds: Any, env: Any = None) -> Any:
        return super()._get_samples(batch_inds, env)


def make_model(algorithm: type[Any], env: VecEnv | None = None, policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    """A model whose updates take milliseconds; arguments as in its constructor."""
    is_ppo = "n_epochs" in inspect.signature(algorithm).parameters
    # Enough for PPO that its clip range matters.
    epochs = {"n_epochs": 4, "learning_rate": 1e-2} if is_ppo else {"n_critic_updates": 2}
    defaults = {"n_steps": N_STEPS, "batch_size": 32, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    return algorithm(policy, toy_vec_env(N_ENVS) if env is None else env, **{**defaults, **epochs, **kwargs})


def state_of(module: Any) -> State:
    return {name: tensor.detach().clone() for name, tensor in uncompiled(module).state_dict().items()}


def actor_names(model: Any) -> tuple[str, ...]:
    """Names of the trainable parameters that act."""
    policy, space = uncompiled(model.policy), copy.deepcopy(model.observation_space)
    policy.set_training_mode(False)  # as SB3 does before anything is asked
    space.seed(0)
    return actor_parameters(policy, policy.obs_to_tensor(space.sample())[0]).names


def actor_of(model: Any, state: State | None = None) -> State:
    """What acts, of the present policy or of another state of it."""
    state = state_of(model.policy) if state is None else state
    return {name: state[name] for name in actor_names(model)}


def n_dimensions(model: Any) -> int:
    """Over how many action dimensions a joint KL is averaged."""
    space = model.action_space
    return int(np.prod(space.shape)) if isinstance(space, (spaces.Box, spaces.MultiBinary)) else 1


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit, through dictionaries and lists."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for item, twin in zip(one, other, strict=True):
            assert_same(item, twin)
    elif isinstance(one, (th.Tensor, np.ndarray)):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    else:
        assert one == other


def differs(one: State, other: State) -> bool:
    return any(not th.equal(one[name], other[name]) for name in one)


def all_finite(state: State) -> bool:
    return all(bool(th.isfinite(tensor).all()) for tensor in state.values())


def randomise(policy: Any, names: Iterable[str] | None = None, scale: float = 3.0) -> None:
    """Destroy a policy: parameters, all or some by name, give way to noise."""
    parameters = dict(policy.named_parameters())
    with th.no_grad():
        for name in parameters if names is None else names:
            parameters[name].normal_(std=scale)


def point_at(policy: Any, action: float) -> None:
    """Let a Gaussian policy act like this in whatever state, with little noise: 0.5 is best, -5 worst."""
    with th.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.fill_(action)
        policy.log_std.fill_(-1.0)


def satisfy_critic(model: Any, value: float) -> None:
    """Let the critic give every state one value."""
    with th.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(value)


class Ruinous(Judge):
    """
    A judge of updates some of which ruin the policy: where it expects one, that is made part of the update.

    :param ruined: which updates, counted from zero
    """

    def __init__(self, *args: Any, ruined: tuple[int, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ruined = ruined
        self.n_expected = 0
        self.good: list[Snapshot] = []

    def expect(self, promise: Promise, rollout: Rollout, before: Snapshot, policy: Any) -> None:
        """Arguments as in ``Judge``."""
        if self.n_expected in self.ruined:
            self.good.append(before)
            randomise(policy, before.undone)
            point_at(policy, -5.0)
            for state in policy.optimizer.state.values() if before.joint else ():
                state["exp_avg"].normal_()
        self.n_expected += 1
        super().expect(promise, rollout, before, policy)


class Update(NamedTuple):
    """
    One ``train()``.

    :param logged: what it logged
    :param before: state_dict of the policy
    :param after: the same after it
    :param kl: mean KL(before‖after) by ``torch.distributions`` on the newest rollout, nats per action dimension
    """

    logged: dict[str, Any]
    before: State
    after: State
    kl: float

    @property
    def status(self) -> StepStatus:
        return StepStatus(self.logged["train/step_status"])


class Updates(BaseCallback):
    """Keeps every update that a model makes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Update] = []
        self._is_due = False

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        observations = self.model.rollout_buffer.observations  # type: ignore[attr-defined]
        parts = observations if isinstance(observations, dict) else {"": observations}
        # A copy in the order (T, N): PPO's buffer flattens in place.
        flat = {key: np.array(value).reshape(-1, *value.shape[2:]) for key, value in parts.items()}
        self._observations = obs_as_tensor(flat if isinstance(observations, dict) else flat[""], self.model.device)
        self._before, self._old, self._is_due = state_of(self.model.policy), self._distributions(), True

    def _on_rollout_start(self) -> None:
        self._collect()

    def _on_training_end(self) -> None:
        self._collect()

    def _collect(self) -> None:
        if self._is_due:
            logged = dict(self.model.logger.name_to_value)
            after = state_of(self.model.policy)
            kl = mean_kl(self._old, self._distributions()) / n_dimensions(self.model)
            self.made.append(Update(logged, self._before, after, kl))
        self._is_due = False

    def _distributions(self) -> list[th.distributions.Distribution]:
        policy = self.model.policy
        policy.set_training_mode(False)
        with th.no_grad():
            distribution: Distribution = policy.get_distribution(self._observations)  # type: ignore[operator]
        parts = distribution.distribution
        return parts if isinstance(parts, list) else [parts]


def mean_kl(old: list[th.distributions.Distribution], new: list[th.distributions.Distribution]) -> float:
    """Of the joint distribution, by PyTorch's own formulas."""
    total = 0.0
    for one, other in zip(old, new, strict=True):
        kl = th.distributions.kl_divergence(one, other)
        total += float(kl.flatten(start_dim=1).sum(dim=1).mean() if kl.dim() > 1 else kl.mean())
    return total


def train(model: Any, n_updates: int = 3, **kwargs: Any) -> list[Update]:
    """Learn for some updates and tell what each did."""
    updates = Updates()
    n_steps = model.n_steps * model.n_envs
    model.learn(n_updates * n_steps, callback=[*kwargs.pop("callbacks", []), updates], **kwargs)
    return updates.made


class RandomState:
    """The state of every global random-number generator, to go back to."""

    def __init__(self) -> None:
        self.states = random.getstate(), np.random.get_state(), th.get_rng_state()  # noqa: NPY002

    def restore(self) -> None:
        python, numpy, torch = self.states
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        th.set_rng_state(torch)


def assert_healthy(model: Any, updates: list[Update]) -> None:
    """Parameters are finite, something was learned, and no accepted step left the radius."""
    assert all_finite(state_of(model.policy))
    assert any(update.status is StepStatus.ACCEPTED for update in updates)
    for update in updates:
        actors = actor_of(model, update.before), actor_of(model, update.after)
        assert differs(*actors) == (update.status is not StepStatus.INVALID)
        if isinstance(model, AdaptiveTRPO) and update.status is StepStatus.ACCEPTED:
            assert 0.0 < update.logged["train/kl_divergence"] <= update.logged["train/radius"]
            if model.sub_sampling_factor == 1:
                assert 0.0 < update.kl <= update.logged["train/radius"] * (1.0 + 1e-3) + 1e-6


def heed_ctrl_c() -> None:
    """For ``preexec_fn``: jobs in a shell's background ignore Ctrl-C, and so does what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
