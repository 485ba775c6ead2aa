#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# long.sh SECONDS TARGET...: each fuzz target (h2, dns, ..) for so long with libFuzzer, AddressSanitizer and UBSan, one after the other; then
# the fewest inputs that reach what its corpus below tests/fuzz/corpus does not are added there (to 300 KB at most). Needs clang. What was found lies
# in $NESTBOX_FUZZ (a build directory, default /tmp/nestbox-fuzz) as TARGET-*; a find that is mended goes to the corpus by hand.
set -euo pipefail
src=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)
dir=${NESTBOX_FUZZ:-/tmp/nestbox-fuzz} most=300000
[ $# -ge 2 ] || { sed -n 3,5p "$0"; exit 2; }
seconds=$1
shift
mkdir -p "$dir"
cd "$dir"
[ -e "$src/configure" ] || autoreconf -fi "$src"
[ -e Makefile ] || CC=clang "$src/configure" --enable-fuzz --enable-asan CFLAGS="-g -O1" >configure.log
make -j"$(nproc)" "${@/#/tests/fuzz/fuzz_}" >make.log
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
found=0
for t in "$@"; do
	corpus=$src/tests/fuzz/corpus/$t
	mkdir -p "work/$t" least
	rm -rf "least/$t"
	cp -r "$corpus" "least/$t"
	"./tests/fuzz/fuzz_$t" -max_total_time="$seconds" -max_len=4096 -timeout=30 -rss_limit_mb=1500 -artifact_prefix="$dir/$t-" \
		"work/$t" "$corpus" >"$t.log" 2>&1 || { echo "$t: a find, see $dir/$t.log"; found=1; }
	"./tests/fuzz/fuzz_$t" -merge=1 "least/$t" "work/$t" >"$t.merge.log" 2>&1
	size=$(du -sb "least/$t" | cut -f1)
	echo "$t: $(sed -n 's/^stat::number_of_executed_units: *//p;s/.*DONE *\(cov: [0-9]* ft: [0-9]*\).*/\1/p' "$t.log" | tail -n 1)," \
		"$(find "least/$t" -type f | wc -l) inputs, $size bytes"
	[ "$size" -gt $most ] || cp -n "least/$t"/* "$corpus/"
done
exit $found
