# SPDX-License-Identifier: Apache-2.0
# Runs inside the bed: engines through a machine's whole life, then our own through forks and saves of a guest that checks itself,
# against a hostile guest (BED_ROBUST=0: not), with failing calls, and a guest that gives memory back.
#   BED_RUNS (2): starts from a snapshot    BED_CYCLES (2): rounds of four forks and of four saves
. "$BED_SRC/tests/kvmbed/lib.sh"
failed=0
make_overlay /tmp/overlay
result() { # result WHAT STATUS
	if [ "$2" = 0 ]; then echo "ok $1"; else echo "not ok $1"; failed=1; why; fi
}
[ $# -gt 0 ] || set -- kvm
for engine in "$@"; do
	timeout "${BED_LIFE_TIMEOUT:-600}" bash -c '. "$BED_SRC/tests/kvmbed/lib.sh"; run_on "$@"' - "$engine" engine-driver -m 512 -n "${BED_RUNS:-2}"
	result "$engine: a machine's whole life" $?
done
if [ "${BED_CYCLES:-2}" != 0 ]; then
	run_on kvm engine-cycles -m 384 -n "${BED_CYCLES:-2}"
	result "kvm: $((4 * ${BED_CYCLES:-2})) forks and as many saves of a guest that checks memory, disk, clocks and timers" $?
fi
if [ "${BED_ROBUST:-1}" != 0 ]; then
	# tests/kvmbed/vmm_bed.c prints its own results: a guest that is after the VMM; each call of the VMM failing once; a balloon.
	/src/bin/vmm-bed -t 40 hostile "$NESTBOX_PREFIX/libexec/nestbox/nestbox-vmm" /src/bin/hostile.elf || failed=1
	bash "$BED_SRC/tests/kvmbed/console.sh" "$NESTBOX_PREFIX/libexec/nestbox/nestbox-vmm" /src/bin/hostile.elf || failed=1
	/src/bin/vmm-bed -t 80 nth /src/bin/nestbox-vmm-nth /src/bin/hostile.elf || failed=1
	make_overlay /tmp/overlay-balloon
	/src/bin/vmm-bed -t 240 balloon "$NESTBOX_PREFIX/libexec/nestbox/nestbox-vmm" "$image" /tmp/overlay-balloon || failed=1
fi
exit $failed
