# SPDX-License-Identifier: Apache-2.0
# Shared by the parts of the image recipe: where Debian packages come from is what this machine's own apt is told.

SUITE=trixie
# Nothing in the image is younger than this, so that two builds of the same packages are equal.
export SOURCE_DATE_EPOCH=1767225600
export LC_ALL=C.UTF-8 TZ=UTC

say() { echo "image: $*" >&2; }
die() { echo "image: $*" >&2; exit 1; }

# apt_uri "" | -security: the first URI from which this machine takes its own release.
apt_uri() {
	local codename
	# shellcheck source=/dev/null
	codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
	apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 2>/dev/null |
		awk -v r="$codename$1" '$2 == r { sub("/$", "", $1); print $1; exit }'
}

# The guest's sources.list on standard output.
apt_sources() {
	local main security keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	main=$(apt_uri "")
	security=$(apt_uri -security)
	[ -n "$main" ] || die "apt on this machine has no source for its own Debian release"
	echo "deb [signed-by=$keyring] $main $SUITE main"
	echo "deb [signed-by=$keyring] $main $SUITE-updates main"
	[ -z "$security" ] || echo "deb [signed-by=$keyring] $security $SUITE-security main"
}

# Proxies and authorities that this machine's apt is configured with, for mmdebstrap's own apt.
apt_options() { # apt_options FILE
	apt-config dump | grep -E '^Acquire::https?::(Proxy|CAInfo|CaInfo|Verify)' >"$1" || true
	echo 'APT::Install-Recommends "false";' >>"$1"
	echo 'Acquire::Languages "none";' >>"$1"
	echo 'Acquire::Retries "3";' >>"$1"
}

# The lines of a list file without comments, joined by $2.
list_read() { grep -v '^#' "$1" | grep . | paste -sd "$2"; }
