#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The file methods against Deno itself: thousands of generated calls in two equal directories; as root, and then as a user
# whom permissions bind. Arguments: SEED ROUNDS.
set -u
here=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
deno=$here/node_modules/@deno/linux-x64-glibc/deno
driver=$NESTBOX_BUILD/tests/it/fs-driver
sdk=$here/node_modules/@deno/sandbox/esm/deps

if [ ! -x "$deno" ] || [ ! -x "$driver" ] || [ ! -d "$sdk" ]; then
	echo "skip fs-differential: needs Deno and the SDK in tests/node_modules, and $driver"
	echo "0 passed, 0 failed, 1 skipped"
	exit 0
fi
# A copy that any user can read.
dir=$(mktemp -d /tmp/nestbox-differential.XXXXXX)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/it" "$dir/node_modules/@deno/sandbox/esm" "$dir/cache"
cp "$here/it/fs_differential.mts" "$dir/it/"
cp -rL "$sdk" "$dir/node_modules/@deno/sandbox/esm/"
cp "$driver" "$dir/fs-driver"
cp -L "$deno" "$dir/deno"
chmod -R a+rX "$dir"
chmod 1777 "$dir/cache"
export DENO_DIR=$dir/cache DENO_NO_UPDATE_CHECK=1
run() {
	(cd "$dir" && exec "$@" "$dir/deno" run -A --no-config --no-lock --node-modules-dir=none it/fs_differential.mts "$dir/fs-driver" \
		"${args[@]}") >"$dir/log" 2>&1
	status=$?
	grep -av ' passed, .* skipped$' "$dir/log"
	line=$(grep -aE '^[0-9]+ passed, [0-9]+ failed, 0 skipped$' "$dir/log" | tail -n 1)
	read -r p _ f _ <<<"${line:-0 passed, 1 failed,}"
	[ "$status" -ne 0 ] && [ "$f" -eq 0 ] && f=1
	passed=$((passed + p)) failed=$((failed + f))
}
passed=0 failed=0
args=("${1:-1}" "${2:-40}")
run env
if [ "$(id -u)" = 0 ]; then
	args=("$((${1:-1} + 1))" "${2:-40}")
	run setpriv --reuid=65534 --regid=65534 --clear-groups env HOME="$dir/cache"
fi
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
