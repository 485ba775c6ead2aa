#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What needs real KVM: our engine lives through the engine driver's checks in the KVM bed. qemu-kvm is not among them by default:
# `run.sh kvm qemu-kvm` compares, but Debian's QEMU ended one of its cold boots in the bed by itself, for a reason not found.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")"
if ! command -v mmdebstrap >/dev/null || ! command -v qemu-system-x86_64 >/dev/null; then
	echo "skip the KVM bed: it needs mmdebstrap and qemu-system-x86_64"
	echo "0 passed, 0 failed, 1 skipped"
	exit 0
fi
out=$(mktemp)
trap 'rm -f "$out"' EXIT
make -s -C "$NESTBOX_BUILD" tests/it/engine-driver >&2
BED_TIMEOUT=${BED_TIMEOUT:-330} ./bed run job.sh "${@:-kvm}" 2>&1 | tee "$out"
passed=$(grep -ac '^ok ' "$out")
failed=$(grep -ac '^not ok ' "$out")
# A bed that ended early has not said so itself.
grep -aq '^bed: job ended with status 0$' "$out" || { [ "$failed" -gt 0 ] || failed=1; echo "FAIL the bed did not end as it should"; }
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
