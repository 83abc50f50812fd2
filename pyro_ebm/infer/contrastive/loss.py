# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Contrastive divergence as a Pyro loss."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import (
    ExpandedDistribution,
    MaskedDistribution,
    TorchDistributionMixin,
)
from pyro.infer import ELBO, JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, Trace_ELBO
from pyro.infer.trace_mean_field_elbo import JitTraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent

from pyro_ebm.distributions import RBM, EnergyBased
from pyro_ebm.infer.contrastive.negative import move_chains, start_chains
from pyro_ebm.infer.contrastive.surrogate import SurrogateNormalized
from pyro_ebm.infer.log_partition import exact_log_partition
from pyro_ebm.infer.mcmc import VectorizedKernel

__all__ = ["ContrastiveDivergence"]

_JIT = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)


class ContrastiveDivergence(ELBO):
    r"""Contrastive divergence for :class:`pyro.infer.SVI`, also persistent (PCD).

    Every unnormalised energy-based site of the model, observed or latent, is normalised by

    .. math:: \log Z \approx \ell + s - \mathrm{stop}(s), \qquad
              s = \frac{1}{N} \sum_i -F(\tilde v_i),

    where :math:`\tilde v_i` are states of chains of the model. Its gradient is that of log Z whenever the
    chains are in equilibrium, :math:`\partial \log Z = -E[\partial F]`, whatever value :math:`\ell` has; the
    given ``elbo`` then runs unchanged, so that scale, mask, plates, subsampling and enumeration need
    nothing special. A latent site that is enumerated gets its exact log Z.

    The reported loss is off by :math:`\ell - \log Z` per row; pass ``log_partition`` to correct it. The value
    matters for the gradient too where the site depends on another latent variable that is enumerated
    or has a score-function gradient, as in a mixture of machines. Second derivatives are wrong.

    **References**

    [1] *Training Products of Experts by Minimizing Contrastive Divergence*, Geoffrey Hinton (2002)

    [2] *Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient*,
    Tijmen Tieleman (2008)

    :param int num_steps: transitions of every chain per gradient.
    :param bool persistent: whether chains go on from step to step; else they start at the site's value.
    :param int num_chains: chains of a site for every setting of its parameters; as many as rows if None.
    :param kernel: makes the transition from the distribution, as parameters change at every step:
        ``lambda dist: ParallelTempering(dist, betas=betas)``; block Gibbs if None. The whole state of
        persistent kernels, all replicas say, goes on from step to step.
    :param log_partition: gives the value of log Z from the distribution, such as
        :func:`~pyro_ebm.infer.exact_log_partition`; zero if None.
    :param elbo: the ELBO that runs the model; :class:`pyro.infer.Trace_ELBO` if None.
    :raises ValueError: for impossible options: a JIT-compiled ``elbo`` (chains would be frozen into the
        compiled code), or unvectorised particles with persistent chains.

    >>> import pyro, torch
    >>> from pyro.infer import SVI
    >>> from pyro_ebm.infer import ContrastiveDivergence
    >>> from pyro_ebm.nn import RBM
    >>> rbm, data = RBM(6, 4), torch.ones(20, 6)
    >>> def model(data):
    ...     machine = rbm()
    ...     with pyro.plate("rows", len(data)):
    ...         pyro.sample("v", machine, obs=data)
    >>> loss = ContrastiveDivergence(num_steps=5, persistent=True, num_chains=30)
    >>> svi = SVI(model, lambda data: None, pyro.optim.Adam({"lr": 0.01}), loss=loss)
    >>> losses = [svi.step(data) for _ in range(3)]
    >>> loss.chains["v"].shape
    torch.Size([30, 6])
    """

    def __init__(
        self,
        num_steps: int = 1,
        persistent: bool = False,
        num_chains: int | None = None,
        kernel: Callable[[RBM], VectorizedKernel] | None = None,
        log_partition: Callable[[RBM], Any] | None = None,
        elbo: ELBO | None = None,
    ) -> None:
        elbo = Trace_ELBO() if elbo is None else elbo
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        if num_chains is not None and num_chains < 1:
            raise ValueError(f"num_chains must be at least 1, got {num_chains}")
        if not isinstance(elbo, ELBO):
            raise TypeError(f"elbo must be a pyro.infer.ELBO, got {type(elbo).__name__}")
        if isinstance(elbo, _JIT):
            raise ValueError(
                f"{type(elbo).__name__} would freeze the chains into compiled code; use the ELBO "
                "without Jit"
            )
        if persistent and elbo.num_particles > 1 and not elbo.vectorize_particles:
            raise ValueError(
                "persistent chains need vectorize_particles=True with several particles: "
                "otherwise the model runs once a particle, each time at the same chains"
            )
        super().__init__(
            num_particles=elbo.num_particles, vectorize_particles=elbo.vectorize_particles
        )
        self.num_steps = num_steps
        self.persistent = persistent
        self.num_chains = num_chains
        self.kernel = kernel
        self.log_partition = log_partition
        self.elbo: Any = elbo
        #: Persistent chains by site, shape ``(num_chains,) + parameter batch shape + (V,)``.
        self.chains: dict[str, Tensor] = {}
        #: What else the state of a persistent kernel consists of, by site: the replicas of tempering.
        self.kernel_states: dict[str, dict[str, Tensor]] = {}
        # Sites whose chains have moved in this gradient: once, however often the model runs.
        self._moved: set[str] = set()

    # --- Pyro's interface ---------------------------------------------------------------------

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """The value of the loss. Moves no chain."""
        with torch.no_grad():
            return self.elbo.loss(self._normalizing(model), guide, *args, **kwargs)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """The value of the loss; adds the gradients to ``.grad``. Moves every chain once."""
        self._moved.clear()
        return self.elbo.loss_and_grads(self._normalizing(model), guide, *args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss as a tensor to differentiate. Moves every chain once."""
        self._moved.clear()
        return self.elbo.differentiable_loss(self._normalizing(model), guide, *args, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(self._normalizing(model), guide, args, kwargs)

    def state_dict(self) -> dict[str, Any]:
        """The persistent chains and the rest of their kernels' states, for :func:`torch.save`."""
        return {"chains": _copies(self.chains)} | {
            "kernel_states": {site: _copies(state) for site, state in self.kernel_states.items()}
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        :raises ValueError: if the state holds no chains, or something else than tensors.
        """
        chains: Any = state.get("chains")
        states: Any = state.get("kernel_states", {})
        if not _are_tensors(chains):
            raise ValueError("state must hold 'chains', a dict of tensors by site")
        if not isinstance(states, dict) or not all(_are_tensors(s) for s in states.values()):
            raise ValueError("'kernel_states' of state must be a dict of dicts of tensors by site")
        self.chains = _copies(chains)
        self.kernel_states = {site: _copies(rest) for site, rest in states.items()}

    # --- the negative phase -------------------------------------------------------------------

    def _normalizing(self, model: Callable[..., Any]) -> Callable[..., Any]:
        def normalized(*args: Any, **kwargs: Any) -> Any:
            with _NormalizeMessenger(self):
                return model(*args, **kwargs)

        return normalized

    def _log_partition_of(self, site: str, dist: RBM, value: Tensor, enumerated: bool) -> Tensor:
        """log Z of the compact machine, whose gradient is that of the negative phase."""
        if enumerated:
            return exact_log_partition(dist).to(dist.weight.dtype)
        log_z = dist.weight.new_zeros(dist.batch_shape)
        if self.log_partition is not None:
            with torch.no_grad():
                given = self.log_partition(dist)
            given = torch.as_tensor(getattr(given, "value", given))
            log_z = given.detach().to(log_z).expand(dist.batch_shape)
        learnable = any(p.requires_grad for p in dist.parameters())
        if not (learnable and torch.is_grad_enabled()):
            return log_z
        score = -dist.free_energy(self._negatives(site, dist, value)).mean(0)
        return log_z + score - score.detach()

    def _negatives(self, site: str, dist: RBM, value: Tensor) -> Tensor:
        if not self.persistent:
            start = start_chains(dist, value, self.num_chains)
            return move_chains(dist, start, self.num_steps, self.kernel)[0]
        chains = self.chains.get(site)
        if chains is None:
            chains = start_chains(dist, value, self.num_chains)
        elif chains.shape[1:] != dist.batch_shape + dist.event_shape:
            raise ValueError(
                f"the chains of site {site!r} have shape {tuple(chains.shape)}, but its parameters "
                f"now have batch shape {tuple(dist.batch_shape)} and {dist.event_shape[0]} units"
            )
        if site not in self._moved:
            rest = self.kernel_states.get(site, {})
            self.chains[site], self.kernel_states[site] = move_chains(
                dist,
                _like(dist.weight, chains),
                self.num_steps,
                self.kernel,
                {name: _like(dist.weight, tensor) for name, tensor in rest.items()},
            )
            self._moved.add(site)
        return self.chains[site]


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _are_tensors(tensors: Any) -> bool:
    return isinstance(tensors, dict) and all(isinstance(t, Tensor) for t in tensors.values())


def _like(reference: Tensor, state: Tensor) -> Tensor:
    """A tensor on the device of another and, unless it holds integers, of its dtype."""
    dtype = reference.dtype if state.is_floating_point() else state.dtype
    return state.to(device=reference.device, dtype=dtype)


class _NormalizeMessenger(Messenger):
    """Replaces energy-based distributions of sample sites by surrogate-normalised ones."""

    def __init__(self, loss: ContrastiveDivergence) -> None:
        super().__init__()
        self._loss = loss

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = self._replace(msg["fn"], msg)

    def _replace(self, fn: Any, msg: Any) -> Any:
        if isinstance(fn, EnergyBased):
            return fn if fn.log_partition is not None else self._surrogate(fn, msg)
        if not isinstance(fn, TorchDistributionMixin):
            return fn
        base = getattr(fn, "base_dist", None)
        new: Any = None if base is None else self._replace(base, msg)
        if new is base:
            return fn
        if isinstance(fn, MaskedDistribution):
            return new.mask(fn._mask)
        if isinstance(fn, Independent):
            return new.to_event(fn.reinterpreted_batch_ndims)
        if isinstance(fn, ExpandedDistribution):
            return new.expand(fn.batch_shape)
        raise TypeError(
            f"site {msg['name']!r}: ContrastiveDivergence cannot look inside a {type(fn).__name__} "
            "of an energy-based distribution"
        )

    def _surrogate(self, fn: EnergyBased, msg: Any) -> SurrogateNormalized:
        site, loss = msg["name"], self._loss
        dist = fn.compact()
        if not isinstance(dist, RBM):
            raise TypeError(f"site {site!r}: no negative phase is known for {type(fn).__name__}")
        if loss.persistent:
            self._refuse_row_parameters(dist, msg)
        enumerated = not msg["is_observed"] and msg["infer"].get("enumerate") is not None
        return SurrogateNormalized(
            fn, lambda value: loss._log_partition_of(site, dist, value, enumerated)
        )

    @staticmethod
    def _refuse_row_parameters(dist: RBM, msg: Any) -> None:
        """Chains of a row's own parameters would meet another row at the next step."""
        batch = dist.batch_shape
        for frame in msg["cond_indep_stack"]:
            if frame.vectorized and len(batch) >= -frame.dim and batch[frame.dim] != 1:
                raise ValueError(
                    f"site {msg['name']!r} has parameters of its own for every row of plate "
                    f"{frame.name!r}; persistent chains cannot tell which row is which. Use "
                    "persistent=False"
                )
