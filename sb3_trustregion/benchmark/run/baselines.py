"""A baseline that neither Stable-Baselines3 nor RL Zoo has."""

from typing import Any

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.utils import update_learning_rate

FACTOR = 1.5
BOUNDS = (1e-6, 1e-2)


class KLAdaptivePPO(PPO):
    """
    PPO whose learning rate shrinks by 1.5 after more than twice ``desired_kl`` and grows by 1.5 after less than half,
    within [1e-6, 1e-2] (Rudin et al. 2022, arXiv 2109.11978; so Heess et al. 2017, arXiv 1707.02286, adapt a penalty).

    :param desired_kl: mean KL of an update, nats, joint over action dimensions
    """

    def __init__(self, *args: Any, desired_kl: float = 0.01, **kwargs: Any) -> None:
        self.desired_kl = desired_kl
        self.adapted_rate: float | None = None
        super().__init__(*args, **kwargs)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        if self.adapted_rate is None:
            self.adapted_rate = float(self.lr_schedule(1.0))
        self.logger.record("train/learning_rate", self.adapted_rate)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            update_learning_rate(optimizer, self.adapted_rate)

    def train(self) -> None:
        """Make one update of PPO, and set the next learning rate by the KL divergence of its last epoch."""
        super().train()
        assert self.adapted_rate is not None
        kl = float(self.logger.name_to_value["train/approx_kl"])
        factor = 1.0 / FACTOR if kl > 2.0 * self.desired_kl else FACTOR if kl < 0.5 * self.desired_kl else 1.0
        self.adapted_rate = min(max(self.adapted_rate * factor, BOUNDS[0]), BOUNDS[1])
