# SPDX-License-Identifier: Apache-2.0
# Runs inside the bed: the engines named as arguments (default: both that use KVM) through a machine's whole life.
image=$NESTBOX_PREFIX/var/lib/nestbox/images/debian-13
failed=0
truncate -s 256M /tmp/overlay
mke2fs -q -t ext4 -m 0 -O ^has_journal -E lazy_itable_init=1,nodiscard /tmp/overlay
[ $# -gt 0 ] || set -- kvm qemu-kvm
for engine in "$@"; do
	case $engine in kvm) program=$NESTBOX_PREFIX/libexec/nestbox/nestbox-vmm ;; *) program=/usr/bin/qemu-system-x86_64 ;; esac
	case $engine in kvm) reboot=k ;; *) reboot=t ;; esac
	echo "engine $engine"
	if timeout 130 /src/bin/engine-driver -e "$engine" -q "$program" -k "$image/kernel" -i "$image/initrd" -I "$image/root.erofs" \
		-O /tmp/overlay -m 512 -n "${BED_RUNS:-3}" -c "console=ttyS0 quiet panic=-1 reboot=$reboot nestbox.root=image"; then
		echo "ok $engine: a machine's whole life"
	else
		echo "not ok $engine: a machine's whole life"
		dmesg | tail -n 5
		tail -n 20 /tmp/nestbox-engine/*/log
		failed=1
	fi
done
exit $failed
