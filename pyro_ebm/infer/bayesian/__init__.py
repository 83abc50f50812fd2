# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Parameters of machines as latent variables: kernels that need no log Z, and leave the posterior exact.

The posterior of a machine's parameters has log Z in its density (it is *doubly intractable*). Three ways are
right:

- ``machine.normalize(exact_log_partition(machine))`` inside of the model, under :class:`pyro.infer.NUTS`,
  where a layer of the machine can be enumerated with a gradient;
- :class:`~pyro_ebm.infer.Exchange`, which replaces log Z by auxiliary data;
- :class:`~pyro_ebm.infer.PseudoMarginal`, which replaces it by an unbiased estimate.
"""

from pyro_ebm.infer.bayesian.exchange import Exchange
from pyro_ebm.infer.bayesian.parameter_kernel import ApproximateAuxiliaryWarning
from pyro_ebm.infer.bayesian.pseudo_marginal import PseudoMarginal

__all__ = ["ApproximateAuxiliaryWarning", "Exchange", "PseudoMarginal"]
