# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Parallel tempering as a Pyro MCMC kernel, for machines whose modes block Gibbs does not leave.

Over temperatures, from a base without weights to the machine; along any other path of machines; or
over the checkpoints of a training run (:meth:`ParallelTempering.from_checkpoints`).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import DBM, RBM, GibbsSweep
from pyro_ebm.infer.mcmc.even_layers import as_rbm
from pyro_ebm.infer.mcmc.kernel import MachineKernel
from pyro_ebm.infer.mcmc.ladder_placement import check_betas, check_target_rejection, initial_ladder
from pyro_ebm.infer.mcmc.ladder_tuning import LadderTuner, warmup_rounds
from pyro_ebm.infer.mcmc.replica_exchange import Replicas
from pyro_ebm.infer.mcmc.replica_layout import ReplicaLayout
from pyro_ebm.infer.mcmc.tempering_report import TemperingReport
from pyro_ebm.infer.paths import GeometricPath, MachinePath, Path, base_unit
from pyro_ebm.infer.paths.geometric import even_base

__all__ = ["ParallelTempering"]


class ParallelTempering(MachineKernel):
    r"""Block Gibbs at several temperatures at once, with exchanges between neighbours.

    Use it where :class:`~pyro_ebm.infer.BlockGibbs` gets stuck: a machine with several modes, whose
    chains stay in the one that they started in, looks converged and is not. Replicas of the machine
    run at the levels of a ladder, from a base without weights (level 0, where every sweep is an independent
    draw) to the machine itself (the last level, whose states are the draws). After every sweep,
    neighbours offer each other their states, so that what is found at the easy levels travels to the
    machine [1]. All levels keep their distributions exactly, whatever the ladder is.

    A draw costs a sweep of every level; they all run in one matrix product, so that R replicas of C
    chains take about as long as R C chains of block Gibbs. Where block Gibbs crosses between modes
    within a few hundred sweeps, it may be the better use of them.

    **The ladder.** In the warm-up it is set to equal rejection between neighbours, and where
    ``num_replicas`` is None so many levels are taken that half of the exchanges are rejected, which makes
    the most round trips for the time [1]; see :mod:`pyro_ebm.infer.mcmc.ladder_tuning`. Then it is
    frozen. A warm-up of a few hundred draws is enough for most machines, and without one the ladder stays
    as it was. To tune once and run often, take ``kernel.betas``, or those of
    :func:`~pyro_ebm.infer.tune_ladder`.

    **The base.** Its default needs no knowledge and makes a path of temperatures where there are only
    finitely many states. If the means of the data are known they are a better one: on a trained
    MNIST model of 500 hidden units (CD25) the barrier is 13 from the uniform base, 16 from the
    machine's own visible biases and 10 from the means of the data, so that 20 levels do the work of 26.

    **The state** is all replicas, and it is in the parameters that :meth:`sample` maps to new ones: the
    draw as ``"v"`` (with ``"h2"`` and so on of a DBM) and the rest as ``"v.replicas"``, ``"v.identity"`` and
    ``"v.parity"``. Drivers store the draw. Parameters without the others are completed by copies of the
    draw at every level. A draw that another kernel has changed is honoured.

    **Did it work?** Beside the ``"energy"`` of every draw, :meth:`diagnostics` has under ``"tempering"`` a
    dictionary of tensors: ``betas``; ``swap_rate`` by pair of neighbours (the mean acceptance
    probability); ``round_trips`` by chain, how often some replica went from level 0 to the machine and
    back (none at all means that modes are still found by luck); ``energy_mean`` and ``energy_std`` by
    level, of the free energy under the machine.

    **References**

    [1] *Non-reversible parallel tempering: a scalable highly parallel MCMC scheme*,
    Saifuddin Syed, Alexandre Bouchard-Côté, George Deligiannidis, Arnaud Doucet (2022)

    [2] *Parallel tempering for training of restricted Boltzmann machines*, Guillaume Desjardins,
    Aaron Courville, Yoshua Bengio, Pascal Vincent, Olivier Delalleau (2010)

    :param target: the machine, an RBM or a DBM with any batch shape, or a Pyro model as for
        :class:`~pyro_ebm.infer.BlockGibbs`. The elements of a batch share one ladder.
    :param int num_replicas: levels of the ladder, at least 2; tuned in the warm-up if None.
    :param base: the visible layer at level 0: ``"uniform"``, ``"biases"`` for the machine's own visible
        biases, or the means of data, shape ``(..., V)`` (the other even layers of a DBM then have their own
        biases). None is the first where the support is
        finite, otherwise the second.
    :param betas: the levels themselves, increasing to 1; the ladder is then not tuned.
    :param Path path: another path, such as a :class:`~pyro_ebm.infer.paths.MachinePath`, that ends at the
        target. Its parameters are those of the time when it was made.
    :param int num_steps: sweeps and exchanges per draw, at least 1.
    :param bool adapt: whether to tune the ladder in the warm-up.
    :param float target_rejection: rejection that decides the number of levels where it is tuned.
    :param torch.Generator generator: the source of random bits; the global one if None. A path has
        its own.
    :raises ValueError: for impossible numbers, contradicting options, or a path that does not end at
        the target.

    >>> import torch
    >>> from pyro_ebm.distributions import IsingRBM
    >>> from pyro_ebm.infer import ParallelTempering, VectorizedMCMC
    >>> rbm = IsingRBM(0.8 * torch.ones(8, 4), torch.zeros(8), torch.zeros(4))  # two modes
    >>> kernel = ParallelTempering(rbm)
    >>> mcmc = VectorizedMCMC(kernel, 200, 100, num_chains=20, disable_progbar=True)
    >>> mcmc.run()
    >>> mcmc.get_samples()["v"].shape
    torch.Size([4000, 8])
    >>> bool(mcmc.diagnostics()["tempering"]["chain 0"]["round_trips"].sum() > 0)
    True
    """

    def __init__(
        self,
        target: RBM | DBM | Callable[..., Any],
        num_replicas: int | None = None,
        *,
        base: Tensor | str | None = None,
        betas: Sequence[float] | Tensor | None = None,
        path: Path | None = None,
        num_steps: int = 1,
        adapt: bool = True,
        target_rejection: float = 0.5,
        generator: Generator | None = None,
    ) -> None:
        if num_replicas is not None and num_replicas < 2:
            raise ValueError(f"num_replicas must be at least 2, got {num_replicas}")
        if path is not None and base is not None:
            raise ValueError("base and path exclude each other: a path has its own base")
        if path is not None and generator is not None and generator is not path.generator:
            raise ValueError("a path draws from its own generator; give it to the path")
        self._fixed_betas = None if betas is None else check_betas(betas)
        if self._fixed_betas is not None and num_replicas not in (None, len(self._fixed_betas)):
            raise ValueError(
                f"num_replicas is {num_replicas}, but betas has {len(self._fixed_betas)} levels"
            )
        check_target_rejection(target_rejection)
        self.num_replicas = num_replicas
        self.base = base
        self.path = path
        self.adapt = adapt and betas is None
        self.target_rejection = target_rejection
        self._save_params: list[str] | None = None
        self._betas: list[float] | None = self._fixed_betas
        generator = generator if path is None else path.generator
        super().__init__(target, num_steps, generator=generator)

    @classmethod
    def from_checkpoints(
        cls,
        checkpoints: Sequence[RBM] | Sequence[DBM],
        num_replicas: int | None = None,
        *,
        num_steps: int = 1,
        adapt: bool = False,
        generator: Generator | None = None,
        **options: Any,
    ) -> Self:
        """Trajectory tempering: replicas are checkpoints of one training run, not temperatures.

        Early in training a machine mixes fast, and neighbouring checkpoints are alike, so that a
        trajectory has none of the phase transitions that a path of temperatures may have [1].

        **References**

        [1] *Fast training and sampling of Restricted Boltzmann Machines*, Nicolas Béreux,
        Aurélien Decelle, Cyril Furtlehner, Lorenzo Rosset, Beatriz Seoane (2025)

        :param checkpoints: machines in the order of training, at least two; the last one is sampled.
        :param int num_replicas: with ``adapt``, levels along the way through all checkpoints; else
            there is one for every checkpoint.
        :param int num_steps: sweeps and exchanges per draw.
        :param bool adapt: whether to place the levels anew, between checkpoints, in the warm-up.
        :param torch.Generator generator: the source of random bits; the global one if None.
        :param options: further arguments of the class.
        :raises ValueError: if the machines do not fit together.
        """
        path = MachinePath([as_rbm(machine) for machine in checkpoints], generator)
        betas = None if adapt else initial_ladder(len(path.knots))
        return cls(
            checkpoints[-1],
            num_replicas,
            betas=betas,
            path=path,
            num_steps=num_steps,
            adapt=adapt,
            generator=generator,
            **options,
        )

    @property
    def betas(self) -> list[float]:
        """The levels of the ladder; after a run those that its warm-up has found.

        :raises RuntimeError: before :meth:`setup`, if they were not given.
        """
        if self._betas is None:
            raise RuntimeError("the ladder is known only after setup()")
        return list(self._betas)

    @property
    def save_params(self) -> list[str]:
        """What drivers store: the draws, and not all replicas."""
        return list(self._layers.names) if self._save_params is None else self._save_params

    @save_params.setter
    def save_params(self, names: list[str]) -> None:
        self._save_params = names

    # --- what the base class asks for ---------------------------------------------------------

    def _check_target(self, target: RBM) -> None:
        if self.path is None:
            self._base_unit(target)
        else:
            _check_end(self.path, target)

    def _base_unit(self, target: RBM) -> Any:
        base, layers = self.base, self._layers.units
        if isinstance(base, Tensor) and layers is not None:
            return even_base(layers, base, target.parameter_batch_shape)
        if base is None and target.visible.num_states is not None:
            base = "uniform"
        elif isinstance(base, str) and base == "biases":
            base = None
        return base_unit(target, base)

    def _reset(self) -> None:
        super()._reset()
        self._rounds: list[tuple[int, int]] = []
        self._ladder: LadderTuner | None = None
        self._report: TemperingReport | None = None
        self._replicas: Replicas | None = None
        # The draw that the fields of the replicas belong to.
        self._draw: Tensor | None = None

    def _prepare(self) -> None:
        path = self.path
        if path is None:
            path = GeometricPath(self.target, self._base_unit(self.target), self.generator)
        self._sweep = GibbsSweep(self.target, self.generator)
        self._layout = ReplicaLayout(self.chain_shape, self.target.batch_shape, path.batch_shape)
        self._ladder = LadderTuner(
            path,
            betas=self._fixed_betas,
            num_levels=self.num_replicas,
            target_rejection=self.target_rejection,
        )
        self._betas = self._ladder.betas
        self._rounds = warmup_rounds(self._warmup_steps) if self.adapt else []
        device = self.target.weight.device
        self._turns = [torch.full(self.chain_shape, parity, device=device) for parity in (0, 1)]

    def refresh(self) -> None:
        """Refuse to be a part of :class:`~pyro_ebm.infer.Gibbs`: the other levels depend on the values of
        the other sites as well, so that updates of those given the draw alone would not be exact."""
        raise TypeError("ParallelTempering cannot be part of a compound kernel")

    @property
    def _tuner(self) -> LadderTuner:
        assert self._ladder is not None, "setup() makes it"
        return self._ladder

    def _start(self) -> Tensor:
        return self._layers.join(self._start_params())

    def _start_params(self) -> dict[str, Tensor]:
        ladder = self._tuner.exchange.ladder
        replicas = self._tuner.exchange.start(ladder.initial(self._layout.chains))
        return self._params(self._layout.draw(replicas.v), replicas)

    # --- the transition -----------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        self._ensure_prepared()
        self._replicas = self._read(params)
        draw = self._layers.join(super().sample(params))
        self._draw = draw
        return self._params(draw, self._replicas)

    def _transition(self, v: Tensor) -> tuple[Tensor, Tensor]:
        replicas, tuner, layout = self._replicas, self._tuner, self._layout
        assert replicas is not None
        if not self.in_warmup and self._report is None:
            tuner.forget()
            self._report = TemperingReport(tuner, replicas)
        for _ in range(self.num_steps):
            replicas, _ = tuner.step(replicas)
            if self._report is not None:
                self._report.observe(replicas)
        if self._report is not None:
            self._report.observe_energies(self._sweep, replicas)
        elif self._rounds:
            replicas = self._tune(replicas)
        self._replicas = replicas
        energy = self._sweep.free_energy(layout.top(replicas.v), layout.top(replicas.fields))
        return layout.draw(replicas.v), layout.unfold(energy)

    def _tune(self, replicas: Replicas) -> Replicas:
        begin, end = self._rounds[0]
        if self._num_calls + 1 == begin:
            self._tuner.forget()
        if self._num_calls + 1 == end:
            del self._rounds[0]
            replicas = self._tuner.retune(replicas)
            self._betas = self._tuner.betas
        return replicas

    # --- the state ----------------------------------------------------------------------------

    def _names(self) -> tuple[str, str, str]:
        return f"{self.site}.replicas", f"{self.site}.identity", f"{self.site}.parity"

    def _params(self, draw: Tensor, replicas: Replicas) -> dict[str, Tensor]:
        values = (replicas.v, replicas.identity, self._turns[replicas.parity])
        return self._layers.split(draw) | dict(zip(self._names(), values, strict=True))

    def _read(self, params: dict[str, Tensor]) -> Replicas:
        """The replicas that parameters speak of; those of the latest draw need no product."""
        draw, own = self._layers.join(params), self._replicas
        exchange = self._tuner.exchange
        v, identity, parity = (params.get(name) for name in self._names())
        if own is not None and own.v is v:
            if draw is self._draw:
                return own
            return exchange.start(self._with_draw(own.v, draw), own.identity, own.parity)
        layout, num_levels = self._layout, exchange.ladder.num_levels
        shape = layout.shape(num_levels)
        if v is None or v.shape != shape + self.target.event_shape:
            top = layout.fold(draw.to(self.target.weight.dtype))
            return exchange.start(layout.at_every_level(top, num_levels))
        if identity is not None and identity.shape != shape:
            identity = None
        turn = 0 if parity is None else int(parity.flatten()[0])
        return exchange.start(self._with_draw(v, draw), identity, turn)

    def _with_draw(self, v: Tensor, draw: Tensor) -> Tensor:
        """Replicas of which the last level is a given draw."""
        v = v.to(self.target.weight.dtype, copy=True)
        self._layout.top(v).copy_(self._layout.fold(draw))
        return v

    # --- what it tells ------------------------------------------------------------------------

    def logging(self) -> OrderedDict[str, str]:
        shown = OrderedDict[str, str]()
        if self._ladder is not None and self._ladder.meter.is_complete:
            rejection = self._ladder.meter.rejection.mean().item()
            shown["replicas"] = str(len(self.betas))
            shown["swaps"] = f"{1.0 - rejection:.2f}"
        shown.update(super().logging())
        return shown

    def diagnostics(self) -> dict[str, Any]:
        """Numbers of the draws after warm-up, see :class:`ParallelTempering`; under ``"tempering"``
        those of the ladder."""
        result = super().diagnostics()
        if self._report is not None:
            result["tempering"] = self._report.to_dict(self._layout)
        return result


def _check_end(path: Path, target: RBM) -> None:
    """Refuse a path that ends at another machine than the target."""
    end, message = path.target, "the path does not end at the target"
    if (
        path.batch_shape != target.parameter_batch_shape
        or path.num_visible != target.event_shape[0]
    ):
        raise ValueError(
            f"{message}: its machine has batch shape {tuple(path.batch_shape)} and "
            f"{path.num_visible} units, the target {tuple(target.parameter_batch_shape)} and "
            f"{target.event_shape[0]}"
        )
    with torch.no_grad():
        generator = Generator(target.weight.device).manual_seed(0)
        shape = (8, *path.batch_shape, path.num_visible)
        neutral = target.visible.neutral()
        v = neutral.natural_sample(neutral.natural_bias.expand(shape), generator)
        mine, other = (machine.compact().free_energy(v) for machine in (target, end))
    scale = 1.0 + mine.abs().max()
    if not bool(((mine - other).abs() < 1e-4 * scale).all()):
        raise ValueError(f"{message}: their free energies differ at random states")
