#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The file methods against Deno itself: thousands of generated calls in two equal directories.
set -u
here=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
deno=$here/node_modules/@deno/linux-x64-glibc/deno
driver=$NESTBOX_BUILD/tests/it/fs-driver

if [ ! -x "$deno" ] || [ ! -x "$driver" ]; then
	echo "skip fs-differential: needs Deno in tests/node_modules and $driver"
	echo "0 passed, 0 failed, 1 skipped"
	exit 0
fi
exec "$deno" run -A --no-config --no-lock "$here/it/fs_differential.mts" "$driver" "$@"
