# SPDX-License-Identifier: Apache-2.0
# For jobs in the bed: the guest image, an overlay with the checker in it, and what tells the engines apart.
image=$NESTBOX_PREFIX/var/lib/nestbox/images/debian-13
make_overlay() { # make_overlay FILE
	rm -rf /tmp/overlay.d
	mkdir -p /tmp/overlay.d/upper /tmp/overlay.d/work
	cp "$BED_SRC/bin/guest-checker" /tmp/overlay.d/upper/guest-checker
	truncate -s 64M "$1"
	mke2fs -q -t ext4 -m 0 -O ^has_journal -E lazy_itable_init=1,nodiscard -d /tmp/overlay.d "$1"
}
# run_on ENGINE PROGRAM OPTIONS..: one of the programs that drive an engine.
run_on() {
	local engine=$1 program=$2 vmm=/usr/bin/qemu-system-x86_64 reboot=t
	shift 2
	if [ "$engine" = kvm ]; then vmm=$NESTBOX_PREFIX/libexec/nestbox/nestbox-vmm reboot=k; fi
	"$BED_SRC/bin/$program" -e "$engine" -q "$vmm" -k "$image/kernel" -i "$image/initrd" -I "$image/root.erofs" -O /tmp/overlay \
		-c "console=ttyS0 quiet panic=-1 reboot=$reboot cryptomgr.notests nestbox.root=image" "$@"
}
why() { dmesg | tail -n 5; for log in /tmp/nestbox-engine/*/log; do echo "$log"; tail -n 20 "$log"; done; }
