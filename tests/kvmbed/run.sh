#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What needs real KVM, in the KVM bed: our engine through the engine driver's checks, forks and saves of a guest that checks itself,
# a hostile guest (its seed is printed), each call of nestbox-vmm failing once; and the whole system through nginx and the client.
#   run.sh [JOB..]   of: job system (both without names)   BED_CYCLES (2): rounds of four forks and four saves
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")"
if ! command -v mmdebstrap >/dev/null || ! command -v qemu-system-x86_64 >/dev/null; then
	echo "skip the KVM bed: it needs mmdebstrap and qemu-system-x86_64"
	echo "0 passed, 0 failed, 1 skipped"
	exit 0
fi
out=$(mktemp)
trap 'rm -f "$out"' EXIT
make -s -C "$NESTBOX_BUILD" tests/it/engine-driver tests/it/engine-cycles tests/it/guest-checker kvmbed-programs >&2
[ $# -gt 0 ] || set -- job system
passed=0 failed=0
for job in "$@"; do
	# Debian's kernel, which runs the job, dies now and then of what emulates its processor, on a host that has other work. That says
	# nothing of ours: the job begins again, and says so.
	for again in 1 2 ''; do
		BED_TIMEOUT=${BED_TIMEOUT:-1200} ./bed run "$PWD/$job.sh" 2>&1 | tee "$out"
		[ -n "$again" ] && grep -aq '^\[.*Kernel panic - not syncing' "$out" && ! grep -aq 'bed: job ended' "$out" || break
		echo "kvmbed: the kernel of the bed died, not the job: booting again"
	done
	passed=$((passed + $(grep -ac '^ok ' "$out")))
	bad=$(grep -ac '^not ok ' "$out")
	# A bed that ended early has not said so itself.
	grep -aq 'bed: job ended with status 0$' "$out" || { [ "$bad" -gt 0 ] || bad=1; echo "FAIL $job: the bed did not end as it should"; }
	failed=$((failed + bad))
done
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
