#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The root file system of the guest: root.sh OUT.erofs OUT.packages LOCAL
# LOCAL is a directory whose content is put below /usr/local.
# A read-only EROFS image without compression: pages are shared through the host's cache and cost the guest no time.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
. ./lib.sh
out=$1 packages=$2 local=$(readlink -f "$3")

work=$(mktemp -d "$(dirname "$out")/root.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
apt_sources >"$work/sources"
apt_options "$work/apt.conf"
install -m 755 warm "$work/warm"

# Runs on this machine with the tree as its argument, before the tree is packed.
cat >"$work/customize" <<'END'
#!/bin/bash
set -eu
r=$1
chroot "$r" groupadd --gid 1000 app
chroot "$r" useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash --comment "sandbox user" app
printf 'app ALL=(ALL:ALL) NOPASSWD: ALL\nDefaults:app !requiretty, !use_pty, env_keep += "SSL_CERT_FILE NODE_EXTRA_CA_CERTS DENO_TLS_CA_STORE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE GIT_SSL_CAINFO PIP_CERT"\n' >"$r/etc/sudoers.d/app"
chmod 440 "$r/etc/sudoers.d/app"
cp -r --no-preserve=ownership,timestamps "$LOCAL/." "$r/usr/local/"
install -D -m 755 "$WORK/warm" "$r/etc/nestbox/warm"
mkdir -p "$r/etc/nestbox/on-clone.d" "$r/usr/local/share/ca-certificates" "$r/data"
: >"$r/etc/machine-id"
echo sandbox >"$r/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 sandbox\n::1 localhost ip6-localhost\n' >"$r/etc/hosts"
rm -f "$r/etc/resolv.conf"
echo "nameserver 100.64.0.1" >"$r/etc/resolv.conf"
: >"$r/etc/fstab"
# Nothing of how this machine reaches its mirrors may stay.
rm -rf "$r/etc/apt/apt.conf.d/99mmdebstrap" "$r"/var/lib/apt/lists/* "$r"/var/cache/apt/*.bin "$r"/var/log/* "$r"/var/cache/debconf/*-old \
	"$r"/var/lib/dpkg/*-old "$r"/var/cache/ldconfig "$r"/etc/*-
mkdir -p "$r/var/log/apt" "$r/var/lib/apt/lists/partial" "$r/var/cache/apt/archives/partial"
chroot "$r" dpkg-query -W -f '${Package} ${Version}\n' >"$WORK/packages"
END
chmod 755 "$work/customize"

say "root: Debian $SUITE with $(grep -cv '^#' packages) packages beyond the minimum (about a minute)"
WORK=$work LOCAL=$local mmdebstrap --quiet --mode=root --variant=minbase --include="$(list_read packages ,)" --aptopt="$work/apt.conf" \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/lintian/*' \
	--customize-hook="$work/customize \"\$1\"" \
	"$SUITE" - - <"$work/sources" 2>"$work/log" | tar -C "$work/root" --numeric-owner --xattrs --xattrs-include='*' -xpf - ||
	{ tail -n 30 "$work/log" >&2; die "mmdebstrap failed"; }
say "root: packing"
mkfs.erofs -T "$SOURCE_DATE_EPOCH" -U 6e657374-626f-7800-8000-000000000013 "$work/root.erofs" "$work/root" >"$work/log" 2>&1 ||
	{ tail -n 30 "$work/log" >&2; die "mkfs.erofs failed"; }
mv "$work/packages" "$packages"
mv "$work/root.erofs" "$out"
