# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Neural Boltzmann machines that the literature knows."""

from typing import Any

from pyro_ebm.nn.nbm import NeuralBoltzmannMachine

__all__ = ["ConditionalRBM", "FactoredConditionalRBM", "paper_nbm"]


def paper_nbm(
    num_context: int,
    num_visible: int,
    num_hidden: int = 64,
    visible: str = "gaussian",
    **options: Any,
) -> NeuralBoltzmannMachine:
    r"""The model of the paper, with the settings of its published code.

    Perceptrons of 32 hidden units for :math:`\mu` (with a tanh for spins) and :math:`\log P`, which is cut
    off at :math:`\pm\log 1000`; one affine layer over :math:`\sqrt{V}` for W; no hidden bias; hidden spins.
    Train it with :func:`pyro_ebm.training.paper_config`.

    :param int num_context: entries of a context.
    :param int num_visible: entries of the visible layer.
    :param int num_hidden: hidden spins.
    :param str visible: "gaussian" or "ising".
    :param options: ``seed``, ``dtype``, ``device``, or what to change; of ``visible_options`` those that
        are not given stay.
    :raises ValueError: for another visible family.
    """
    if visible not in ("gaussian", "ising"):
        raise ValueError(f"visible must be 'gaussian' or 'ising', got {visible!r}")
    visible_options: dict[str, Any] = {"bound": "hard"}
    if visible == "ising":
        visible_options["form"] = "quadratic"
    given = options.pop("visible_options", None) or {}
    settings = {"visible_options": {**visible_options, **given}, "hidden_bias": False, **options}
    return NeuralBoltzmannMachine(num_context, num_visible, num_hidden, visible, **settings)


def ConditionalRBM(
    num_context: int,
    num_visible: int,
    num_hidden: int,
    visible: str = "bernoulli",
    hidden: str = "bernoulli",
    **options: Any,
) -> NeuralBoltzmannMachine:
    r"""The conditional RBM of Taylor, Hinton and Roweis: biases affine in x, one weight for all x.

    :param int num_context: entries of a context.
    :param int num_visible: entries of the visible layer.
    :param int num_hidden: entries of the hidden layer.
    :param str visible: family of the visible layer.
    :param str hidden: family of the hidden layer.
    :param options: arguments of :class:`NeuralBoltzmannMachine`.

    >>> import torch
    >>> from pyro_ebm.nn import ConditionalRBM
    >>> ConditionalRBM(num_context=3, num_visible=6, num_hidden=4)(torch.zeros(2, 3)).sample().shape
    torch.Size([2, 6])
    """
    settings = {"hidden_sizes": (), "weight": "constant", **options}
    return NeuralBoltzmannMachine(num_context, num_visible, num_hidden, visible, hidden, **settings)


def FactoredConditionalRBM(
    num_context: int,
    num_visible: int,
    num_hidden: int,
    visible: str = "bernoulli",
    hidden: str = "bernoulli",
    *,
    num_factors: int = 32,
    **options: Any,
) -> NeuralBoltzmannMachine:
    r"""The factored conditional RBM of Taylor and Hinton (2009): three-way factors gated by x.

    :param int num_context: entries of a context.
    :param int num_visible: entries of the visible layer.
    :param int num_hidden: entries of the hidden layer.
    :param str visible: family of the visible layer.
    :param str hidden: family of the hidden layer.
    :param int num_factors: factors.
    :param options: arguments of :class:`NeuralBoltzmannMachine`; ``weight_options`` are added to
        ``num_factors``.
    """
    settings = {"hidden_sizes": (), "weight": "factored", **options}
    if settings["weight"] == "factored":
        given = options.get("weight_options") or {}
        settings["weight_options"] = {"num_factors": num_factors, **given}
    return NeuralBoltzmannMachine(num_context, num_visible, num_hidden, visible, hidden, **settings)
