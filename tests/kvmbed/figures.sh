# SPDX-License-Identifier: Apache-2.0
# Runs inside the bed: the figures of the engines named as arguments.   BED_RUNS (3)
. "$BED_SRC/tests/kvmbed/lib.sh"
make_overlay /tmp/overlay
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
for engine in "$@"; do
	echo "engine $engine"
	run_on "$engine" engine-figures -m 1024 -B 2 -n "${BED_RUNS:-3}" || { why; exit 1; }
done
