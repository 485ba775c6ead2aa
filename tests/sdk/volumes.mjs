// SPDX-License-Identifier: Apache-2.0
// Volumes, snapshots and roots: client.volumes, client.snapshots and Sandbox.create's `volumes` and `root`, through the
// unmodified SDK against a running system.
import { alone, assert, done, rejection, Sandbox, test } from "./lib.mjs";
import { cleanup, client, inSandbox, MB, must, region, sh, slug, system, systemOnce, tag } from "./lib-disks.mjs";

async function volume(name, capacity, from) {
  const v = await client.volumes.create({ slug: slug(name), region, capacity, ...(from ? { from } : {}) });
  cleanup.push(() => client.volumes.delete(v.id));
  return v;
}
async function snapshot(of, name) {
  const s = await client.volumes.snapshot(of, { slug: slug(name) });
  cleanup.push(() => client.snapshots.delete(s.id));
  return s;
}

let data;
await system("create, get, list: what was asked for", async () => {
  data = await volume("data", 300 * MB);
  assert.equal(data.slug, slug("data"));
  assert.equal(data.capacity, 300 * MB);
  assert.equal(data.isBootable, false);
  assert.equal((await client.volumes.get(data.id)).id, data.id);
  assert.equal((await client.volumes.get(data.slug)).id, data.id);
  assert.equal(await client.volumes.get(slug("no-such")), null);
  const found = [];
  for await (const v of await client.volumes.list({ search: tag })) found.push(v.id);
  assert.deepEqual(found, [data.id]);
  const { estimatedAllocatedSize: used, estimatedFlattenedSize: flattened } = await client.volumes.get(data.id);
  assert.ok(used <= flattened && flattened < 50 * MB, `${used} bytes of its own, ${flattened} in all`);
  assert.ok(used > 0 && used < 50 * MB, `an empty volume takes ${used} bytes`);
  assert.match((await rejection(client.volumes.create({ slug: data.slug, region, capacity: "1GB" }))).message, /taken/);
});

await system("mounted at any path; what was written is there in the next sandbox", async () => {
  await inSandbox({ volumes: { "/data/deep": data.slug } }, async (s) => {
    assert.match(await must(s, "findmnt -no FSTYPE,OPTIONS /data/deep"), /ext4.*rw/);
    await s.fs.writeTextFile("/data/deep/hello", "kept");
    await must(s, "mkdir /data/deep/d && seq 100000 > /data/deep/d/numbers");
  });
  await inSandbox({ volumes: { "/elsewhere": data.id } }, async (s) => {
    assert.equal(await s.fs.readTextFile("/elsewhere/hello"), "kept");
    assert.equal((await must(s, "sha256sum < /elsewhere/d/numbers; seq 100000 | sha256sum")).split("\n")[0].length, 67);
    assert.equal(new Set((await must(s, "sha256sum < /elsewhere/d/numbers; seq 100000 | sha256sum")).trim().split("\n")).size, 1);
    assert.equal((await sh(s, "test -e /data/deep/hello")).code, 1);
  });
}, 120_000);

await systemOnce("several at once, each its own", async () => {
  const more = await Promise.all(["m1", "m2", "m3"].map((n) => volume(n, 300 * MB)));
  const volumes = Object.fromEntries([data, ...more].map((v, i) => [`/v${i}`, v.id]));
  await inSandbox({ volumes }, async (s) => {
    await must(s, "for i in 1 2 3; do echo $i > /v$i/n; done");
    assert.equal(await s.fs.readTextFile("/v0/hello"), "kept");
    assert.equal((await must(s, "stat -c %d /v0 /v1 /v2 /v3 / | sort -u | wc -l")).trim(), "5");
  });
  await inSandbox({ volumes: { "/a": more[2].id, "/b": more[0].id } }, async (s) =>
    assert.equal(await must(s, "cat /a/n /b/n"), "3\n1\n"));
}, 120_000);

await systemOnce("a full volume is ENOSPC inside, and only there", async () => {
  await inSandbox({ volumes: { "/data": data.id } }, async (s) => {
    const r = await sh(s, "dd if=/dev/zero of=/data/fill bs=1M count=400");
    assert.notEqual(r.code, 0);
    assert.match(r.err, /No space left on device/);
    const bytes = Number(await must(s, "stat -c %s /data/fill"));
    assert.ok(bytes > 200 * MB && bytes < 300 * MB, `${bytes} bytes fitted`);
    await must(s, "echo fine > /tmp/x && rm /data/fill && echo fine > /data/y");
  });
}, 120_000);

await systemOnce("one writer: a second sandbox and a delete are refused while it is attached", async () => {
  await inSandbox({ volumes: { "/data": data.id } }, async () => {
    const e = await rejection(Sandbox.create({ region, volumes: { "/data": data.id } }));
    assert.equal(e.code, "VOLUME_IN_USE", e.message);
    assert.equal((await rejection(client.volumes.delete(data.id))).code, "VOLUME_IN_USE");
  });
  await inSandbox({ volumes: { "/data": data.id } }, async (s) => assert.equal(await s.fs.readTextFile("/data/hello"), "kept"));
  assert.equal((await rejection(Sandbox.create({ region, volumes: { "/data": slug("no-such") } }))).code, "VOLUME_NOT_FOUND");
  assert.equal((await rejection(Sandbox.create({ region, root: data.id }))).code, "VOLUME_NOT_BOOTABLE");
}, 120_000);

await system("a snapshot of a volume in use, and a volume from it", async () => {
  const snap = await inSandbox({ volumes: { "/data": data.id } }, async (s) => {
    await must(s, "echo one > /data/state");
    const made = await snapshot(data.id, "snap");
    await must(s, "echo two > /data/state; rm /data/hello");
    return made;
  });
  assert.equal(snap.volume.id, data.id);
  assert.equal(snap.isBootable, false);
  assert.equal((await client.snapshots.get(snap.slug)).id, snap.id);
  assert.equal((await rejection(client.volumes.create({ slug: slug("small"), region, capacity: "301MB", from: slug("nix") }))).code, "SNAPSHOT_NOT_FOUND");
  const copy = await volume("copy", 300 * MB, snap.slug);
  assert.equal(copy.baseSnapshot.id, snap.id);
  await inSandbox({ volumes: { "/copy": copy.id, "/data": data.id } }, async (s) => {
    assert.equal(await must(s, "cat /copy/state /data/state"), "one\ntwo\n");
    assert.equal(await s.fs.readTextFile("/copy/hello"), "kept");
    assert.equal((await sh(s, "test -e /data/hello")).code, 1);
  });
}, 120_000);

await systemOnce("a volume smaller than its snapshot is refused, a larger one has the larger size", async () => {
  const from = slug("snap");
  const big = await volume("big", 600 * MB, from);
  assert.equal(big.capacity, 600 * MB);
  await inSandbox({ volumes: { "/big": big.id } }, async (s) => {
    assert.equal(await must(s, "cat /big/state"), "one\n");
    await must(s, "dd if=/dev/zero of=/big/fill bs=1M count=400 && rm /big/fill");
  });
  const bigger = await snapshot(big.id, "bigsnap");
  const e = await rejection(client.volumes.create({ slug: slug("tiny"), region, capacity: "300MB", from: bigger.slug }));
  assert.equal(e.code, "INVALID_CAPACITY", e.message);
}, 120_000);

let root;
await system("a root volume keeps what is installed", async () => {
  root = await volume("root", 1000 * MB, "builtin:debian-13");
  assert.equal(root.isBootable, true);
  await inSandbox({ root: root.slug }, async (s) => {
    await must(s, "printf '#!/bin/sh\\necho installed\\n' > /tmp/tool && chmod 755 /tmp/tool");
    await s.sh`install -m 755 /tmp/tool /usr/local/bin/tool`.sudo();
    await s.fs.writeTextFile("/home/app/note", "mine");
    assert.match(await must(s, "df -B1 --output=size / | tail -1"), /^\s*9\d{8}/);
  });
  await inSandbox({ root: root.id, volumes: { "/data": data.id } }, async (s) => {
    assert.equal(await must(s, "tool"), "installed\n");
    assert.equal(await s.fs.readTextFile("/home/app/note"), "mine");
    assert.equal(await must(s, "cat /data/state"), "two\n");
    assert.equal((await rejection(Sandbox.create({ region, root: root.id }))).code, "VOLUME_IN_USE");
  });
  await inSandbox({}, async (s) => assert.notEqual((await sh(s, "tool")).code, 0));
}, 240_000);

await systemOnce("a snapshot as root: in several sandboxes at once, writes are theirs and end with them", async () => {
  const snap = await snapshot(root.id, "rootsnap");
  assert.equal(snap.isBootable, true);
  await inSandbox({ root: snap.slug }, (a) => inSandbox({ root: snap.id }, async (b) => {
    assert.equal(await must(a, "tool") + await must(b, "tool"), "installed\ninstalled\n");
    await must(a, "echo a > /home/app/own");
    assert.equal((await sh(b, "test -e /home/app/own")).code, 1);
  }));
  await inSandbox({ root: snap.id }, async (s) => {
    assert.equal((await sh(s, "test -e /home/app/own")).code, 1);
    assert.equal(await s.fs.readTextFile("/home/app/note"), "mine");
  });
}, 240_000);

if (!alone) {
  for (const undo of cleanup.reverse()) await undo();
  await test("deleted is gone for requests", async () => {
    assert.equal(await client.volumes.get(data.id), null);
    assert.equal((await client.volumes.list({ search: tag })).items.length, 0);
    assert.equal((await client.snapshots.list({ search: tag })).items.length, 0);
  });
}
await done();
