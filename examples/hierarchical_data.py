# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Images of base and new classes, a deep machine that has seen the base classes only, and its features."""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dbm_training import train_dbm
from torch import Generator, Tensor

import pyro_ebm
from pyro_ebm import datasets, nn

__all__ = ["Images", "Projection", "Split", "features", "load_images", "machine_of", "make_splits"]

#: Probabilities are kept this far from 0 and 1 before their logit is taken.
EDGE = 1e-3


@dataclass(frozen=True)
class Images:
    """Labelled images of one or more data sets, whose classes are numbered one set after the other."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    names: tuple[str, ...]
    image_shape: tuple[int, ...]
    sources: tuple[range, ...]


@dataclass(frozen=True)
class Split:
    """Classes that the machine is trained on, and those that it is not."""

    base: tuple[int, ...]
    new: tuple[int, ...]


def load_images(names: list[str], per_class: int, test_per_class: int, validation: int) -> Images:
    """The first images of every class.

    :param int validation: the last training images of each set in the place of the test images; 0 for these.
    :raises ValueError: if sets have images of different shapes.
    """
    parts: dict[str, list[Tensor]] = {"train": [], "test": []}
    labels: dict[str, list[Tensor]] = {"train": [], "test": []}
    titles: list[str] = []
    sources: list[range] = []
    shape: tuple[int, ...] | None = None
    for name in names:
        data = datasets.load(name, validation=validation)
        if shape not in (None, data.image_shape):
            raise ValueError(f"images of {name} have the shape {data.image_shape}, others {shape}")
        shape = data.image_shape
        for kind, number in (("train", per_class), ("test", test_per_class)):
            split: Any = "validation" if kind == "test" and validation else kind
            y = data.labels(split)
            rows = torch.cat([(y == k).nonzero()[:number, 0] for k in range(len(data.label_names))])
            parts[kind].append(data.grey_levels(split)[rows])
            labels[kind].append(y[rows] + len(titles))
        sources.append(range(len(titles), len(titles) + len(data.label_names)))
        titles += data.label_names
    return Images(
        torch.cat(parts["train"]),
        torch.cat(labels["train"]),
        torch.cat(parts["test"]),
        torch.cat(labels["test"]),
        tuple(titles),
        shape or (),
        tuple(sources),
    )


def make_splits(sources: tuple[range, ...], number: int, seed: int) -> list[Split]:
    """Random splits in which every class is new once.

    :param sources: the classes of each data set; each gives its share of the new ones.
    """
    generator = Generator().manual_seed(seed)
    new: list[list[int]] = [[] for _ in range(number)]
    for source in sources:
        order = torch.randperm(len(source), generator=generator)
        for part, own in zip(order.tensor_split(number), new, strict=True):
            own += sorted(source[int(k)] for k in part)
    everything = [k for source in sources for k in source]
    return [Split(tuple(k for k in everything if k not in own), tuple(own)) for own in new]


def machine_of(split: Split, images: Images, options: argparse.Namespace, folder: Path) -> nn.DBM:
    """The machine of a split: read from its folder, or trained on the base classes and written there.

    :raises SystemExit: if the one that is there was trained on other images.
    """
    file, note = folder / "model.safetensors", folder / "trained_on.json"
    rows = images.train[torch.isin(images.train_labels, torch.tensor(split.base))]
    trained_on = {
        "data": list(options.data),
        "base_classes": list(split.base),
        "per_class": options.per_class,
        "images": len(rows),
        "seed": options.seed,
    }
    if options.skip_training:
        _check_training(note, trained_on)
        return pyro_ebm.load(file)
    order = torch.randperm(len(rows), generator=Generator().manual_seed(options.seed))
    own = argparse.Namespace(**{**vars(options), "output": folder})
    started = time.process_time()
    trainer, _ = train_dbm(rows[order], own)
    print(f"CPU time of the training: {time.process_time() - started:.0f} s", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    # In this order no machine ever lies beside the note of another one.
    note.unlink(missing_ok=True)
    pyro_ebm.save(trainer.averaged, file)
    note.write_text(json.dumps(trained_on, indent=1) + "\n")
    return trainer.averaged


def _check_training(note: Path, expected: dict[str, Any]) -> None:
    """Whether a machine was trained on these images: one that has seen new classes would look too good."""
    if not note.exists():
        raise SystemExit(
            f"--skip-training: {note} is missing, which says what the machine was trained on: train it again"
        )
    found = json.loads(note.read_text())
    for name, value in expected.items():
        if found.get(name) != value:
            raise SystemExit(
                f"--skip-training: the machine of {note.parent} was trained with {name} = "
                f"{found.get(name)}, now it is {value}: repeat its options, or train again"
            )


def features(module: nn.DBM, images: Tensor) -> Tensor:
    """Mean-field probabilities of the top layer given images."""
    return module.transform(images, max_updates=50, tolerance=1e-3)


def logits(probabilities: Tensor) -> Tensor:
    """Fields of the units, which are real numbers without edges."""
    return probabilities.clamp(EDGE, 1.0 - EDGE).logit()


class Projection:
    """Principal components, whitened by the covariance within base classes.

    A class law with a variance for each feature knows nothing of their correlations; after this there are
    none left within the classes, on average over these. (To turn the axes to those of the means of base
    classes as well would be too good: these few means would then not vary at all along most of them,
    and those of a new class do.)

    :param Tensor rows: features of images of base classes, shape ``(N, F)``.
    :param Tensor labels: their classes.
    :param int dim: number of components.
    :param float ridge: part of the mean variance that is added to all of them.
    :raises ValueError: if there are not so many components, or the features do not vary along them.
    """

    def __init__(self, rows: Tensor, labels: Tensor, dim: int, ridge: float = 0.02) -> None:
        rows = rows.double()
        if not 1 <= dim <= rows.shape[1]:
            raise ValueError(f"dim must be from 1 to the {rows.shape[1]} features, got {dim}")
        self.centre = rows.mean(0)
        variance, order = torch.linalg.eigh(torch.cov(rows.T))
        if not variance[-dim] > 1e-9 * rows.shape[1]:
            raise ValueError(
                f"the features vary along less than {dim} axes: was the top layer of the machine trained "
                "too fast, so that its units are stuck at 0 or 1?"
            )
        axes = order[:, -dim:]
        inner = (rows - self.centre) @ axes
        parts = [torch.cov(inner[labels == k].T).reshape(dim, dim) for k in labels.unique()]
        within = torch.stack(parts).mean(0)
        within += ridge * within.diagonal().mean() * torch.eye(dim).to(within)
        factor = torch.linalg.cholesky(within)
        self._forward = torch.linalg.solve_triangular(factor, axes.T, upper=False).T
        self._back = factor.T @ axes.T

    def __call__(self, rows: Tensor) -> Tensor:
        """Components of rows, shape ``(..., dim)``."""
        return (rows.double() - self.centre) @ self._forward

    def inverse(self, components: Tensor) -> Tensor:
        """Features with these components, shape ``(..., F)``; the others are at their mean."""
        return self.centre + components @ self._back
