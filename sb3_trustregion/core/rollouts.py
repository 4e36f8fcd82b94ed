"""
The last M rollouts in the order of time, and what the current critic and policy make of them.

SB3's buffer flattens and shuffles in place and adds γ·V(terminal) of the then current critic to truncated rewards; here
raw rewards, truncations and their terminal observations are kept, so that any critic can be asked later.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th

FloatArray = npt.NDArray[np.floating[Any]]
ObsArray = npt.NDArray[Any] | dict[str, npt.NDArray[Any]]
# Observations (B, ...) to their values (B,), by whichever critic is asked.
ValueFunction = Callable[[ObsArray], FloatArray]

# V-trace's c̄ (Espeholt et al. 2018): a trace is never longer than on-policy.
TRACE_CLIP = 1.0
# V-trace's ρ̄, on the looser side: with a radius around the data few ratios are above it.
WEIGHT_CLIP = 2.0


class Rollout(NamedTuple):
    """
    T steps of N environments, time first, in the environments' own units.

    :param observations: (T, N, ...) or a dict of those, before normalisation
    :param last_observations: (N, ...), observed after the last step
    :param terminal_observations: (K, ...), observed at the K truncated steps, before the reset
    :param truncated: shape (K,), index t·N + n of the truncated steps
    :param actions: shape (T, N, A)
    :param log_probs: shape (T, N), of the policy that acted
    :param rewards: shape (T, N), without any bootstrap; NaN marks a transition that nothing is to be learned from
    :param dones: shape (T, N), whether the episode ended with that step, by termination or truncation
    :param episode_returns: shape (E,), undiscounted returns of the episodes that ended, by ``Monitor``
    :param episode_lengths: shape (E,), their lengths
    """

    observations: ObsArray
    last_observations: ObsArray
    terminal_observations: ObsArray
    truncated: npt.NDArray[np.int64]
    actions: FloatArray
    log_probs: FloatArray
    rewards: FloatArray
    dones: npt.NDArray[np.bool_]
    episode_returns: FloatArray
    episode_lengths: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """(T, N)."""
        n_steps, n_envs = self.rewards.shape
        return n_steps, n_envs

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name, for a checkpoint."""
        return {name: _to_tensors(value) for name, value in self._asdict().items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Rollout":
        """
        :param state: what ``state_dict`` gave
        :return: the rollout
        """
        return cls(**{name: _to_arrays(state[name]) for name in cls._fields})


class Normalizer(NamedTuple):
    """
    One frozen snapshot of observation and reward statistics: units in which rollouts can be compared.

    :param means: mean of each observation by key ("" where observations are no dict), shaped to broadcast
    :param scales: standard deviation likewise
    :param clip_observations: bound on normalised observations
    :param reward_scale: what rewards are divided by
    :param clip_rewards: bound on normalised rewards
    """

    means: dict[str, FloatArray]
    scales: dict[str, FloatArray]
    clip_observations: float
    reward_scale: float
    clip_rewards: float

    def observations(self, raw: ObsArray) -> ObsArray:
        """
        :param raw: (..., *shape), in the environment's units
        :return: normalised, the same shape
        """
        if isinstance(raw, dict):
            return {key: self._normalize(key, value) for key, value in raw.items()}
        return self._normalize("", raw)

    def rewards(self, raw: FloatArray) -> FloatArray:
        """
        :param raw: rewards in the environment's units
        :return: normalised, the same shape
        """
        scaled = np.clip(raw / self.reward_scale, -self.clip_rewards, self.clip_rewards)
        return np.asarray(scaled, dtype=np.float32)

    def _normalize(self, key: str, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if key not in self.means:
            return raw
        scaled = (raw - self.means[key]) / self.scales[key]
        return np.clip(scaled, -self.clip_observations, self.clip_observations).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers by name, for a checkpoint."""
        return {name: _to_tensors(value) for name, value in self._asdict().items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Normalizer":
        """
        :param state: what ``state_dict`` gave
        :return: the normaliser
        """
        return cls(**{name: _to_arrays(state[name]) for name in cls._fields})


IDENTITY = Normalizer({}, {}, np.inf, 1.0, np.inf)


class Appraisal(NamedTuple):
    """
    A rollout as one critic sees it.

    :param values: shape (T, N), V(s)
    :param residuals: shape (T, N), d = r + γ·V(s')·(1 - terminated) - V(s)
    """

    values: FloatArray
    residuals: FloatArray


def appraise(rollout: Rollout, value_of: ValueFunction, normalizer: Normalizer, gamma: float) -> Appraisal:
    """
    :param rollout: the rollout
    :param value_of: the critic, on normalised observations
    :param normalizer: the snapshot of statistics that the critic is asked in
    :param gamma: discount factor
    :return: values and TD residuals, all of the same critic: the true terminal observation where truncated
    """
    n_steps, n_envs = rollout.shape
    values = value_of(normalizer.observations(flatten_time(rollout.observations))).reshape(n_steps, n_envs)
    last = value_of(normalizer.observations(rollout.last_observations)).reshape(1, n_envs)
    following = np.where(rollout.dones, 0.0, np.concatenate([values[1:], last])).astype(np.float64)
    if len(rollout.truncated):
        ends = value_of(normalizer.observations(rollout.terminal_observations))
        following.reshape(-1)[rollout.truncated] = ends
    residuals = normalizer.rewards(rollout.rewards) + gamma * following - values
    return Appraisal(values, residuals)


def advantages(
    residuals: FloatArray,
    dones: npt.NDArray[np.bool_],
    gamma: float,
    gae_lambda: float,
    ratios: FloatArray | None = None,
) -> FloatArray:
    """
    Generalised advantage estimation (Schulman et al. 2016, eq. 16), corrected for the policy that acted.

    Â_t = d_t + γλ·min(c̄, r_{t+1})·Â_{t+1}: the action at t is given, those after it are weighed (V-trace's traces,
    Espeholt et al. 2018; as in GePPO, Queeney et al. 2021). A residual that is NaN (a faulty transition) has a NaN
    advantage, and the steps before it bootstrap from the value there.

    :param residuals: shape (T, N), TD residuals
    :param dones: shape (T, N)
    :param gamma: discount factor
    :param gae_lambda: λ
    :param ratios: shape (T, N), π/β; None for on-policy data
    :return: shape (T, N)
    """
    decay = np.where(dones, 0.0, gamma * gae_lambda)
    if ratios is not None:
        decay[:-1] *= np.minimum(ratios[1:], TRACE_CLIP)
    decay[-1] = 0.0
    decay[np.isnan(residuals)] = 0.0
    result = np.nan_to_num(residuals.astype(np.float64))
    # The recursion Â_t = d_t + c_t·Â_{t+1} by doubling: after each pass a step has summed twice as many successors.
    reach = 1
    while reach < len(result):
        result[:-reach] += decay[:-reach] * result[reach:]
        decay[:-reach] *= decay[reach:].copy()
        reach *= 2
    result[np.isnan(residuals)] = np.nan
    return result


def flatten_time(observations: ObsArray) -> ObsArray:
    """
    :param observations: (T, N, ...) or a dict of those
    :return: (T·N, ...) or a dict of those
    """
    if isinstance(observations, dict):
        return {key: value.reshape(-1, *value.shape[2:]) for key, value in observations.items()}
    return observations.reshape(-1, *observations.shape[2:])


def stack_observations(parts: list[ObsArray]) -> ObsArray:
    """
    :param parts: (B_i, ...) each, or dicts of those
    :return: their concatenation
    """
    first = parts[0]
    if isinstance(first, dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in first}
    return np.concatenate(parts) if len(parts) > 1 else first  # type: ignore[arg-type]


def distance(ratios: FloatArray) -> float:
    """
    Mean of r - 1 - log r: KL(β‖π) by samples of β (Schulman, "Approximating KL Divergence").

    :param ratios: π/β
    :return: nats
    """
    with np.errstate(divide="ignore"):  # a ratio that underflows is infinitely far
        return float(np.mean(ratios - 1.0 - np.log(ratios)))


def is_finite_rollout(rollout: Rollout) -> bool:
    """
    :param rollout: a rollout
    :return: whether it may be kept for later updates: all is finite but rewards, where NaN marks a faulty transition
    """
    parts: list[Any] = []
    for value in rollout._replace(rewards=np.zeros(1)):
        parts.extend(value.values() if isinstance(value, dict) else [value])
    return all(bool(np.isfinite(part).all()) for part in parts)


def _to_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_tensors(item) for key, item in value.items()}
    # Tensors and plain numbers are all that a weights-only load admits.
    return th.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def _to_arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_arrays(item) for key, item in value.items()}
    return value.cpu().numpy() if isinstance(value, th.Tensor) else value
