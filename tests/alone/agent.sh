#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The agent's services without a machine: the same binary, serving a loopback port of this host. What needs a machine is
# in tests/it/boot_agent.sh.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../it"
agent=${NESTBOX_AGENT:-${NESTBOX_BUILD:?}/nestbox-agent}
coproc AGENT { exec "$agent" serve; }
pid=$AGENT_PID
trap 'kill "$pid" 2>/dev/null || true' EXIT
read -r port <&"${AGENT[0]}"
"${NESTBOX_NODE:-node}" lib-agent.mjs --port "$port"
