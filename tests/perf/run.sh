#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The performance suites; called by `./bootstrap bench [SUITE...]`.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
export NESTBOX_RUN=${NESTBOX_RUN:-$(sed -n 's/^run_dir *= *//p' "$NESTBOX_CONF")}
make -s -C "$NESTBOX_BUILD" tests/perf/direct
suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(sandbox)
for s in "${suites[@]}"; do
	if [ -e "$s.mjs" ]; then
		"$NESTBOX_NODE" "$s.mjs"
	elif [ -e "$s.sh" ]; then
		bash "$s.sh"
	else
		echo "bench: no suite '$s'; there are: $(ls *.mjs *.sh | grep -vE '^(lib|run)\.' | sed 's/\..*//' | tr '\n' ' ')" >&2
		exit 2
	fi
done
