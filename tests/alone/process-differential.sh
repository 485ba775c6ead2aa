#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sandbox.spawn against Deno.Command, through a session process of this host. Arguments: SEED CASES.
set -u
here=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
deno=$here/node_modules/@deno/linux-x64-glibc/deno
export NESTBOX_SESSION_TEST=${NESTBOX_SESSION_TEST:-${NESTBOX_BUILD:?}/nestbox-session-test}
if [ ! -x "$deno" ]; then
	echo "skip process-differential: needs Deno in tests/node_modules"
	echo "0 passed, 0 failed, 1 skipped"
	exit 0
fi
cd "$here"
exec "$deno" run --quiet -A --no-lock it/lib-process-differential.mjs "${1:-1}" "${2:-300}"
