#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The guest's kernel and modules: kernel.sh OUT_DIR makes OUT_DIR/{vmlinux,release,modules/NN-name.ko}
# Debian's cloud kernel, its ELF image taken out of the bzImage: it has a PVH note, so QEMU and our own VMM start it directly
# and the guest need not unpack itself. The package's signatures are checked by apt; nothing of it is installed anywhere.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
. ./lib.sh
out=$1

work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial" "$work/state" "$work/deb" "$work/tree" "$out/modules"
: >"$work/state/status"
apt_sources >"$work/sources.list"
apt_options "$work/apt.conf"
cat >>"$work/apt.conf" <<END
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "$work/state";
Dir::State::Lists "$work/apt/lists";
Dir::State::Status "$work/state/status";
Dir::Cache "$work/apt";
APT::Architecture "amd64";
APT::Sandbox::User "root";
END
export APT_CONFIG=$work/apt.conf

say "kernel: fetching Debian $SUITE's cloud kernel"
apt-get -qq update >"$work/log" 2>&1 || { cat "$work/log" >&2; die "apt-get update failed"; }
package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
[ -n "$package" ] || die "no cloud kernel in $SUITE"
(cd "$work/deb" && apt-get -qq download "$package" >"$work/log" 2>&1) || { cat "$work/log" >&2; die "cannot fetch $package"; }
dpkg-deb -x "$work"/deb/*.deb "$work/tree"
release=${package#linux-image-}
release=${release%-unsigned}

# Field offsets: Documentation/arch/x86/boot.rst.
bz=$work/tree/boot/vmlinuz-$release
u32() { od -An -tu4 -j "$1" -N 4 "$bz" | tr -d ' '; }
setup=$(od -An -tu1 -j 497 -N 1 "$bz" | tr -d ' ')
offset=$(((setup + 1) * 512 + $(u32 584)))
length=$(u32 588)
tail -c +$((offset + 1)) "$bz" | head -c $((length - 4)) >"$work/payload" || true
case $(od -An -tx1 -N 4 "$work/payload" | tr -d ' ') in
28b52ffd) zstd -dqc "$work/payload" >"$work/vmlinux" ;;
fd377a58) xz -dc --single-stream "$work/payload" >"$work/vmlinux" ;;
1f8b*) gzip -dc "$work/payload" >"$work/vmlinux" ;;
02214c18) lz4 -dqc "$work/payload" >"$work/vmlinux" ;;
*) die "the kernel is compressed in a way this recipe doesn't know" ;;
esac
[ "$(od -An -tx1 -N 4 "$work/vmlinux" | tr -d ' ')" = 7f454c46 ] || die "no ELF image in $package"

# What a module depends on stands in its own .modinfo section. Dependencies come first, numbered in the order of loading.
base=$(dirname "$(find "$work/tree" -path "*/modules/$release/kernel" -type d)")
n=10
declare -A seen=()
add_module() { # add_module NAME
	local name=${1//-/_} path dep
	[ -z "${seen[$name]:-}" ] || return 0
	seen[$name]=1
	path=$(find "$base/kernel" -name "${name//_/[-_]}.ko*" | head -n 1)
	if [ -z "$path" ]; then
		grep -qE "/${name//_/[-_]}\.ko" "$base/modules.builtin" || die "the kernel has no module $name"
		return 0
	fi
	case $path in
	*.xz) xz -dc "$path" ;;
	*.zst) zstd -dqc "$path" ;;
	*) cat "$path" ;;
	esac >"$work/$name.ko"
	for dep in $(tr '\0' '\n' <"$work/$name.ko" | grep -a '^depends=' | sed 's/^depends=//; s/,/ /g'); do add_module "$dep"; done
	mv "$work/$name.ko" "$out/modules/$n-$name.ko"
	n=$((n + 1))
}
for m in $(list_read modules ' '); do add_module "$m"; done
mv "$work/vmlinux" "$out/vmlinux"
echo "$release" >"$out/release"
apt-cache show "$package" | awk '/^Version:/ { print $2; exit }' >"$out/version"
