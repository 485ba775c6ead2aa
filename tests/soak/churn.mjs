// SPDX-License-Identifier: Apache-2.0
// Sandboxes and apps in random order at full speed: create, run, write, preview, connect, deploy, use and kill, with SOAK_LIVE
// sandboxes running at once, at least twice as many registered from the beginning, and SOAK_APPS apps. No error that is not a limit, and memory
// and descriptors of every daemon as flat at the end, when all machines have gone, as after the first tenth, descriptors as at the start.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import { Client, Sandbox } from "@deno/sandbox";

const seconds = Number(process.env.SOAK_SECONDS ?? 600);
const workers = Number(process.env.SOAK_WORKERS ?? 4);
const live = Number(process.env.SOAK_LIVE ?? 20);
const apps = Number(process.env.SOAK_APPS ?? 200);
const deployments = Number(process.env.SOAK_DEPLOYED ?? 6); // apps that get a deployment; the others are only registered
const { NESTBOX_SV: SV, NESTBOX_CONF: CONF, NESTBOX_PREFIX: PREFIX } = process.env;
const daemons = ["nestboxd", "nestbox-egress", "nestbox-gateway", "nestbox-ssh", "nestbox-api", "nestbox-runner"];
let end = Infinity;
const client = new Client();
const counts = {}, errors = [];
console.debug = () => {};

function usageOf(pid) {
  const kb = /^Pss:\s+(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))[1];
  return { pid, mib: Number(kb) / 1024, fds: fs.readdirSync(`/proc/${pid}/fd`).length };
}
const pidOf = (d) => fs.readFileSync(`${SV}/${d}/supervise/pid`, "utf8").trim();
const children = (pid) => fs.readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ");
// Workers come and go; the largest stands for them all.
function largest(pids) {
  const of = pids.map((pid) => {
    try {
      return usageOf(pid);
    } catch {
      return { mib: 0, fds: 0 }; // it has ended just now
    }
  });
  return { pid: 0, mib: Math.max(...of.map((w) => w.mib)), fds: Math.max(...of.map((w) => w.fds)) };
}
function usage() {
  const out = {};
  for (const d of daemons) out[d] = usageOf(pidOf(d));
  const workers = children(out["nestbox-api"].pid), [nginx] = children(pidOf("nginx"));
  out["a worker of nestbox-api"] = largest(workers);
  out.nginx = usageOf(nginx);
  out["a worker of nginx"] = largest(children(nginx));
  out["nestbox-gateway"].callers = workers.length; // each keeps a connection to it once it has asked it something
  return out;
}
const ctl = (...args) => execFileSync(`${PREFIX}/sbin/nestboxctl`, ["-c", CONF, ...args], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
const machines = () => JSON.parse(ctl("--json", "list"));

const pick = (list) => list[Math.floor(Math.random() * list.length)];
const must = (cond, what) => {
  if (!cond) throw new Error(what);
};
const steps = {
  run: async (s) => must((await s.sh`echo $((6 * 7))`.text()) === "42\n", "wrong output"),
  files: async (s) => {
    const data = new Uint8Array(100000).map((_, i) => i & 255);
    await s.fs.writeFile("data.bin", data);
    const back = await s.fs.readFile("data.bin");
    must(back.length === data.length && back.every((b, i) => b === data[i]), "another file came back");
  },
  pipe: async (s) => must((await s.sh`head -c 3000000 /dev/zero | wc -c`.text()).trim() === "3000000", "wrong count"),
  preview: async (s) => {
    const p = await s.spawn("python3", { args: ["-m", "http.server", "8123"], stdout: "null", stderr: "null" });
    const url = await s.exposeHttp({ port: 8123 });
    for (const until = Date.now() + 180_000; (await fetch(url)).status !== 200;) {
      must(Date.now() < until, "the preview never answered");
      await new Promise((r) => setTimeout(r, 100));
    }
    await p.kill();
  },
  connect: async (s) => {
    const other = await Sandbox.connect(s.id);
    must((await other.sh`true`).status.success, "true failed");
    await other.close();
  },
};

const slugs = Array.from({ length: apps }, (_, i) => `soak-${i}`);
const deployed = new Map(); // slug -> what it answers
const base = new URL(process.env.DENO_DEPLOY_ENDPOINT);
const appUrl = (slug) => `https://${slug}.${base.hostname.replace(/^api\./, "")}${base.port ? ":" + base.port : ""}/`;

async function deploy() {
  const slug = pick(slugs.slice(0, deployments)), word = `soak ${Math.random()}`;
  const r = await client.apps.deploy(slug, {
    assets: { "main.ts": { kind: "file", content: `Deno.serve(() => new Response("${word}"))`, encoding: "utf-8" } },
    config: { runtime: { type: "dynamic", entrypoint: "main.ts" } },
    production: true,
  });
  for await (const _ of client.revisions.progress(r.id));
  const done = await client.revisions.get(r.id);
  // The host has no room for another machine just now.
  if (done.status === "failed" && /left on this host|maximum of \d+ machines/.test(done.failure_message)) throw Object.assign(new Error("limit"), { status: 429 });
  // Two at once of one app: the older one may be skipped.
  must(["succeeded", "skipped"].includes(done.status), `revision ${r.id} ended as ${done.status}: ${done.failure_message}`);
  if (done.status === "succeeded") deployed.set(slug, [...(deployed.get(slug) ?? []), word]);
}

async function use() {
  const slug = pick([...deployed.keys()]), res = await fetch(appUrl(slug));
  const body = await res.text();
  must(res.status === 200 && body.startsWith("soak "), `${slug} answers ${res.status} ${body.slice(0, 200)}`);
}

async function records() {
  const slug = pick(slugs);
  const app = await client.apps.get(slug);
  must(app?.slug === slug, `${slug} is not there`);
  await client.apps.update(slug, { labels: { round: String(counts.records ?? 0) } });
  const listed = await client.sandboxes.list();
  must(Array.isArray(listed), "no list of sandboxes came");
}

const pool = new Set(); // running and free; a step takes one out
async function create() {
  const s = await Sandbox.create(Math.random() < 0.5 ? { timeout: "60m" } : {});
  pool.add(s);
  most = Math.max(most, ++running);
  return s;
}
let made = 0, running = 0, most = 0; // made: those that are being made, too

async function step() {
  const n = Math.random();
  if (deployed.size && n < 0.08) return ["use", use];
  // What takes long begins early enough to be done soon after the end.
  if (n < 0.1 && deployments && Date.now() < end - seconds * 100) return ["deploy", deploy];
  if (n < 0.2 && apps) return ["records", records];
  if (made < live) {
    made++;
    return ["create", () => create().catch((e) => { made--; throw e; })];
  }
  const s = pick([...pool]);
  if (!s) return ["wait", () => new Promise((r) => setTimeout(r, 50))];
  pool.delete(s);
  if (n > 0.85)
    return ["end", async () => {
      running--;
      made--;
      await (Math.random() < 0.5 ? s.kill() : s.close());
    }];
  const what = pick(Object.keys(steps));
  return [what, async () => {
    try {
      await steps[what](s);
    } finally {
      pool.add(s);
    }
  }];
}

async function worker() {
  while (Date.now() < end) {
    let what = "", fn;
    try {
      [what, fn] = await step();
      await fn();
      counts[what] = (counts[what] ?? 0) + 1;
    } catch (e) {
      if (e.status === 429 || e.code === "CAPACITY_EXCEEDED" || e.code === "NO_DISK_SPACE") {
        counts.limited = (counts.limited ?? 0) + 1;
        await new Promise((r) => setTimeout(r, 300));
      } else {
        errors.push(`${what}: ${e.message}`);
        console.log(`FAIL ${what}: ${e.stack}`);
      }
    }
  }
}

const began = Date.now(), clock = () => `${String(Math.round((Date.now() - began) / 1000)).padStart(4)} s`;
for (const slug of slugs) await client.apps.create({ slug });
console.log(`${clock()}  ${apps} apps are registered`);
// As many as will run have run before: their records stay for a day.
const start = usage();
for (let i = 0; i < live; i += workers)
  await Promise.all(Array.from({ length: Math.min(workers, live - i) }, async () => await (await Sandbox.create()).kill()));
console.log(`${clock()}  ${(await client.sandboxes.list()).length} sandboxes are registered`);
end = Date.now() + seconds * 1000;
const busy = Array.from({ length: workers }, () => worker());
const progress = setInterval(() => console.log(`${clock()}  ${running} of ${live} sandboxes, ${errors.length} errors:`, JSON.stringify(counts)), 30_000);
await new Promise((r) => setTimeout(r, seconds * 100));
const early = usage();
await Promise.all(busy);
clearInterval(progress);
const registered = (await client.sandboxes.list()).length;
console.log(`${clock()}  all clients are done; ${registered} sandboxes are registered, ${most} ran at once`);
if (most < live && !counts.limited) errors.push(`${most} sandboxes ran at once, not ${live}`);
if (registered < 2 * live) errors.push(`${registered} sandboxes are registered, not ${2 * live}`);
const left = machines().length;
for (const slug of slugs) await client.apps.delete(slug);
// Machines whose connection was closed get their grace, those with a timeout are ended here.
for (const m of machines()) {
  try {
    ctl("kill", m.id);
  } catch { /* it has ended by itself meanwhile */ }
}
/** Memory as after the first tenth, descriptors as at the start. */
const flat = (d, now) => early[d].pid === now[d].pid && now[d].mib < early[d].mib * 1.25 + 1 && now[d].fds <= start[d].fds + 4 + (now[d].callers ?? 0);
let late = usage();
// Daemons have two minutes to close what belonged to machines and to their visitors, whose connections nginx keeps for 75 s.
for (const until = Date.now() + 120_000; Date.now() < until && !(machines().length === 0 && Object.keys(late).every((d) => flat(d, late))); late = usage())
  await new Promise((r) => setTimeout(r, 1000));
console.log(`${clock()}  ${seconds} s, ${workers} clients, ${left} machines at the end:`, counts);
if (machines().length) errors.push(`${machines().length} machines did not end`);
let passed = 0, failed = errors.length;
console.log("     at the start, after a tenth, at the end:");
for (const d of Object.keys(late)) {
  const of = (key, n) => [start, early, late].map((u) => u[d][key].toFixed(n)).join(" -> ");
  console.log(`${flat(d, late) ? "ok  " : "FAIL"} ${d.padEnd(23)} ${of("mib", 1)} MiB PSS, ${of("fds", 0)} descriptors`);
  flat(d, late) ? passed++ : failed++;
}
if (!errors.length) passed++;
console.log(`${passed} passed, ${failed} failed, 0 skipped`);
process.exit(failed ? 1 : 0);
