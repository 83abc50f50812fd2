# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Errors as one line for people, warnings as lines among the output."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from pyro_ebm.datasets import DatasetError
from pyro_ebm.nn import ModelFileError
from pyro_ebm.training import TrainingDivergedError

__all__ = ["Command", "Group", "collect_warnings"]

#: What a user can do something about. Anything else is a defect, whose traceback is wanted.
_EXPECTED = (
    DatasetError,
    ImportError,
    ModelFileError,
    OSError,
    TrainingDivergedError,
    ValueError,
)


class Command(click.Command):
    """A command that turns expected errors into ``Error: ...`` and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except _EXPECTED as error:
            if os.environ.get("PYRO_EBM_TRACEBACK"):
                raise
            raise click.ClickException(_message(error)) from error


class Group(click.Group):
    """A group whose commands are :class:`Command`."""

    command_class = Command


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return str(error) or type(error).__name__


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Show the package's own warnings as lines, without the place in the code, and keep them.

    Yields the list that receives the messages when the block ends. Other warnings pass.
    """
    from pyro_ebm.infer import LogPartitionWarning

    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LogPartitionWarning)
        yield messages
    for warning in caught:
        if issubclass(warning.category, LogPartitionWarning):
            messages.append(str(warning.message))
            click.echo(f"warning: {warning.message}", err=True)
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
