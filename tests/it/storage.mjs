// SPDX-License-Identifier: Apache-2.0
// Volumes and snapshots from the host's side: what was synced survives the death of its machine, what was deleted comes back within
// its day and is gone after it, what a disk did not keep is found.
import { execFileSync, spawnSync } from "node:child_process";
import fs from "node:fs";
import { DatabaseSync } from "node:sqlite";
import { Client } from "@deno/sandbox";
import { assert, done, rejection, Sandbox, test, until } from "../sdk/lib.mjs";

const { NESTBOX_STATE: STATE, NESTBOX_CONF: CONF, NESTBOX_PREFIX: PREFIX } = process.env;
const run = (program, ...args) => spawnSync(`${PREFIX}/sbin/${program}`, ["-c", CONF, ...args], { encoding: "utf8" });
const adm = (...args) => execFileSync(`${PREFIX}/sbin/nestboxadm`, ["-c", CONF, ...args], { encoding: "utf8" });
const ctl = (...args) => JSON.parse(execFileSync(`${PREFIX}/sbin/nestboxctl`, ["-c", CONF, "--json", ...args], { encoding: "utf8" }));
const client = new Client();
const tag = Math.random().toString(36).slice(2, 8);
const region = process.env.NESTBOX_REGION ?? "ord";

let volume, snapshot;
await test("written and synced, then its machine is killed: it is there", async () => {
  volume = await client.volumes.create({ slug: `it-${tag}`, region, capacity: "300MB", from: "builtin:debian-13" });
  const s = await Sandbox.create({ region, root: volume.id });
  await s.sh`head -c 3000000 /dev/urandom > ~/data; sha256sum ~/data > ~/sum; sync`.text();
  process.kill(ctl("stat", s.id).pid, "SIGKILL");
  await until(() => ctl("list").every((m) => m.id !== s.id || m.state === "gone"), 60_000);
  // Its journal has to be replayed: the snapshot is copied, not shared, by whoever starts from it.
  snapshot = await client.volumes.snapshot(volume.id, { slug: `it-s-${tag}` });
  const next = await Sandbox.create({ region, root: snapshot.id });
  assert.match(await next.sh`sha256sum -c ~/sum`.text(), /OK/);
  await next.kill();
}, 240_000);

await test("deleted, restored by the operator, and gone after its day", async () => {
  await client.volumes.delete(volume.id);
  await client.snapshots.delete(snapshot.id);
  const list = adm("volume", "deleted");
  assert.ok(list.includes(volume.id) && list.includes(snapshot.id), list);
  assert.equal(await client.volumes.get(volume.id), null);
  adm("volume", "restore", volume.id);
  adm("volume", "restore", snapshot.id);
  assert.equal((await client.volumes.get(volume.slug)).id, volume.id);
  assert.equal((await client.snapshots.get(snapshot.slug)).id, snapshot.id);
  assert.notEqual(run("nestboxadm", "volume", "restore", volume.id).status, 0);
  // Another one, deleted before it, has half an hour of its day left.
  const waits = await client.volumes.create({ slug: `it-w-${tag}`, region, capacity: "300MB" });
  await client.volumes.delete(waits.id);
  await client.volumes.delete(volume.id);
  const db = new DatabaseSync(`${STATE}/db/nestbox.db`);
  db.exec("PRAGMA busy_timeout = 10000");
  const age = db.prepare("UPDATE volumes SET deleted_ms = deleted_ms - ? WHERE id = ?");
  age.run(84600000, waits.id);
  age.run(86500000, volume.id);
  db.close();
  await until(() => !fs.existsSync(`${STATE}/volumes/${volume.id}`), 60_000);
  assert.notEqual(run("nestboxadm", "volume", "restore", volume.id).status, 0);
  assert.equal(run("nestboxadm", "volume", "restore", waits.id).status, 0);
  assert.ok(fs.existsSync(`${STATE}/volumes/${waits.id}/disk`), "it went before its day was over");
  await client.volumes.delete(waits.id);
}, 120_000);

await test("a snapshot that its disk did not keep is refused, and found by the operator", async () => {
  const verified = run("nestboxctl", "verify", snapshot.id);
  assert.equal(verified.status, 0, verified.stdout + verified.stderr);
  const file = fs.openSync(`${STATE}/snapshots/${snapshot.id}/disk`, "r+");
  const flip = () => {
    const byte = Buffer.alloc(1);
    fs.readSync(file, byte, 0, 1, 1024 + 0x78);
    byte[0] ^= 1;
    fs.writeSync(file, byte, 0, 1, 1024 + 0x78);
  };
  flip();
  const e = await rejection(Sandbox.create({ region, root: snapshot.id }));
  assert.equal(e.code, "SNAPSHOT_DAMAGED", e.message);
  const from = await rejection(client.volumes.create({ slug: `it-c-${tag}`, region, capacity: "1GB", from: snapshot.id }));
  assert.equal(from.code, "SNAPSHOT_DAMAGED", from.message);
  const bad = run("nestboxctl", "verify");
  assert.equal(bad.status, 1);
  assert.ok(bad.stdout.split("\n").some((l) => l.startsWith("BAD") && l.includes(snapshot.id)), bad.stdout);
  flip();
  fs.closeSync(file);
  assert.equal(run("nestboxctl", "verify", snapshot.id).status, 0);
  await client.snapshots.delete(snapshot.id);
}, 120_000);

await done();
