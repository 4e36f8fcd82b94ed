"""What SB3's buffer holds when ``train()`` begins, nothing anew: in the order of time for the judge, and as a batch."""

import copy
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common import buffers
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_trustregion.core.batch import Batch, map_arrays, parts_of
from sb3_trustregion.core.improvement import FloatArray, alternating_signs, block_ids

# Squares of anything below this stay within single precision.
LARGEST_USABLE = 1e18
# Advantages that go so much with those by the rewards have a unit in common with them; so much, and they are the same.
RELATED, SAME = 0.5, 0.99
# What single precision makes of differences, over the largest advantage or value.
ROUNDING = 1e-5
# What ``get()`` flattens in place, environment by environment.
SCALARS = ("values", "log_probs", "advantages", "returns")
FLATTENED = ("observations", "actions", *SCALARS)
# What ``get()`` may write to in place.
CONTAINERS: tuple[type[Any], ...] = (np.ndarray, th.Tensor, dict, list, set, deque)
# What ``get()`` notes of having been called.
OF_GET = ("generator_ready", "pos", "full")

BoolArray = npt.NDArray[np.bool_]
ObsArray = npt.NDArray[Any] | dict[str, npt.NDArray[Any]]


class Rollout(NamedTuple):
    """T steps of N environments by one policy, time first."""

    observations: ObsArray  # (T, N, ...) or a dict of those, as the policy saw them
    last_observations: ObsArray  # (N, ...), seen after the last step
    terminal_observations: ObsArray | None  # (K, ...), seen at the K truncated steps before the reset; None where K = 0
    truncated: npt.NDArray[np.int64]  # (K,), index t·N + n of the truncated steps
    actions: FloatArray  # (T, N, A)
    log_probs: FloatArray  # (T, N), of the actions, by the policy that acted
    rewards: FloatArray  # (T, N), without SB3's bootstrap at truncated steps
    values: FloatArray  # (T, N), by the critic of that time
    last_values: FloatArray  # (N,), by the same critic after the last step
    terminal_values: FloatArray  # (K,), by the same critic at the truncated steps
    dones: BoolArray  # (T, N), whether the episode ended with that step
    scales: FloatArray  # (T,), what ``VecNormalize`` divided the rewards of each step by; ones without it
    faulty: BoolArray  # (T, N), transitions that nothing is to be learned from
    episode_returns: FloatArray  # (E,), of the episodes that ended, by ``Monitor``
    episode_lengths: FloatArray  # (E,), of the same episodes
    gamma: float  # discount factor
    is_recorded: bool  # whether all of this is known: a buffer filled by the user's own loop has no record beside it
    starts_fresh: bool  # whether all environments began an episode with it, as after a reset
    noise_held: int = 1  # steps for which gSDE holds its noise, at most T
    unit: float = 1.0  # rewards for each unit of the buffer's advantages

    @property
    def shape(self) -> tuple[int, int]:
        """(T, N)."""
        n_steps, n_envs = self.rewards.shape
        return n_steps, n_envs

    def own_residuals(self, scale: float) -> FloatArray:
        """Shape (T, N): TD residuals by the critic of that time; ``scale`` is the rewards' unit, as of ``scales``."""
        return self.residuals(self.values, self.last_values, self.terminal_values, scale)

    def residuals(
        self, values: FloatArray, last_values: FloatArray, terminal_values: FloatArray, scale: float
    ) -> FloatArray:
        """
        TD residuals d = r + γ·V(s')·(1 - terminated) - V(s) by any critic, shape (T, N), NaN where faulty.

        Values are shaped as those of the rollout; ``scale`` is the unit of the rewards, as of ``scales``.
        """
        following = np.where(self.dones, 0.0, np.concatenate([values[1:], last_values[None]]).astype(np.float64))
        following.reshape(-1)[self.truncated] = terminal_values
        result: FloatArray = self.rewards * (self.scales / scale)[:, None] + self.gamma * following - values
        result[self.faulty] = np.nan
        return result


def in_time(buffer: RolloutBuffer, name: str) -> Any:
    """One of a full buffer's arrays as (T, N, ...), or a dict of those, even if ``get()`` has flattened it."""

    def in_time_on_cpu(array: Any) -> Any:
        if isinstance(array, th.Tensor):  # users keep tensors in buffers of their own
            array = array.cpu().numpy()
        if not buffer.generator_ready or name not in FLATTENED:
            shape = buffer.buffer_size, buffer.n_envs
            # Users have columns of them.
            return array.reshape(shape) if name in SCALARS and np.size(array) == np.prod(shape) else array
        return _by_time(buffer, array, () if name in SCALARS else array.shape[1:])

    return map_arrays(in_time_on_cpu, getattr(buffer, name))


def flatten_as_get(buffer: RolloutBuffer) -> None:
    """Leave a full buffer as stock's ``get()`` does, for who looks at it after training; no order is drawn."""
    by_stock = is_stock(type(buffer).get) and "get" not in vars(buffer) and not buffer.generator_ready
    if by_stock and all(np.size(getattr(buffer, name, ())) == buffer.buffer_size * buffer.n_envs for name in SCALARS):
        for name in FLATTENED:
            setattr(buffer, name, map_arrays(buffer.swap_and_flatten, getattr(buffer, name)))
        buffer.generator_ready = True


def observations_in_time(buffer: RolloutBuffer, seen: Any) -> list[Any]:
    """
    The observations as (T, N, ...), or dicts of those: as stored, if that may be what the policy saw (``seen`` are N of
    those), and as the buffer's own ``_get_samples`` makes them of what is stored.
    """
    stored = in_time(buffer, "observations")
    forms = [stored] if _is_like(stored, seen) else []
    if not is_stock(type(buffer)._get_samples) or not forms:
        samples, is_in_time = samples_of(buffer)
        if is_in_time:
            observations = map_arrays(_as_array, samples.observations)
            forms.append(map_arrays(lambda x: _by_time(buffer, x, x.shape[1:]), observations))
    return forms


def _as_array(tensor: th.Tensor) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype is th.bfloat16 else tensor).numpy()


def _by_time(buffer: RolloutBuffer, array: npt.NDArray[Any], rest: Sequence[int]) -> npt.NDArray[Any]:
    """Samples that lie environment by environment, as (T, N, ...); ``rest`` is the shape of one."""
    return array.reshape(buffer.n_envs, buffer.buffer_size, *rest).swapaxes(0, 1)


def _is_like(stored: Any, seen: Any) -> bool:
    """Whether stored observations are of the kind that the policy saw, and as many numbers each."""
    if isinstance(seen, dict):
        return isinstance(stored, dict) and all(_is_like(stored.get(key), part) for key, part in seen.items())
    stored, seen = np.asarray(stored), np.asarray(seen)
    return bool(stored.dtype.kind == seen.dtype.kind and stored[0, 0].size == seen[0].size)


def as_advantages_say(rollout: Rollout, buffer: RolloutBuffer) -> Rollout:
    """
    A rollout that says what the buffer's advantages say, as these are what is learned from.

    GAE's advantages obey A = d + γ·λ·A' within an episode. So it is d that is compared, by the buffer's advantages and
    by the rewards. Where these differ by a factor alone, and by what a constant added to all advantages would make of
    it, the user has scaled them: that is the ``unit``. Where they say different things (a bonus was added, say), steps
    are to be judged by the advantages: rewards are such that these, in the rewards' unit, are the residuals. SB3's own
    differ by rounding.
    """
    if not rollout.is_recorded or getattr(buffer, "gae_lambda", None) is None:
        return rollout
    by_rewards = rollout._replace(scales=np.ones(len(rollout.scales))).own_residuals(1.0)
    fade = getattr(buffer, "gamma", rollout.gamma) * buffer.gae_lambda * ~rollout.dones
    fade[-1] = 0.0
    advantages = handed_out(buffer)
    if advantages is None:
        return rollout._replace(is_recorded=False)
    by_advantages = advantages - fade * np.roll(advantages, -1, axis=0)
    sound = np.isfinite(by_rewards) & np.isfinite(by_advantages)
    constant = 1.0 - fade[sound]
    norm = max(constant.dot(constant), np.finfo(np.float64).tiny)
    y, x = (d[sound] - constant * (constant.dot(d[sound]) / norm) for d in (by_rewards, by_advantages))
    rounding = ROUNDING * max(np.abs(part[sound]).max(initial=0.0) for part in (advantages, rollout.values))
    correlation = x.dot(y) / max(np.sqrt(x.dot(x) * y.dot(y)), np.finfo(np.float64).tiny)
    unit = float(y.dot(y) / x.dot(y)) if correlation > RELATED else 1.0  # a bonus makes it no smaller
    unit = 1.0 if abs(unit - 1.0) < 0.1 else unit
    if correlation > SAME or not np.square(x - y).sum() > len(x) * rounding**2:
        return rollout._replace(unit=unit)
    return rollout._replace(rewards=rollout.rewards + np.where(sound, unit * advantages - by_rewards, 0.0), unit=unit)


def handed_out(buffer: RolloutBuffer) -> FloatArray | None:
    """Shape (T, N): the advantages as a buffer hands them out; None where nobody knows which steps these are of."""
    held: FloatArray = in_time(buffer, "advantages").astype(np.float64)
    if not draws_anew(buffer):
        return held
    samples, is_in_time = samples_of(buffer)
    advantages = _as_array(samples.advantages).astype(np.float64)
    if is_in_time and advantages.size == held.size:
        return _by_time(buffer, advantages, ())
    return held if np.isin(advantages[np.isfinite(advantages)], held).all() else None


def flatten_time(observations: ObsArray) -> ObsArray:
    """Flatten observations, (T, N, ...) or a dict of those, to (T·N, ...)."""
    return map_arrays(lambda part: part.reshape(-1, *part.shape[2:]), observations)


def make_batch(buffer: RolloutBuffer, faulty: BoolArray) -> Batch:
    """The buffer's samples, environment by environment in order of time, without faulty (T, N) and not finite ones."""
    n_steps, n_envs = faulty.shape
    samples, is_in_time = samples_of(buffer)
    if not is_in_time and faulty.any():  # nobody knows which those are: sound ones take their place in the buffer
        replace_faulty_samples(buffer, faulty)
        samples, is_in_time = samples_of(buffer)
    n_samples = len(samples.advantages)
    usable = th.stack([samples.old_log_prob, samples.advantages, samples.returns]).abs().lt(LARGEST_USABLE).all(dim=0)
    signs, blocks = alternating_signs(n_samples, 1).ravel(), block_ids(n_samples, 1).ravel()
    if is_in_time:
        signs, blocks = alternating_signs(n_steps, n_envs).T.ravel(), block_ids(n_steps, n_envs).T.ravel()
        usable &= th.as_tensor(~faulty.T.ravel(), device=usable.device)
    discrete = isinstance(buffer.action_space, spaces.Discrete)
    batch = Batch(
        observations=samples.observations,
        actions=samples.actions.long().flatten() if discrete else samples.actions,
        advantages=samples.advantages.float(),
        returns=samples.returns.float(),
        signs=th.as_tensor(signs, dtype=th.float32, device=usable.device),
        blocks=blocks,
        log_probs=samples.old_log_prob.float(),
    )
    return batch if bool(usable.all()) else batch.select(usable.nonzero().flatten())


def samples_of(buffer: RolloutBuffer) -> tuple[RolloutBufferSamples, bool]:
    """All samples as the buffer hands them out, at no random number; whether they are env by env in order of time."""
    if not is_stock(type(buffer).get) or {"get", "_get_samples"} & vars(buffer).keys():
        return _samples_of_own_get(buffer)
    view = copy.copy(buffer)
    for name in FLATTENED:
        setattr(view, name, map_arrays(view.swap_and_flatten, in_time(buffer, name)))
    # Stock's takes a slice, which copies nothing, as well as indices.
    every = slice(None) if is_stock(type(buffer)._get_samples) else np.arange(buffer.buffer_size * buffer.n_envs)
    return view._get_samples(every), True  # type: ignore[arg-type]


def _samples_of_own_get(buffer: RolloutBuffer) -> tuple[Any, bool]:
    """The same by a ``get`` of the user's; the order is known if in it samples agree with what the buffer holds."""
    order, samples = _order_of_own_get(buffer), _asked(buffer)
    if order is None or not isinstance(samples, tuple):
        return samples, False
    back = th.as_tensor(np.argsort(order))

    def in_order(part: Any) -> Any:  # what is of each sample; users have fields that are not
        return part[back] if isinstance(part, th.Tensor) and part.shape[:1] == back.shape else part

    moved: Any = type(samples)(*(map_arrays(in_order, field) for field in samples))
    fields = {"actions": moved.actions, "log_probs": moved.old_log_prob, "values": moved.old_values}
    return (moved, True) if all(_is_held(buffer, *field) for field in fields.items()) else (samples, False)


def _order_of_own_get(buffer: RolloutBuffer) -> npt.NDArray[Any] | None:
    """Shape (T·N,): a ``get``'s order, by numbered values and the same random numbers; None if not each comes once."""
    every = np.arange(buffer.buffer_size * buffer.n_envs, dtype=np.float32)
    if not has_stock_fields(buffer) or np.size(buffer.values) != every.size:
        return None
    values: Any = buffer.values
    numbers = (every if buffer.generator_ready else every.reshape(buffer.n_envs, -1).T).reshape(np.shape(values))
    try:
        samples = _asked(buffer, values=th.as_tensor(numbers) if isinstance(values, th.Tensor) else numbers)
        order = _as_array(samples.old_values).ravel()
    except Exception:  # whatever the user's way makes of them
        return None
    return order if np.array_equal(np.sort(order), every) else None


def _asked(buffer: RolloutBuffer, **instead: Any) -> Any:
    """All that a buffer's own ``get`` hands out; with ``instead`` of what it holds, as if it had not been asked."""
    attributes, before = vars(buffer), dict(vars(buffer))
    source = buffer if {"get", "_get_samples"} & before.keys() else copy.copy(buffer)
    # Copies: who writes in place there must not do so twice.
    copies = {key: copied(value) for key, value in before.items() if isinstance(value, CONTAINERS)}
    vars(source).update(copies | instead)
    random_state = np.random.get_state()  # noqa: NPY002
    try:
        with th.random.fork_rng(devices=[]):
            parts = list(source.get(buffer.buffer_size * buffer.n_envs))  # None is not known to each
    finally:
        np.random.set_state(random_state)  # noqa: NPY002
        # No flags: that something has been made ready was true of the copies. Its own counters go on.
        numbers = {key: value for key, value in vars(source).items() if type(value) in (int, float)}
        counters = {key: value for key, value in numbers.items() if key not in OF_GET}
        attributes.clear()
        attributes.update(before if instead else before | counters)
    return parts[0] if len(parts) == 1 else type(parts[0])(*map(_joined, zip(*parts, strict=True)))


def _is_held(buffer: RolloutBuffer, name: str, found: Any) -> bool:
    """Whether samples, environment by environment in the order of time, are what a buffer holds by that name."""
    held = buffer.swap_and_flatten(in_time(buffer, name)).ravel()
    found = _as_array(found).astype(np.float64).ravel()
    return held.dtype.kind in "biuf" and held.shape == found.shape and np.allclose(found, held, equal_nan=True)


def is_stock(method: Any) -> bool:
    """Whether a buffer's method was written in SB3: users patch its classes too."""
    return getattr(method, "__globals__", None) is vars(buffers)


def draws_anew(buffer: RolloutBuffer) -> bool:
    """Whether each epoch is to ask a buffer: it hands samples out in a way of its own, perhaps others each time."""
    kind, own_ways = type(buffer), {"get", "_get_samples"} & vars(buffer).keys()
    return not (is_stock(kind.get) and is_stock(kind._get_samples)) or bool(own_ways)


def has_stock_fields(buffer: RolloutBuffer, *more: str) -> bool:
    """Whether a buffer keeps its samples where stock's does; one of another make may not."""
    return all(hasattr(buffer, name) for name in (*FLATTENED, "generator_ready", *more))


def copied(value: Any) -> Any:
    """A deep copy as far as there is one: of a tensor without its graph, of a lock or a generator none."""
    try:
        return copy.deepcopy(value)
    except (TypeError, RuntimeError):
        if isinstance(value, th.Tensor):
            return value.detach().clone()
    try:
        shallow = copy.copy(value)
    except TypeError:
        return value
    if isinstance(shallow, dict):
        shallow.update({key: copied(part) for key, part in value.items()})
    return shallow


def _joined(parts: Any) -> Any:
    if isinstance(parts[0], dict):
        return {key: th.cat([part[key] for part in parts]) for key in parts[0]}
    return th.cat(parts) if isinstance(parts[0], th.Tensor) else parts[0]


def replace_faulty_samples(buffer: RolloutBuffer, faulty: BoolArray) -> None:
    """Overwrite faulty samples, shape (T, N), by sound ones: PPO takes its samples from the buffer as they are."""
    if not has_stock_fields(buffer):
        return
    lead = (faulty.size,) if buffer.generator_ready else faulty.shape
    parts = [part for name in FLATTENED for part in parts_of(getattr(buffer, name))]
    if any(getattr(part, "shape", ())[: len(lead)] != lead for part in parts):
        return  # it does not keep them one by one
    known = np.stack([in_time(buffer, name) for name in ("log_probs", "advantages", "returns")])
    bad = faulty | ~np.isfinite(known).all(axis=0)
    if not bad.any() or bad.all():
        return
    spoiled, sound = np.nonzero(bad), np.argwhere(~bad)
    steps, envs = sound[np.arange(int(bad.sum())) % len(sound)].T
    for name in FLATTENED:
        for array in parts_of(in_time(buffer, name)):
            array[spoiled] = array[steps, envs]
