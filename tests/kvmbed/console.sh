#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nestbox-vmm run, as a person would use it: a kernel, an initrd, disks, a console on standard input and output.
#   console.sh NESTBOX-VMM HOSTILE.ELF     wherever /dev/kvm opens; its last line is "ok ..." or "not ok ..."
vmm=$1 kernel=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
head -c 5000 /dev/zero | tr '\0' i >"$dir/initrd"
truncate -s 1M "$dir/one"
truncate -s 2M "$dir/two"
fail() {
	echo "not ok nestbox-vmm run: $1"
	sed 's/^/  /' "$dir/out" "$dir/err"
	exit 1
}
# Input comes when the guest asks for it: the serial port keeps 64 bytes.
mkfifo "$dir/in"
timeout -k 5 120 "$vmm" run --kernel "$kernel" --initrd "$dir/initrd" --disk "$dir/one" --disk "$dir/two,ro,serial=second" --memory 64 --cpus 2 \
	--cmdline console <"$dir/in" >"$dir/out" 2>"$dir/err" &
exec 3>"$dir/in"
for _ in $(seq 600); do
	grep -q type "$dir/out" && break
	kill -0 $! 2>/dev/null || fail "it ended"
	sleep 0.2
done
echo "hello, console q" >&3
wait $!
status=$?
exec 3>&-
[ $status = 0 ] || fail "its exit status was $status"
grep -qx 'console: initrd of 5000 bytes begins with iiii, disk of 2048 sectors, disk of 4096 sectors, type' "$dir/out" || fail "it was given something else"
grep -q 'HELLO, CONSOLE bye' "$dir/out" || fail "it did not hear what was typed"
grep -q 'guest reset' "$dir/err" || fail "it does not say why it ended"
# ctrl-a x ends a guest that does not end by itself; a kernel that is none is refused.
printf 'abc\001x' | timeout -k 5 120 "$vmm" run --kernel "$kernel" --memory 64 --cmdline console >"$dir/out" 2>"$dir/err" || fail "ctrl-a x: exit status $?"
grep -q 'ended from the console' "$dir/err" || fail "ctrl-a x"
timeout 60 "$vmm" run --kernel "$dir/initrd" --memory 64 >"$dir/out" 2>"$dir/err" && fail "a file that is no kernel was taken"
[ -s "$dir/err" ] || fail "no word about the file that is no kernel"
echo "ok nestbox-vmm run: kernel, initrd, disks and a console by hand"
