// SPDX-License-Identifier: Apache-2.0
// Node only: it looks at the broker's files.
// Forks through the front door: what goes on in whom, what siblings must differ and agree in, whose disk is whose, placeholders,
// lifetimes, refusals; then pause and resume.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import { Client } from "@deno/sandbox";
import { assert, done, Sandbox, sleep, test, until } from "../sdk/lib.mjs";

const { NESTBOX_STATE: STATE, NESTBOX_CONF: CONF, NESTBOX_PREFIX: PREFIX, DENO_DEPLOY_ENDPOINT: API, DENO_DEPLOY_TOKEN: TOKEN } =
  process.env;
const ctl = (...args) => JSON.parse(execFileSync(`${PREFIX}/sbin/nestboxctl`, ["-c", CONF, "--json", ...args], { encoding: "utf8" }));
const client = new Client();

async function call(method, path, body) {
  const r = await fetch(`${API}/api/v2/sandboxes${path}`, {
    method,
    headers: { authorization: `Bearer ${TOKEN}`, "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return { status: r.status, body: await r.json() };
}
async function forked(id, body) {
  const r = await call("POST", `/${id}/fork`, body);
  assert.equal(r.status, 201, JSON.stringify(r.body));
  console.log(`  pause ${(r.body.pauseUs / 1000).toFixed(1)} ms, ${r.body.privateBytes >> 10} KiB copied, ${r.body.sandboxes.length} children`);
  return r.body.sandboxes;
}
const kill = (id) =>
  fetch(`${process.env.DENO_SANDBOX_ENDPOINT.replace(/\/$/, "")}/api/v3/sandbox/${id}`, {
    method: "DELETE",
    headers: { authorization: `Bearer ${TOKEN}` },
  });
const count = async (s) => Number((await s.sh`cat /tmp/count`.text()).trim());
const counts = async (s) => {
  const from = await count(s);
  await until(async () => (await count(s)) > from, 30_000);
};
const policy = (id) => fs.readFileSync(`${STATE}/vms/${id}/policy`, "utf8");
const placeholders = (id) => [...policy(id).matchAll(/^secret API_KEY (\S+) (\S+) /gm)].map((m) => m[1]);
// One command: under emulation each costs a good deal.
const identity = async (s) => {
  const lines = (await s.sh`cat /run/nestbox/generation /etc/machine-id; hostname; head -c 16 /dev/urandom | base64`.text()).trim().split("\n");
  assert.equal(lines.length, 4, lines.join());
  return { generation: Number(lines[0]), machine: lines[1], host: lines[2], random: lines[3] };
};

let parent, children = [], grandchild, stream, rows;
const secret = "a value that nobody may see";

await test("a parent with a counter, a file and a secret", async () => {
  parent = await Sandbox.create({
    timeout: "20m",
    labels: { who: "parent" },
    secrets: { API_KEY: { hosts: ["api.example.com"], value: secret } },
  });
  await parent.fs.writeTextFile("kept.txt", "of the parent");
  const child = await parent.spawn("sh", {
    args: ["-c", "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; echo $i; sleep 0.1; done"],
    stdout: "piped",
    stderr: "null",
  });
  stream = { last: 0 };
  (async () => {
    for await (const chunk of child.stdout) stream.last = Number(new TextDecoder().decode(chunk).trim().split("\n").at(-1));
  })().catch(() => {});
  await parent.spawn("sh", { args: ["-c", "echo $$ > /tmp/old; exec sleep 10000"], stdout: "null", stderr: "null" });
  await until(() => stream.last > 2);
  await until(async () => (await parent.sh`cat /tmp/old || true`.text()).trim());
}, 200_000);

await test("two children: listed with what their parent has, connected to like any other", async () => {
  rows = await forked(parent.id, { count: 2 });
  assert.equal(rows.length, 2);
  const listed = await client.sandboxes.list({ labels: { who: "parent" } });
  const shown = await call("GET", `/${parent.id}`);
  for (const row of rows) {
    assert.equal(row.forkedFrom, parent.id);
    assert.deepEqual(row.labels, { who: "parent" });
    assert.equal(row.stopAt, shown.body.stopAt);
    assert.equal(row.memoryMb, shown.body.memoryMb);
    assert(JSON.stringify(listed).includes(row.id));
    children.push(await Sandbox.connect({ id: row.id }));
  }
}, 200_000);

await test("the counter goes on in all three, and the parent's connection too", async () => {
  for (const s of [parent, ...children]) await counts(s);
  const from = stream.last;
  await until(() => stream.last > from, 30_000);
}, 120_000);

let ids;
await test("siblings and parent differ in name, machine-id, random numbers; a child's generation is one more", async () => {
  ids = [];
  for (const s of [parent, ...children]) ids.push(await identity(s));
  for (const key of ["machine", "host", "random"]) assert.equal(new Set(ids.map((i) => i[key])).size, 3, key);
  assert.deepEqual(ids.map((i) => i.generation), [ids[0].generation, ids[0].generation + 1, ids[0].generation + 1]);
  assert.equal(ids[1].host, rows[0].id.slice(8));
}, 120_000);

await test("they agree in files, processes and the clock; the environment is their own", async () => {
  for (const s of children) {
    assert.equal(await s.fs.readTextFile("kept.txt"), "of the parent");
    assert.equal(await s.sh`cat /tmp/old`.text(), await parent.sh`cat /tmp/old`.text());
    assert.equal((await s.sh`echo $NESTBOX_SANDBOX_ID`.text()).trim(), s.id);
    const off = Number(await s.sh`date +%s`.text()) - Date.now() / 1000;
    assert(Math.abs(off) < 20, `the clock is ${off} s off`);
  }
}, 120_000);

await test("what one writes no other sees", async () => {
  await children[0].fs.writeTextFile("kept.txt", "of a child");
  await parent.fs.writeTextFile("new.txt", "later");
  await children[0].sh`sync`;
  assert.equal(await parent.fs.readTextFile("kept.txt"), "of the parent");
  assert.equal(await children[1].fs.readTextFile("kept.txt"), "of the parent");
  assert.equal((await children[1].sh`test -e new.txt && echo there || echo not there`.text()).trim(), "not there");
}, 120_000);

await test("secrets: a new placeholder for what starts, the old one goes on for what was copied", async () => {
  const own = [];
  for (const s of [parent, ...children]) own.push((await s.sh`echo $API_KEY`.text()).trim());
  assert.equal(new Set(own).size, 3);
  assert(own.every((p) => /^nbs_[a-z0-9]{40}$/.test(p)));
  const old = (await children[0].sh`tr '\\0' '\\n' < /proc/$(cat /tmp/old)/environ | sed -n 's/^API_KEY=//p'`.text()).trim();
  assert.equal(old, own[0]);
  assert.deepEqual(placeholders(parent.id), [own[0]]);
  assert.deepEqual(placeholders(children[0].id), [own[1], own[0]]);
  assert.deepEqual(placeholders(children[1].id), [own[2], own[0]]);
  const sealed = (id) => policy(id).match(/^secret API_KEY \S+ (\S+) /m)[1];
  assert.notEqual(sealed(children[0].id), sealed(parent.id));
  assert(!policy(children[0].id).includes(secret));
  const shown = await call("GET", `/${children[0].id}/egress-policy`);
  assert.equal(shown.body.secrets.API_KEY.placeholder, own[1]);
  const changed = await call("PATCH", `/${children[0].id}/egress-policy`, { secrets: { API_KEY: { value: "another value of it" } } });
  assert.equal(changed.status, 200, JSON.stringify(changed.body));
  assert.deepEqual(placeholders(children[0].id), [own[1], own[0]]);
}, 120_000);

await test("a child of a child", async () => {
  const [row] = await forked(children[0].id, { labels: { who: "grandchild" } });
  assert.equal(row.forkedFrom, children[0].id);
  assert.deepEqual(row.labels, { who: "grandchild" });
  grandchild = await Sandbox.connect({ id: row.id });
  await counts(grandchild);
  assert.equal((await identity(grandchild)).generation, ids[1].generation + 1);
  assert.equal(await grandchild.fs.readTextFile("kept.txt"), "of a child");
  assert.equal(placeholders(row.id).length, 3);
  await kill(row.id);
}, 200_000);

await test("a parent that lives by its connection: its child does not", async () => {
  const s = await Sandbox.create();
  const before = Date.now();
  const [row] = await forked(s.id, {});
  const left = Date.parse(row.stopAt) - before;
  assert(left > 500_000 && left < 700_000, `${left} ms`);
  await s.close();
  await until(async () => (await call("GET", `/${s.id}`)).body.status === "stopped", 30_000);
  const c = await Sandbox.connect({ id: row.id });
  assert.equal((await c.sh`echo here`.text()).trim(), "here");
  const at = Date.now() + 3_600_000;
  const [later] = await forked(row.id, { stop_at_ms: at });
  assert.equal(Date.parse(later.stopAt), at);
  await kill(row.id);
  await kill(later.id);
}, 300_000);

await test("what is refused, and says why", async () => {
  for (const body of [{ count: 0 }, { count: 17 }, { count: "2" }, { n: 1 }, { stop_at_ms: 5 }, { labels: [] }]) {
    const r = await call("POST", `/${parent.id}/fork`, body);
    assert.equal(r.status, 400, JSON.stringify(body));
  }
  assert.equal((await call("POST", "/sbx_ord_aaaaaaaaaaaaaaaaaaaa/fork", {})).status, 404);
  if (/^tenant_vms = 16$/m.test(fs.readFileSync(CONF, "utf8"))) {
    // Other machines of the host come and go meanwhile.
    const mine = (id) => {
      try {
        return policy(id);
      } catch {
        return "";
      }
    };
    const family = () => fs.readdirSync(`${STATE}/vms`).filter((id) => mine(id).includes(placeholders(parent.id)[0]));
    const before = family();
    assert.equal(before.length, 3);
    const r = await call("POST", `/${parent.id}/fork`, { count: 16 });
    assert.equal(r.body.code, "SANDBOX_QUOTA_EXCEEDED");
    assert.deepEqual(family(), before);
  }
  const volume = await client.volumes.create({ slug: "fork-volume", region: "ord", capacity: "300MB" });
  const s = await Sandbox.create({ volumes: { "/data": "fork-volume" } });
  const r = await call("POST", `/${s.id}/fork`, {});
  assert.equal(r.status, 409);
  assert.match(r.body.message, /volume/);
  await s.kill();
  await client.volumes.delete(volume.id);
}, 200_000);

await test("pause and resume: it stands still, is told to be paused, and goes on", async () => {
  const s = children[1];
  const paused = await call("POST", `/${s.id}/pause`);
  assert.equal(paused.status, 200, JSON.stringify(paused.body));
  assert.equal(paused.body.paused, true);
  assert.equal(paused.body.status, "running");
  assert.equal(ctl("stat", s.id).state, "paused");
  assert.equal((await call("POST", `/${s.id}/pause`)).status, 200);
  assert.equal((await call("POST", `/${s.id}/fork`, {})).body.code, "SANDBOX_PAUSED");
  const listed = await client.sandboxes.list();
  assert(JSON.stringify(listed).includes(s.id));
  await sleep(300);
  const resumed = await call("POST", `/${s.id}/resume`);
  assert.equal(resumed.body.paused, false);
  assert.equal((await call("POST", `/${s.id}/resume`)).status, 200);
  await counts(s);
}, 120_000);

await test("all end, and nothing is left of them", async () => {
  const all = [parent, ...children].map((s) => s.id);
  for (const id of all) assert.equal((await kill(id)).status, 200);
  for (const id of all) assert(!fs.existsSync(`${STATE}/vms/${id}`));
}, 60_000);

await done();
