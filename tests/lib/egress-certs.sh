#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# egress-certs.sh DIR: an authority that the proxy under test trusts (ca.pem) and certificates of its and of others, for
# tests/lib/egress-world.mjs. Does nothing if they are there.
set -euo pipefail
umask 022
mkdir -p "$1"
cd "$1"
[ -e .complete ] && exit 0
ca() { # ca NAME
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -keyout "$1.key" -out "$1.pem" \
		-subj "/CN=egress test $1" -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign,cRLSign
}
leaf() { # leaf FILE CA ALTNAMES START END
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=$1"
	rm -rf db && mkdir db && : >db/index.txt
	printf '[ca]\ndefault_ca=d\n[d]\ndatabase=db/index.txt\nnew_certs_dir=db\nrand_serial=yes\ndefault_md=sha256\npolicy=p\ncopy_extensions=none\n[p]\ncommonName=supplied\n[x]\nsubjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$3" >db/cnf
	openssl ca -batch -config db/cnf -cert "$2.pem" -keyfile "$2.key" -in "$1.csr" -out "$1.pem" -startdate "$4" -enddate "$5" \
		-extensions x -notext
}
{
	ca ca
	ca stranger
	now=$(date -u -d '-1 day' +%Y%m%d%H%M%SZ) later=$(date -u -d '+3650 days' +%Y%m%d%H%M%SZ)
	leaf good ca 'DNS:*.egress.test,DNS:egress.test' "$now" "$later"
	leaf expired ca 'DNS:*.egress.test' 20200101000000Z 20200201000000Z
	leaf wrongname ca 'DNS:somebody.else.test' "$now" "$later"
	leaf selfsigned stranger 'DNS:*.egress.test' "$now" "$later"
} >openssl.log 2>&1 || { cat openssl.log >&2; exit 1; }
rm -rf db ./*.csr
touch .complete
