"""
Bad data stops here: rewards and observations that are not finite reach neither the policy nor any statistic.

A wrapper that training alone sees. It hands on neutral values in place of faulty ones and tells which environments
they came from, so that the recorder can leave these transitions out; the statistics of ``VecNormalize``, which a single
NaN would spoil for good, are put back as they were before that step.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

# Squares of anything below this stay within single precision.
LARGEST = 1e18


class GuardedVecEnv(VecEnvWrapper):
    """
    The training environment without what is not finite.

    :param venv: the training environment
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.normalizer = unwrap_vec_normalize(venv)
        # Of the last step, by environment: is the transition faulty, is the observation that it led to.
        self.faulty = np.zeros(self.num_envs, dtype=bool)
        self.faulty_observation = np.zeros(self.num_envs, dtype=bool)
        self.n_faulty = 0
        self.last_fault = ""

    def reset(self) -> VecEnvObs:
        """
        :return: the first observations, finite
        """
        return self.cleaned(self.venv.reset())

    def cleaned(self, observations: VecEnvObs) -> VecEnvObs:
        """
        :param observations: (N, ...) or a dict of those, as the policy would see them
        :return: the same with zeros in place of faulty observations, which are noted
        """
        self.faulty_observation = ~usable(observations, self.num_envs)
        self._note("observation", self.faulty_observation)
        return _zeroed(observations, self.faulty_observation)

    def cleaned_first(self, observations: VecEnvObs) -> VecEnvObs:
        """
        :param observations: that a rollout starts from, perhaps already cleaned at the end of the last one
        :return: the same with zeros in place of faulty observations, which stay noted
        """
        noted = self.faulty_observation
        cleaned = self.cleaned(observations)
        self.faulty_observation = self.faulty_observation | noted
        return cleaned

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """
        :param actions: one per environment
        """
        self._statistics = None if self.normalizer is None else _statistics(self.normalizer)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: the step, finite
        """
        observations, rewards, dones, infos = self.venv.step_wait()
        if self.normalizer is not None and self._is_spoilt(self.normalizer):
            observations, rewards = self._normalise_again(self.normalizer, observations)
            self.normalizer.returns[dones] = 0.0
        bad_rewards = ~usable(rewards, self.num_envs)
        self._note("reward", bad_rewards)
        observations = self.cleaned(observations)
        # Where an episode ended, the observation is of the next one and says nothing about this transition.
        bad_ends = np.array([self._clean_end(info) for info in infos])
        self.faulty = bad_rewards | np.where(dones, bad_ends, self.faulty_observation)
        self.n_faulty += int(self.faulty.sum())
        return observations, np.where(bad_rewards, 0.0, rewards).astype(np.float32), dones, infos

    def _is_spoilt(self, normalizer: VecNormalize) -> bool:
        raw_observations, raw_rewards = normalizer.old_obs, normalizer.old_reward
        fine = usable(raw_observations, self.num_envs) & usable(raw_rewards, self.num_envs)
        return not fine.all()

    def _normalise_again(self, normalizer: VecNormalize, observations: VecEnvObs) -> tuple[VecEnvObs, npt.NDArray[Any]]:
        """What ``VecNormalize`` would have returned without this step in its statistics."""
        assert self._statistics is not None
        for name, value in self._statistics.items():
            setattr(normalizer, name, value)
        rewards = normalizer.normalize_reward(normalizer.old_reward)
        if self.venv is normalizer:
            return normalizer.normalize_obs(normalizer.old_obs), rewards
        # Frames stacked above it are known to the wrappers above alone.
        return observations, rewards

    def _clean_end(self, info: dict[str, Any]) -> bool:
        """Zero a faulty terminal observation in place; tell whether it was."""
        terminal = info.get("terminal_observation")
        if terminal is None:
            return False
        batched = (
            {k: np.asarray(v)[None] for k, v in terminal.items()} if isinstance(terminal, dict) else terminal[None]
        )
        if usable(batched, 1).all():
            return False
        cleaned = _zeroed(batched, np.ones(1, dtype=bool))
        info["terminal_observation"] = (
            {key: value[0] for key, value in cleaned.items()} if isinstance(cleaned, dict) else cleaned[0]
        )
        return True

    def _note(self, quantity: str, faulty: npt.NDArray[np.bool_]) -> None:
        if not faulty.any():
            return
        first = not self.last_fault
        self.last_fault = (
            f"the {quantity} was not finite, or above {LARGEST:g}, in environment(s) {faulty.nonzero()[0].tolist()}"
        )
        if first:
            warnings.warn(f"{self.last_fault}: such steps are left out of training", stacklevel=2)


def usable(values: VecEnvObs | npt.NDArray[Any] | tuple[Any, ...], n_envs: int) -> npt.NDArray[np.bool_]:
    """
    :param values: (N, ...) or a dict of those
    :param n_envs: N
    :return: shape (N,), whether all that belongs to an environment is finite, squares included
    """
    parts = values.values() if isinstance(values, dict) else (values,)
    result = np.ones(n_envs, dtype=bool)
    for part in parts:
        array = np.asarray(part)
        if array.dtype.kind == "f":
            result &= (np.abs(array.reshape(n_envs, -1)) < LARGEST).all(axis=1)
    return result


def _zeroed(observations: VecEnvObs, faulty: npt.NDArray[np.bool_]) -> VecEnvObs:
    if not faulty.any():
        return observations
    if isinstance(observations, dict):
        return {key: _zeroed(value, faulty) for key, value in observations.items()}  # type: ignore[misc]
    cleaned = np.array(observations)
    cleaned[faulty] = 0
    return cleaned


def _statistics(normalizer: VecNormalize) -> dict[str, Any]:
    """All that a step changes in ``VecNormalize``, copied."""
    statistics: dict[str, Any] = {"ret_rms": normalizer.ret_rms.copy(), "returns": normalizer.returns.copy()}
    if normalizer.norm_obs:
        rms = normalizer.obs_rms
        statistics["obs_rms"] = {k: v.copy() for k, v in rms.items()} if isinstance(rms, dict) else rms.copy()
    return statistics
