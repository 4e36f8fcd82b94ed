"""What must hold whatever happened, and how well a policy does."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from tests.faults.environments import BOX
from tests.helpers import state_of

Numbers = list[np.ndarray[Any, Any]]


def statistics_of(model: Any) -> Numbers:
    """Means, variances and counts of ``VecNormalize``, copied; empty without one."""
    normalizer = model.get_vec_normalize_env()
    if normalizer is None:
        return []
    rms = normalizer.obs_rms if normalizer.norm_obs else {}
    parts = [*(rms.values() if isinstance(rms, dict) else [rms]), normalizer.ret_rms]
    return [np.array(number) for part in parts for number in (part.mean, part.var, part.count)]


def numbers_of(model: Any) -> Numbers:
    """A copy of every number that training goes on with: policy, optimiser, radius, evidence, statistics."""
    moments = [value for state in model.policy.optimizer.state.values() for value in state.values()]
    tensors = [*state_of(model.policy).values(), *(value for value in moments if isinstance(value, th.Tensor))]
    numbers = [*(tensor.detach().numpy().copy() for tensor in tensors), *statistics_of(model)]
    if hasattr(model, "region"):
        numbers.append(np.array(list(model.region.as_dict().values()), dtype=float))
    return numbers


def assert_finite(model: Any, largest: float = 1e12) -> None:
    """Finite, and far from where squares overflow."""
    for number in numbers_of(model):
        assert np.isfinite(number).all()
        assert np.abs(number).max(initial=0.0) < largest
    if hasattr(model, "region"):
        assert model.judge.rule.minimum <= model.region.radius <= model.judge.rule.maximum


def score(model: Any, sign: float = 1.0) -> float:
    """
    Mean reward of the deterministic policy in ``Target``; a policy that knows nothing gets about -0.5.

    :param model: the model
    :param sign: -1 where actions have turned round
    """
    aims = np.random.default_rng(0).uniform(-1.0, 1.0, (500, *BOX.shape))
    normalizer = model.get_vec_normalize_env()
    observations = aims if not isinstance(normalizer, VecNormalize) else normalizer.normalize_obs(aims)
    actions, _ = model.predict(observations, deterministic=True)
    return -float(np.abs(sign * actions[:, 0] - aims[:, 0]).mean())
