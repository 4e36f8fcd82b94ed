"""The samples that one update learns from."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_trustregion.core.distributions import Observations

T = TypeVar("T")
# Observations, or what is made of them, of so many bytes go through a policy at once: of images some hundreds.
BYTES_AT_ONCE, LEAST_AT_ONCE = 2**24, 64
# A critic is off where its errors vary so many times as much as the returns themselves.
OFF = 1.5
# States that tell what a policy is like.
FEW = 16


class Batch(NamedTuple):
    """Samples of one policy; n of them."""

    observations: Observations  # (n, ...) or a dict of those, as the policy takes them
    actions: th.Tensor  # (n, A), or (n,) of integers, as ``Distribution.log_prob`` takes them
    advantages: th.Tensor  # (n,), Â, in reward units
    returns: th.Tensor  # (n,), targets of the critic
    signs: th.Tensor  # (n,), ±1 by blocks, see ``improvement.alternating_signs``
    blocks: npt.NDArray[np.int64]  # (n,), block of each sample, see ``improvement.block_ids``
    log_probs: th.Tensor  # (n,), of the actions, as the buffer holds them

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return len(self.advantages)

    @property
    def critic_is_off(self) -> bool:
        """Whether the critic is worse than none, as after rewards of another scale: advantages are its errors then."""
        return not bool(self.advantages.var(correction=0) < OFF * self.returns.var(correction=0))

    def select(self, index: th.Tensor) -> "Batch":
        """Some of the samples, by an index of shape (m,) on any device."""
        index = index.to(self.advantages.device)
        chosen = {key: take(part, index) for key, part in self._asdict().items() if isinstance(part, th.Tensor | dict)}
        return self._replace(**chosen, blocks=self.blocks[index.cpu().numpy()])

    def centred(self, scale: bool) -> "Batch":
        """The same samples with advantages of mean zero, and of unit variance where ``scale`` says so."""
        shifted = self.advantages - self.advantages.mean()
        if scale:
            shifted = shifted / (shifted.square().mean().sqrt() + 1e-8)
        return self._replace(advantages=shifted)

    def thinned(self, factor: int) -> "Batch":
        """One in ``factor`` samples, at random, in the order of time."""
        if factor == 1:
            return self
        kept = th.randperm(self.n_samples, device="cpu")[: max(self.n_samples // factor, 2)]
        return self.select(kept.sort().values)


def take(observations: Any, index: Any) -> Any:
    """Some of n observations, (n, ...) or a dict of those, by an index of shape (m,), or by a slice: then as views."""
    return map_arrays(lambda part: part[index], observations)


def few_of(observations: Observations) -> th.Tensor:
    """An index of a few of n observations, from first to last."""
    n = len(parts_of(observations)[0])
    return th.linspace(0, n - 1, min(n, FEW), device="cpu").long()


def pieces_of(observations: Observations, width: int = 0) -> list[slice]:
    """Cuts n observations so that what a network makes of each piece needs little memory: ``width`` numbers each."""
    tensors = parts_of(observations)
    n, bytes_of_one = len(tensors[0]), 4 * max(sum(tensor[:1].numel() for tensor in tensors), width)
    at_once = max(BYTES_AT_ONCE // max(bytes_of_one, 1), LEAST_AT_ONCE)
    return [slice(start, start + at_once) for start in range(0, max(n, 1), at_once)]


def parts_of(observations: Any) -> list[Any]:
    """An array, or those in a dict of arrays, in a list."""
    return list(observations.values()) if isinstance(observations, dict) else [observations]


def map_arrays(function: Callable[[Any], T], observations: Any) -> T | dict[str, T]:
    """What a function returns of an array, or of each in a dict of arrays."""
    if isinstance(observations, dict):
        return {key: function(part) for key, part in observations.items()}
    return function(observations)
