#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# doc/limits.md against the limits.h files and the tests it names: nothing missing, no other value, no test that isn't there.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
passed=0 failed=0
result() { # result NAME WHY...
	if [ -z "$2" ]; then passed=$((passed + 1)); echo "ok   $1"; else failed=$((failed + 1)); printf 'FAIL %s:\n%s\n' "$1" "$2"; fi
}

# A number as it is written in C and in the document, made the same.
same='function num(s) { gsub(/[(),]|u|l/, "", s); if (match(s, / *(<< 10|KiB)$/)) return substr(s, 1, RSTART - 1) * 1024
	if (match(s, / *(<< 20|MiB)$/)) return substr(s, 1, RSTART - 1) * 1048576
	if (match(s, / *(<< 30|GiB)$/)) return substr(s, 1, RSTART - 1) * 1073741824
	gsub(/ /, "", s); return s }'
for h in $(find fcgi guest vmm -name '*limits.h' | sort); do
	result "$h" "$(awk -F'|' "$same"'
		FNR == NR { if (/^`.*`$/) file = $0; if (/^\| `/ && file == "`" h "`") { c = $2; gsub(/[` ]/, "", c); v = $3; gsub(/^ | $/, "", v); doc[c] = num(v) } next }
		/^#define [A-Z0-9_]+ +[^ ]/ {
			sub(/^#define /, ""); c = $0; sub(/ .*/, "", c); v = $0; sub(/^[A-Z0-9_]+ +/, "", v); sub(/ *\/\*.*/, "", v); seen[c] = 1
			if (!(c in doc)) print "  missing: " c; else if (doc[c] != num(v)) print "  " c " is " num(v) ", not " doc[c]
		}
		END { for (c in doc) if (!(c in seen)) print "  no longer there: " c }' h="$h" doc/limits.md "$h")"
done
result "every test that is named exists" "$(grep -oP '\b(unit|fuzz|sec|it|sdk|alone)/[a-z0-9_-]+\b(?!\*)' doc/limits.md | sort -u | while read -r t; do
	ls tests/"$t".* >/dev/null 2>&1 || echo "  tests/$t"
done)"
result "every case that is named exists" "$(grep -E '^\|' doc/limits.md | grep -oP '(unit|it|sec)/test_[a-z0-9_]+( [a-z_]+\b(?!/)(, [a-z_]+\b(?!/))*)?' | sort -u | while read -r t cases; do
	for c in ${cases//,/ }; do grep -q "^TEST($c)" "tests/$t.c" || echo "  tests/$t.c $c"; done
done)"
value() { awk -v c="$2" '$1 == "#define" && $2 == c { print $3 }' "$1"; }
result "the gateway serves as many names as the broker takes" "$([ "$(value fcgi/gateway/limits.h EXPOSE_HOSTS_MAX)" -ge "$(value vmm/broker/limits.h EXPOSE_MAX)" ] ||
	echo "  EXPOSE_HOSTS_MAX is less than EXPOSE_MAX")"
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
