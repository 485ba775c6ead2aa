// SPDX-License-Identifier: Apache-2.0
// What a root of one's own costs: create with the default image, with a snapshot and with a volume as root, in turns, so that
// whatever else the host does weighs on all three alike.
import { Client, Sandbox } from "@deno/sandbox";
import { env, finish, row, runs, timed } from "./lib.mjs";

const RUNS = Number(env.PERF_RUNS ?? 15);
const client = new Client();
const tag = Math.random().toString(36).slice(2, 8);
const region = env.NESTBOX_REGION ?? "ord";

const root = await client.volumes.create({ slug: `perf-${tag}`, region, capacity: "2GB", from: "builtin:debian-13" });
{
  const s = await Sandbox.create({ region, root: root.id });
  await s.sh`head -c 50M /dev/urandom > /home/app/data; echo 'echo installed' | sudo tee /usr/local/bin/tool`.text();
  await s.kill();
}
let snapshot;
const snapshotMs = await timed(async () => {
  snapshot = await client.volumes.snapshot(root.id, { slug: `perf-s-${tag}` });
});

const ways = [["default image", {}], ["snapshot", { root: snapshot.id }], ["volume", { root: root.id }]];
const created = ways.map(() => []), first = ways.map(() => []);
const more = runs(RUNS, 90);
for (let i = -1; i < 0 || more(); i++) {
  for (const [k, [, options]] of ways.entries()) {
    const t = performance.now();
    const s = await Sandbox.create({ region, ...options });
    const ready = performance.now() - t;
    await s.sh`echo hello`.text();
    const answered = performance.now() - t;
    await s.kill();
    if (i < 0) continue; // one of each for caches and connections
    created[k].push(ready);
    first[k].push(answered);
  }
}
for (const [k, [name]] of ways.entries()) {
  const against = (list) => (k ? { name: ways[0][0], values: list[0] } : undefined);
  row(`create, root: ${name}`, "ms", created[k], against(created));
  row(`create to first output, root: ${name}`, "ms", first[k], against(first));
}
row("snapshot of a root volume with 50 MB", "ms", [snapshotMs]);
finish("storage");
await client.snapshots.delete(snapshot.id);
await client.volumes.delete(root.id);
process.exit(0);
