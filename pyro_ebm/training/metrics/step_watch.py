# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What metrics need to see of the updates of an epoch, and not only of its end."""

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.training.weights import weights_of

__all__ = ["StepWatch"]


class StepWatch:
    """Looks at the last updates of an epoch; only what is asked for is kept.

    Nothing waits for another device before the end of the epoch.

    :param module: the module that is trained.
    :param int num_updates: updates of the epoch.
    :param bool gradient: whether to keep the norm of the last gradient.
    :param bool update: whether to keep the size of the last change of the weights; not of a conditional
        model.
    :param int window: last updates of whose chains free energies are kept.
    """

    def __init__(
        self,
        module: nn.RBM | nn.DBM | nn.NeuralBoltzmannMachine,
        num_updates: int,
        *,
        gradient: bool = False,
        update: bool = False,
        window: int = 0,
    ) -> None:
        self._module = module
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self._num_updates = num_updates
        self._keep_gradient = gradient
        self._keep_update = update
        self._window = window
        self._before: list[Tensor] = []
        self._energies: list[Tensor] = []
        #: Norm of the gradient of the last batch, over all parameters, a scalar.
        self.gradient_norm: Tensor | None = None
        #: Those of the weights, from the lowest to the top, shape ``(weights,)``; not of a conditional model.
        self.weight_gradient_norms: Tensor | None = None
        #: Norm of the last change of the weights, divided by that of the weights before.
        self.update_ratio: Tensor | None = None
        #: The same by weight, shape ``(weights,)``.
        self.update_ratios: Tensor | None = None

    @torch.no_grad()
    def before_update(self, number: int) -> None:
        """Called when the gradient of a batch is known.

        :param int number: batches of the epoch that came before.
        """
        if number != self._num_updates - 1:
            return
        if self._keep_gradient:
            norms = [p.grad.norm() for p in self._trained if p.grad is not None]
            self.gradient_norm = torch.stack(norms).norm()
            if not isinstance(self._module, nn.NeuralBoltzmannMachine):
                self.weight_gradient_norms = torch.stack(
                    [
                        w.new_zeros(()) if w.grad is None else w.grad.norm()
                        for w in weights_of(self._module)
                    ]
                )
        if self._keep_update and not isinstance(self._module, nn.NeuralBoltzmannMachine):
            self._before = [w.detach().clone() for w in weights_of(self._module)]

    @torch.no_grad()
    def after_update(self, number: int, chains: Tensor | None) -> None:
        """Called when the parameters have moved.

        :param int number: batches of the epoch that came before.
        :param Tensor chains: states of the persistent chains.
        """
        module = self._module
        if self._before and not isinstance(module, nn.NeuralBoltzmannMachine):
            pairs = zip(weights_of(module), self._before, strict=True)
            changes = torch.stack([(weight.detach() - old).norm() for weight, old in pairs])
            sizes = torch.stack([old.norm() for old in self._before])
            self.update_ratio, self.update_ratios = changes.norm() / sizes.norm(), changes / sizes
        if chains is not None and number >= self._num_updates - self._window:
            dist = module(validate_args=False)
            machine = dist.bipartite() if isinstance(module, nn.DBM) else dist
            self._energies.append(machine.free_energy(chains))

    @property
    def chain_energies(self) -> Tensor | None:
        """Free energies of the chains after the last updates, shape ``(num_chains, window)``; None if
        there were none. Each is that of the machine of its update."""
        return torch.stack(self._energies, 1) if self._energies else None
