# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A callback that writes what TensorBoard shows."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.training.callbacks import Callback
from pyro_ebm.training.tensorboard import deep_pictures
from pyro_ebm.training.tensorboard.pictures import (
    activation_map,
    chain_images,
    completion_images,
    filter_images,
    tile,
)
from pyro_ebm.training.weights import weights_of

if TYPE_CHECKING:
    from pyro_ebm.training.trainer import Trainer

__all__ = ["DEEP_IMAGES", "IMAGES", "TensorBoardLogger"]

#: What can be shown as images of an RBM.
IMAGES = ("filters", "activations", "chains", "completions")
#: The same of a deep machine.
DEEP_IMAGES = (*IMAGES, "reconstructions")
#: Parts of a key that name a run of their own, so that curves of one metric share a plot.
_RUNS = ("train", "validation", "chains")
_MAIN = "train"
#: Not the seed of the rows' own bits, or completions would know what they complete.
_COMPLETION_SEED = 314_159_265


class TensorBoardLogger(Callback):
    """Writes metrics, histograms and images of a run for TensorBoard: ``tensorboard --logdir folder``.

    **Scalars.** Every number of the record. Those of training rows, validation rows and chains go to runs of
    these names under the same tag, ``free_energy_train`` and ``free_energy_validation`` for instance to the
    tag ``free_energy``, so that TensorBoard draws them in one plot.

    **Histograms.** Parameters, gradients of the last batch, and mean hidden states of the rows.

    **Images.** ``filters``: the weights of the hidden units of largest norm, mid-grey for zero.
    ``activations``: the mean hidden states of rows, a line a row. ``chains``: the visible means of the
    persistent chains given their mean hidden states. ``completions``: rows, and below them the same rows with
    one part given and the other drawn by the machine. A deep machine has filters (what a unit looks for in
    the pixels, the product of the weights below it), activations (of the mean field) and their histograms by
    layer, "filters/h1" and so on, and ``reconstructions``: rows, and below them the visible means given the
    mean field.

    Nothing of this moves chains or draws from a generator of the run: it ends as it would without the
    logger. A run that is resumed goes on in the same folder, where epochs that were lost are written again.

    :param folder: the folder of the event files.
    :param int every: epochs between histograms and images; scalars are written at every one.
    :param images: names of images out of :data:`IMAGES` (of a deep machine :data:`DEEP_IMAGES`); None for
        all that can be made.
    :param image_shape: ``(height, width)`` of a row, or ``(channels, height, width)`` with 1 or 3 channels;
        without it there are only "activations".
    :param Tensor rows: visible states to look at, shape ``(rows, V)``; None for the first
        ``num_rows`` rows that metrics look at, of the validation data if there are any.
    :param int num_rows: rows that are shown at most.
    :param int num_filters: filters that are shown at most.
    :param int num_chains: chains that are shown at most.
    :param Tensor given: boolean, shape ``(V,)``: the part of a row that completions are given; None for the
        upper half.
    :param int num_gibbs_steps: sweeps of a completion, where it cannot be drawn exactly.
    :param bool histograms: whether to write histograms.
    :raises ImportError: if TensorBoard is not installed.
    :raises ValueError: for impossible options.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int = 1,
        images: Sequence[str] | None = None,
        image_shape: Sequence[int] | None = None,
        rows: Tensor | None = None,
        num_rows: int = 16,
        num_filters: int = 100,
        num_chains: int = 64,
        given: Tensor | None = None,
        num_gibbs_steps: int = 100,
        histograms: bool = True,
    ) -> None:
        counts = {
            "every": every,
            "num_rows": num_rows,
            "num_filters": num_filters,
            "num_chains": num_chains,
            "num_gibbs_steps": num_gibbs_steps,
        }
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        _check_images(images, image_shape)
        self._writer_class = _summary_writer()
        self.folder = Path(folder)
        self.every = every
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self._images = images
        self._rows = rows
        self._given = given
        self._num_rows = num_rows
        self._num_filters = num_filters
        self._num_chains = num_chains
        self._num_gibbs_steps = num_gibbs_steps
        self._histograms = histograms
        self._writers: dict[str, Any] = {}
        self._purge: int | None = None

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Check the options against the run, and open the files.

        :raises ValueError: for images that cannot be made of the model, or of chains that there are not.
        """
        self._close()
        module = trainer.module
        for name in self._images or ():
            if not isinstance(module, nn.RBM | nn.DBM):
                raise ValueError(f"images has {name!r}, which is of an RBM or a DBM")
            if name not in IMAGES and not isinstance(module, nn.DBM):
                raise ValueError(f"images has {name!r}, which is of a DBM")
            if name == "chains" and not trainer.config.persistent:
                raise ValueError("images has 'chains', which needs persistent=True")
        if isinstance(module, nn.RBM | nn.DBM):
            self._check_sizes(module)
        # Events of epochs that a resumed run does again are dropped.
        self._purge = trainer.epoch + 1 if trainer.epoch else None
        options = json.dumps(trainer.config.to_dict(), indent=2)
        self._writer(_MAIN).add_text("config", f"```\n{options}\n```", trainer.epoch)

    def on_epoch_end(self, trainer: "Trainer", record: dict[str, Any]) -> None:
        """Write the epoch."""
        epoch = trainer.epoch
        self._write_scalars(record, epoch)
        if epoch % self.every == 0:
            with torch.no_grad():
                rows = self._rows_of(trainer)
                if self._histograms:
                    self._write_histograms(trainer.module, rows, epoch)
                if isinstance(trainer.module, nn.RBM | nn.DBM):
                    self._write_images(trainer.module, rows, trainer.chains, epoch)
        for writer in self._writers.values():
            writer.flush()

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Close the files."""
        self._close()

    def _check_sizes(self, module: nn.RBM | nn.DBM) -> None:
        weight = weights_of(module)[0]
        size = len(weight)
        if self.image_shape is not None and math.prod(self.image_shape) != size:
            raise ValueError(
                f"image_shape {self.image_shape} has {math.prod(self.image_shape)} entries, the visible "
                f"layer {size}"
            )
        if self._rows is not None:
            with torch.no_grad():
                dist = module()
            rows = self._rows
            valid = rows.dim() == 2 and rows.shape[1] == size and len(rows) > 0
            if not valid or not bool(dist.support.check(rows.to(weight)).all()):
                raise ValueError(
                    f"rows must be visible states of shape (rows >= 1, {size}), got "
                    f"{tuple(rows.shape)} or values outside of {dist.support}"
                )
        given = self._given
        if given is not None and (given.dtype != torch.bool or given.shape != (size,)):
            raise ValueError(
                f"given must be boolean of shape ({size},), got {given.dtype} of shape "
                f"{tuple(given.shape)}"
            )

    # --- files ----------------------------------------------------------------------------------------

    def _writer(self, run: str) -> Any:
        if run not in self._writers:
            self._writers[run] = self._writer_class(str(self.folder / run), purge_step=self._purge)
        return self._writers[run]

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    # --- what is written ------------------------------------------------------------------------------

    def _rows_of(self, trainer: "Trainer") -> Tensor:
        rows = self._rows
        if rows is None:
            known = trainer.metric_rows
            rows = known.get("validation", known["train"])
        return rows[: self._num_rows].to(next(trainer.module.parameters()))

    def _write_scalars(self, record: Mapping[str, Any], epoch: int) -> None:
        for key, value in record.items():
            if key == "epoch" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            tag, _, run = key.rpartition("_")
            if run not in _RUNS or not tag:
                tag, run = key, _MAIN
            self._writer(run).add_scalar(tag, value, epoch)

    def _write_histograms(self, module: torch.nn.Module, rows: Tensor, epoch: int) -> None:
        values = {}
        for name, parameter in module.named_parameters():
            values[f"parameters/{name}"] = parameter.detach()
            if parameter.grad is not None:
                values[f"gradients/{name}"] = parameter.grad
        if isinstance(module, nn.RBM):
            dist = module()
            values["hidden_activations"] = dist.hidden.mean(dist.hidden_field(rows))
        if isinstance(module, nn.DBM):
            field = deep_pictures.field_of(module(validate_args=False), rows)
            for layer, mean in enumerate(field.means, start=1):
                values[f"hidden_activations/h{layer}"] = mean
        for tag, tensor in values.items():
            finite = tensor[torch.isfinite(tensor)]
            if finite.numel():
                self._writer(_MAIN).add_histogram(tag, finite, epoch)

    def _write_images(
        self, module: nn.RBM | nn.DBM, rows: Tensor, chains: Tensor | None, epoch: int
    ) -> None:
        dist = module(num_gibbs_steps=self._num_gibbs_steps).detach()
        known = DEEP_IMAGES if isinstance(module, nn.DBM) else IMAGES
        for name in known if self._images is None else self._images:
            if isinstance(dist, DBM):
                pictures = self._deep_pictures(name, dist, rows, chains)
            else:
                picture = self._picture(name, dist, rows, chains)
                pictures = {} if picture is None else {name: picture}
            for tag, picture in pictures.items():
                self._writer(_MAIN).add_image(tag, picture.float().cpu(), epoch)

    def _deep_pictures(
        self, name: str, dist: DBM, rows: Tensor, chains: Tensor | None
    ) -> dict[str, Tensor]:
        """Images by tag; none if they cannot be made."""
        shape, found = self.image_shape, {}
        if name == "activations":
            found = deep_pictures.activation_maps(dist, deep_pictures.field_of(dist, rows))
        elif shape is None:
            return {}
        elif name == "filters":
            found = deep_pictures.filter_images_by_layer(dist, self._num_filters, shape)
        elif name == "chains" and chains is not None:
            return {name: deep_pictures.chain_image(dist, chains[: self._num_chains], shape)}
        elif name == "reconstructions":
            field = deep_pictures.field_of(dist, rows)
            return {name: deep_pictures.reconstruction_image(dist, rows, field, shape)}
        elif name == "completions":
            generator = Generator(device=rows.device).manual_seed(_COMPLETION_SEED)
            given = self._known_part(shape, rows)
            image = deep_pictures.completion_image(dist, rows, given, generator, shape)
            return {name: image}
        return {f"{name}/{layer}": picture for layer, picture in found.items()}

    def _picture(self, name: str, dist: RBM, rows: Tensor, chains: Tensor | None) -> Tensor | None:
        """An image of shape ``(channels, height, width)``, None if it cannot be made."""
        if name == "activations":
            return activation_map(dist, rows)
        shape = self.image_shape
        if shape is None:
            return None
        if name == "filters":
            return tile(filter_images(dist, self._num_filters), shape)
        if name == "chains":
            if chains is None:
                return None
            return tile(chain_images(dist, chains[: self._num_chains]), shape)
        # The same random numbers at every epoch: pictures differ since the machine does.
        generator = Generator(device=rows.device).manual_seed(_COMPLETION_SEED)
        pictures = completion_images(dist, rows, self._known_part(shape, rows), generator)
        return tile(pictures, shape, num_columns=len(rows))

    def _known_part(self, shape: tuple[int, ...], rows: Tensor) -> Tensor:
        if self._given is not None:
            return self._given.to(rows.device)
        channels, height, width = (1, *shape)[-3:]
        given = torch.zeros(channels, height, width, dtype=torch.bool, device=rows.device)
        given[:, : height // 2] = True
        return given.flatten()


def _check_images(images: Sequence[str] | None, image_shape: Sequence[int] | None) -> None:
    if isinstance(images, str):
        raise ValueError(f"images must be a list of names out of {DEEP_IMAGES}, got {images!r}")
    for name in images or ():
        if name not in DEEP_IMAGES:
            raise ValueError(f"images must be names out of {DEEP_IMAGES}, got {name!r}")
        if name != "activations" and image_shape is None:
            raise ValueError(f"images has {name!r}, which needs image_shape")
    if image_shape is None:
        return
    shape = tuple(image_shape)
    whole = all(isinstance(n, int) and n >= 1 for n in shape)
    if not whole or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in (1, 3)):
        raise ValueError(
            f"image_shape must be (height, width) or (1 or 3 channels, height, width), got {shape}"
        )


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoardLogger needs TensorBoard: pip install 'pyro-ebm[tensorboard]'"
        ) from error
    return SummaryWriter
