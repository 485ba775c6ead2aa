#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All suites; called by `./bootstrap check [NAME...]`. With names (e.g. unit sdk/fs it/faults) only those.
# A suite is a program whose last line is "N passed, N failed, N skipped". One that ends without such a line, or by a
# signal, or after its time limit, counts as one failure; so does a non-zero exit without a failed test.
set -uo pipefail
# Some suites hold more than a thousand connections.
ulimit -n "$(ulimit -Hn)" 2>/dev/null
cd "$(dirname "$(readlink -f "$0")")"
SRC=$(cd .. && pwd)
PREFIX=$NESTBOX_PREFIX
INST=$PREFIX/instances/check
OUT=$NESTBOX_BUILD/check-logs
LIMIT=${NESTBOX_SUITE_LIMIT:-900}
T0=$(date +%s)
passed=0 failed=0 skipped=0
bad=()
skips=()
again=()
rm -rf "$OUT"
mkdir -p "$OUT"

wanted() {
	[ ${#only[@]} -eq 0 ] && return 0
	local o
	for o in "${only[@]}"; do case $1 in "$o" | "$o"/*) return 0 ;; esac; done
	return 1
}

count() { # count NAME LOG STATUS
	local line p f s
	line=$(grep -aE '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$2" | tail -n 1)
	if [ -z "$line" ]; then
		failed=$((failed + 1))
		bad+=("$1: ended without a result (status $3), see $2")
		tail -n 15 "$2" | sed 's/^/    /'
		return
	fi
	read -r p _ f _ s _ <<<"$line"
	if [ "$3" -ne 0 ] && [ "$f" -eq 0 ]; then
		f=1
		bad+=("$1: all tests passed but the program ended with status $3, see $2")
	elif [ "$f" -gt 0 ]; then
		bad+=("$1: $f failed, see $2")
	fi
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	while IFS= read -r line; do skips+=("$1: ${line#skip }"); done < <(grep -a '^skip ' "$2")
	while IFS= read -r line; do again+=("$1: ${line#again }"); done < <(grep -a '^again ' "$2")
	printf '[%4ds] %-28s %s passed, %s failed, %s skipped\n' $(($(date +%s) - T0)) "$1" "$p" "$f" "$s"
	grep -aE '^(FAIL|not ok)|^  .*not true:' "$2" | head -n 20 | sed 's/^/    /'
}

log_of() { echo "$OUT/$(echo "$1" | tr / -).log"; }
attempt() { # attempt NAME CMD...
	local log
	log=$(log_of "$1")
	shift
	timeout -k 10 "$LIMIT" "$@" >"$log" 2>&1 </dev/null
}
# A suite that fails gets one more attempt, because machines under emulation on a shared host do stall. That it needed one is said
# at the end, with the log of the first: a test that needs it often is a bug.
verdict() { # verdict STATUS NAME CMD...: of a first attempt
	local status=$1 name=$2 log
	shift 2
	log=$(log_of "$name")
	if [ "$status" -ne 0 ] && [ -z "${NESTBOX_NO_SECOND:-}" ]; then
		mv "$log" "${log%.log}.first.log"
		again+=("$name: passed or failed only on its second attempt; the first is in ${log%.log}.first.log")
		attempt "$name" "$@"
		status=$?
	fi
	count "$name" "$log" "$status"
}
suite() { # suite NAME CMD...
	local name=$1 status
	shift
	wanted "$name" || return 0
	attempt "$name" "$@"
	status=$?
	verdict $status "$name" "$@"
}

boot() { NESTBOX_INSTANCE=check "$SRC/bootstrap" "$@"; }

only=("$@")

# --- programs that need no system --------------------------------------------------------------------------------
if wanted unit; then
	make -C "$NESTBOX_BUILD" -k -j"$(nproc)" check >"$OUT/make-check.log" 2>&1
	for log in "$NESTBOX_BUILD"/tests/*/*.log; do
		[ -e "$log" ] || continue
		name=$(basename "$(dirname "$log")")/$(basename "$log" .log)
		status=$(sed -n 's/^:exit-status: //p;s/^:test-result: //p' "${log%.log}.trs" 2>/dev/null | head -n 1)
		case $status in
		PASS*) status=0 ;;
		*)
			status=1
			if [ -z "${NESTBOX_NO_SECOND:-}" ]; then
				first=$OUT/${name//\//-}.first.log
				cp "$log" "$first"
				again+=("$name: passed or failed only on its second attempt; the first is in $first")
				make -C "$NESTBOX_BUILD" check TESTS="tests/$name" >>"$OUT/make-check.log" 2>&1
				status=$?
			fi ;;
		esac
		count "$name" "$log" "$status"
	done
	grep -q 'tests/' "$OUT/make-check.log" || { failed=$((failed + 1)); bad+=("unit: make check ran nothing, see $OUT/make-check.log"); }
fi
# These share nothing but the processors: as many at once as there are of them, second attempts after all first ones.
first=()
for t in "$SRC"/tests/alone/*; do
	name=alone/$(basename "${t%.*}")
	[ -x "$t" ] && wanted "$name" || continue
	while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n; done
	first+=("$t")
	{
		attempt "$name" "$t"
		echo $? >"$(log_of "$name").status"
	} &
done
wait
for t in "${first[@]}"; do
	name=alone/$(basename "${t%.*}")
	verdict "$(cat "$(log_of "$name").status")" "$name" "$t"
done

# --- programs that drive a running system ------------------------------------------------------------------------
# What they call of the SDK is noted (lib/cover.mjs); lib/compat.mjs compares it with doc/compatibility.md at the end.
COVER=$OUT/coverage
mkdir -p "$COVER"
DENO=$(dirname "$NESTBOX_NODE")/../../@deno/linux-x64-glibc/deno
covered() { echo "NESTBOX_COVERAGE=$COVER/$(echo "$1" | tr / +).json"; }
node_suite() { # node_suite NAME FILE
	suite "$1" env "$(covered "$1")" "$NESTBOX_NODE" --import "$SRC/tests/lib/cover.mjs" "$2"
}
# One program under Node and under Deno: at the same time, as both wait for emulated machines most of it.
both_suites() { # both_suites NAME FILE
	local node=(env "$(covered "sdk/$1")" "$NESTBOX_NODE" --import "$SRC/tests/lib/cover.mjs" "$2") pid= status
	local deno=(env "$(covered "sdk-deno/$1")" "$DENO" run --quiet --allow-all --no-lock --preload "$SRC/tests/lib/cover.mjs" "$2")
	if [ "$1" = readme ]; then # its names are the README's
		suite "sdk/$1" "${node[@]}"
		suite "sdk-deno/$1" "${deno[@]}"
		return
	fi
	if wanted "sdk-deno/$1"; then
		attempt "sdk-deno/$1" "${deno[@]}" &
		pid=$!
	fi
	suite "sdk/$1" "${node[@]}"
	[ -n "$pid" ] || return 0
	wait "$pid"
	status=$?
	verdict $status "sdk-deno/$1" "${deno[@]}"
}

need_system=no
for d in sdk sdk-deno it sec; do wanted $d && need_system=yes; done
for o in "${only[@]}"; do case $o in sdk/* | sdk-deno/* | it/* | sec/*) need_system=yes ;; esac; done
if [ $need_system = yes ]; then
	echo "[$(printf %4d $(($(date +%s) - T0)))s] starting an instance for the tests"
	boot stop >"$OUT/stop-before.log" 2>&1
	rm -rf "$INST"
	# What tests/sec/egress* need: a name server and addresses that exist only while they run, and an authority of theirs.
	export NESTBOX_EGRESS_CERTS=$OUT/egress-certs
	"$SRC/tests/lib/egress-certs.sh" "$NESTBOX_EGRESS_CERTS" || exit 1
	export NESTBOX_CONF_EXTRA="tenant_vms = 16
tenant_captures = 2
lease_grace_ms = 1000
egress_resolver = 10.199.77.2
egress_allow_private = 10.199.77.8/29 10.199.77.16/28
egress_ca_file = $NESTBOX_EGRESS_CERTS/ca.pem"
	if boot start >"$OUT/start.log" 2>&1; then
		eval "$(boot env)"
		export NESTBOX_CONF=$INST/etc/nestbox/nestbox.conf NESTBOX_STATE=$INST/var/lib/nestbox NESTBOX_RUN=$INST/run/nestbox
		export NESTBOX_SV=$INST/etc/nestbox/sv NESTBOX_LOGS=$INST/var/log/nestbox NESTBOX_SRC=$SRC
		for d in sdk it sec; do
			for t in "$SRC"/tests/$d/*.mjs "$SRC"/tests/$d/*.sh; do
				[ -e "$t" ] || continue
				name=$d/$(basename "${t%.*}")
				case $name in */lib | */lib-* | it/zz-*) continue ;; esac
				case $d/$t in
				sdk/*.mjs) if sed -n 2p "$t" | grep -q 'Node only'; then node_suite "$name" "$t"; else both_suites "${name#sdk/}" "$t"; fi ;;
				*.mjs) node_suite "$name" "$t" ;;
				*.sh) suite "$name" bash "$t" ;;
				esac
			done
		done
		# Those that kill daemons come last.
		for t in "$SRC"/tests/it/zz-*; do
			[ -e "$t" ] || continue
			name=it/$(basename "${t%.*}")
			case $t in *.mjs) node_suite "$name" "$t" ;; *.sh) suite "$name" bash "$t" ;; esac
		done
		boot stop >"$OUT/stop-after.log" 2>&1
		wanted sdk/compatibility && NESTBOX_COVERAGE=$COVER suite sdk/compatibility "$NESTBOX_NODE" "$SRC/tests/lib/compat.mjs" check
		suite sec/nothing-left bash "$SRC/tests/lib/nothing-left.sh" "$INST"
	else
		failed=$((failed + 1))
		bad+=("the system did not start, see $OUT/start.log")
		tail -n 30 "$OUT/start.log" | sed 's/^/    /'
		boot stop >"$OUT/stop-after.log" 2>&1
	fi
fi

# --- what needs real KVM, in a machine of its own ----------------------------------------------------------------
if [ -x "$SRC/tests/kvmbed/run.sh" ]; then
	NESTBOX_NO_SECOND=1 LIMIT=${NESTBOX_KVMBED_LIMIT:-2700} suite kvmbed "$SRC/tests/kvmbed/run.sh"
fi

echo
for s in "${again[@]}"; do echo "second attempt: $s"; done
for s in "${skips[@]}"; do echo "skipped: $s"; done
for b in "${bad[@]}"; do echo "FAILED: $b"; done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
