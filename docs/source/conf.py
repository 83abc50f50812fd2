# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Configuration of Sphinx."""

import os
from pathlib import Path

import pyro_ebm

project = "pyro_ebm"
author = "Contributors to the pyro_ebm project"
copyright = author
version = release = pyro_ebm.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_rtd_theme",
]

master_doc = "index"
nitpicky = False
default_role = None
templates_path: list[str] = []
exclude_patterns: list[str] = []
pygments_style = "sphinx"

# "RBM" in a parameter list is the distribution; Sphinx sees that nn has a module of the same name.
suppress_warnings = ["ref.python"]

html_theme = "sphinx_rtd_theme"
html_theme_options = {"navigation_depth": 3, "collapse_navigation": False}
html_show_sourcelink = False

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"show-inheritance": True}

# References to other packages' documentation need the network at build time, so they are only made
# when asked for: PYRO_EBM_DOCS_INTERSPHINX=1 make docs
intersphinx_mapping = (
    {
        "arviz": ("https://python.arviz.org/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pyro": ("https://docs.pyro.ai/en/stable/", None),
        "python": ("https://docs.python.org/3/", None),
        "torch": ("https://pytorch.org/docs/stable/", None),
    }
    if os.environ.get("PYRO_EBM_DOCS_INTERSPHINX")
    else {}
)

# Tutorials are executed, in seconds and on little data; PYRO_EBM_TUTORIALS=full make docs runs them as
# their examples' defaults are, =off leaves them out (the doctest builder does). Their kernels import
# the examples.
tutorials = os.environ.setdefault("PYRO_EBM_TUTORIALS", "smoke")
if tutorials not in ("smoke", "full", "off"):
    raise ValueError(f"PYRO_EBM_TUTORIALS must be 'smoke', 'full' or 'off', got {tutorials!r}")
examples = str(Path(__file__).resolve().parents[2] / "examples")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [examples, *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Pyro's progress bars look for widgets that a built page has no use for.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
nb_execution_mode = "off" if tutorials == "off" else "force"
if tutorials == "off":
    # The language of a cell is told by its kernel, which has not run.
    suppress_warnings.append("myst-nb.lexer")
nb_execution_raise_on_error = True
nb_execution_timeout = -1 if tutorials == "full" else 300
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]

doctest_global_setup = """
import pyro
import torch
pyro.clear_param_store()
pyro.set_rng_seed(0)
"""
