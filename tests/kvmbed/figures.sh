# SPDX-License-Identifier: Apache-2.0
# Runs inside the bed: the figures of the engines named as arguments.   BED_RUNS (5)
. "$BED_SRC/tests/kvmbed/lib.sh"
make_overlay /tmp/overlay
for engine in "$@"; do
	echo "engine $engine"
	run_on "$engine" engine-figures -m 512 -n "${BED_RUNS:-5}" || { why; exit 1; }
done
