# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Greedy pre-training of a deep Boltzmann machine."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.nn.deep_initialization import layer_of
from pyro_ebm.nn.tied_rbm import TiedRBM
from pyro_ebm.nn.unit_parameters import UnitParameters
from pyro_ebm.training.callbacks import Callback
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.pretraining.stack import TrainedStack, configs_by_machine, train_stack

__all__ = ["PRETRAINING_METHODS", "pretrain"]

#: Names of the methods of :func:`pretrain`.
PRETRAINING_METHODS = ("salakhutdinov-hinton-2009", "hinton-salakhutdinov-2012", "rbm")


def pretrain(
    module: nn.DBM,
    data: Tensor,
    config: TrainerConfig | Sequence[TrainerConfig],
    *,
    method: str = "salakhutdinov-hinton-2009",
    validation: Tensor | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    upper_scale: float = 0.001,
) -> TrainedStack:
    r"""Train RBMs layer by layer and put the deep machine together from them.

    A layer between two machines would be explained twice, by each as if it were alone. All methods train the
    lowest machine with k **tied copies** of its visible layer (see :class:`~pyro_ebm.nn.tied_rbm.TiedRBM`),
    whose prior of the first hidden layer is

    .. math::
        p_1(h_1) \propto e^{c_1^\top h_1} a(h_1)^k, \qquad a(h_1) = \sum_v e^{b^\top v + v^\top W_1 h_1},

    and the topmost one on draws of :math:`q(h_1 | v)` with k copies of its hidden units: :math:`p_2(h_1)`.
    The deep machine of one copy of v and k - 1 of the copies of the second machine's hidden layer is then

    .. math::
        p(v) = \sum_{h_1} \tilde p(h_1) p(v | h_1), \qquad
        \tilde p \propto p_1^{1/k} p_2^{(k-1)/k},

    with the biases :math:`c_1 / k + (k - 1) b_2 / k` in between. By Hölder's inequality the normaliser of
    the geometric mean is at most 1, so that the variational bound with q changes by at least
    :math:`\frac{k-1}{k} E_q[\log p_2 - \log p_1]`: it **grows where the second machine models the layer
    better than the first one's prior** did.

    - ``"salakhutdinov-hinton-2009"`` [1]: k = 2, half of the prior is replaced. Above two hidden layers the
      machines in between are trained plainly and halved, weights and biases, for which there is no such
      argument. With one hidden layer it is plain training of an RBM.
    - ``"hinton-salakhutdinov-2012"`` [2, 3]: k = 3, two thirds of the prior are replaced, so that more of the
      work is the upper layers'. The second machine has half of the top layer's units; the deep one has them
      twice, with the same weights at first (the chains' random bits make them differ). What is from [2] is
      the division 1/3 to 2/3 with copies of the top layer; the formulas are those above. Only for two hidden
      layers, the upper of an even size. The second machine starts at random weights, not at those of the
      first one.
    - ``"rbm"``: the lowest RBM alone is trained, plainly; weights above start small
      (:meth:`DBM.init_from_rbm <pyro_ebm.nn.DBM.init_from_rbm>`), so that the bound starts at the RBM's
      likelihood.

    No bias is ever doubled. Where an RBM's weight has the gradient
    :math:`v h^\top`, that of k visible copies has :math:`k v h^\top`: take a smaller learning rate.

    **References**

    [1] *Deep Boltzmann machines*, Ruslan Salakhutdinov, Geoffrey Hinton (2009), section 3.1

    [2] *A better way to pretrain deep Boltzmann machines*, Geoffrey Hinton, Ruslan Salakhutdinov (2012)

    [3] *An efficient learning procedure for deep Boltzmann machines*, Ruslan Salakhutdinov, Geoffrey Hinton
    (2012)

    :param module: the deep machine; its parameters are replaced. The lowest RBM starts at its visible layer:
        call :meth:`~pyro_ebm.nn.DBM.init_from_data` before. RBMs of a centred module are centred.
    :param Tensor data: shape ``(rows, V)``, any dtype.
    :param config: options of each RBM or of all of them, see :func:`train_stack`.
    :param str method: one of :data:`PRETRAINING_METHODS`.
    :param Tensor validation: rows for the metrics only.
    :param callbacks: see :meth:`Trainer.fit <pyro_ebm.training.Trainer.fit>`.
    :param bool resume: see :func:`train_stack`.
    :param float upper_scale: of ``"rbm"``: standard deviation of the weights above.
    :returns: the RBMs as they were trained, and their histories.
    :raises TypeError: for another module.
    :raises ValueError: for an unknown method, one that the module cannot have, and as :func:`train_stack`.

    >>> import torch
    >>> from pyro_ebm.nn import DBM
    >>> from pyro_ebm.training import TrainerConfig, pretrain
    >>> data = torch.bernoulli(torch.full((200, 6), 0.3))
    >>> module = DBM(6, [4, 4], seed=0).init_from_data(data)
    >>> config = TrainerConfig(num_epochs=2, batch_size=50, learning_rate=0.02, seed=0, progress=False)
    >>> stack = pretrain(module, data, config)
    >>> [len(history) for history in stack.histories], module.weights[0].shape
    ([2, 2], torch.Size([6, 4]))
    """
    if not isinstance(module, nn.DBM):
        raise TypeError(f"module must be a pyro_ebm.nn.DBM, got {type(module).__name__}")
    if method not in PRETRAINING_METHODS:
        raise ValueError(f"method must be one of {PRETRAINING_METHODS}, got {method!r}")
    machines = _MAKERS[method](module)
    configs = configs_by_machine(config, len(machines))
    _set_seeds(machines, configs)
    stack = train_stack(
        machines, data, configs, validation=validation, callbacks=callbacks, resume=resume
    )
    plain = [m.untied() if isinstance(m, TiedRBM) else m for m in stack.machines]
    if method == "rbm":
        module.init_from_rbm(plain[0], upper_scale=upper_scale, seed=configs[0].seed)
    elif method == "hinton-salakhutdinov-2012":
        module.init_from_rbms([plain[0], _twice(plain[1])], lower_share=1.0 / 3.0)
    else:
        module.init_from_rbms(plain)
    return stack


# --- machines of the methods --------------------------------------------------------------------


def _machines_2009(module: nn.DBM) -> list[nn.RBM]:
    top = module.depth - 1
    if module.depth == 1:
        return [_machine(module, 0)]
    machines = [_machine(module, 0, visible_copies=2)]
    machines += [_machine(module, number) for number in range(1, top)]
    return [*machines, _machine(module, top, hidden_copies=2)]


def _machines_2012(module: nn.DBM) -> list[nn.RBM]:
    top, size = layer_of(module, module.depth), module.sizes[-1]
    if module.depth != 2:
        raise ValueError(
            f"method='hinton-salakhutdinov-2012' is for two hidden layers, got {module.depth}"
        )
    half = size // 2
    groups = top.options.get("num_states", 1)
    if size % 2 or half % groups or top.family == "multinomial":
        raise ValueError(
            "method='hinton-salakhutdinov-2012' makes the top layer of two equal halves of units: it must "
            f"have an even number of them and be no multinomial layer, got {size} {top.family} entries"
        )
    return [
        _machine(module, 0, visible_copies=3),
        _machine(module, 1, num_hidden=half, hidden_copies=3),
    ]


def _machines_of_rbm(module: nn.DBM) -> list[nn.RBM]:
    return [_machine(module, 0)]


_MAKERS = {
    "salakhutdinov-hinton-2009": _machines_2009,
    "hinton-salakhutdinov-2012": _machines_2012,
    "rbm": _machines_of_rbm,
}


def _machine(
    module: nn.DBM,
    number: int,
    *,
    num_hidden: int | None = None,
    visible_copies: int = 1,
    hidden_copies: int = 1,
) -> nn.RBM:
    """The machine between two layers of the deep one, with small random weights."""
    below, above = layer_of(module, number), layer_of(module, number + 1)
    weight = module.weights[number]
    size = module.sizes[number + 1] if num_hidden is None else num_hidden
    copies = {"visible_copies": visible_copies, "hidden_copies": hidden_copies}
    tied = visible_copies > 1 or hidden_copies > 1
    machine = (TiedRBM if tied else nn.RBM)(
        module.sizes[number],
        size,
        below.family,
        above.family,
        visible_options=_options(below, visible_copies),
        hidden_options=_options(above, hidden_copies),
        centered=module.centered,
        weight_scale=module.weight_scale,
        dtype=weight.dtype,
        device=weight.device,
        **(copies if tied else {}),
    )
    if number == 0:
        machine.visible.load_state_dict(below.state_dict())
    return machine


def _options(layer: UnitParameters, copies: int) -> dict[str, Any]:
    """Options of a layer; those of several copies learn no precision."""
    options = dict(layer.options)
    if copies > 1 and "learn_precision" in options:
        options["learn_precision"] = False
    return options


@torch.no_grad()
def _set_seeds(machines: Sequence[nn.RBM], configs: Sequence[TrainerConfig]) -> None:
    """Weights of the machines anew, of the seeds of their runs."""
    for machine, config in zip(machines, configs, strict=True):
        if config.seed is not None:
            weight = machine.get_parameter("weight")
            generator = torch.Generator(device=weight.device).manual_seed(config.seed)
            weight.normal_(0.0, machine.weight_scale, generator=generator)


@torch.no_grad()
def _twice(machine: nn.RBM) -> nn.RBM:
    """The machine with every hidden unit twice, the second ones after the first."""
    num_visible, num_hidden = machine.weight.shape
    wide = nn.RBM(
        num_visible,
        2 * num_hidden,
        machine.visible.family,
        machine.hidden.family,
        visible_options=machine.visible.options,
        hidden_options=machine.hidden.options,
        centered=machine.centered,
        dtype=machine.weight.dtype,
        device=machine.weight.device,
    )
    wide.weight.copy_(torch.cat([machine.weight, machine.weight], 1))
    wide.visible.load_state_dict(machine.visible.state_dict())
    state = machine.hidden.state_dict()
    wide.hidden.load_state_dict({name: torch.cat([x, x]) for name, x in state.items()})
    if machine.centered:
        wide.visible_offset.copy_(machine.visible_offset)
        wide.hidden_offset.copy_(machine.hidden_offset.repeat(2))
        # Twice as many units pull at the visible layer about their offsets.
        wide.visible.tilt(machine.weight @ machine.hidden_offset)
    return wide
