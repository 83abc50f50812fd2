# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model does with data: energies, activations, features, classes, learning curves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_ebm import nn, plotting
from pyro_ebm.distributions import RBM, BernoulliRBM, IsingRBM
from pyro_ebm.distributions.units import Bernoulli, Gaussian

V, H = 6, 4


def machine() -> BernoulliRBM:
    torch.manual_seed(1)
    return BernoulliRBM(
        torch.randn(V, H).double(), torch.randn(V).double(), torch.randn(H).double()
    )


def bits(*shape: int) -> torch.Tensor:
    return torch.bernoulli(torch.full(shape, 0.5)).double()


def caption(figure: Any) -> str:
    return figure._supxlabel.get_text() if figure._supxlabel else ""


class TestEnergyHistogram:
    def test_densities(self, tmp_path: Path) -> None:
        rbm = machine()
        rows = {"train": bits(400, V), "chains": bits(5, 40, V)}
        figure = plotting.energy_histogram(rbm, rows, num_bins=10)
        ax = figure.axes[0]
        assert len(ax.patches) == 2
        for patch, values in zip(ax.patches, rows.values(), strict=True):
            density, edges, _ = patch.get_data()
            energies = rbm.free_energy(values.reshape(-1, V)).numpy()
            counts = np.histogram(energies, edges)[0]
            np.testing.assert_allclose(density, counts / len(energies) / np.diff(edges))
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        mean = rbm.free_energy(rows["train"]).mean().item()
        assert texts[0].startswith(f"train: mean {mean:.1f}") and "n = 400" in texts[0]
        assert "n = 200" in texts[1] and "nats" in ax.get_xlabel()
        plotting.save(figure, tmp_path / "a.png")

    def test_far_rows_are_counted(self) -> None:
        """One row in a thousand is left out at either end, and said."""
        dist = BernoulliRBM(torch.zeros(1, 1), torch.tensor([-900.0]), torch.zeros(1))
        rows = torch.zeros(5000, 1)
        rows[7] = 1.0
        figure = plotting.energy_histogram(dist, {"rows": rows})
        assert caption(figure) == "1 of 5000 rows lie outside"
        assert figure.axes[0].get_xlim()[1] < 1.0

    def test_modules_and_constant_energies(self, tmp_path: Path) -> None:
        figure = plotting.energy_histogram(nn.RBM(V, H, seed=0), {"a": torch.ones(3, V)})
        plotting.save(figure, tmp_path / "a.png")

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="dictionary of rows"):
            plotting.energy_histogram(machine(), {})
        with pytest.raises(ValueError, match="dictionary of rows"):
            plotting.energy_histogram(machine(), bits(3, V))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"rows\['test'\] must have shape"):
            plotting.energy_histogram(machine(), {"test": bits(3, V + 1)})
        with pytest.raises(ValueError, match="num_bins"):
            plotting.energy_histogram(machine(), {"test": bits(3, V)}, num_bins=0)


class TestHiddenActivations:
    def test_dead_and_saturated_units(self, tmp_path: Path) -> None:
        rbm = BernoulliRBM(torch.zeros(V, 4), torch.zeros(V), torch.tensor([0.0, -20.0, 20.0, 1.0]))
        figure = plotting.hidden_activations(rbm, bits(50, V), max_rows=10)
        values = figure.axes[0].images[0].get_array()
        expected = torch.sigmoid(torch.tensor([-20.0, 0.0, 1.0, 20.0])).numpy()
        np.testing.assert_allclose(values, np.broadcast_to(expected, (10, 4)), rtol=1e-5)
        assert figure.axes[0].images[0].get_clim() == (0.0, 1.0)
        assert "1 dead (below 0.01), 1 saturated (above 0.99)" in caption(figure)
        heights = [p.get_height() for p in figure.axes[1].patches if p.get_width() < 0.03]
        assert sum(heights[-40:]) == 4
        plotting.save(figure, tmp_path / "a.png")

    def test_map_is_the_conditional_mean(self) -> None:
        rbm, rows = machine(), bits(30, V)
        figure = plotting.hidden_activations(rbm, rows, sort=False)
        expected = rbm.hidden_given(rows).mean
        np.testing.assert_allclose(figure.axes[0].images[0].get_array(), expected)
        shown = plotting.hidden_activations(rbm, rows, sort=False, max_units=2)
        np.testing.assert_allclose(shown.axes[0].images[0].get_array(), expected[:, [0, 3]])

    def test_scales_of_other_units(self) -> None:
        ising = IsingRBM(torch.zeros(V, 2), torch.zeros(V), torch.tensor([0.0, -9.0]))
        figure = plotting.hidden_activations(ising, 2.0 * bits(5, V) - 1.0)
        assert figure.axes[0].images[0].get_clim() == (-1.0, 1.0)
        assert "1 dead (below -0.98), 0 saturated (above 0.98)" in caption(figure)
        gaussian = RBM(
            Bernoulli(torch.zeros(V)), Gaussian(torch.zeros(2), torch.ones(2)), torch.ones(V, 2)
        )
        figure = plotting.hidden_activations(gaussian, bits(5, V))
        assert "dead" not in caption(figure)

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"threshold": 0.5}, "threshold"),
            ({"max_rows": 0}, "max_rows"),
            ({"max_units": 0}, "max"),
        ],
    )
    def test_options(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            plotting.hidden_activations(machine(), bits(5, V), **options)


class TestEmbedding:
    def test_ready_points(self, tmp_path: Path) -> None:
        points, labels = np.random.default_rng(0).normal(size=(300, 2)), np.arange(300) % 3
        figure = plotting.embedding(points, labels, ["a", "b", "c"])
        ax = figure.axes[0]
        drawn = np.asarray(ax.collections[0].get_offsets())
        order = np.lexsort(drawn.T), np.lexsort(points.T)
        np.testing.assert_allclose(drawn[order[0]], points[order[1]])
        # Every point has the colour of its class, which its legend says.
        colours = ax.collections[0].get_facecolors()[order[0]][:, :3]
        assert [len(np.unique(colours[labels[order[1]] == k], axis=0)) for k in range(3)] == [1] * 3
        assert len(np.unique(colours, axis=0)) == 3
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b", "c"]
        assert sorted(t.get_text() for t in ax.texts) == ["a", "b", "c"]
        assert caption(figure) == "300 rows"
        plotting.save(figure, tmp_path / "a.pdf")

    def test_tsne_keeps_clusters_apart(self) -> None:
        labels = torch.arange(60) % 3
        features = torch.randn(60, 8) + 20.0 * torch.nn.functional.one_hot(labels, 8)
        figure = plotting.embedding(features, labels, perplexity=5.0, max_points=45)
        points = np.asarray(figure.axes[0].collections[0].get_offsets())
        assert points.shape == (45, 2)
        classes = np.random.default_rng(0).permutation(60)[:45] % 3
        distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        assert (classes[distance.argmin(1)] == classes).all()
        assert caption(figure) == "t-SNE of 45 of 60 rows, 8 features, perplexity 5, seed 0"

    def test_names_stand_apart_in_one_cluster(self) -> None:
        """Of two classes whose medians coincide, each is named where it is."""
        x = np.linspace(-1.0, 1.0, 200)
        points = np.stack([x, np.zeros(200)], 1)
        labels = (np.abs(x) < 0.5).astype(int)
        texts = plotting.embedding(points, labels).axes[0].texts
        (outer,) = [t.get_position()[0] for t in texts if t.get_text() == "0"]
        (inner,) = [t.get_position()[0] for t in texts if t.get_text() == "1"]
        assert abs(outer) > 0.5 and abs(inner) < 0.3

    def test_many_classes_have_markers(self) -> None:
        labels = np.arange(25)
        ax = plotting.embedding(np.random.rand(25, 2), labels).axes[0]
        assert [len(c.get_offsets()) for c in ax.collections] == [10, 10, 5]
        assert len(ax.get_legend().get_texts()) == 25

    def test_errors(self) -> None:
        points = torch.rand(10, 3)
        labels = torch.zeros(10, dtype=torch.long)
        for bad, words in (
            (labels[:5], r"labels must have shape \(10,\), got \(5,\)"),
            (labels - 1, "whole numbers >= 0"),
            (labels + 0.5, "whole numbers >= 0"),
            (labels + 70, "71 classes"),
        ):
            with pytest.raises(ValueError, match=words):
                plotting.embedding(points, bad)
        with pytest.raises(ValueError, match="labels has class 1, but there are 1 names"):
            plotting.embedding(points, labels + 1, ["a"])
        with pytest.raises(ValueError, match="perplexity must be above 0 and below"):
            plotting.embedding(points, labels, perplexity=10.0)
        with pytest.raises(ValueError, match="D >= 2"):
            plotting.embedding(points[:, :1], labels)
        with pytest.raises(ValueError, match="NaN"):
            plotting.embedding(points * torch.nan, labels)
        with pytest.raises(ValueError, match="max_points"):
            plotting.embedding(points, labels, max_points=0)


class TestConfusionMatrix:
    def test_counts_and_shares(self, tmp_path: Path) -> None:
        true = torch.tensor([0, 0, 0, 0, 1, 1])
        figure = plotting.confusion_matrix(true, [0, 0, 0, 1, 1, 1], ["a", "b", "c"])
        ax = figure.axes[0]
        expected = np.array([[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        np.testing.assert_allclose(ax.images[0].get_array(), expected)
        words = [text.get_text() for text in ax.texts]
        assert words == ["3", "75.0 %", "1", "25.0 %", "2", "100.0 %"]
        assert [text.get_position()[0] for text in ax.texts] == [0, 0, 1, 1, 1, 1]
        assert [t.get_text() for t in ax.get_yticklabels()] == ["a  (4)", "b  (2)", "c  (0)"]
        assert caption(figure) == "1 of 6 rows wrong (16.67 %)"
        plotting.save(figure, tmp_path / "a.png")

    def test_errors(self) -> None:
        assert plotting.confusion_matrix([0, 1], [0, 2]).axes[0].images[0].get_size() == (3, 3)
        with pytest.raises(ValueError, match=r"predicted must have shape \(2,\)"):
            plotting.confusion_matrix([0, 1], [0])
        with pytest.raises(ValueError, match="predicted has class 2, but there are 2 names"):
            plotting.confusion_matrix([0, 1], [0, 2], ["a", "b"])
        with pytest.raises(ValueError, match="true must be whole numbers"):
            plotting.confusion_matrix([0.5, 1], [0, 1])


def run(*values: float, seconds: float = 10.0) -> list[dict[str, Any]]:
    return [
        {"epoch": i + 1, "loss_train": x, "loss_validation": x + 1, "seconds": seconds}
        for i, x in enumerate(values)
    ]


class TestLearningCurves:
    def curves(self, ax: Any) -> list[np.ndarray]:
        return [line.get_xydata() for line in ax.get_lines() if len(line.get_xydata())]

    def test_means_and_bands(self, tmp_path: Path) -> None:
        runs = {"a": [run(1.0, 2.0), run(3.0, 6.0)], "b": run(5.0, 7.0)}
        figure = plotting.learning_curves(runs, [("loss_train", "loss_validation"), "loss_train"])
        both, single = figure.axes
        lines = self.curves(both)
        np.testing.assert_allclose(lines[0], [[1, 2.0], [2, 4.0]])
        np.testing.assert_allclose(lines[1], [[1, 3.0], [2, 5.0]])
        np.testing.assert_allclose(lines[2], [[1, 5.0], [2, 7.0]])
        band = both.collections[0].get_paths()[0].vertices
        assert {tuple(point) for point in band} >= {(1, 1), (2, 2), (2, 6), (1, 3)}
        assert len(both.collections) == 2  # one seed has no band
        assert [t.get_text() for t in both.get_legend().get_texts()] == ["train", "validation"]
        assert both.get_ylabel() == "loss" and single.get_ylabel() == "loss, train"
        assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]
        assert caption(figure) == "lines: means of 1 to 2 seeds; bands: smallest to largest"
        plotting.save(figure, tmp_path / "a.png")

    def test_spread(self) -> None:
        seeds = [run(1.0), run(3.0), run(8.0)]
        for band, half in (("std", 13.0**0.5), ("stderr", (13.0 / 3.0) ** 0.5)):
            ax = plotting.learning_curves({"a": seeds}, ["loss_train"], band=band).axes[0]
            heights = ax.collections[0].get_paths()[0].vertices[:, 1]
            assert heights.min() == pytest.approx(4.0 - half)
            assert heights.max() == pytest.approx(4.0 + half)

    def test_time(self) -> None:
        """Seeds of different speed stand at their mean time, in the unit that fits."""
        seeds = [run(1.0, 1.0, seconds=60.0), run(3.0, 3.0, seconds=120.0)]
        ax = plotting.learning_curves({"a": seeds}, ["loss_train"], x="seconds").axes[0]
        np.testing.assert_allclose(self.curves(ax)[0], [[1.5, 2.0], [3.0, 2.0]])
        assert ax.get_xlabel() == "time of training (min)"
        ax = plotting.learning_curves(run(1.0, 2.0), ["loss_train"], x="seconds").axes[0]
        np.testing.assert_allclose(self.curves(ax)[0][:, 0], [10.0, 20.0])
        assert ax.get_xlabel() == "time of training (s)"

    def test_gaps(self) -> None:
        """A metric of every other epoch, and a run that stopped early."""
        long, short = run(1.0, 2.0, 3.0), run(5.0)
        long[1].pop("loss_train")
        long[2]["loss_validation"] = float("nan")
        ax = plotting.learning_curves({"a": [long, short]}, [("loss_train", "loss_validation")])
        first, second = self.curves(ax.axes[0])
        np.testing.assert_allclose(first, [[1, 3.0], [3, 3.0]])
        np.testing.assert_allclose(second, [[1, 4.0], [2, 3.0]])

    def test_real_history(self, tmp_path: Path) -> None:
        history = [{"epoch": 1, "free_energy_train": -3.0, "seconds": 1.0}]
        figure = plotting.learning_curves(history, ["free_energy_train"])
        assert figure.axes[0].get_ylabel() == "mean free energy (nats), train"
        assert not figure.legends
        plotting.save(figure, tmp_path / "a.png")

    @pytest.mark.parametrize(
        "histories, metrics, options, words",
        [
            ({"a": run(1.0)}, ["los"], {}, r"run 'a' has no metrics \['los'\]; it has \['epoch'"),
            ({"a": []}, ["loss_train"], {}, "history of 'a' holds no epochs"),
            ({"a": [run(1.0), []]}, ["loss_train"], {}, "holds no epochs"),
            ([], ["loss_train"], {}, "holds no epochs"),
            ({}, ["loss_train"], {}, "at least one run"),
            (run(1.0), [], {}, "at least one metric"),
            (run(1.0), ["loss_train"], {"x": "hours"}, "x must be 'epoch' or 'seconds'"),
            (run(1.0), ["loss_train"], {"band": "iqr"}, "band must be one of"),
            ([{"epoch": 1, "a": 2.0}], ["a"], {"x": "seconds"}, "needs the seconds"),
        ],
    )
    def test_errors(
        self, histories: Any, metrics: list[str], options: dict[str, str], words: str
    ) -> None:
        with pytest.raises(ValueError, match=words):
            plotting.learning_curves(histories, metrics, **options)
