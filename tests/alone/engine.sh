#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The QEMU engine through a machine's whole life with the real guest image: cold start, pause, save, damage, start from the
# snapshot, resize, adoption, live fork, second generation, and nothing left over.
set -u
cd "$(dirname "$(readlink -f "$0")")"
image=${NESTBOX_IMAGE:-$NESTBOX_PREFIX/var/lib/nestbox/images/debian-13}
driver=$NESTBOX_BUILD/tests/it/engine-driver
done_() { echo "$1 passed, $2 failed, $3 skipped"; exit "$2"; }

if [ "$(id -u)" != 0 ] || [ ! -e "$image/kernel" ]; then
	echo "skip engine: needs root and a guest image in $image"
	done_ 0 0 1
fi
dir=$(mktemp -d /tmp/nestbox-engine.XXXXXX)
trap 'rm -rf "$dir"' EXIT
truncate -s 256M "$dir/overlay" && mkfs.ext4 -q -F "$dir/overlay" || done_ 0 1 0
exec 8>"$NESTBOX_BUILD/parity.lock"
flock 8
NESTBOX_LIBEXECDIR=$NESTBOX_BUILD "$driver" -d "$dir/run" -m 1024 -n "${NESTBOX_ENGINE_RUNS:-5}" -k "$image/kernel" \
	-i "$image/initrd" -I "$image/root.erofs" -O "$dir/overlay" | tee "$dir/out"
[ "${PIPESTATUS[0]}" = 0 ] || done_ 0 1 0
# For the comparison with our own engine (tests/kvmbed/run.sh).
../lib/parity.sh keep qemu "$dir/out"
done_ 1 0 0
