#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What is too long for `check`; called by `./bootstrap soak`, in an instance of its own. SOAK_SECONDS (600), SOAK_WORKERS (4) clients,
# SOAK_LIVE (20) sandboxes at once, SOAK_APPS (200), SOAK_DEPLOYED (6) of them with deployments; SOAK_LARGE_MIB (1024). With names (large, churn,
# frameworks) only those programs; without, churn.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
export NESTBOX_INSTANCE=soak
INST=$NESTBOX_PREFIX/instances/soak
./bootstrap stop
rm -rf "$INST"
trap './bootstrap stop' EXIT
# What the machines may have together is more than the host has: they use a fraction of it.
export NESTBOX_CONF_EXTRA="tenant_vms = 48
vm_memory_mib_host = 65536
build_s = 7200
build_command_s = 3600
app_ready_s = 600"
./bootstrap start
eval "$(./bootstrap env)"
export NESTBOX_CONF=$INST/etc/nestbox/nestbox.conf NESTBOX_STATE=$INST/var/lib/nestbox NESTBOX_SV=$INST/etc/nestbox/sv
programs=("$@")
[ ${#programs[@]} -gt 0 ] || programs=(churn)
status=0
for p in "${programs[@]}"; do
	echo "== $p =="
	"$NESTBOX_NODE" "tests/soak/$p.mjs" || status=1
done
exit $status
