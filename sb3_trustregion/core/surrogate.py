"""
Step 1 of the trust-region algorithm: the model of the objective around θ_k.

    L(θ) = mean of w·(π_θ(a|s)/π_k(a|s))·Â(s, a)        (Schulman et al. 2015, eq. 14)

with its gradient, its Fisher matrix and, at any trial point, its gain and its KL. The policy is never changed: trial
points are evaluated by a functional call, so that an interrupted search leaves nothing to restore.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trustregion.core.divergence import (
    Observations,
    Parameters,
    kl_divergence,
)
from sb3_trustregion.core.fisher import FisherProduct
from sb3_trustregion.core.functional import ActionHead
from sb3_trustregion.core.improvement import batch_means
from sb3_trustregion.core.jacobian import CentralDifferences
from sb3_trustregion.core.parameters import ParameterVector


class Batch(NamedTuple):
    """
    What one update learns from; n samples.

    :param observations: as the policy takes them, (n, ...) or a dict of those
    :param actions: as ``Distribution.log_prob`` takes them, (n, A) or (n,) of integers
    :param log_probs: shape (n,), log β(a|s) of the policies that acted
    :param weights: shape (n,), w: truncated π_k/β, 1 for on-policy data
    :param advantages: shape (n,), Â, in reward units
    :param returns: shape (n,), targets of the critic
    :param signs: shape (n,), ±1 by blocks, see ``improvement.alternating_signs``
    :param blocks: shape (n,), block of each sample, see ``improvement.block_ids``
    :param reused: whether some samples are of earlier policies, so that the radius is around the data
    """

    observations: Observations
    actions: th.Tensor
    log_probs: th.Tensor
    weights: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    signs: th.Tensor
    blocks: npt.NDArray[np.int64]
    reused: bool

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return len(self.advantages)

    def select(self, index: th.Tensor) -> "Batch":
        """
        :param index: shape (m,), which samples, on any device
        :return: these samples only
        """
        index = index.to(self.advantages.device)
        return Batch(
            take(self.observations, index),
            self.actions[index],
            self.log_probs[index],
            self.weights[index],
            self.advantages[index],
            self.returns[index],
            self.signs[index],
            self.blocks[index.cpu().numpy()],
            self.reused,
        )


# Fewer states than this make a Fisher matrix of noise; found by held-out gain at equal KL.
LEAST_FISHER_STATES = 256
# With less than half of the samples effective a surrogate's promise is its own noise.
LEAST_EFFECTIVE_SHARE = 0.5


class Evaluation(NamedTuple):
    """
    The model at a trial point.

    :param gain: L(θ) - L(θ_k), reward units; NaN where the point is not usable
    :param gain_stderr: its standard error by batch means, for fixed θ
    :param kl: mean KL(π_k‖π_θ), nats
    :param distance: what the radius bounds: ``kl``, or the mean KL from the policies that acted for reused data, nats
    :param effective_share: effective sample size of the ratios π_θ/β over that of the batch (Kish), in (0, 1]
    """

    gain: float
    gain_stderr: float
    kl: float
    distance: float
    effective_share: float

    @property
    def is_finite(self) -> bool:
        """Whether the gain and both distances are."""
        return math.isfinite(self.gain) and math.isfinite(self.kl) and math.isfinite(self.distance)


class Half(NamedTuple):
    """
    The model over the samples of one sign; m samples.

    :param sign: +1 or -1
    :param samples: shape (m,), which of the batch
    :param log_probs: shape (m,), log π_k(a|s)
    :param outputs: parameters of their distributions, batch first
    :param gradient: shape (P,), their share of ∇L
    :param distance_gradient: shape (P,), their share of the gradient of the distance from the data
    """

    sign: float
    samples: th.Tensor
    log_probs: th.Tensor
    outputs: Parameters
    gradient: th.Tensor
    distance_gradient: th.Tensor


def sum_of(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """
    :param tensors: of one shape
    :return: their sum
    """
    return th.stack(list(tensors)).sum(dim=0)


def is_supported(evaluation: Evaluation) -> bool:
    """
    :param evaluation: the model where a step ends
    :return: whether the batch tells enough about that policy to let the radius grow on its word
    """
    return evaluation.effective_share >= LEAST_EFFECTIVE_SHARE


def take(observations: Observations, index: th.Tensor) -> Observations:
    """
    :param observations: (n, ...) or a dict of those
    :param index: shape (m,)
    :return: (m, ...) or a dict of those
    """
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    return observations[index]


class Surrogate:
    """
    L around the policy's present parameters θ_k.

    :param policy: the policy, left as it is
    :param actor: layout of θ
    :param batch: the data
    :param damping: λ, added to the Fisher matrix
    :param fisher_sub_sampling_factor: the Fisher matrix is a mean over one in so many states, the gradient over all
    :raises ValueError: where the policy gives no proper distribution at θ_k (not finite)
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        actor: ParameterVector,
        batch: Batch,
        damping: float,
        fisher_sub_sampling_factor: int = 1,
    ) -> None:
        self.head = ActionHead(policy)
        self.kind = policy.action_dist
        self.actor = actor
        self.batch = batch
        self.origin = actor.flatten(policy)
        leaf = self.origin.clone().requires_grad_()
        halves = [self._half(leaf, sign) for sign in (1.0, -1.0) if bool((batch.signs == sign).any())]
        # The noise of ∇L without its mean comes with it: the difference of the halves beside their sum.
        self.gradient = sum_of([half.gradient for half in halves])
        self.noise_gradient = sum_of([half.sign * half.gradient for half in halves])
        self.distance_gradient = sum_of([half.distance_gradient for half in halves])
        in_order = th.argsort(th.cat([half.samples for half in halves]))
        self.log_probs = th.cat([half.log_probs for half in halves])[in_order]
        both = zip(*[half.outputs for half in halves], strict=True)
        self.outputs = tuple(th.cat(outputs)[in_order] for outputs in both)
        self.fisher_product = self._fisher(leaf, damping, fisher_sub_sampling_factor)
        self.distance = self._distance_from_data(self.log_probs) if batch.reused else 0.0

    def _forward(
        self, vector: th.Tensor, observations: Observations, actions: th.Tensor
    ) -> tuple[th.Tensor, Parameters]:
        result: tuple[th.Tensor, Parameters] = self.head.at(self.actor.unflatten(vector), observations, actions)
        return result

    def _half(self, leaf: th.Tensor, sign: float) -> Half:
        samples = (self.batch.signs == sign).nonzero().flatten()
        part = self.batch.select(samples)
        with th.enable_grad():
            log_probs, outputs = self._forward(leaf, part.observations, part.actions)
        scores = part.weights * part.advantages / self.batch.n_samples
        (gradient,) = th.autograd.grad(log_probs, leaf, scores, retain_graph=part.reused)
        distance_gradient = th.zeros_like(gradient)
        if part.reused:
            pull = th.expm1(log_probs.detach() - part.log_probs) / self.batch.n_samples
            (distance_gradient,) = th.autograd.grad(log_probs, leaf, pull)
        detached = tuple(output.detach() for output in outputs)
        return Half(sign, samples, log_probs.detach(), detached, gradient, distance_gradient)

    def _fisher(self, leaf: th.Tensor, damping: float, factor: int) -> FisherProduct:
        n, observations, actions = self.batch.n_samples, self.batch.observations, self.batch.actions
        if factor > 1 and n > LEAST_FISHER_STATES:
            # A generator of its own: measuring must cost PPO no random number.
            order = th.randperm(n, generator=th.Generator().manual_seed(0))
            index = order[: max(n // factor, LEAST_FISHER_STATES)].to(leaf.device)
            observations, actions = take(observations, index), actions[index]
        with th.enable_grad():
            _, outputs = self._forward(leaf, observations, actions)
            if self.actor.differentiable_twice:
                return FisherProduct(self.kind, outputs, leaf, damping)
            differences = CentralDifferences(lambda vector: self._forward(vector, observations, actions)[1], leaf)
            return FisherProduct(self.kind, outputs, leaf, damping, differences)

    def _distance_from_data(self, log_probs: th.Tensor) -> float:
        """Mean of r - 1 - log r with r = π_θ/β: KL(β‖π_θ) by samples of β, nats (Schulman, joschu.net/blog)."""
        log_ratio = (log_probs - self.batch.log_probs).double()
        return float((th.expm1(log_ratio) - log_ratio).mean())

    def _effective_share(self, log_probs: th.Tensor) -> float:
        ratios = th.exp((log_probs - self.batch.log_probs).double())
        return float(ratios.mean() ** 2 / (ratios**2).mean())

    def _terms(self, log_probs: th.Tensor) -> th.Tensor:
        ratio = th.expm1((log_probs - self.log_probs).double())
        return self.batch.weights * self.batch.advantages * ratio

    @th.no_grad()
    def at(self, vector: th.Tensor) -> Evaluation:
        """
        :param vector: shape (P,), a trial point θ
        :return: the model there; NaN where the policy gives no proper distribution
        """
        try:
            log_probs, outputs = self._forward(vector, self.batch.observations, self.batch.actions)
        except ValueError:  # torch.distributions refuses parameters that are not finite
            return Evaluation(math.nan, math.nan, math.nan, math.nan, 0.0)
        kl = float(kl_divergence(self.kind, self.outputs, outputs).mean())
        distance = self._distance_from_data(log_probs) if self.batch.reused else kl
        gain = batch_means(self._terms(log_probs).cpu().numpy(), self.batch.blocks)
        return Evaluation(gain.mean, gain.stderr, kl, distance, self._effective_share(log_probs))
