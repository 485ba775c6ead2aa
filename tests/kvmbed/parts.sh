# SPDX-License-Identifier: Apache-2.0
# Runs inside the bed: the scripts beside it that are named, one after the other.
failed=0
for part in "$@"; do
	echo "bed: part $part"
	bash "$BED_SRC/tests/kvmbed/$part.sh"
	status=$?
	echo "bed: part $part ended with status $status, $(cut -d. -f1 /proc/uptime) s after the boot"
	[ $status = 0 ] || failed=1
	rm -rf /tmp/overlay* /tmp/nestbox-engine
done
exit $failed
