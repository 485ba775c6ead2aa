#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The programs of tests/sdk that need no machine, against a session process of this host behind a bridge.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../sdk"
export NESTBOX_SESSION_TEST=${NESTBOX_SESSION_TEST:-${NESTBOX_BUILD:?}/nestbox-session-test}
passed=0 failed=0 skipped=0
for program in process deno fetch hostile; do
	echo "$program"
	result=$("${NESTBOX_NODE:-node}" $program.mjs 2>&1 | tee >(cat >&2) | grep -aE '^[0-9]+ passed, ' | tail -n 1)
	read -r p _ f _ s _ <<<"${result:-0 passed, 1 failed, 0 skipped}"
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
