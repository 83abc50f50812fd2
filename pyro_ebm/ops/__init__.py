# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Numerics that know no model: sampling units from fields, stable sums, batched products."""
