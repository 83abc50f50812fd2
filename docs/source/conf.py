# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Configuration of Sphinx."""

import os

import pyro_ebm

project = "pyro_ebm"
author = "Contributors to the pyro_ebm project"
copyright = author
version = release = pyro_ebm.__version__

extensions = [
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

doctest_global_setup = """
import pyro
import torch
pyro.clear_param_store()
pyro.set_rng_seed(0)
"""
