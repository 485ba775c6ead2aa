# SPDX-License-Identifier: Apache-2.0
# Runs inside the bed: the figures of the engines named as arguments.   BED_RUNS (2)   BED_BOOTS (2; 1: only disk and network)
. "$BED_SRC/tests/kvmbed/lib.sh"
make_overlay /tmp/overlay
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
# Or the first engine would read the image from the bed's disk and the next from its memory.
cat "$image/root.erofs" "$image/kernel" >/dev/null
for engine in "$@"; do
	echo "engine $engine"
	# What it had until it failed is in its table; the other engine has figures of its own.
	run_on "$engine" engine-figures -m 1024 -B "${BED_BOOTS:-2}" -n "${BED_RUNS:-2}" || { failed=1; why; }
done
exit "${failed:-0}"
