#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What needs real KVM, in the KVM bed: our engine through the engine driver's checks, forks and saves of a guest that checks itself,
# a hostile guest (its seed is printed), each call of nestbox-vmm failing once; and the whole system through nginx and the client. What our engine
# answers to a list of operations must be what QEMU's answered in tests/alone/engine.sh, which is run here if it has not been.
#   run.sh [PART..]   of: job system (both without names)   BED_CYCLES (2): rounds of four forks and four saves
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")"
if ! command -v mmdebstrap >/dev/null || ! command -v qemu-system-x86_64 >/dev/null; then
	echo "skip the KVM bed: it needs mmdebstrap and qemu-system-x86_64"
	echo "0 passed, 0 failed, 1 skipped"
	exit 0
fi
out=$(mktemp)
trap 'rm -f "$out" "$out.job"' EXIT
make -s -C "$NESTBOX_BUILD" tests/it/engine-driver tests/it/engine-cycles tests/it/guest-checker kvmbed-programs >&2
[ $# -gt 0 ] || set -- job system
# What a boot that failed had to say, in a line.
reasons() {
	grep -aoE '^not ok .*|^engine-[a-z]+: .*|Kernel panic - .*|(BUG|Oops|rcu|watchdog): .*|guest (reset|shut).*|the bed ended or ran out of time.*|terminating on.*' "$out" |
		grep -av 'all checks passed' | cut -c1-200 | tail -n 12 | tr '\n' ';'
}
# What a part printed.
printed() { sed -n "/^bed: part $1\$/,/^bed: part $1 ended/p" "$out"; }
passed=0 failed=0
# The bed's processor is an emulation with faults of its own (see bed). So what did not end as it should is booted three times at most, each of
# which is said at the end of all tests.
for last in no no yes; do
	began=$SECONDS left=()
	BED_TIMEOUT=${BED_TIMEOUT:-900} ./bed run "$PWD/parts.sh" "$@" 2>&1 | tee "$out"
	for part in "$@"; do
		if ! grep -aq "^bed: part $part ended with status 0," "$out"; then
			left+=("$part")
			[ $last = yes ] || continue
			bad=$(printed "$part" | grep -ac '^not ok ')
			# A part that ended early has not said so itself.
			[ "$bad" -gt 0 ] || { bad=1; echo "FAIL $part: it did not end as it should"; }
			failed=$((failed + bad))
		fi
		passed=$((passed + $(printed "$part" | grep -ac '^ok ')))
		[ "$part" != job ] || { printed job >"$out.job" && ../lib/parity.sh keep kvm "$out.job"; compare=yes; }
	done
	[ ${#left[@]} -gt 0 ] || break
	echo "again ${left[*]}, after $((SECONDS - began)) s: $(reasons)"
	set -- "${left[@]}"
done
if [ -n "${compare:-}" ]; then
	flock "$NESTBOX_BUILD/parity.lock" true # one that runs now
	../lib/parity.sh fresh qemu || NESTBOX_ENGINE_RUNS=1 ../alone/engine.sh >&2
	if ../lib/parity.sh compare qemu kvm; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
fi
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
