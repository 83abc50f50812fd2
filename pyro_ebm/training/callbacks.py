# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What is called while a model trains."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_ebm.training.trainer import Trainer

__all__ = ["Callback"]


class Callback:
    """Looks at a run at the end of every epoch; subclass it and override what is needed.

    A callback must leave the parameters, chains and generators of the run alone, so that a run with it
    ends in the same parameters as one without. :meth:`Trainer.stop
    <pyro_ebm.training.Trainer.stop>` ends the run after the epoch.
    """

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Called before the first epoch of :meth:`Trainer.fit <pyro_ebm.training.Trainer.fit>`.

        :param trainer: the trainer; :attr:`epoch` is not 0 for a run that is resumed.
        """

    def on_epoch_end(self, trainer: "Trainer", record: dict[str, Any]) -> None:
        """Called after an epoch, before its checkpoint is written.

        :param trainer: the trainer.
        :param record: the metrics of the epoch, JSON types; more may be added, and go to the history.
        """

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Called after the last epoch, also after one that was stopped, not after an error."""
