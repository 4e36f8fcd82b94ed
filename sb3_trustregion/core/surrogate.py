"""
Step 1 of the trust-region algorithm: the model of the objective around θ_k.

    L(θ) = mean of (π_θ(a|s)/π_k(a|s))·Â(s, a)        (Schulman et al. 2015, eq. 14)

is known by its gradient, its Fisher matrix and, at any trial point, its gain and its KL. Where the buffer tells of
another policy that acted, or the user of a sample that counts less, Â is times π_k/π_buffer. The policy is never
changed: trial points are functional calls, so that an interrupted search leaves nothing to restore.
"""

import math
from typing import NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trustregion.core.batch import Batch, map_arrays, take
from sb3_trustregion.core.distributions import Observations, Parameters, dimensions, in_double, joined, kl_divergence
from sb3_trustregion.core.fisher import CentralDifferences, FisherProduct
from sb3_trustregion.core.functional import ActionHead, pieces_for
from sb3_trustregion.core.improvement import Promise, batch_means
from sb3_trustregion.core.parameters import ParameterVector

# Fewer states than this make a Fisher matrix of noise; found by held-out gain at equal KL.
LEAST_FISHER_STATES = 256
# With less than half of the samples effective a surrogate's promise is its own noise.
LEAST_EFFECTIVE_SHARE = 0.5
# Log-probabilities of one policy agree so far, in batches of another size and squashed.
SAME_LOG_PROB = 1e-2


class Evaluation(NamedTuple):
    """The model at a trial point."""

    gain: float  # L(θ) - L(θ_k), reward units; NaN where the point is not usable
    gain_stderr: float  # standard error of the gain by batch means, for fixed θ
    kl: float  # mean KL(π_k‖π_θ), nats, joint over action dimensions
    effective_share: float  # effective sample size of the ratios π_θ/π_k over that of the batch (Kish), in (0, 1]

    @property
    def is_finite(self) -> bool:
        """Whether gain and KL are finite."""
        return math.isfinite(self.gain) and math.isfinite(self.kl)

    @property
    def length(self) -> float:
        """√(2·KL), √nats."""
        return math.sqrt(2.0 * max(self.kl, 0.0))

    def promise(self, linear_gain: float, reliability: float, used_radius: bool) -> Promise:
        """What a step here promises on data that it was not fitted to; the arguments as in ``Promise``."""
        # Else the batch tells too little about that policy to let the radius grow on its word.
        used_radius = used_radius and self.effective_share >= LEAST_EFFECTIVE_SHARE
        return Promise(self.gain, self.gain_stderr, linear_gain, reliability, self.length, used_radius)


# At θ_k itself, and where the policy gives no proper distribution.
HERE, NOWHERE = Evaluation(0.0, 0.0, 0.0, 1.0), Evaluation(math.nan, math.nan, math.nan, 0.0)


class Surrogate:
    """
    L around parameters θ_k of a policy, which stays as it is; a ``ValueError`` where its distribution is not finite.

    :param damping: added to the Fisher matrix for each action dimension, as in sb3-contrib; λ is A times that
    :param fisher_sub_sampling_factor: the Fisher matrix is a mean over one in so many states, the gradient over all
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
        self.actor = actor
        self.origin = actor.flatten(self.head.policy)
        leaf = self.origin.clone().requires_grad_()
        signs = [sign for sign in (1.0, -1.0) if bool((batch.signs == sign).any())]
        samples, log_probs, outputs, gradients = zip(*[self._half(leaf, batch, sign) for sign in signs], strict=True)
        # The noise of ∇L without its mean comes with it: the difference of the halves beside their sum.
        self.gradient = th.stack(gradients).sum(dim=0)
        self.noise_gradient = th.stack([sign * half for sign, half in zip(signs, gradients, strict=True)]).sum(dim=0)
        in_order = th.argsort(th.cat(samples))
        self.log_probs = th.cat(log_probs)[in_order]
        self.batch = batch._replace(advantages=batch.advantages * weights(self.log_probs, batch.log_probs))
        self.outputs = tuple(parameter[in_order] for parameter in joined(outputs))
        self.kind = self.head.kind
        self.n_dimensions = dimensions(self.kind, self.outputs)
        self.fisher_product = self._fisher(leaf, damping * self.n_dimensions, fisher_sub_sampling_factor)

    def _forward(
        self, vector: th.Tensor, observations: Observations, actions: th.Tensor
    ) -> tuple[th.Tensor, Parameters]:
        result: tuple[th.Tensor, Parameters] = self.head.at(self.actor.unflatten(vector), observations, actions)
        return result

    def _half(self, leaf: th.Tensor, batch: Batch, sign: float) -> tuple[th.Tensor, th.Tensor, Parameters, th.Tensor]:
        """Of the samples of one sign: indices, log π_k(a|s), distributions' parameters, and share of ∇L, shape (P,)."""
        samples = (batch.signs == sign).nonzero().flatten()
        half = batch.select(samples)
        log_probs, outputs, gradients = [], [], list[th.Tensor]()
        for piece in pieces_for(self.head.policy, half.observations):
            with th.enable_grad():
                log_prob, output = self._forward(leaf, take(half.observations, piece), half.actions[piece])
            advantages = half.advantages[piece] * weights(log_prob.detach(), half.log_probs[piece])
            gradients += th.autograd.grad(log_prob, leaf, advantages / batch.n_samples)
            log_probs.append(log_prob.detach())
            outputs.append(tuple(parameter.detach() for parameter in output))
        return samples, th.cat(log_probs), joined(outputs), th.stack(gradients).sum(dim=0)

    def _fisher(self, leaf: th.Tensor, damping: float, factor: int) -> FisherProduct:
        n, observations, actions = self.batch.n_samples, self.batch.observations, self.batch.actions
        if factor > 1 and n > LEAST_FISHER_STATES:
            # A generator of its own: measuring must cost PPO no random number.
            order = th.randperm(n, generator=th.Generator("cpu").manual_seed(0), device="cpu")
            index = order[: max(n // factor, LEAST_FISHER_STATES)].to(leaf.device)
            observations, actions = take(observations, index), actions[index]
        else:  # an extractor that writes into what it sees is not to spoil the graph
            observations = map_arrays(th.clone, observations)
        with th.enable_grad():
            _, outputs = self._forward(leaf, observations, actions)
            if self.actor.differentiable_twice:
                return FisherProduct(self.kind, outputs, leaf, damping)
            differences = CentralDifferences(lambda vector: self._forward(vector, observations, actions)[1], leaf)
            return FisherProduct(self.kind, outputs, leaf, damping, differences)

    @th.no_grad()
    def at(self, vector: th.Tensor) -> Evaluation:
        """The model at a trial point θ, shape (P,); NaN where the policy gives no proper distribution there."""
        observations, log_probs, kls = self.batch.observations, [], []
        try:
            for piece in pieces_for(self.head.policy, observations):
                log_prob, new = self._forward(vector, take(observations, piece), self.batch.actions[piece])
                log_probs.append(log_prob)
                kls.append(kl_divergence(self.kind, tuple(old[piece] for old in self.outputs), new))
        except ValueError:  # torch.distributions refuses parameters that are not finite
            return NOWHERE
        kl = float(th.cat(kls).mean())
        log_ratios = in_double(th.cat(log_probs) - self.log_probs)
        # What counts for nothing, as an action that nobody would take, is not to become 0·∞.
        gains = th.where(self.batch.advantages == 0.0, 0.0, self.batch.advantages * th.expm1(log_ratios))
        gain = batch_means(gains.cpu().numpy(), self.batch.blocks)
        return Evaluation(gain.mean, gain.stderr, kl, effective_share(th.exp(log_ratios)))


def weights(log_probs: th.Tensor, acted: th.Tensor) -> th.Tensor:
    """Shape (n,): π_k/π_buffer, exactly 1 where they differ by rounding alone."""
    differences = log_probs - acted.to(log_probs.dtype)
    return th.exp(th.where(differences.abs() < SAME_LOG_PROB, 0.0, differences))


def effective_share(ratios: th.Tensor) -> float:
    """Kish's effective sample size of importance weights over their number, in (0, 1]; NaN where one is not finite."""
    return float(ratios.mean() ** 2 / ratios.square().mean())
