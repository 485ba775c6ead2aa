#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kvm against qemu-kvm, side by side in one run of the KVM bed: ratios of medians, as absolute times there say nothing.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
out=$(mktemp)
trap 'rm -f "$out"' EXIT
make -s -C "$NESTBOX_BUILD" tests/it/engine-driver
BED_TIMEOUT=${BED_TIMEOUT:-500} BED_RUNS=${BED_RUNS:-5} ../kvmbed/bed run ../kvmbed/job.sh kvm qemu-kvm >"$out" || { tail -n 40 "$out" >&2; exit 1; }
mkdir -p "$NESTBOX_STATE/bench"
# Rows of engine-driver's table: name, runs, least, median, most.
awk '
/^engine / { e = $2; next }
/  +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+$/ {
	n = NF; median = $(n - 1); runs = $(n - 3)
	name = $0; sub(/ +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+$/, "", name)
	if (!(name in seen)) { seen[name] = 1; order[++rows] = name }
	value[name, e] = median; count[name, e] = runs
}
END {
	printf "{\"unit\":\"us unless the name says otherwise\",\"rows\":["
	for (i = 1; i <= rows; i++) {
		k = value[order[i], "kvm"]; q = value[order[i], "qemu-kvm"]
		printf "%s{\"name\":\"%s\",\"kvm\":%s,\"qemu_kvm\":%s,\"ratio\":%s}", i > 1 ? "," : "", order[i],
			k == "" ? "null" : k, q == "" ? "null" : q, k == "" || !q ? "null" : sprintf("%.3f", k / q)
	}
	print "]}"
}' "$out" >"$NESTBOX_STATE/bench/vmm.json"
jq -r '.rows[] | [.name, (.kvm // "-"), (.qemu_kvm // "-"), (.ratio // "-")] | @tsv' "$NESTBOX_STATE/bench/vmm.json" |
	column -t -s "$(printf '\t')" -N "median,kvm,qemu-kvm,ratio"
