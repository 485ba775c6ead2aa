// SPDX-License-Identifier: Apache-2.0
// Sandboxes and apps in random order at full speed: create, run, write, preview, connect, deploy, use and kill, with SOAK_LIVE
// sandboxes running at once, at least twice as many registered, and SOAK_APPS apps. No error that is not a limit, and memory and descriptors
// of every daemon as flat at the end, when all machines have gone, as after the first tenth, descriptors as at the start.
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
const WORKER = "a worker of nestbox-api";
function usage() {
  const out = {};
  for (const d of daemons) out[d] = usageOf(fs.readFileSync(`${SV}/${d}/supervise/pid`, "utf8").trim());
  // Workers come and go; the largest stands for them all.
  const workers = fs.readFileSync(`/proc/${out["nestbox-api"].pid}/task/${out["nestbox-api"].pid}/children`, "utf8").trim().split(" ");
  const of = workers.map((pid) => {
    try {
      return usageOf(pid);
    } catch {
      return { mib: 0, fds: 0 }; // it has ended just now
    }
  });
  out[WORKER] = { pid: 0, mib: Math.max(...of.map((w) => w.mib)), fds: Math.max(...of.map((w) => w.fds)) };
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
    for (let i = 0; i < 100; i++) {
      if ((await fetch(url)).status === 200) {
        await p.kill();
        return;
      }
      await new Promise((r) => setTimeout(r, 100));
    }
    throw new Error("the preview never answered");
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
  const s = await Sandbox.create(Math.random() < 0.5 ? { timeout: "10m" } : {});
  pool.add(s);
  return s;
}
let made = 0;

async function step() {
  const n = Math.random();
  if (deployed.size && n < 0.08) return ["use", use];
  if (n < 0.1 && deployments) return ["deploy", deploy];
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
      if (e.status === 429 || e.code === "CAPACITY_EXCEEDED") {
        counts.limited = (counts.limited ?? 0) + 1;
        await new Promise((r) => setTimeout(r, 300));
      } else {
        errors.push(`${what}: ${e.message}`);
        console.log(`FAIL ${what}: ${e.stack}`);
      }
    }
  }
}

for (const slug of slugs) await client.apps.create({ slug });
console.log(`${apps} apps are registered`);
const start = usage();
end = Date.now() + seconds * 1000;
const running = Array.from({ length: workers }, () => worker());
await new Promise((r) => setTimeout(r, seconds * 100));
const early = usage();
await Promise.all(running);
const left = machines().length;
for (const slug of slugs) await client.apps.delete(slug);
// Machines whose connection was closed get their grace, those with a timeout are ended here.
for (const m of machines()) {
  try {
    ctl("kill", m.id);
  } catch { /* it has ended by itself meanwhile */ }
}
/** Memory as after the first tenth, descriptors as at the start. */
const flat = (d, now) => (d === WORKER || early[d].pid === now[d].pid) && now[d].mib < early[d].mib * 1.25 + 1 && now[d].fds <= start[d].fds + 4 + (now[d].callers ?? 0);
let late = usage();
// Daemons have a minute to close what belonged to machines and to their visitors.
for (const until = Date.now() + 60_000; Date.now() < until && !(machines().length === 0 && Object.keys(late).every((d) => flat(d, late))); late = usage())
  await new Promise((r) => setTimeout(r, 1000));
console.log(`\n${seconds} s, ${workers} clients, ${left} machines at the end:`, counts);
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
