# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What a kernel must offer to run many chains in one tensor."""

from typing import Any

from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Size, Tensor

__all__ = ["VectorizedKernel"]


class VectorizedKernel(MCMCKernel):
    """A Pyro kernel whose state may have leading chain axes.

    Beside Pyro's interface it has a :attr:`site`, the name of its state in the parameters that
    ``sample`` maps to new ones, and a :attr:`chain_shape`, which the driver sets before ``setup``.
    States are drawn in their own space, so there are no transforms; ``model`` is read by Pyro and
    ArviZ and is None.
    """

    site: str

    def __init__(self) -> None:
        self.model: Any = None
        self.transforms: dict[str, Any] = {}
        #: Leading axes of the state: empty under :class:`pyro.infer.MCMC`.
        self.chain_shape = Size()
        #: The start that was set, None for the kernel's own.
        self._initial_params: dict[str, Tensor] | None = None
