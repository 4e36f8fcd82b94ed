"""Policies that mask actions with -inf (or as good as that) learn, in every discrete space."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trustregion import AdaptivePPO, PenaltyPPO
from tests.helpers import MEASURING, all_finite, make_model, shared, state_of, train

# Of each action space: the number of logits, and which of them may be masked.
SPACES: dict[str, tuple[spaces.Space[Any], int, list[int]]] = {
    "discrete": (spaces.Discrete(3), 3, [1, 2]),
    "multi_discrete": (spaces.MultiDiscrete([3, 2]), 5, [1, 2, 4]),
    "multi_binary": (spaces.MultiBinary(3), 3, [0, 1]),
}
FILLS = {"inf": -th.inf, "huge": -1e8, "lowest": th.finfo(th.float32).min}


class Task(gym.Env[Any, Any]):
    """
    The observation is the mask of logits; high numbers pay.

    :param kind: one of ``SPACES``
    :param free: probability that an action that may be masked is free
    """

    def __init__(self, kind: str, free: float) -> None:
        space, n_logits, self.maskable = SPACES[kind]
        self.action_space = copy.deepcopy(space)
        self.observation_space = spaces.MultiBinary(n_logits)
        self.free = free

    def _observe(self) -> Any:
        mask = np.ones(self.observation_space.n, np.int8)
        mask[self.maskable] = self.np_random.random(len(self.maskable)) < self.free
        return mask

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.mask = self._observe()
        return self.mask, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if isinstance(self.action_space, spaces.MultiBinary):
            chosen = [index for index, on in enumerate(np.ravel(action)) if on]
        else:
            sizes = np.ravel(getattr(self.action_space, "nvec", [getattr(self.action_space, "n", 0)]))
            offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
            chosen = list(offsets + np.ravel(action))
        assert self.mask[chosen].all()  # what is masked is never done
        reward = float(np.mean(action))
        self.mask = self._observe()
        return self.mask, reward, bool(self.np_random.random() < 0.1), False, {}


def masked_policy(fill: float) -> type[ActorCriticPolicy]:
    class Masked(ActorCriticPolicy):  # with net_arch=[] the latent is the observation
        def _get_action_dist_from_latent(self, latent: th.Tensor) -> Any:
            return self.action_dist.proba_distribution(self.action_net(latent).masked_fill(latent < 0.5, fill))

    return Masked


SETTINGS = [
    *[(kind, 0.5, "inf") for kind in SPACES],
    *[("discrete", free, "inf") for free in (0.0, 1.0)],  # all but one masked, for good; nothing masked
    *[(kind, 0.5, fill) for kind, fill in (("discrete", "huge"), ("multi_binary", "lowest"))],
]
CASES = [*shared(SETTINGS), *((algorithm, *SETTINGS[2]) for algorithm in (AdaptivePPO, PenaltyPPO))]
CASES += [(AdaptivePPO, *setting) for setting in (SETTINGS[1], SETTINGS[3])] + [(PenaltyPPO, *SETTINGS[1])]


@pytest.mark.filterwarnings("ignore:.*updates without a policy step")
@pytest.mark.parametrize(("algorithm", "kind", "free", "fill"), CASES)
def test_masked_policies_learn(algorithm: type[Any], kind: str, free: float, fill: str) -> None:
    model = make_model(
        algorithm,
        DummyVecEnv([lambda: Task(kind, free)] * 8),
        masked_policy(FILLS[fill]),
        n_steps=16,
        batch_size=64,
        policy_kwargs={"net_arch": []},
    )
    updates = train(model, 4)
    assert all_finite(state_of(model.policy))
    if free > 0.0:
        assert model.n_invalid == 0
        assert all(np.isfinite(update.logged["train/kl_divergence"]) for update in updates)
        if algorithm in MEASURING:
            assert model.region.n_judged >= 2
            assert all(np.isfinite(update.logged["train/rho"]) for update in updates[1:])
