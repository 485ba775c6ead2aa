#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Boots the guest image once, in one QEMU (TCG) inside a network namespace of its own, and drives the agent over the management
# link with lib-agent.mjs. Also the plainest example of the machine shape: which disks, cards and kernel arguments there are.
#
#   boot_agent.sh [TEST...]      NESTBOX_PREFIX (/opt/nestbox), NESTBOX_NODE (node), NESTBOX_IMAGE (directory)
#   KEEP=1 boot_agent.sh         prints how to reach the machine and waits for it to end
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
PREFIX=${NESTBOX_PREFIX:-/opt/nestbox}
NODE=${NESTBOX_NODE:-node}
IMAGE=${NESTBOX_IMAGE:-$PREFIX/var/lib/nestbox/images/debian-13}
MEMORY=${MEMORY:-1024}

[ -e "$IMAGE/image.json" ] || { echo "skip boot_agent: there is no guest image at $IMAGE"; echo "0 passed, 0 failed, 1 skipped"; exit 0; }
work=$(mktemp -d /tmp/nestbox-agent.XXXXXX)
ns=nbagent$$
qemu=
# shellcheck disable=SC2317
cleanup() {
	[ -z "$qemu" ] || { kill "$qemu" 2>/dev/null || true; wait "$qemu" 2>/dev/null || true; }
	ip netns del "$ns" 2>/dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT

ip netns add "$ns"
in_ns() { ip netns exec "$ns" "$@"; }
in_ns ip link set lo up
in_ns ip tuntap add dev traffic mode tap vnet_hdr
in_ns ip tuntap add dev mgmt mode tap vnet_hdr
in_ns ip addr add 100.64.0.1/30 dev traffic
in_ns ip addr add 169.254.100.1/30 dev mgmt
in_ns ip link set traffic up
in_ns ip link set mgmt up

truncate -s 10G "$work/overlay"
mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard -m 0 "$work/overlay"
truncate -s 320M "$work/spare0"
mke2fs -q -t ext4 -m 0 "$work/spare0"
for i in 1 2 3; do truncate -s 1M "$work/spare$i"; done

khz=$(awk '/^cpu MHz/ { printf "%d", $4 * 1000; exit }' /proc/cpuinfo)
slot=1
devices=()
disk() { # disk SERIAL FILE read-only
	devices+=(-blockdev "driver=file,node-name=$1,filename=$2,locking=off,discard=unmap,read-only=$3"
		-device "virtio-blk-device,drive=$1,serial=$1,bus=virtio-mmio-bus.$slot")
	slot=$((slot + 1))
}
disk image "$IMAGE/root.erofs" on
disk overlay "$work/overlay" off
for i in 0 1 2 3; do disk "spare$i" "$work/spare$i" off; done
ip netns exec "$ns" qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none \
	-M microvm,acpi=on,pic=on,pit=on,rtc=on,isa-serial=on,ioapic2=on,x-option-roms=off,auto-kernel-cmdline=off \
	-accel tcg,thread=multi,tb-size=128 -cpu max,-cx16 -smp 2 -m "$MEMORY" -global virtio-mmio.force-legacy=false \
	-kernel "$IMAGE/kernel" -initrd "$IMAGE/initrd" \
	-append "$(jq -r .cmdline "$IMAGE/image.json") tsc=reliable norandmaps tsc_early_khz=$khz" \
	-serial "file:$work/console" "${devices[@]}" \
	-netdev tap,id=net0,ifname=traffic,script=no,downscript=no,vhost=off \
	-device "virtio-net-device,netdev=net0,mac=02:6e:62:00:00:01,bus=virtio-mmio-bus.$slot" \
	-netdev tap,id=net1,ifname=mgmt,script=no,downscript=no,vhost=off \
	-device "virtio-net-device,netdev=net1,mac=02:6e:62:00:00:02,bus=virtio-mmio-bus.$((slot + 1))" \
	-object rng-builtin,id=rng -device "virtio-rng-device,rng=rng,bus=virtio-mmio-bus.$((slot + 2))" \
	</dev/null >"$work/qemu" 2>&1 &
qemu=$! # its own: a function's would be that of a shell, whose end it would outlive

if [ -n "${KEEP:-}" ]; then
	echo "namespace $ns, console $work/console; ip netns exec $ns $NODE $PWD/lib-agent.mjs --help"
	wait "$qemu" || true
	exit 0
fi
status=0
in_ns "$NODE" lib-agent.mjs --qemu "$qemu" "$@" || status=$?
if [ "$status" != 0 ]; then
	echo "--- console:"
	tail -n 40 "$work/console" | tr -d '\r'
	cat "$work/qemu"
fi
exit "$status"
