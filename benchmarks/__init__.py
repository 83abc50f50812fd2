# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Benchmarks: ratios in one run, against floors and peers."""
