# SPDX-License-Identifier: Apache-2.0
# Runs inside the bed: the whole system on our engine, used through nginx and the client; then nothing may be left over.
failed=0
cp -a "$BED_SRC" /tmp/src # bootstrap writes beside itself
cd /tmp/src || exit 1
export NESTBOX_INSTANCE=bed NESTBOX_CONF_EXTRA="lease_grace_ms = 1000"
root=$NESTBOX_PREFIX/instances/bed
if ! ./bootstrap start; then
	echo "not ok start"
	tail -n 30 "$root"/var/log/nestbox/nestboxd/current
	exit 1
fi
eval "$(./bootstrap env)"
engine=$("$NESTBOX_PREFIX/sbin/nestboxctl" -c "$root/etc/nestbox/nestbox.conf" --json status | jq -r .engine)
if [ "$engine" = kvm ]; then echo "ok the probe chose kvm"; else echo "not ok the probe chose '$engine'"; failed=1; fi
ln -sfn "$(dirname "$(dirname "$(dirname "$NESTBOX_NODE")")")" /tmp/src/tests/node_modules
timeout "${BED_LIFE_TIMEOUT:-300}" "$NESTBOX_NODE" /tmp/src/tests/kvmbed/life.mjs || failed=1
./bootstrap stop
if bash tests/lib/nothing-left.sh "$root"; then echo "ok nothing is left"; else echo "not ok something is left"; failed=1; fi
exit $failed
