# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The blocks of a compound kernel: sites of a model, and what updates them given all others."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.mcmc import HMC
from torch import Size, Tensor

from pyro_ebm.infer.mcmc.discrete_gibbs import DiscreteGibbs, as_float
from pyro_ebm.infer.mcmc.even_layers import EvenLayers, join_sites, split_sites
from pyro_ebm.infer.mcmc.kernel import VectorizedKernel

__all__ = ["Block", "FunctionBlock", "HamiltonianBlock", "ModelBlock", "make_block"]

#: A model with its arguments.
Run = tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]


class Block(ABC):
    """Sites that one kernel updates.

    A kernel's state is called ``params`` here, as in Pyro, and may be of another space (unconstrained) and
    type (floating-point) than the ``values`` that the model sees.

    :param update: the kernel, or a function.
    """

    def __init__(self, update: Any) -> None:
        self.update = update
        #: Names of its sites, known in ``setup``.
        self.sites: list[str] = []
        #: The parts of the states of deep machines in the model, whose values are one tensor here.
        self.layers: list[EvenLayers] = []
        # Values of all other sites: one dictionary for ever, that the kernel's model is conditioned on.
        self._others: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    @property
    def label(self) -> str:
        """What its diagnostics are prefixed with."""
        return ",".join(self.sites)

    def set_others(self, values: Mapping[str, Tensor]) -> None:
        """Condition the kernel's model on the values of the other blocks' sites."""
        self._others.clear()
        self._others.update((n, v) for n, v in values.items() if n not in self.sites)

    def start(
        self, run: Run, warmup_steps: int, values: dict[str, Tensor], given: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Set the kernel up, and put the values of its sites where it starts.

        :param run: the model with its arguments.
        :param values: values of all sites; those of this block are replaced.
        :param given: the start in params, empty for the kernel's own.
        :returns: the params of the start.
        """
        self._dtypes = {name: values[name].dtype for name in self.sites}
        self.set_others(values)
        params = self._start(run, warmup_steps, values, given)
        if set(params) != set(self.sites):
            raise ValueError(
                f"{type(self.update).__name__} keeps {sorted(params)} from draw to draw, not its sites "
                f"{self.sites} alone, so that it cannot be part of a compound kernel"
            )
        values.update(self.values(params))
        return params

    @abstractmethod
    def _start(
        self, run: Run, warmup_steps: int, values: dict[str, Tensor], given: dict[str, Tensor]
    ) -> dict[str, Tensor]: ...

    @abstractmethod
    def sample(self, params: dict[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New params of its sites, the other blocks' values given."""

    def values(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model sees."""
        return {name: params[name].detach().to(self._dtypes[name]) for name in self.sites}

    def cleanup(self) -> None:
        """Forget the run; may be called twice."""
        self._others.clear()

    def diagnostics(self) -> dict[str, Any]:
        """Numbers of the run."""
        return {}

    def logging(self) -> dict[str, str]:
        """Numbers for the progress bar."""
        return {}

    def _own(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: params[name] for name in self.sites}


class FunctionBlock(Block):
    """Sites that a function of all values gives new values."""

    def _start(
        self, run: Run, warmup_steps: int, values: dict[str, Tensor], given: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {name: as_float(values[name]) for name in self.sites} | given

    def sample(self, params: dict[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        new = self.update(split_sites(values, self.layers))
        own = split_sites({name: values[name] for name in self.sites}, self.layers)
        shapes = {name: tuple(value.shape) for name, value in own.items()}
        if not isinstance(new, Mapping) or {n: tuple(v.shape) for n, v in new.items()} != shapes:
            raise ValueError(
                f"the update of {self.sites} must return tensors of the shapes {shapes}"
            )
        new = {name: as_float(value.detach()) for name, value in new.items()}
        return join_sites(new, self.layers)


class ModelBlock(Block):
    """Sites that a kernel of this package updates."""

    update: VectorizedKernel | DiscreteGibbs

    def __init__(self, update: VectorizedKernel | DiscreteGibbs) -> None:
        super().__init__(update)
        self._model = update.model
        self._own_start = update._initial_params

    def _start(
        self, run: Run, warmup_steps: int, values: dict[str, Tensor], given: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        model, args, kwargs = run
        kernel = self.update
        if isinstance(kernel, VectorizedKernel):
            kernel.chain_shape = Size()
        kernel.model = poutine.condition(model, data=self._others)
        if given:
            # The target of the run before is none of this one's business.
            kernel._initial_params = {name: value.detach() for name, value in given.items()}
        kernel.setup(warmup_steps, *args, **kwargs)
        return dict(kernel.initial_params)

    def sample(self, params: dict[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.set_others(values)
        self.update.refresh()
        return self.update.sample(self._own(params))

    def cleanup(self) -> None:
        super().cleanup()
        self.update.cleanup()
        self.update.model = self._model
        self.update._initial_params = self._own_start

    def diagnostics(self) -> dict[str, Any]:
        return self.update.diagnostics()

    def logging(self) -> dict[str, str]:
        return dict(self.update.logging() or {})


class HamiltonianBlock(Block):
    """Sites that Pyro's HMC or NUTS updates, in its unconstrained space."""

    update: HMC

    def __init__(self, update: HMC) -> None:
        super().__init__(update)
        self._model = update.model
        self._num_draws = 0

    @property
    def transforms(self) -> dict[str, Any] | None:
        """Transforms to the unconstrained space, None before the first ``setup``."""
        transforms: dict[str, Any] | None = self.update.transforms
        return transforms

    def _start(
        self, run: Run, warmup_steps: int, values: dict[str, Tensor], given: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        model, args, kwargs = run
        kernel = self.update
        kernel.model = poutine.condition(model, data=self._others)
        if given:
            kernel.initial_params = given
        kernel.setup(warmup_steps, *args, **kwargs)
        self._num_draws = -warmup_steps
        return dict(kernel.initial_params)

    def sample(self, params: dict[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.set_others(values)
        # The potential and its gradient that HMC keeps are those of other values of the other sites.
        self.update.clear_cache()
        new = self.update.sample(self._own(params))
        self._num_draws += 1
        return {name: value.detach() for name, value in new.items()}

    def values(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        transforms = self.transforms or {}
        own = {name: params[name].detach() for name in self.sites}
        return {n: transforms[n].inv(z).detach() if n in transforms else z for n, z in own.items()}

    def cleanup(self) -> None:
        super().cleanup()
        self.update.cleanup()
        self.update.model = self._model
        self._num_draws = 0

    def diagnostics(self) -> dict[str, Any]:
        if self._num_draws < 1:
            return {}
        numbers: dict[str, Any] = dict(self.update.diagnostics())
        return numbers | {
            "mean accept prob": float(self.update._mean_accept_prob),
            "step size": float(self.update.step_size),
        }

    def logging(self) -> dict[str, str]:
        return dict(self.update.logging())


def make_block(update: Any) -> Block:
    """The block of a kernel or function.

    :raises TypeError: if it cannot be part of a compound kernel.
    :raises ValueError: if it was built without a model, or compiled with the values of other sites.
    """
    name = type(update).__name__
    if isinstance(update, HMC):
        if update._jit_compile:
            raise ValueError(
                f"{name} was built with jit_compile=True, which compiles the present values of the other "
                "sites into its potential"
            )
        block: Block = HamiltonianBlock(update)
    elif isinstance(update, VectorizedKernel | DiscreteGibbs):
        block = ModelBlock(update)
    elif callable(update) and not hasattr(update, "setup"):
        return FunctionBlock(update)
    else:
        raise TypeError(
            "a block must be HMC, NUTS, a kernel of pyro_ebm or a function of the values, "
            f"got {name}"
        )
    if update.model is None:
        raise ValueError(f"{name} must be built with the Pyro model, as in {name}(model)")
    return block
