"""How much is measured."""

from typing import NamedTuple

CNN = 0


class Plan(NamedTuple):
    """
    How much is measured.

    :param networks: widths of the two hidden layers; ``CNN`` for the CNN of SB3
    :param n_updates: updates of a real run
    :param n_products: Fisher-vector products of each kind
    :param n_rounds: rounds of ``learn``
    :param n_steps: length of a rollout
    :param samples: batch sizes, for the table of growth
    :param widths: of the hidden layers, likewise
    :param action_dims: likewise
    """

    networks: tuple[int, ...] = (64, 256)
    n_updates: int = 52
    n_products: int = 60
    n_rounds: int = 4
    n_steps: int = 2048
    samples: tuple[int, ...] = (512, 2048, 8192, 32768)
    widths: tuple[int, ...] = (64, 128, 256, 560, 1110, 2220)
    action_dims: tuple[int, ...] = (1, 2, 4, 8, 16, 32)


QUICK = Plan((8,), 5, 2, 1, 64, (32, 64), (4, 8), (1, 2))
# On a CPU a batch of images takes longer than this program should.
CUDA = Plan(networks=(64, 256, 1024, CNN))


def network_name(width: int) -> str:
    """
    :param width: of the hidden layers
    :return: how the table calls the network
    """
    return "CNN" if width == CNN else f"{width}x{width}"
