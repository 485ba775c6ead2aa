#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kvm against qemu-kvm, side by side in one run of the KVM bed: ratios of medians, as absolute times there say nothing. Each figure has a bound; the
# exit status is 1 if one is not kept. Where a guest could not touch 512 MiB in time, the fork's bound is that of 256 MiB, which is said.
#   BED_RUNS (2)   BED_BOOTS (2; 1: only the rows of disk and network, in four minutes instead of fifteen)
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
mkdir -p "$NESTBOX_STATE/bench"
out=$NESTBOX_STATE/bench/vmm.txt # what the engines' runs printed, also while they run
make -s -C "$NESTBOX_BUILD" tests/it/engine-figures tests/it/guest-checker >&2
BED_TIMEOUT=${BED_TIMEOUT:-1800} BED_RUNS=${BED_RUNS:-2} ../kvmbed/bed run "$PWD/../kvmbed/figures.sh" kvm qemu-kvm >"$out" || { echo "bench: not all of it could be run:" >&2; grep -aE 'engine-figures: .*(not|no )|ended|panic' "$out" | tail -n 20 >&2; }
# Rows of engine-figures' table: name, runs, least, median, most.
awk -v boots="${BED_BOOTS:-2}" '
/^engine / { e = $2; next }
/  +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+$/ {
	n = NF; median = $(n - 1); runs = $(n - 3)
	name = $0; sub(/ +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+$/, "", name)
	if (!(name in seen)) { seen[name] = 1; order[++rows] = name }
	value[name, e] = median; count[name, e] = runs
}
END {
	most["cold: to first agent answer"] = 0.5
	most["restore to first command'\''s output"] = 0.25
	most["fork pause: 512 of 1024 MiB touched"] = 0.5
	half = "fork pause: 256 of 1024 MiB touched"; whole = "fork pause: 512 of 1024 MiB touched"
	if (((half, "kvm") in value) && ((half, "qemu-kvm") in value) && !(((whole, "kvm") in value) && ((whole, "qemu-kvm") in value))) {
		delete most[whole]
		most[half] = 0.5
		print "bench: not all touched 512 MiB in time; the bound of the pause is that of 256 MiB" >"/dev/stderr"
	}
	if (boots == 1)
		delete most
	else
		most["exec of true"] = 1
	most["disk: us for 600 reads of 4 KiB"] = 1
	most["disk: us for 32 reads of 1 MiB"] = 1
	most["net: us a MiB to the guest"] = 1
	most["net: us a MiB from the guest"] = 1
	for (name in most) # what neither of them had shows as missing, and fails
		if (!(name in seen)) order[++rows] = name
	printf "{\"unit\":\"us unless the name says otherwise\",\"rows\":["
	for (i = 1; i <= rows; i++) {
		name = order[i]; k = value[name, "kvm"]; q = value[name, "qemu-kvm"]
		printf "%s{\"name\":\"%s\",\"n\":%s,\"kvm\":%s,\"qemu_kvm\":%s,\"ratio\":%s,\"at_most\":%s}", (i > 1 ? "," : ""), name,
			(count[name, "kvm"] == "" ? 0 : count[name, "kvm"]), (k == "" ? "null" : k), (q == "" ? "null" : q),
			((k == "" || !q) ? "null" : sprintf("%.3f", k / q)), ((name in most) ? most[name] : "null")
	}
	small = value["fork pause: 256 of 3072 MiB touched", "kvm"]; big = value["fork pause: 2048 of 3072 MiB touched", "kvm"]
	own = value["process'\''s own private KiB", "kvm"]
	if (boots != 1)
		printf ",{\"name\":\"fork pause: 2048 MiB touched against 256\",\"n\":1,\"kvm\":null,\"qemu_kvm\":null,\"ratio\":%s,\"at_most\":2}", ((small && big) ? sprintf("%.3f", big / small) : "null")
	if (boots != 1)
		printf ",{\"name\":\"own memory against 5 MiB\",\"n\":1,\"kvm\":%s,\"qemu_kvm\":null,\"ratio\":%s,\"at_most\":1}", (own == "" ? "null" : own), (own == "" ? "null" : sprintf("%.3f", own / 5120))
	print "]}"
}' "$out" >"$NESTBOX_STATE/bench/vmm.json"
jq -r '.rows[] | [.name, .n, (.kvm // "-"), (.qemu_kvm // "-"), (.ratio // "-"), (.at_most // "-"),
	(if .at_most == null then "" elif .ratio == null then "no figure" elif .ratio <= .at_most then "kept" else "NOT KEPT" end)] | @tsv' \
	"$NESTBOX_STATE/bench/vmm.json" | column -t -s "$(printf '\t')" -N "median,n,kvm,qemu-kvm,ratio,at most, "
jq -e '[.rows[] | select(.at_most != null) | .ratio != null and .ratio <= .at_most] | all' "$NESTBOX_STATE/bench/vmm.json" >/dev/null
