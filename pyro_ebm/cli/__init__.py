# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The command ``pyro-ebm``: train, evaluate, sample, plot, info, demo."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        import click  # noqa: F401
    except ImportError:
        sys.exit("the command line needs click: pip install 'pyro-ebm[cli]'")
    from pyro_ebm.cli.app import app

    app(prog_name="pyro-ebm")
