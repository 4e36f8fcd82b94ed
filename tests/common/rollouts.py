"""A policy of two actions whose odds a test sets, and rollouts made by hand: no environment, no algorithm."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trustregion.common.learning_data import Rollout
from sb3_trustregion.core.improvement import FEWEST_PARTS

GAMMA = 0.9
ACTOR = ("action_net.weight", "action_net.bias")


def make_policy(odds: float = 0.5, **kwargs: Any) -> ActorCriticPolicy:
    """
    :param odds: probability of the first action, in any state
    :param kwargs: of the policy
    """
    th.manual_seed(0)
    policy = ActorCriticPolicy(
        spaces.Box(-np.inf, np.inf, (3,)), spaces.Discrete(2), lambda _: 1e-2, **{"net_arch": [], **kwargs}
    )
    policy.set_training_mode(False)
    with th.no_grad():
        policy.action_net.weight.zero_()
    set_odds(policy, odds)
    return policy


@th.no_grad()
def set_odds(policy: ActorCriticPolicy, odds: float) -> None:
    policy.action_net.bias.copy_(th.tensor([odds, 1.0 - odds]).log())


@th.no_grad()
def make_rollout(
    policy: ActorCriticPolicy,
    seed: int = 0,
    level: float = 0.0,
    cost: float = 0.0,
    n_steps: int = 128,
    n_envs: int = 2,
    ends: float = 0.1,
    scale: float = 1.0,
    **changes: Any,
) -> Rollout:
    """
    :param policy: acts, in states that are noise
    :param seed: of all of it
    :param level: what a step pays, but for noise
    :param cost: by how much the first action pays less than that, and the second more
    :param n_steps: T
    :param n_envs: N
    :param ends: probability that a step is the last of its episode; half of those are truncated
    :param scale: what rewards have been divided by
    :param changes: other fields of the rollout
    """
    rng = np.random.default_rng(seed)
    th.manual_seed(seed)

    def observe(*shape: int) -> Any:
        return rng.standard_normal((*shape, 3)).astype(np.float32)

    def value(observations: Any) -> Any:
        return policy.predict_values(th.as_tensor(observations)).flatten().numpy()

    dones = rng.random((n_steps, n_envs)) < ends
    truncated = np.flatnonzero(dones & (rng.random(dones.shape) < 0.5))
    observations, last, terminal = observe(n_steps, n_envs), observe(n_envs), observe(len(truncated))
    flat = observations.reshape(-1, 3)
    actions, values, log_probs = policy(th.as_tensor(flat))
    first = actions.numpy().reshape(dones.shape) == 0
    rewards = level + np.where(first, -cost, cost) + 0.1 * rng.standard_normal(dones.shape)
    rollout = Rollout(
        observations=observations,
        last_observations=last,
        terminal_observations=terminal if len(truncated) else None,
        truncated=truncated,
        actions=actions.numpy().reshape(n_steps, n_envs, 1).astype(np.float32),
        log_probs=log_probs.numpy().reshape(dones.shape),
        rewards=rewards / scale,
        values=values.numpy().reshape(dones.shape),
        last_values=value(last),
        terminal_values=value(terminal) if len(truncated) else np.zeros(0),
        dones=dones,
        scales=np.full(n_steps, scale),
        faulty=np.zeros(dones.shape, dtype=bool),
        episode_returns=level + np.linspace(-1.0, 1.0, FEWEST_PARTS),
        episode_lengths=np.full(FEWEST_PARTS, 10.0),
        gamma=GAMMA,
        is_recorded=True,
        starts_fresh=False,
    )
    return rollout._replace(**changes)
