# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Score-function gradients whose control variate is the mean of the other particles."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.util import MultiFrameTensor, torch_item
from torch import Tensor

from pyro_ebm.ops.numerics import log_mean_exp

__all__ = ["LeaveOneOutELBO"]


class LeaveOneOutELBO(Trace_ELBO):
    r"""Evidence lower bound for guides with discrete sites: vectorised particles, each of which has
    the others as its control variate.

    With K particles :math:`z_1, \dots, z_K` of the guide and log-ratios
    :math:`r_k = \log p(x, z_k) - \log q(z_k)`, the gradient by the guide's parameters is estimated by [1]

    .. math:: \frac{1}{K} \sum_k \Bigl(r_k - \frac{1}{K - 1} \sum_{j \ne k} r_j\Bigr)
        \nabla \log q(z_k).

    It is unbiased, since the other particles do not depend on :math:`z_k`, and needs no baseline to be
    learnt. What all particles share drops out: the value of a log Z that is not known
    (:class:`~pyro_ebm.infer.ContrastiveDivergence` takes it as 0) changes nothing, unless it depends on
    another latent value.

    **Rows.** The ratio of a row of a plate is its own: terms of other rows are left out of its r, as in
    :class:`pyro.infer.Trace_ELBO`, whose rules for plates, subsampling, scale and masks hold here.
    Sites of the guide that are reparametrised get pathwise gradients in the same pass.

    **Bounds.** With ``bound="importance"`` the objective is the tighter
    :math:`E \log \frac{1}{K} \sum_k e^{r_k}` [3], by row of the plates that *all* sample sites share. The
    signal of :math:`z_k` is then what the bound gains by its weight over the geometric mean of the others'
    weights (VIMCO, [2]). A tighter bound is better for the model, while the signal-to-noise ratio of the
    guide's gradient may fall with the number of particles [4].

    **References**

    [1] *Buy 4 REINFORCE Samples, Get a Baseline for Free!*, Wouter Kool, Herke van Hoof, Max Welling (2019)

    [2] *Variational Inference for Monte Carlo Objectives*, Andriy Mnih, Danilo Rezende (2016)

    [3] *Importance Weighted Autoencoders*, Yuri Burda, Roger Grosse, Ruslan Salakhutdinov (2016)

    [4] *Tighter Variational Bounds are Not Necessarily Better*, Tom Rainforth et al. (2018)

    :param int num_particles: K, at least 2.
    :param max_plate_nesting: the number of nested plates of model and guide; if it is not given, found by
        running both once.
    :param str bound: ``"elbo"`` or ``"importance"``.
    :param bool retain_graph: whether a step keeps the graph of autograd.
    :raises ValueError: for less than two particles or an unknown bound; in a step with
        ``bound="importance"``, if sample sites have different scales, so that there is no bound by row.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro.infer import SVI
    >>> from pyro_ebm.infer import ContrastiveDivergence, LeaveOneOutELBO
    >>> from pyro_ebm.nn import RBM
    >>> prior, x = RBM(6, 4), torch.randn(20, 6)
    >>> def model(x):
    ...     machine = prior()
    ...     with pyro.plate("rows", len(x)):
    ...         z = pyro.sample("z", machine)
    ...         pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)
    >>> def guide(x):
    ...     logits = pyro.param("logits", torch.zeros(20, 6))
    ...     with pyro.plate("rows", len(x)):
    ...         pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
    >>> loss = ContrastiveDivergence(num_steps=5, elbo=LeaveOneOutELBO(4, max_plate_nesting=1))
    >>> value = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=loss).step(x)
    """

    def __init__(
        self,
        num_particles: int = 2,
        max_plate_nesting: float = float("inf"),
        *,
        bound: str = "elbo",
        retain_graph: bool | None = None,
    ) -> None:
        if num_particles < 2:
            raise ValueError(
                f"num_particles must be at least 2, as each has the others as its control variate; "
                f"got {num_particles}"
            )
        if bound not in ("elbo", "importance"):
            raise ValueError(f"bound must be 'elbo' or 'importance', got {bound!r}")
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=True,
            retain_graph=retain_graph,
        )
        self.bound = bound

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """The value of the loss."""
        if self.bound == "elbo":
            return super().loss(model, guide, *args, **kwargs)
        with torch.no_grad():
            (traces,) = self._get_traces(model, guide, args, kwargs)
            return self._differentiable_loss_particle(*traces)[0] / self.num_particles

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
        """The loss and its surrogate, summed over particles: the caller divides both by their number."""
        if self.bound == "importance":
            loss, surrogate = self._importance_loss(model_trace, guide_trace)
            return torch_item(loss) * self.num_particles, surrogate * self.num_particles
        loss = guide_trace.log_prob_sum() - model_trace.log_prob_sum()
        surrogate = -model_trace.log_prob_sum()
        log_ratios: MultiFrameTensor | None = None
        for site in _sample_sites(guide_trace):
            _, score, entropy_term = site["score_parts"]
            if not is_identically_zero(entropy_term):
                surrogate = surrogate + entropy_term.sum()
            if not is_identically_zero(score):
                if log_ratios is None:
                    log_ratios = _log_ratios(model_trace, guide_trace)
                ratio = log_ratios.sum_to(site["cond_indep_stack"]).detach()
                surrogate = surrogate - (_above_others(ratio) * score).sum()
        return torch_item(loss), surrogate

    def _importance_loss(self, model_trace: Any, guide_trace: Any) -> tuple[Tensor, Tensor]:
        """Minus the importance-weighted bound, and its surrogate."""
        traces = model_trace, guide_trace
        rows = frozenset.intersection(
            *(
                frozenset(site["cond_indep_stack"])
                for trace in traces
                for site in _sample_sites(trace)
            )
        )
        log_weight = _log_ratios(model_trace, guide_trace, scaled=False).sum_to(rows)
        scale = _common_scale(traces)
        bound = log_mean_exp(log_weight)
        gain = scale * (bound - _bounds_without(log_weight)).detach()
        loss = -(scale * bound).sum()
        surrogate = loss
        for site in _sample_sites(guide_trace):
            score = site["score_parts"].score_function
            if not is_identically_zero(score):
                surrogate = surrogate - (gain * score).sum()
        return loss, surrogate


# The axis of the particles is the first one: it is left of all plates, and nothing is enumerated.


def _above_others(x: Tensor) -> Tensor:
    """Every particle's number less the mean of those of the others."""
    number = len(x)
    return (x - x.mean(0)) * (number / (number - 1))


def _bounds_without(log_weight: Tensor) -> Tensor:
    """The bound with the weight of each particle replaced by the geometric mean of the others'."""
    number = len(log_weight)
    others = (log_weight.sum(0) - log_weight) / (number - 1)
    own = torch.eye(number, dtype=torch.bool, device=log_weight.device)
    own = own.view(number, number, *(1,) * (log_weight.dim() - 1))
    return log_mean_exp(torch.where(own, others, log_weight.unsqueeze(1)))


def _sample_sites(trace: Any) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _log_ratios(model_trace: Any, guide_trace: Any, *, scaled: bool = True) -> MultiFrameTensor:
    """log p - log q by plates; without scales, but with masks, if not ``scaled``."""
    ratios = MultiFrameTensor()
    for trace, sign in ((model_trace, 1.0), (guide_trace, -1.0)):
        for site in _sample_sites(trace):
            term = (
                site["log_prob"]
                if scaled
                else scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
            )
            ratios.add((site["cond_indep_stack"], sign * term))
    return ratios


def _common_scale(traces: Sequence[Any]) -> Any:
    """The scale of all sites.

    :raises ValueError: if they have different ones.
    """
    sites = [site for trace in traces for site in _sample_sites(trace)]
    first = sites[0]
    for site in sites[1:]:
        if not _same(site["scale"], first["scale"]):
            raise ValueError(
                f"bound='importance' needs one scale for all sample sites, but those of "
                f"{first['name']!r} and {site['name']!r} differ; use bound='elbo'"
            )
    return first["scale"]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first is second or torch.equal(first, second)
    return bool(torch.as_tensor(first == second).all())
