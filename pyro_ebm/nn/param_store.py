# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Keeps modules that are called outside of Pyro programs out of Pyro's global parameter store."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from pyro.distributions import constraints
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped

__all__ = ["LocalModule", "private_parameters"]


@contextmanager
def private_parameters(module: PyroModule) -> Iterator[None]:
    """Outside of Pyro's handlers, what modules register is forgotten at the end.

    A call of a :class:`pyro.nn.PyroModule` enters its parameters in the global store by their names,
    also where nothing but its value is wanted. The first module of a class would then be found, and
    trained, under the names of the second. Parameters that require no gradient stay so, where Pyro's
    store would switch their gradients on.

    :param module: the module, or that of which parts are called.
    """
    if am_i_wrapped():
        yield
    else:
        with pyro.get_param_store().scope(_frozen_parameters(module)):
            yield


def _frozen_parameters(module: PyroModule) -> Any:
    """A state of Pyro's store with the parameters that are not trained: it leaves alone what it has."""
    prefix = f"{module._pyro_name}." if module._pyro_name else ""
    named = module.named_parameters(remove_duplicate=False)
    frozen = {f"{prefix}{name}": p for name, p in named if not p.requires_grad}
    return {"params": frozen, "constraints": dict.fromkeys(frozen, constraints.real)}


class LocalModule(PyroModule):
    """A :class:`pyro.nn.PyroModule` that enters its parameters in Pyro's store only in Pyro programs."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with private_parameters(self):
            return super().__call__(*args, **kwargs)
