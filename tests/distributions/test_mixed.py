# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Layers of several families: bookkeeping of blocks, and machines against enumeration."""

import copy
import itertools
import math
import pickle

import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_ebm.distributions import RBM, CollapsedSweep, GibbsSweep, units
from pyro_ebm.distributions.conditionals import Concatenated
from pyro_ebm.distributions.constraints import concatenation
from pyro_ebm.infer import (
    MALA,
    BlockGibbs,
    GibbsWithGradients,
    exact_log_partition,
    exact_moments,
    free_energy_model,
    pseudo_log_likelihood,
)
from pyro_ebm.infer.paths import MachinePath
from tests.distributions.families import random_rbm, random_unit, uniform
from tests.infer.reference import Z_LIMIT, z_scores

ALL = ["gaussian", "ising", "bernoulli", "categorical", "multinomial", "relu", "low_rank"]


def make(families: list[str], batch: tuple[int, ...] = ()) -> units.Mixed:
    return units.Mixed([random_unit(family, batch) for family in families])


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def states(unit: units.Mixed, count: int) -> Tensor:
    return unit.sample(torch.zeros(count, unit.size).double())


class TestBlocks:
    @pytest.mark.parametrize("batch", [(), (3,)], ids=str)
    def test_every_number_is_a_sum_or_a_join_over_blocks(self, batch):
        unit = make(ALL, batch)
        assert unit.batch_shape == batch and unit.size == sum(b.size for b in unit.blocks)
        assert unit.num_units == 2 + 3 + 3 + 2 + 1 + 2 + 1
        t = uniform((4, *batch, unit.size), -1, 1)
        x = unit.sample(t)
        for name, argument in (("energy", x), ("log_partition", t), ("natural_log_partition", t)):
            parts = [getattr(b, name)(argument[..., s]) for s, b in unit.parts()]
            close(getattr(unit, name)(argument), torch.stack(parts).sum(0))
        for name in ("mean", "natural_mean"):
            parts = [getattr(b, name)(t[..., s]) for s, b in unit.parts()]
            close(getattr(unit, name)(t), torch.cat(parts, -1))
        steps = [b.natural_log_partition_step(t[..., s], 0.2, 0.7) for s, b in unit.parts()]
        close(unit.natural_log_partition_step(t, 0.2, 0.7), torch.stack(steps).sum(0))

    def test_gradients_are_named_by_block(self):
        unit = make(ALL)
        x = states(unit, 4)
        t, mean = uniform(x.shape, -1, 1), unit.natural_mean(x)
        for method, arguments in (
            ("mean_parameters_gradient", (x,)),
            ("log_partition_gradient", (t,)),
            ("natural_log_partition_gradient", (x, mean)),
        ):
            blockwise: dict[str, Tensor] = {}
            for i, (s, b) in enumerate(unit.parts()):
                own = getattr(b, method)(*(a[:, s] for a in arguments))
                blockwise |= {f"{i}_{n}": g for n, g in own.items()}
            gradient = getattr(unit, method)(*arguments)
            assert gradient.keys() == blockwise.keys() == unit.parameters.keys()
            assert all(torch.equal(gradient[n], blockwise[n]) for n in gradient)

    def test_names_replace_and_map(self):
        unit = make(["gaussian", "ising", "gaussian"])
        names = ["0_loc", "0_precision", "1_bias", "2_loc", "2_precision"]
        assert list(unit.parameters) == names
        new = unit.replace(**{"2_loc": torch.tensor([5.0, 6.0]).double()})
        assert new.blocks[2].loc.tolist() == [5.0, 6.0] and new.blocks[0] is unit.blocks[0]
        with pytest.raises(TypeError, match=r"Mixed has the parameters .* got \['3_bias'\]"):
            unit.replace(**{"3_bias": torch.zeros(1)})
        single = unit.map(torch.Tensor.float)
        assert single.dtype == torch.float32 and all(b.dtype == single.dtype for b in single.blocks)
        for same in (copy.deepcopy(unit), pickle.loads(pickle.dumps(unit))):
            assert torch.equal(same.natural_bias, unit.natural_bias)

    def test_event_dimensions_are_those_of_the_blocks(self):
        unit = make(["low_rank", "categorical"])
        dims = [unit.parameter_event_dim(name) for name in unit.parameters]
        assert dims == [1, 1, 2, 2]

    def test_nested_layers_are_joined(self):
        inner = make(["ising", "relu"])
        unit = units.Mixed([inner, random_unit("bernoulli")])
        assert [type(b).__name__ for b in unit.blocks] == ["Ising", "ReLU", "Bernoulli"]
        assert list(unit.parameters) == ["0_bias", "1_bias", "1_precision", "2_bias"]

    def test_batch_shapes_broadcast_over_blocks(self):
        blocks = [random_unit("gaussian", (3, 1)), random_unit("ising"), random_unit("relu", (2,))]
        unit = units.Mixed(blocks)
        assert unit.batch_shape == (3, 2) and unit.natural_bias.shape == (3, 2, 7)
        assert unit.mean().shape == unit.sample().shape == (3, 2, 7)
        # No draw serves two elements, whichever parameters they share.
        draws = unit.natural_sample(torch.zeros(7).double())
        assert draws.shape == (3, 2, 7)
        many = unit.natural_sample(torch.zeros(200, 1, 1, 7).double())
        assert not torch.equal(many[:, 0, 0, 2:5], many[:, 0, 1, 2:5])
        law = unit.conditional()
        assert law.batch_shape == (3, 2) and law.mean.shape == (3, 2, 7)
        with pytest.raises(ValueError, match=r"do not broadcast: \[\(2,\), \(3,\)\]"):
            units.Mixed([random_unit("ising", (2,)), random_unit("ising", (3,))])

    def test_kind_of_the_layer(self):
        assert make(["ising", "categorical"]).is_discrete
        assert not make(["ising", "gaussian"]).is_discrete
        assert make(["gaussian", "low_rank"]).is_gaussian
        assert not make(["gaussian", "relu"]).is_gaussian

    @pytest.mark.parametrize(
        ("blocks", "error", "message"),
        [
            ([], ValueError, "at least one layer"),
            ([units.Ising(torch.zeros(2)), 3], TypeError, "block 1 must be a Unit, got int"),
            (
                [units.Ising(torch.zeros(2)), units.Ising(torch.zeros(2).double())],
                ValueError,
                "one dtype, got .*float32.*float64",
            ),
        ],
    )
    def test_bad_blocks_are_named(self, blocks, error, message):
        with pytest.raises(error, match=message):
            units.Mixed(blocks)


class TestEnumeration:
    FINITE = ["categorical", "multinomial", "bernoulli"]

    def test_states_are_all_combinations_in_order(self):
        unit = make(self.FINITE)
        tables = [b.states(0, b.num_states) for b in unit.blocks]
        expected = torch.stack([torch.cat(rows) for rows in itertools.product(*tables)])
        assert unit.num_states == len(expected) == 9 * 10 * 8
        assert torch.equal(unit.states(0, unit.num_states), expected)
        for start, stop in ((0, 1), (7, 9), (77, 93), (700, 720), (5, 600), (79, 161)):
            assert torch.equal(unit.states(start, stop), expected[start:stop])

    def test_numbers_of_states_beyond_an_integer(self):
        unit = units.Mixed([units.Ising(torch.zeros(40)), units.Bernoulli(torch.zeros(40))])
        assert unit.num_states == 2**80
        bits = unit.states(2, 5)
        assert torch.equal(bits[:, :40], -torch.ones(3, 40))
        assert bits[:, -3:].tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]

    def test_infinite_blocks(self):
        unit = make(["ising", "gaussian"])
        assert unit.num_states is None
        with pytest.raises(ValueError, match="infinite block cannot be enumerated"):
            unit.states(0, 1)
        with pytest.raises(ValueError, match="no finite set of states per unit"):
            unit.unit_states()


class TestSelect:
    def test_whole_blocks_may_go(self):
        unit = make(["ising", "multinomial", "low_rank", "gaussian"])
        mask = torch.tensor([1, 0, 1, 0, 0, 0, 1, 1, 0, 0]).bool()
        part = unit.select(mask)
        assert [type(b).__name__ for b in part.blocks] == ["Ising", "LowRankGaussian"]
        x = states(unit, 5)
        energy = part.energy(x[:, mask]) + unit.select(~mask).energy(x[:, ~mask])
        close(energy, unit.energy(x))
        assert len(unit.select(torch.ones(10).bool()).blocks) == 4

    def test_units_of_several_entries_are_not_divided(self):
        unit = make(["ising", "multinomial", "low_rank", "categorical"])
        for entry, message in ((3, "Multinomial"), (6, "LowRankGaussian"), (9, "one-hot groups")):
            mask = torch.zeros(unit.size).bool()
            mask[entry] = True
            with pytest.raises(ValueError, match=message):
                unit.select(mask)
        with pytest.raises(ValueError, match="at least one entry"):
            unit.select(torch.zeros(unit.size).bool())

    def test_clamping_a_correlated_block(self):
        rbm = RBM(make(["low_rank", "ising"]), random_unit("bernoulli"), uniform((5, 3), -1, 1))
        mask = torch.tensor([1, 1, 0, 1, 0]).bool()
        v = states(rbm.visible, 6)
        clamped = rbm.clamp(mask, v)
        close(clamped.log_prob(v[:, ~mask]), rbm.log_prob(v))


def test_interpolation_needs_the_same_blocks():
    unit = make(["ising", "gaussian"])
    for other in (make(["gaussian", "ising"]), make(["ising"]), random_unit("ising")):
        with pytest.raises(ValueError, match="base must have the blocks"):
            unit.interpolate(other, 0.5)
    hidden, weight = random_unit("ising"), torch.zeros(5, 3).double()
    with pytest.raises(ValueError, match="machine 1 of the path differs"):
        MachinePath(
            [RBM(make(f), hidden, weight) for f in (["ising", "gaussian"], ["gaussian", "ising"])]
        )


def test_numbers_drawn_ahead_give_the_law():
    unit = make(["ising", "bernoulli"])
    theta = unit.natural_bias.expand(100_000, -1)
    noise = unit.natural_noise(theta.shape, torch.Generator().manual_seed(0))
    draws = unit.natural_sample_from(theta.clone(), noise)
    assert bool(unit.support.check(draws).all())
    assert z_scores(draws, unit.mean()).abs().max() < Z_LIMIT
    # Where some blocks take no numbers none are drawn.
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert make(["ising", "gaussian"]).natural_noise(theta.shape, generator) is None
    assert torch.equal(generator.get_state(), before)


class TestConditional:
    def test_law_of_the_layer(self):
        unit = make(["gaussian", "ising", "categorical", "low_rank"], (2,))
        t = uniform((4, 2, unit.size), -1, 1)
        law = unit.conditional(t)
        x = law.sample()
        assert law.batch_shape == (4, 2) and x.shape == t.shape and not law.has_rsample
        assert law.support.event_dim == 1 and bool(law.support.check(x).all())
        close(law.mean, unit.mean(t))
        assert law.variance.shape == law.mean.shape
        close(law.log_prob(x), -unit.energy(x) + (x * t).sum(-1) - unit.log_partition(t))
        assert law.sample((3,)).shape == (3, 4, 2, unit.size)

    def test_expand_validation_and_plates(self):
        law = make(["gaussian", "ising"]).conditional()
        larger = law.expand((3,))
        assert type(larger) is Concatenated and larger.batch_shape == (3,)
        x = law.sample()
        close(larger.log_prob(x), law.log_prob(x).expand(3))
        for one in (law, larger):
            with pytest.raises(ValueError, match="support"):
                one.log_prob(torch.full((5,), 0.5).double())
        with pyro.plate("rows", 3):
            assert pyro.sample("x", law).shape == (3, 5)
        smooth = Concatenated(
            [make(["gaussian"]).conditional(), random_unit("low_rank").conditional()]
        )
        assert smooth.has_rsample and smooth.rsample((2,)).shape == (2, 4)


class TestSupport:
    def test_check(self):
        support = make(["ising", "categorical", "relu"]).support
        good = torch.tensor([1.0, -1, 1, 0, 1, 0, 0, 0, 1, 0.5, 0.0])
        assert bool(support.check(good)) and support.is_discrete and support.event_dim == 1
        for entry, value in ((0, 0.0), (3, 1.0), (9, -0.1), (10, math.nan)):
            bad = good.clone()
            bad[entry] = value
            assert not bool(support.check(bad))
        assert support.check(torch.stack([good, bad])).tolist() == [True, False]
        assert repr(support).startswith("concatenation(3 of ")

    def test_real_blocks_have_a_transform(self):
        support = concatenation([constraints.real_vector, make(["relu"]).support], [2, 2])
        x = torch.tensor([[-1.0, 2.0, -3.0, 0.5]])
        y = biject_to(support)(x)
        assert y[0, :2].tolist() == [-1.0, 2.0] and bool(support.check(y).all())
        torch.testing.assert_close(biject_to(support).inv(y), x)
        assert biject_to(support).log_abs_det_jacobian(x, y).shape == (1,)


class TestMachine:
    def test_exact_log_partition_by_hand(self):
        """Sum over the discrete entries of both layers; the Gaussian ones in closed form."""
        visible = units.Mixed([random_unit("ising", num_units=2), random_unit("gaussian")])
        hidden = random_unit("bernoulli")
        rbm = RBM(visible, hidden, uniform((4, 3), -1, 1))
        spins, numbers = visible.blocks
        total = []
        for s in spins.states(0, 4):
            for h in hidden.states(0, 8):
                field = rbm.weight @ h
                own = -spins.energy(s) - hidden.energy(h) + s @ field[:2]
                mean_energy = (
                    field[2:] @ numbers.loc + 0.5 * (field[2:] ** 2 / numbers.precision).sum()
                )
                volume = 0.5 * (2 * math.pi / numbers.precision).log().sum()
                total.append(own + mean_energy + volume)
        close(exact_log_partition(rbm), torch.stack(total).logsumexp(0))

    def test_two_layers_that_are_partly_gaussian(self):
        unit = make(["gaussian", "low_rank"])
        rbm = RBM(unit, random_unit("gaussian"), uniform((4, 2), -0.2, 0.2))
        dense = units.LowRankGaussian(
            torch.cat([b.loc for b in unit.blocks]),
            torch.cat([b.precision for b in unit.blocks]),
            torch.cat([torch.zeros(2, 2).double(), unit.blocks[1].cov_factor]),
        )
        same = RBM(dense, rbm.hidden, rbm.weight)
        close(exact_log_partition(rbm), exact_log_partition(same))
        close(exact_moments(rbm).covariance, exact_moments(same).covariance)
        close(CollapsedSweep(rbm).coupling, CollapsedSweep(same).coupling)

    @pytest.mark.parametrize("scale", [0.5, 3.0])
    def test_only_continuous_entries_can_make_z_infinite(self, scale):
        visible = make(["ising", "gaussian"])
        hidden = make(["gaussian", "categorical"])
        weight = torch.full((5, 8), 50.0).double()
        weight[3:, :2] = scale * torch.eye(2)
        rbm = RBM(
            visible.replace(**{"1_precision": torch.ones(2).double()}),
            hidden.replace(**{"0_precision": torch.ones(2).double()}),
            weight,
        )
        if scale < 1:
            rbm.check_normalizable()
        else:
            with pytest.raises(ValueError, match=r"Mixed-Mixed machine .* is 3 and must be"):
                rbm.check_normalizable()

    def test_rectified_blocks_keep_their_cone(self):
        one = torch.ones(2).double()
        hidden = units.Mixed([units.Ising(one), units.ReLU(one, one)])
        weight = torch.zeros(2, 4).double()
        weight[:, 2:] = -50.0
        RBM(units.ReLU(one, one), hidden, weight).check_normalizable()
        with pytest.raises(ValueError, match="not normalisable"):
            RBM(units.Gaussian(one, one), hidden, weight).check_normalizable()

    def test_families_that_do_not_say_their_quadratic_part(self):
        class Strange(units.Gaussian):
            def covariance_root(self, weight: Tensor) -> None:
                return None

        one = torch.ones(2).double()
        strange = Strange(one, one)
        weight = 0.1 * torch.eye(2).double()
        for pair in ((strange, units.Gaussian(one, one)), (units.ReLU(one, one), strange)):
            with pytest.raises(ValueError, match="Strange does not say"):
                RBM(*pair, weight).check_normalizable()
        mixed = units.Mixed([strange])
        with pytest.raises(ValueError, match="Mixed does not say"):
            RBM(mixed, strange, weight).check_normalizable()

    def test_a_mixed_hidden_layer_in_batches_of_collapsed_chains(self):
        visible, hidden = random_unit("gaussian", (3,)), make(["categorical", "low_rank"])
        batched = units.Mixed([hidden.blocks[0], random_unit("low_rank", (3,))])
        for unit in (hidden, batched):
            rbm = RBM(visible, unit, uniform((2, 8), -0.2, 0.2))
            sweep = GibbsSweep(rbm, torch.Generator().manual_seed(0))
            v = rbm.expand((3,)).visible.sample(torch.zeros(3000, 3, 2).double())
            ends = [sweep.run(v, 6, collapse=collapse) for collapse in (True, False)]
            first, second = (end.mean(0) for end in ends)
            error = (ends[0].var(0) / len(v) + ends[1].var(0) / len(v)).sqrt()
            assert ((first - second) / error).abs().max() < Z_LIMIT

    def test_pseudo_log_likelihood_of_a_layer_and_of_its_parts(self):
        """Without weights it is the log-likelihood, whatever the families."""
        unit = make(["ising", "multinomial", "categorical"])
        rbm = RBM(unit, random_unit("bernoulli"), torch.zeros(unit.size, 3).double())
        v = states(unit, 5)
        expected = rbm.normalize(exact_log_partition(rbm)).log_prob(v)
        close(pseudo_log_likelihood(rbm, v), expected)
        mixed = random_rbm(("mixed", "ising"))
        with pytest.raises(ValueError, match="no finite set of states"):
            pseudo_log_likelihood(mixed, states(mixed.visible, 2))

    def test_kernels_refuse_what_they_cannot_do(self):
        mixed, labels = random_rbm(("mixed", "ising")), random_rbm(("labels", "ising"))
        with pytest.raises(ValueError, match="need continuous visible units, got Mixed"):
            free_energy_model(mixed)
        with pytest.raises(ValueError, match="Gaussian visible units, got Mixed"):
            MALA(mixed)
        for rbm in (mixed, labels):
            with pytest.raises(ValueError, match="BlockGibbs"):
                GibbsWithGradients(rbm)
        model = BlockGibbs(lambda: pyro.sample("v", labels))
        with pytest.raises(ValueError, match="several families; use MetropolisBlockGibbs"):
            MCMC(model, 1, 1, disable_progbar=True).run()
        with pytest.raises(ValueError, match="the layers are Mixed and Ising"):
            BlockGibbs(mixed, collapse=True)

    def test_nuts_of_real_blocks(self):
        rbm = RBM(make(["gaussian", "relu"]), random_unit("ising"), uniform((4, 3), -0.5, 0.5))
        mcmc = MCMC(NUTS(free_energy_model(rbm)), 3, 3, disable_progbar=True)
        mcmc.run()
        assert mcmc.get_samples()["v"].shape == (3, 4)
