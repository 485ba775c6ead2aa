// SPDX-License-Identifier: Apache-2.0
// The classes Volume and Snapshot and the lists of client.volumes and client.snapshots: every member. What disks do in sandboxes is
// sdk/volumes' subject.
import { inspect } from "node:util";
import { Client, Snapshot, Volume } from "@deno/sandbox";
import { alone, assert, done, rejection, skip, test } from "./lib.mjs";

if (alone) await test("all of it", () => skip("needs a running system")).then(done);

const access = { token: process.env.DENO_DEPLOY_TOKEN, org: process.env.NESTBOX_ORG ?? "demo", apiEndpoint: process.env.DENO_DEPLOY_ENDPOINT };
const client = new Client(access);
const region = process.env.NESTBOX_REGION ?? "ord";
const tag = Math.random().toString(36).slice(2, 8);
const all = async (list) => {
  const ids = [];
  for await (const i of list) ids.push(i.id);
  return ids.sort();
};

let volume, copy, snapshot;
await test("Volume.create, Volume.get, every property", async () => {
  volume = await Volume.create({ slug: `one-${tag}`, region, capacity: "300MB", ...access });
  assert.deepEqual([volume.slug, volume.region, volume.capacity, volume.isBootable, volume.baseSnapshot ?? null], [`one-${tag}`, region, 300e6, false, null]);
  for (const v of [await Volume.get(volume.id, access), await Volume.get(volume.slug), await client.volumes.get(volume.id)]) {
    assert.equal(v.id, volume.id);
    assert.ok(v.estimatedAllocatedSize > 0 && v.estimatedFlattenedSize > 0);
  }
  assert.equal(await Volume.get(`none-${tag}`), null);
  assert.match(inspect(volume), new RegExp(`^Volume \\{[^]*slug: 'one-${tag}'[^]*capacity: 300000000`));
  assert.throws(() => new Volume(), TypeError);
});

await test("Snapshot.create, Snapshot.get, every property; a volume from it", async () => {
  snapshot = await Snapshot.create(volume.slug, { slug: `snap-${tag}`, ...access });
  assert.deepEqual([snapshot.slug, snapshot.region, snapshot.isBootable, snapshot.volume.id, snapshot.volume.slug],
    [`snap-${tag}`, region, false, volume.id, volume.slug]);
  for (const s of [await Snapshot.get(snapshot.id, access), await Snapshot.get(snapshot.slug), await client.snapshots.get(snapshot.id)]) {
    assert.equal(s.id, snapshot.id);
    assert.ok(s.allocatedSize >= 0 && s.flattenedSize > 0);
  }
  assert.equal(await Snapshot.get(`none-${tag}`), null);
  assert.match(inspect(snapshot), new RegExp(`^Snapshot \\{[^]*slug: 'snap-${tag}'`));
  assert.throws(() => new Snapshot(), TypeError);
  copy = await Volume.create({ slug: `two-${tag}`, region, capacity: 300e6, from: snapshot.slug });
  assert.deepEqual([copy.baseSnapshot.id, copy.baseSnapshot.slug], [snapshot.id, snapshot.slug]);
});

await test("lists: limit, cursor, search", async () => {
  const page = await client.volumes.list({ search: tag, limit: 1 });
  assert.deepEqual([page.items.length, page.hasMore], [1, true]);
  const next = await client.volumes.list({ search: tag, limit: 1, cursor: page.nextCursor });
  assert.deepEqual([next.items[0].id, page.items[0].id].sort(), [volume.id, copy.id].sort());
  assert.deepEqual(await all(page), [volume.id, copy.id].sort());
  assert.deepEqual(await all(await client.snapshots.list({ search: tag, limit: 1 })), [snapshot.id]);
  assert.equal((await rejection(client.snapshots.list({ cursor: "nonsense" }))).code, "INVALID_CURSOR");
});

await test("delete", async () => {
  await client.volumes.delete(copy.slug);
  await client.snapshots.delete(snapshot.slug);
  await client.volumes.delete(volume.id);
  assert.equal(await client.volumes.get(volume.id), null);
  assert.equal((await rejection(client.volumes.delete(volume.id))).code, "VOLUME_NOT_FOUND");
  assert.equal((await rejection(client.snapshots.delete(snapshot.id))).code, "SNAPSHOT_NOT_FOUND");
});

await done();
