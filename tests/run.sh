#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All suites; called by `./bootstrap check [NAME...]`. With names (e.g. unit sdk/fs it/faults) only those.
# A suite is a program whose last line is "N passed, N failed, N skipped". One that ends without such a line, or by a
# signal, or after its time limit, counts as one failure; so does a non-zero exit without a failed test.
# NESTBOX_JOBS: how many at once (one more than there are processors). NESTBOX_NO_SECOND=1: no second attempts.
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
	timeout -k 10 "$LIMIT" "$@" >"$log" 2>&1 </dev/null 9>&-
}
# A suite that fails gets one more attempt, because machines under emulation on a shared host do stall. That it needed one is said
# at the end, with the log of the first: a test that needs it often is a bug.
second() { # second NAME STATUS: whether it gets one, after a first attempt that ended so
	local log
	[ "$2" -ne 0 ] && [ -z "${NESTBOX_NO_SECOND:-}" ] || return 1
	log=$(log_of "$1")
	mv "$log" "${log%.log}.first.log"
	again+=("$1: passed or failed only on its second attempt; the first is in ${log%.log}.first.log")
}
verdict() { # verdict STATUS NAME CMD...: of a first attempt
	local status=$1 name=$2
	shift 2
	if second "$name" "$status"; then
		attempt "$name" "$@"
		status=$?
	fi
	count "$name" "$(log_of "$name")" "$status"
}
suite() { # suite NAME CMD...
	local name=$1
	shift
	wanted "$name" || return 0
	attempt "$name" "$@"
	verdict $? "$name" "$@"
}

boot() { NESTBOX_INSTANCE=check "$SRC/bootstrap" "$@"; }

only=("$@")

# --- programs that need no system --------------------------------------------------------------------------------
if wanted unit; then
	make -C "$NESTBOX_BUILD" -k -j"$(nproc)" check >"$OUT/make-check.log" 2>&1
	for log in "$NESTBOX_BUILD"/tests/*/*.log; do
		[ -e "$log" ] || continue
		name=$(basename "$(dirname "$log")")/$(basename "$log" .log)
		cp "$log" "$(log_of "$name")"
		status=$(sed -n 's/^:exit-status: //p;s/^:test-result: //p' "${log%.log}.trs" 2>/dev/null | head -n 1)
		case $status in PASS*) status=0 ;; *) status=1 ;; esac
		verdict $status "$name" bash -c 'make -s -C "$1" check TESTS="tests/$2"; status=$?; cat "$1/tests/$2.log"; exit $status' - "$NESTBOX_BUILD" "$name"
	done
	grep -q 'tests/' "$OUT/make-check.log" || { failed=$((failed + 1)); bad+=("unit: make check ran nothing, see $OUT/make-check.log"); }
fi

# --- suites that run beside others -------------------------------------------------------------------------------
# Most of a suite's time is waiting: for emulated machines, for what must not happen. So several run at once, each against an
# organization of its own, so that none sees what another has. A suite is one of three kinds:
#   beside   uses the instance beside others of this kind
#   whole    needs the instance for itself: it kills daemons, or counts what the host has. After all that are beside others, in order
#   free     needs no instance: while that starts, and beside those that need it whole
# Suites of one group never run at once. One that fails is tried again later, as "whole", so alone on the instance.
JOBS=${NESTBOX_JOBS:-$(($(nproc) + 1))}
declare -A kind_of=() group_of=() command_of=() running=() held=() tried=()
order=()
mkfifo "$OUT/ends" && exec 9<>"$OUT/ends" # a line for each that has ended: its status and its name
trap 'exec 2>/dev/null; for pid in "${running[@]}"; do pkill -TERM -P "$pid"; kill "$pid"; done; exit 130' INT TERM
add() { # add KIND GROUP NAME CMD...: GROUP is - for none
	wanted "$3" || return 0
	order+=("$3")
	kind_of[$3]=$1 group_of[$3]=$2
	command_of[$3]=$(printf '%q ' "${@:4}")
}
instance=down
running_of() { # how many run of KIND...
	local name k n=0
	for name in "${!running[@]}"; do for k in "$@"; do [ "${kind_of[$name]}" = "$k" ] && n=$((n + 1)); done; done
	echo $n
}
waiting_of() {
	local name n=0
	for name in "${order[@]}"; do [ "${kind_of[$name]}" = "$1" ] && n=$((n + 1)); done
	echo $n
}
# The next that may run now, in $next.
pick() {
	local name kind
	next=
	for kind in beside whole free; do
		for name in "${order[@]}"; do
			[ "${kind_of[$name]}" = $kind ] && [ -z "${held[${group_of[$name]}]:-}" ] || continue
			case $kind in
			beside) [ $instance = up ] || continue ;;
			whole) [ $instance = up ] && [ "$(waiting_of beside)" = 0 ] && [ "$(running_of beside whole)" = 0 ] || continue ;;
			esac
			next=$name
			return 0
		done
	done
	return 1
}
token_of() { # token_of ORGANIZATION: which is made if it isn't there
	local adm=("$NESTBOX_PREFIX/sbin/nestboxadm" -c "$NESTBOX_CONF")
	[ -n "${tried[$name]:-}" ] || "${adm[@]}" org create "$1" >&2 || return 1
	"${adm[@]}" token create --org "$1" --name tests
}
launch() { # launch NAME
	local name=$1 n left=()
	for n in "${order[@]}"; do [ "$n" = "$name" ] || left+=("$n"); done
	order=("${left[@]}")
	[ "${group_of[$name]}" = - ] || held[${group_of[$name]}]=$name
	(
		if [ "${kind_of[$name]}" = free ]; then
			unset NESTBOX_CONF NESTBOX_STATE NESTBOX_RUN NESTBOX_SV NESTBOX_LOGS NESTBOX_EGRESS_CERTS NESTBOX_CONF_EXTRA \
				DENO_SANDBOX_ENDPOINT DENO_DEPLOY_ENDPOINT DENO_DEPLOY_TOKEN DENO_CERT
		else
			NESTBOX_ORG=$(echo "$name" | tr /_ --)
			DENO_DEPLOY_TOKEN=$(token_of "$NESTBOX_ORG" 2>"$(log_of "$name")") || { echo "1 $name" >&9; exit; }
			export NESTBOX_ORG DENO_DEPLOY_TOKEN
		fi
		eval "attempt $name ${command_of[$name]}"
		echo "$? $name" >&9
	) &
	running[$name]=$!
}
ended() { # ended NAME STATUS
	[ "${group_of[$1]}" = - ] || unset "held[${group_of[$1]}]"
	if [ -z "${tried[$1]:-}" ] && second "$1" "$2"; then
		tried[$1]=yes
		[ "${kind_of[$1]}" != beside ] || kind_of[$1]=whole
		if [ "${kind_of[$1]}" = free ]; then order+=("$1"); else order=("$1" "${order[@]}"); fi
		return
	fi
	count "$1" "$(log_of "$1")" "$2"
}
# Runs all that was added; the instance's start counts as one of them.
run_all() {
	local next name status
	if [ "$(waiting_of beside)$(waiting_of whole)" != 00 ]; then
		kind_of[start]=start
		{ boot start >"$OUT/start.log" 2>&1 9>&-; echo "$? start" >&9; } &
		running[start]=$!
	fi
	while :; do
		while [ ${#running[@]} -lt "$JOBS" ] && pick; do launch "$next"; done
		[ ${#running[@]} -gt 0 ] || break
		read -r -t 5 status name <&9 || continue # so that a trap is not kept waiting
		unset "running[$name]"
		case $name,$status in
		start,0) instance=up; eval "$(boot env)" ;;
		start,*) ;;
		*) ended "$name" "$status" ;;
		esac
	done
}

# --- programs that drive a running system ------------------------------------------------------------------------
# What they call of the SDK is noted (lib/cover.mjs); lib/compat.mjs compares it with doc/compatibility.md at the end.
COVER=$OUT/coverage
mkdir -p "$COVER"
DENO=$(dirname "$NESTBOX_NODE")/../../@deno/linux-x64-glibc/deno
add_program() { # add_program KIND GROUP NAME FILE
	local with=(env "NESTBOX_COVERAGE=$COVER/$(echo "$3" | tr / +).json")
	case $3/$4 in
	*.sh) add "$1" "$2" "$3" bash "$4" ;;
	sdk-deno/*) add "$1" "$2" "$3" "${with[@]}" "$DENO" run --quiet --allow-all --no-lock --preload "$SRC/tests/lib/cover.mjs" "$4" ;;
	*) add "$1" "$2" "$3" "${with[@]}" "$NESTBOX_NODE" --import "$SRC/tests/lib/cover.mjs" "$4" ;;
	esac
}
for d in sec it sdk; do # those first of which the fewest can run at once
	for t in "$SRC"/tests/$d/*.mjs "$SRC"/tests/$d/*.sh; do
		[ -e "$t" ] || continue
		name=$d/$(basename "${t%.*}") kind=beside group=-
		case $name in
		*/lib | */lib-* | it/zz-*) continue ;;
		it/boot_agent) kind=free ;;
		sec/egress*) group=world ;; # the namespace that is the internet
		sdk/readme) group=readme ;; # its names are the README's
		esac
		add_program $kind $group "$name" "$t"
		[ $d = sdk ] && ! sed -n 2p "$t" | grep -q 'Node only' && add_program $kind $group "sdk-deno/${name#sdk/}" "$t"
	done
done
# After the longest of those that need no instance.
for t in "$SRC"/tests/alone/*; do [ ! -x "$t" ] || add free - "alone/$(basename "${t%.*}")" "$t"; done
# Those that kill daemons, in this order.
for t in "$SRC"/tests/it/zz-*; do add_program whole - "it/$(basename "${t%.*}")" "$t"; done

need_system=no
for name in "${order[@]}"; do [ "${kind_of[$name]}" = free ] || need_system=yes; done
if [ $need_system = yes ]; then
	echo "[$(printf %4d $(($(date +%s) - T0)))s] starting an instance for the tests; $JOBS at once"
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
	# What an example of sdk/readme needs, unless NESTBOX_NO_CODE_SERVER is set: made of npm's packages beside all else, the first time (75 s of a processor). Not a job of ours.
	for n in sdk/readme sdk-deno/readme; do
		wanted $n && [ -z "${NESTBOX_NO_CODE_SERVER:-}" ] || continue
		want=code-server@$(sed -n 's/^version=//p' "$SRC/guest/image/code-server.sh")
		[ -d "$PREFIX/var/lib/nestbox/images/.code-server" ] || [ -n "$(timeout 30 npm view "$want" version --fetch-retries=0 2>/dev/null)" ] || break
		export NESTBOX_CODE_SERVER=$OUT/code-server
		("$SRC/tests/lib/code-server.sh" "$NESTBOX_CODE_SERVER" &)
		break
	done
	export NESTBOX_CONF=$INST/etc/nestbox/nestbox.conf NESTBOX_STATE=$INST/var/lib/nestbox NESTBOX_RUN=$INST/run/nestbox
	export NESTBOX_SV=$INST/etc/nestbox/sv NESTBOX_LOGS=$INST/var/log/nestbox NESTBOX_SRC=$SRC
fi
run_all
if [ $need_system = yes ]; then
	boot stop >"$OUT/stop-after.log" 2>&1
	if [ $instance = up ]; then
		wanted sdk/compatibility && NESTBOX_COVERAGE=$COVER suite sdk/compatibility "$NESTBOX_NODE" "$SRC/tests/lib/compat.mjs" check
		suite sec/nothing-left bash "$SRC/tests/lib/nothing-left.sh" "$INST"
	else
		failed=$((failed + 1))
		bad+=("the system did not start, see $OUT/start.log")
		tail -n 30 "$OUT/start.log" | sed 's/^/    /'
	fi
fi

# --- what needs real KVM, in a machine of its own ----------------------------------------------------------------
if [ -x "$SRC/tests/kvmbed/run.sh" ]; then
	NESTBOX_NO_SECOND=1 LIMIT=${NESTBOX_KVMBED_LIMIT:-2900} suite kvmbed "$SRC/tests/kvmbed/run.sh"
fi

echo
for s in "${again[@]}"; do echo "second attempt: $s"; done
for s in "${skips[@]}"; do echo "skipped: $s"; done
for b in "${bad[@]}"; do echo "FAILED: $b"; done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
