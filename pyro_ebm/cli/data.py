# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Data sets as states of a visible layer."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from torch import Tensor

from pyro_ebm import datasets
from pyro_ebm.datasets import Dataset

__all__ = ["BINARIZATIONS", "DataOptions", "default_binarization"]

BINARIZATIONS = ("dynamic", "static", "threshold", "none")


def default_binarization(family: str) -> str:
    """How grey levels become states of a family, where nothing else is asked for."""
    return {"bernoulli": "dynamic", "ising": "static"}.get(family, "none")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which data, and how grey levels become states of the visible layer.

    :param str name: a name of :func:`pyro_ebm.datasets.available`.
    :param str binarization: "dynamic" (new bits at each visit), "static" (bits drawn once),
        "threshold", or "none".
    :param float threshold: grey level above which a pixel is on.
    :param int validation: images held out of the training set.
    :param int seed: seed of static bits, and of the bits that likelihoods are computed on.
    :param str root: folder to look in first.
    :param str family: the visible family; bits of "ising" are -1 and 1.
    """

    name: str
    binarization: str = "dynamic"
    threshold: float = 0.5
    validation: int = 0
    seed: int = 0
    root: str | None = None
    family: str = "bernoulli"

    def __post_init__(self) -> None:
        if self.binarization not in BINARIZATIONS:
            raise ValueError(
                f"binarization must be one of {BINARIZATIONS}, got {self.binarization!r}"
            )
        if self.family == "ising" and self.binarization not in ("static", "threshold"):
            raise ValueError("Ising units need --binarize static or threshold")
        if self.family == "bernoulli" and self.binarization == "none":
            raise ValueError("Bernoulli units need --binarize dynamic, static or threshold")
        if self.family in ("gaussian", "relu") and self.binarization == "dynamic":
            raise ValueError(f"{self.family} units take no --binarize dynamic")

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DataOptions":
        """The options that :meth:`to_dict` wrote.

        :raises ValueError: for unknown names.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown data options {unknown}")
        return cls(**values)

    def load(self, *, progress: bool = True) -> Dataset:
        """Find or download the set."""
        return datasets.load(
            self.name, root=self.root, validation=self.validation, progress=progress
        )

    def rows(self, data: Dataset, split: Literal["train", "validation", "test"]) -> Tensor:
        """States of the visible layer, the same at every call: what likelihoods are computed on."""
        if self.binarization == "none":
            return data.grey_levels(split)
        if self.binarization == "threshold":
            bits = data.binarized(split, threshold=self.threshold)
        else:
            bits = data.binarized(split, seed=self.seed)
        return 2.0 * bits - 1.0 if self.family == "ising" else bits

    def training_rows(self, data: Dataset, split: Literal["train", "validation"]) -> Tensor:
        """What the trainer gets: grey levels where it draws the bits itself."""
        return data.grey_levels(split) if self.binarization == "dynamic" else self.rows(data, split)

    def to_grey(self, states: Tensor) -> Tensor:
        """States or their means as grey levels in [0, 1]."""
        return (states + 1.0) / 2.0 if self.family == "ising" else states
