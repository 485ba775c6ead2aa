#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The egress proxy against the kernel's NAT in one run (tests/perf/egress.c); a table, and JSON in $NESTBOX_STATE/bench. A bound that is not
# kept makes the exit status 1: a stream that passes through keeps 80 % of its throughput, and an exchange takes 0.3 ms longer at most.
set -euo pipefail
make -s -C "$NESTBOX_BUILD" tests/perf/egress nestbox-egress >&2
mkdir -p "$NESTBOX_STATE/bench"
out=$NESTBOX_STATE/bench/egress.json
(cd "$NESTBOX_BUILD" && NESTBOX_EGRESS=${NESTBOX_EGRESS:-$NESTBOX_BUILD/nestbox-egress} tests/perf/egress 2>"$out.log") >"$out" || { tail -n 20 "$out.log" >&2; exit 1; }
jq -r '.[] | [.figure, .way, .value, .unit, (if .reference > 0 then .reference else "-" end), (if .ratio > 0 then .ratio else "-" end), .rounds, .n, .p50_us, .p95_us, .p99_us,
	.proxy_cpu_s, (if .kib_each != 0 then .kib_each else "-" end)] | @tsv' "$out" | column -t -s "$(printf '\t')" -N "figure,way,value,unit,NAT,ratio,rounds,n,p50 us,p95 us,p99 us,proxy cpu s,KiB each"
# The aims, of what passes through; what is intercepted has none.
aims=$(jq -r '.[] | select(.way == "tcp, proxy" or .way == "tls, proxy") |
	if .unit == "us" then [(if .value - .reference <= 300 then "met" else "NOT met" end), .way, "an exchange takes \(.value - .reference | round) us longer, 300 at most"]
	elif .figure == "one stream" then [(if .ratio >= 0.8 then "met" else "NOT met" end), .way, "a stream keeps \(.ratio * 100 | round) %, 80 at least"]
	else empty end | join(": ")' "$out")
# What an open, quiet connection costs the proxy (the kernel's socket buffers not counted).
memory=$(jq -r '.[] | select(.kib_each != 0) | (if .way == "tls, intercepted" then 128 else 8 end) as $most |
	[(if .kib_each <= $most then "met" else "NOT met" end), .way, "an open connection takes \(.kib_each) KiB, \($most) at most"] | join(": ")' "$out")
aims=$aims${memory:+$'\n'$memory}
echo "$aims"
[ -n "$aims" ] && ! grep -q '^NOT' <<<"$aims"
