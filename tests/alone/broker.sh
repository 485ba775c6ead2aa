#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nestboxd with the real engine and the guest image, in directories of its own: a machine's life, what a restart finds, and
# the broker killed at many points of a create and of an end. After each, nothing may be left.
set -u
image=${NESTBOX_IMAGE:-$NESTBOX_PREFIX/var/lib/nestbox/images/debian-13}
build=$NESTBOX_BUILD
export NESTBOX_LIBEXECDIR=$build
passed=0 failed=0
finish() { echo "$passed passed, $failed failed, ${1:-0} skipped"; [ $failed -eq 0 ]; exit; }
if [ "$(id -u)" != 0 ] || [ ! -e "$image/kernel" ]; then
	echo "skip broker: needs root and a guest image in $image"
	finish 1
fi

dir=$(mktemp -d /tmp/nestbox-broker.XXXXXX)
uid_base=$((1000000 + $$ % 1000000 * 100))
cat >"$dir/conf" <<END
state_dir = $dir/state
run_dir = $dir/run
vm_uid_base = $uid_base
vm_max = 8
user_api = root
user_gateway = root
user_egress = root
template_memory_mib = 1024
engine = ${NESTBOX_ENGINE:-auto}
END
# A copy: were the image built anew meanwhile, a restarted broker would rightly make a template anew, and its machine is
# none that was left over.
mkdir -p "$dir/state/images/debian-13"
for f in kernel initrd root.erofs image.json; do
	cp --reflink=auto --preserve=timestamps "$image/$f" "$dir/state/images/debian-13/$f" ||
		{ echo "skip broker: the image cannot be copied to $dir"; rm -rf "$dir"; finish 1; }
done
ctl() { "$build/nestboxctl" -c "$dir/conf" "$@"; }

within() { # within SECONDS CMD...: until it succeeds
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || return 1
		read -rt 0.05 <> <(:)
	done
	return 0 # not that of the loop's last read
}
check() { # check NAME CMD...
	local name=$1
	shift
	if "$@" >"$dir/out" 2>&1; then echo "ok   $name"; passed=$((passed + 1)); else
		echo "FAIL $name"; sed 's/^/  /' "$dir/out"; failed=$((failed + 1)); fi
}

broker=
broker_up() {
	"$build/nestboxd" -c "$dir/conf" >>"$dir/log" 2>&1 &
	broker=$!
	within 20 ctl status
}
broker_kill() { kill -9 "$broker"; wait "$broker" 2>/dev/null; }
processes() { ps -eo uid=,pid= | awk -v a=$uid_base '$1 >= a && $1 < a + 100 { print $2 }'; }
groups() { find /sys/fs/cgroup -maxdepth 3 -path "*/nestbox-$(printf %s "$dir/state" | sha256sum | head -c 16)/*" -type d; }
leftovers() {
	{ ls "$dir/state/vms"; ls "$dir/run/netns"; processes; groups; grep -F "$dir/run/netns/" /proc/self/mounts; } 2>/dev/null
}
nothing_left() { [ -z "$(leftovers)" ]; }
nothing_left_soon() { within 10 nothing_left || { leftovers; tail -n 5 "$dir/log"; return 1; }; }
clean_up() {
	broker_kill
	processes | xargs -r kill -9
	broker_up && within 10 nothing_left
	kill "$broker"
	wait "$broker" 2>/dev/null
	umount -l "$dir/run/netns" 2>/dev/null
	rm -rf "$dir"
}
trap clean_up EXIT

check "starts" broker_up
check "makes its template" within 300 grep -q "template ready" "$dir/log"

# --- one machine -------------------------------------------------------------------------------------------------
check "create" ctl create a 1024
check "its agent runs commands" test "$(ctl dial a echo hello)" = hello
check "exit codes arrive" sh -c "'$build/nestboxctl' -c '$dir/conf' dial a sh -c 'exit 7'; [ \$? = 7 ]"
check "a second with the same id is refused" sh -c "! '$build/nestboxctl' -c '$dir/conf' create a 1024"
check "pause" ctl pause a
check "paused machines answer nothing" sh -c "! '$build/nestboxctl' -c '$dir/conf' dial a true"
check "resume" ctl resume a
check "it goes on" ctl dial a true
ctl dial a sh -c 'timeout 4 yes 0123456789abcdef0123456789abcdef >/dev/ttyS0' 2>/dev/null
console_small() { [ "$(stat -c %s "$dir/state/vms/a/console.log")" -le 1048576 ]; }
check "a flooded console log is cut" within 10 console_small

# --- restarts ----------------------------------------------------------------------------------------------------
broker_kill
check "restarts" broker_up
check "what ran still runs" test "$(ctl dial a echo still)" = still
pid_of() { ctl --json stat "$1" | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p'; }
kill -9 "$(pid_of a)"
gone() { ctl stat "$1" | grep -q "$2"; }
check "a killed VM process is reported" within 10 gone a "process ended"
check "and leaves nothing" nothing_left_soon
ctl create b 1024 >/dev/null
pid=$(pid_of b)
kill -9 "$broker" "$pid"
wait "$broker" 2>/dev/null
check "starts after everything was killed at once" broker_up
check "what ran is reported as lost" within 10 gone b "lost while the broker was away"
check "and leaves nothing" nothing_left_soon

# --- killed in the middle ----------------------------------------------------------------------------------------
for ms in 001 002 003 004 006 010 015 025 050 100 200 350; do
	ctl create "k$ms" 1024 >/dev/null 2>&1 &
	job=$!
	read -rt "0.$ms" <> <(:)
	broker_kill
	wait $job 2>/dev/null
	broker_up
	if ctl list | grep -q "^k$ms .*running"; then
		ctl kill "k$ms" >/dev/null 2>&1 &
		job=$!
		read -rt "0.$ms" <> <(:)
		broker_kill
		wait $job 2>/dev/null
		broker_up
		within 1 sh -c "! '$build/nestboxctl' -c '$dir/conf' list | grep -q running" || ctl kill "k$ms" >/dev/null 2>&1
	fi
	check "killed $ms ms into a create: nothing is left" nothing_left_soon
done

# --- privilege ---------------------------------------------------------------------------------------------------
check "has a filter and no way to new privileges" sh -c \
	"grep -q '^Seccomp:.2' /proc/$broker/status && grep -q '^NoNewPrivs:.1' /proc/$broker/status"
allowed=$(sed -n 's/^CapBnd:\t//p' "/proc/$broker/status")
# The table of vmm/broker/privilege.c as a mask: nothing beyond it.
check "capabilities are bounded to its table" test $((0x$allowed & ~0x92c15eb)) -eq 0
check "a stranger is refused" sh -c "! setpriv --reuid 65534 --regid 65534 --clear-groups '$build/nestboxctl' -c '$dir/conf' status"
finish
