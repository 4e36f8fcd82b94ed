"""
Keeps what SB3's rollout buffer does not: raw rewards, true ends of episodes, units that do not drift.

An internal callback, because ``on_step`` runs before SB3 adds γ·V(terminal observation) to truncated rewards.
"""

import copy
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from sb3_trustregion.core.rollouts import IDENTITY, FloatArray, Normalizer, ObsArray, Rollout, stack_observations
from sb3_trustregion.guard import LARGEST, GuardedVecEnv


class RolloutRecorder(BaseCallback):
    """Builds one ``Rollout`` beside SB3's buffer; ``take`` hands it over once the rollout is complete."""

    def __init__(self) -> None:
        super().__init__()
        self.guard: GuardedVecEnv
        self._rollout: Rollout | None = None
        self._clear()

    def _clear(self) -> None:
        self._observations: list[ObsArray] = []
        self._rewards: list[FloatArray] = []
        self._dones: list[npt.NDArray[np.bool_]] = []
        self._faulty: list[npt.NDArray[np.bool_]] = []
        self._terminal_observations: list[ObsArray] = []
        self._truncated: list[int] = []
        self._episodes: list[tuple[float, float]] = []

    def _on_rollout_start(self) -> None:
        self._clear()
        self._rollout = None
        self._vec_normalize = unwrap_vec_normalize(self.training_env)
        self._normalizer = observation_normalizer(self.training_env)
        self._faulty_observation = self.guard.faulty_observation
        if self._normalizer is not None:
            assert self.model._last_obs is not None
            self._observations.append(self._denormalize(self.model._last_obs))

    def _on_step(self) -> bool:
        step = len(self._rewards)
        dones = np.array(self.locals["dones"], dtype=bool)
        rewards = self.locals["rewards"]
        if self._vec_normalize is not None and self._vec_normalize.norm_reward:
            rewards = self._vec_normalize.get_original_reward()
        self._rewards.append(np.array(rewards))
        self._dones.append(dones)
        self._faulty.append(self._faulty_observation | self.guard.faulty)
        self._faulty_observation = self.guard.faulty_observation
        if self._vec_normalize is not None:
            # The statistics moved with this step, and the new observation was normalised with the new ones.
            self._normalizer = observation_normalizer(self.training_env)
        if self._normalizer is not None:
            self._observations.append(self._denormalize(self.locals["new_obs"]))
        if dones.any():
            for env_index in dones.nonzero()[0]:
                self._record_end(step * len(dones) + int(env_index), self.locals["infos"][env_index])
        return True

    def _record_end(self, index: int, info: dict[str, Any]) -> None:
        episode = info.get("episode")
        # The return of an episode with a faulty reward says nothing.
        if episode is not None and abs(episode["r"]) < LARGEST:
            self._episodes.append((float(episode["r"]), float(episode["l"])))
        terminal = info.get("terminal_observation")
        if terminal is not None and info.get("TimeLimit.truncated", False):
            batched: ObsArray = (
                {key: np.array(value)[None] for key, value in terminal.items()}
                if isinstance(terminal, dict)
                else np.array(terminal)[None]
            )
            self._terminal_observations.append(self._denormalize(batched))
            self._truncated.append(index)

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        episodes = np.array(self._episodes, dtype=np.float64).reshape(-1, 2)
        ends = self._terminal_observations
        rewards = np.stack(self._rewards).astype(np.float64)
        # NaN marks a transition that nothing is to be learned from, see ``core.rollouts.advantages``.
        rewards[np.stack(self._faulty)] = np.nan
        self._rollout = Rollout(
            observations=self._stacked(buffer.observations) if self._normalizer else _copy_of_dict(buffer.observations),
            # A copy: stacked frames are overwritten in place when the environments are reset.
            last_observations=copy.deepcopy(self._observations[-1] if self._normalizer else self.locals["new_obs"]),
            terminal_observations=stack_observations(ends) if ends else np.zeros(0),
            truncated=np.array(self._truncated, dtype=np.int64),
            actions=buffer.actions.astype(np.float32, copy=False),
            log_probs=buffer.log_probs,
            rewards=rewards,
            dones=np.stack(self._dones),
            episode_returns=episodes[:, 0],
            episode_lengths=episodes[:, 1],
        )
        self._clear()

    def take(self) -> Rollout | None:
        """
        :return: the last complete rollout, in the environments' own units; None where there is none
        """
        rollout, self._rollout = self._rollout, None
        return rollout

    def _denormalize(self, observations: ObsArray) -> ObsArray:
        if self._normalizer is None:
            return observations
        if isinstance(observations, dict):
            return {key: _denormalized(self._normalizer, key, value) for key, value in observations.items()}
        return _denormalized(self._normalizer, "", observations)

    def _stacked(self, layout: ObsArray) -> ObsArray:
        """All but the last, as SB3's buffer lays them out: a discrete one is a row of one number there."""
        seen: list[Any] = self._observations[:-1]
        if isinstance(layout, dict):
            return {key: np.stack([obs[key] for obs in seen]).reshape(value.shape) for key, value in layout.items()}
        return np.stack(seen).reshape(layout.shape)


def snapshot_normalizer(env: VecEnv) -> Normalizer:
    """
    :param env: the training environment
    :return: its present observation and reward statistics, frozen; the identity without ``VecNormalize``
    """
    vec_normalize = unwrap_vec_normalize(env)
    if vec_normalize is None:
        return IDENTITY
    normalizer = observation_normalizer(env) or IDENTITY
    if not vec_normalize.norm_reward:
        return normalizer
    scale = float(np.sqrt(vec_normalize.ret_rms.var + vec_normalize.epsilon))
    return normalizer._replace(reward_scale=scale, clip_rewards=float(vec_normalize.clip_reward))


def observation_normalizer(env: VecEnv) -> Normalizer | None:
    """
    :param env: the training environment
    :return: its present observation statistics in the layout that the policy sees; None where nothing is normalised
    """
    vec_normalize = unwrap_vec_normalize(env)
    if vec_normalize is None or not vec_normalize.norm_obs:
        return None
    statistics = vec_normalize.obs_rms if isinstance(vec_normalize.obs_rms, dict) else {"": vec_normalize.obs_rms}
    keys = [key for key in statistics if key == "" or key in (vec_normalize.norm_obs_keys or [])]
    above = _wrappers_above(env, vec_normalize)
    means = {key: _laid_out(statistics[key].mean, key, above) for key in keys}
    scales = {key: _laid_out(np.sqrt(statistics[key].var + vec_normalize.epsilon), key, above) for key in keys}
    if not _fits(env.observation_space, means):
        _warn_once_about_layout(env)
        return None
    return Normalizer(means, scales, float(vec_normalize.clip_obs), 1.0, np.inf)


def _denormalized(normalizer: Normalizer, key: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if key not in normalizer.means:
        return np.array(value)
    return np.asarray(value * normalizer.scales[key] + normalizer.means[key], dtype=np.float32)


def _copy_of_dict(observations: ObsArray) -> ObsArray:
    # SB3's buffer flattens in place by assigning new arrays: to a dict's items, so the dict must be another.
    return dict(observations) if isinstance(observations, dict) else observations


def _wrappers_above(env: VecEnv, vec_normalize: VecNormalize) -> list[VecEnvWrapper]:
    """Wrappers between ``VecNormalize`` and the algorithm, innermost first."""
    above: list[VecEnvWrapper] = []
    while env is not vec_normalize and isinstance(env, VecEnvWrapper):
        above.append(env)
        env = env.venv
    return above[::-1]


def _laid_out(statistic: FloatArray, key: str, above: list[VecEnvWrapper]) -> FloatArray:
    """Bring a statistic of the bare observation into the layout that the wrappers above give it."""
    for wrapper in above:
        if isinstance(wrapper, VecFrameStack):
            stacked = wrapper.stacked_obs
            part = stacked.sub_stacked_observations[key] if key else stacked
            statistic = np.concatenate([statistic] * stacked.n_stack, axis=part.repeat_axis)
        elif isinstance(wrapper, VecTransposeImage) and not wrapper.skip and _is_transposed(wrapper, key):
            statistic = np.transpose(statistic, (2, 0, 1))
    return np.array(statistic, dtype=np.float64)  # a copy: a snapshot stays whatever becomes of the statistics


def _is_transposed(wrapper: VecTransposeImage, key: str) -> bool:
    return key == "" or key in wrapper.image_space_keys


def _fits(space: spaces.Space[Any], means: dict[str, FloatArray]) -> bool:
    if isinstance(space, spaces.Dict):
        return all(key in space.spaces and space.spaces[key].shape == mean.shape for key, mean in means.items())
    return all(space.shape == mean.shape for mean in means.values())


def _warn_once_about_layout(env: VecEnv) -> None:
    warnings.warn(
        f"{type(env).__name__} changes the layout of normalised observations in a way that is not known here: "
        "improvements are measured on observations as the policy saw them, with statistics that drift.",
        stacklevel=2,
    )
