# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Options of training that the literature knows."""

from typing import Any

from pyro_ebm.training.config import TrainerConfig

__all__ = ["paper_config"]


def paper_config(visible: str = "gaussian", **changes: Any) -> TrainerConfig:
    r"""How the paper on neural Boltzmann machines trains, with the settings of its published code.

    AdamW with decoupled decay of 1.0 for the network of W and 0.5 for those of :math:`\mu` and
    :math:`\log P`, rate 5e-4 (Gaussian units) or 1e-2 (spins), 50 epochs of batches of 128, chains of 32
    Gibbs sweeps from :math:`y = \mu(x)`: where the paper has one a row, every context of a batch has
    :math:`\lceil \text{rows} / \text{contexts} \rceil` of them, weighted by its share of the rows, which
    has the same expectation. Gaussian data get noise of standard deviation 1e-3 (the
    paper's text says variance), spins are drawn from grey levels at every visit. For
    :func:`pyro_ebm.nn.paper_nbm`. The default chains of Gaussian units are those of hidden states, with the
    same law; ``negative_side="visible"`` gives the paper's noisier gradient.

    **References**

    [1] *Neural Boltzmann Machines*, Alex Lang, Anton Loukianov, Charles Fisher (2023), arXiv 2305.08337

    :param str visible: "gaussian" or "ising".
    :param changes: options of :class:`TrainerConfig` to change.
    :raises ValueError: for another visible family.

    >>> from pyro_ebm.training import paper_config
    >>> paper_config("ising", num_epochs=5).learning_rate
    0.01
    """
    if visible not in ("gaussian", "ising"):
        raise ValueError(f"visible must be 'gaussian' or 'ising', got {visible!r}")
    own: dict[str, Any] = {"learning_rate": 5e-4, "noise_std": 1e-3}
    if visible == "ising":
        own = {"learning_rate": 1e-2, "binarize": True}
    decay = {"weight": 1.0, "loc": 0.5, "log_precision": 0.5}
    settings: dict[str, Any] = {
        "num_epochs": 50,
        "batch_size": 128,
        "num_steps": 32,
        "chain_start": "prior",
        "optimizer": "adamw",
        "groups": {name: {"weight_decay": value} for name, value in decay.items()},
        **own,
    }
    return TrainerConfig(**{**settings, **changes})
