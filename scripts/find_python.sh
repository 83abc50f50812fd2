#!/bin/sh
# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
#
# Usage: find_python.sh MAJOR.MINOR CANDIDATE...
# Prints the first candidate that runs and is at least that version; fails if there is none.
# A candidate that is found but does not run (a shim of a version manager, say) is passed over.
set -eu
minimum=$1
shift
for candidate in "$@"; do
    if "$candidate" -c "import sys; sys.exit(sys.version_info[:2] < tuple(map(int, '$minimum'.split('.'))))" \
        >/dev/null 2>&1; then
        echo "$candidate"
        exit 0
    fi
done
exit 1
