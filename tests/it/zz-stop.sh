#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Supervisor and daemons killed at once while a machine runs: `./bootstrap stop` still ends the machine and leaves nothing. The last
# of the programs that use the instance, as it is stopped afterwards.
set -uo pipefail
INST=$(dirname "$(dirname "$(dirname "$NESTBOX_CONF")")")
fail() { echo "FAIL $1"; echo "0 passed, 1 failed, 0 skipped"; exit 1; }
ctl() { "$NESTBOX_PREFIX/sbin/nestboxctl" -c "$NESTBOX_CONF" --json "$@"; }

cd "$NESTBOX_SRC/tests" || exit 1
export NESTBOX_INSTANCE=check
"$NESTBOX_SRC/bootstrap" start || fail "bootstrap start: exit status $?" # a second attempt finds it stopped
id=$("$NESTBOX_NODE" --input-type=module -e '
import { Sandbox } from "@deno/sandbox";
const s = await Sandbox.create({ timeout: "10m" });
console.log(s.id);
process.exit(0);')
vm=$(ctl stat "$id" | jq .pid)
kill -0 "$vm" 2>/dev/null || fail "no machine to begin with (${id:-no sandbox})"

supervisor=$(cat "$INST/run/runsvdir.pid")
pids=$supervisor
for runsv in $(pgrep -P "$supervisor"); do pids="$pids $runsv $(pgrep -P "$runsv" | tr '\n' ' ')"; done
# shellcheck disable=SC2086
kill -9 $pids
kill -0 "$vm" 2>/dev/null || fail "the machine died with its daemons: then this shows nothing"

"$NESTBOX_SRC/bootstrap" stop || fail "bootstrap stop: exit status $?"
kill -0 "$vm" 2>/dev/null && fail "machine $id is still there"
exec bash "$NESTBOX_SRC/tests/lib/nothing-left.sh" "$INST"
