#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# After an instance was stopped: no process, mount, namespace, tap, cgroup, socket or machine directory of it is left.
set -u
INST=$1
passed=0 failed=0
check() { # check WHAT LEFTOVERS
	if [ -z "$2" ]; then
		echo "ok   no $1"
		passed=$((passed + 1))
	else
		echo "FAIL $1 left:"
		echo "$2" | head -n 10 | sed 's/^/  /'
		failed=$((failed + 1))
	fi
}
uid=$(sed -n 's/^vm_uid_base *= *//p' "$INST/etc/nestbox/nestbox.conf")
check "process of the instance" "$(ps -eo pid,args | grep -F "$INST" | grep -vE 'grep|nothing-left|tests/run.sh')"
check "machine process" "$(ps -eo pid,uid,args | awk -v b="$uid" '$2 >= b && $2 < b + 4999')"
check "mount" "$(grep -F "$INST" /proc/mounts)"
check "network namespace" "$(ls "$INST/run/nestbox/netns" 2>/dev/null)"
check "machine directory" "$(ls "$INST/var/lib/nestbox/vms" 2>/dev/null)"
check "cgroup" "$(find /sys/fs/cgroup -maxdepth 4 -type d -path '*nestbox*/*' 2>/dev/null | grep -F "$(basename "$INST")")"
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
