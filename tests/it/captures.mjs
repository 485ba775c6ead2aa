// SPDX-License-Identifier: Apache-2.0
// Node only: it asks the operator's tools.
// Captures of sandboxes through the front door: what goes on in a machine that starts from one, what is new in it, whose they are, how
// many there may be, and that nothing is left. The broker's side of it is it/capture.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import { assert, done, rejection, Sandbox, test, until } from "../sdk/lib.mjs";

const { NESTBOX_CONF: CONF, NESTBOX_PREFIX: PREFIX, DENO_DEPLOY_ENDPOINT: API, DENO_DEPLOY_TOKEN: TOKEN } = process.env;
const run = (tool, ...args) => execFileSync(`${PREFIX}/sbin/${tool}`, ["-c", CONF, ...args], { encoding: "utf8" });
const kept = () => JSON.parse(run("nestboxctl", "--json", "captures")).map((c) => c.name).filter((n) => n.startsWith("cap_"));

async function call(method, path, body, token = TOKEN) {
  const r = await fetch(`${API}/api/v2${path}`, {
    method, headers: { authorization: `Bearer ${token}`, "content-type": "application/json" }, body: body && JSON.stringify(body),
  });
  const text = await r.text();
  return { status: r.status, body: text ? JSON.parse(text) : null };
}
const taken = async (id, body) => {
  const r = await call("POST", `/sandboxes/${id}/captures`, body);
  assert.equal(r.status, 201, JSON.stringify(r.body));
  console.log(`  stood still for ${(r.body.pauseUs / 1000).toFixed(0)} ms, ${r.body.bytes >> 20} MiB`);
  return r.body;
};
const count = async (s) => Number((await s.sh`cat /tmp/count`.text()).trim());
const counts = async (s) => {
  const from = await count(s);
  await until(async () => (await count(s)) > from, 60_000);
};
const created = (options) => Sandbox.create({ timeout: "10m", ...options });
let origin, capture, from;

await test("a sandbox is captured while a program runs in it, and goes on", async () => {
  origin = await created({ labels: { who: "origin" }, env: { WHO: "origin" } });
  await origin.sh`echo kept > mark; (i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.1; done) > /dev/null 2>&1 &`;
  await until(async () => (await count(origin).catch(() => 0)) > 2, 60_000);
  capture = await taken(origin.id);
  assert.match(capture.id, /^cap_[a-z]{3}_[0-9a-z]{20}$/);
  assert.equal(capture.sandboxId, origin.id);
  assert.equal(capture.memoryMib, 1280);
  assert.deepEqual(capture.labels, { who: "origin" });
  assert(capture.bytes > 1 << 20 && capture.pauseUs > 0);
  assert.deepEqual(kept(), [capture.id]);
  await counts(origin);
}, 240_000);

await test("the client's Sandbox.create starts another from it: it goes on there, as somebody else, with an environment of its own", async () => {
  await origin.sh`echo changed since > mark`;
  from = await created({ root: capture.id, env: { WHO: "another" } });
  assert.notEqual(from.id, origin.id);
  await counts(from);
  const about = (s) => s.sh`cat mark; echo $WHO $NESTBOX_SANDBOX_ID; cat /etc/machine-id; head -c 16 /dev/urandom | base64`.text().then((t) => t.trim().split("\n"));
  const [a, b] = await Promise.all([about(origin), about(from)]);
  assert.deepEqual([a[0], b[0]], ["changed since", "kept"]);
  assert.deepEqual([a[1], b[1]], [`origin ${origin.id}`, `another ${from.id}`]);
  assert.notEqual(a[2], b[2], "machine-id");
  assert.notEqual(a[3], b[3], "random numbers");
  const other = await Sandbox.connect({ id: from.id });
  assert.equal((await other.sh`cat mark`.text()).trim(), "kept");
  await other.close();
}, 240_000);

await test("lists and one of them; it stays when its sandbox has ended, and still starts", async () => {
  await origin.kill();
  const { id } = capture;
  assert.deepEqual((await call("GET", "/captures")).body.map((c) => c.id), [id]);
  assert.deepEqual((await call("GET", `/sandboxes/${origin.id}/captures`)).body.map((c) => c.id), [id]);
  assert.deepEqual((await call("GET", `/sandboxes/${from.id}/captures`)).body, []);
  const one = (await call("GET", `/captures/${id}`)).body;
  assert.equal(one.createdAt, capture.createdAt);
  const s = await created({ root: id, memory: "1280MiB" });
  assert.equal((await s.sh`cat mark`.text()).trim(), "kept");
  await s.kill();
}, 240_000);

await test("what does not fit is refused, and says why", async () => {
  const code = async (promise) => (await rejection(promise)).code;
  assert.equal(await code(created({ root: capture.id, memory: "2GiB" })), "INVALID_MEMORY");
  assert.equal(await code(created({ root: capture.id, volumes: { "/data": "nothing" } })), "INVALID_CONFIG");
  assert.equal(await code(created({ root: "cap_ord_aaaaaaaaaaaaaaaaaaaa" })), "CAPTURE_NOT_FOUND");
  assert.equal((await call("POST", "/sandboxes/sbx_ord_aaaaaaaaaaaaaaaaaaaa/captures")).status, 404);
  assert.equal((await call("POST", `/sandboxes/${origin.id}/captures`)).body.code, "SANDBOX_STOPPED");
  for (const body of [{ name: "x" }, { labels: [] }, { labels: { a: 1 } }])
    assert.equal((await call("POST", `/sandboxes/${from.id}/captures`, body)).status, 400, JSON.stringify(body));
  assert.deepEqual(kept(), [capture.id]);
}, 60_000);

await test("another organization sees none of it", async () => {
  const org = `captures-${Date.now()}`;
  run("nestboxadm", "org", "create", org);
  const token = run("nestboxadm", "token", "create", "--org", org).trim();
  assert.deepEqual((await call("GET", "/captures", undefined, token)).body, []);
  for (const [method, path] of [["GET", `/captures/${capture.id}`], ["DELETE", `/captures/${capture.id}`], ["POST", `/sandboxes/${from.id}/captures`],
    ["GET", `/sandboxes/${from.id}/captures`]]) assert.equal((await call(method, path, undefined, token)).status, 404, `${method} ${path}`);
  assert.equal((await rejection(created({ root: capture.id, token }))).code, "CAPTURE_NOT_FOUND");
  assert.deepEqual(kept(), [capture.id]);
}, 60_000);

await test("an organization has tenant_captures of them, also when all are taken at once", async () => {
  const quota = Number(/^tenant_captures = (\d+)$/m.exec(fs.readFileSync(CONF, "utf8"))?.[1] ?? 16);
  if (quota > 4) assert.fail(`the instance of the tests has tenant_captures = ${quota}`);
  const all = await Promise.all(Array.from({ length: quota + 1 }, () => call("POST", `/sandboxes/${from.id}/captures`, { labels: { n: "1" } })));
  // One at a time of one machine: the others are told to come again, and leave nothing.
  const made = all.filter((r) => r.status === 201), full = all.filter((r) => r.body.code === "CAPTURE_QUOTA_EXCEEDED");
  assert(made.length >= 1 && made.length < quota, `${made.length} were taken`);
  assert(full.length >= 2, JSON.stringify(all.map((r) => r.body.code)));
  assert(all.every((r) => made.includes(r) || full.includes(r) || r.body.code === "BUSY"), JSON.stringify(all.map((r) => r.body.code)));
  assert.deepEqual(made[0].body.labels, { n: "1" });
  while ((await call("GET", "/captures")).body.length < quota) await taken(from.id);
  assert.equal((await call("POST", `/sandboxes/${from.id}/captures`)).status, 429);
  assert.equal((await call("GET", "/captures?limit=1")).body.length, 1);
}, 240_000);

await test("deleted ones are gone, and the machine that started from one goes on", async () => {
  for (const c of (await call("GET", "/captures")).body) assert.equal((await call("DELETE", `/captures/${c.id}`)).status, 204);
  assert.equal((await call("DELETE", `/captures/${capture.id}`)).body.code, "CAPTURE_NOT_FOUND");
  assert.equal((await rejection(created({ root: capture.id }))).code, "CAPTURE_NOT_FOUND");
  assert.deepEqual(kept(), []);
  await counts(from);
  await from.kill();
}, 120_000);

await done();
