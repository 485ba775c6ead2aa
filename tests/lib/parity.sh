#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the engines answer to one list of operations (tests/it/engine_parity.h), compared. Each engine's lines come from its own last run.
#   parity.sh keep ENGINE LOG    takes the lines out of a run's output and keeps them
#   parity.sh fresh ENGINE       whether there are such, and not older than the program
#   parity.sh compare A B        prints a result; status 1 if they differ or one of them is missing or older than the program
dir=$NESTBOX_BUILD/parity
case ${1:-} in
keep)
	mkdir -p "$dir"
	grep -a '^parity ' "$3" | tr -d '\r' >"$dir/$2.$$"
	mv "$dir/$2.$$" "$dir/$2"
	;;
fresh) [ -s "$dir/$2" ] && [ ! "$NESTBOX_BUILD/tests/it/engine-driver" -nt "$dir/$2" ] ;;
compare)
	for engine in "$2" "$3"; do
		if ! "$0" fresh "$engine"; then
			echo "not ok parity: engine $engine has not answered since the list was built"
			exit 1
		fi
	done
	if ! diff -U0 --label "$2" --label "$3" "$dir/$2" "$dir/$3"; then
		echo "not ok parity: $2 and $3 answer differently, see above"
		exit 1
	fi
	echo "ok parity: $2 and $3 give the same $(wc -l <"$dir/$2") answers"
	;;
*) sed -n '3,7p' "$0"; exit 2 ;;
esac
