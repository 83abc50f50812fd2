# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What a module is made of."""

from torch import nn

__all__ = ["random_sites"]


def random_sites(module: nn.Module) -> list[str]:
    """Names of the parameters of a module that are random (:class:`pyro.nn.PyroSample`).

    :param module: any module; parts that are :class:`pyro.nn.PyroModule` can have such parameters.
    """
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        for name in getattr(part, "_pyro_samples", ())
    ]
