// SPDX-License-Identifier: Apache-2.0
// Deployments through the front door with the unmodified client: what goes wrong never replaces what is good, and what is lost
// comes back (it/zz-deploy: with daemons killed). Needs a running system (`./bootstrap env`) and, for the faults, NESTBOX_CONF of its
// instance.
import { Client } from "@deno/sandbox";
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const client = new Client();
const only = process.argv.slice(2);
const { NESTBOX_CONF: CONF, NESTBOX_PREFIX: PREFIX = "/opt/nestbox" } = process.env;
const faults = CONF && process.getuid?.() === 0;
let passed = 0, failed = 0, skipped = 0;

class Skip extends Error {}
async function test(name, fn, ms = 150000) {
  if (only.length && !only.some((o) => name.includes(o))) return;
  const t = Date.now();
  let timer;
  try {
    await Promise.race([fn(), new Promise((_, j) => { timer = setTimeout(() => j(new Error(`not done after ${ms} ms`)), ms); })]);
    console.log(`ok   ${name} (${Date.now() - t} ms)`);
    passed++;
  } catch (e) {
    if (e instanceof Skip) {
      console.log(`skip ${name}: ${e.message}`);
      skipped++;
    } else {
      console.log(`FAIL ${name}\n  ${e.stack ?? e}`);
      failed++;
    }
  } finally {
    clearTimeout(timer);
  }
}
const is = (cond, what) => { if (!cond) throw new Error(`not true: ${what}`); };
const same = (a, b, what = "value") => { if (a !== b) throw new Error(`${what} is ${JSON.stringify(a)}, not ${JSON.stringify(b)}`); };
async function until(what, fn, ms = 60000) {
  const end = Date.now() + ms;
  for (;;) {
    const v = await fn();
    if (v) return v;
    if (Date.now() > end) throw new Error(`not in time: ${what}`);
    await sleep(100);
  }
}

const server = (text) => `Deno.serve((req) => new Response(${JSON.stringify(text)} + new URL(req.url).pathname));\n`;
const file = (content) => ({ kind: "file", content, encoding: "utf-8" });
const runtime = { type: "dynamic", entrypoint: "main.ts" };
const made = [];
async function deploy(app, source, more = {}) {
  const assets = typeof source === "string" ? { "main.ts": file(source) } : source;
  const r = await client.apps.deploy(app.id, { assets, config: { runtime }, ...more });
  made.push(r);
  return r;
}
// Reads progress to its end, like the client's `done`, then the revision.
async function done(revision) {
  const seen = [];
  for await (const p of client.revisions.progress(revision.id)) seen.push(p);
  return Object.assign(await client.revisions.get(revision.id), { seen, last: seen.at(-1) });
}
async function buildLog(revision) {
  const lines = [];
  for await (const l of client.revisions.buildLogs(revision.id)) lines.push(l);
  return lines;
}
const port = new URL(process.env.DENO_DEPLOY_ENDPOINT).port;
const domain = new URL(process.env.DENO_DEPLOY_ENDPOINT).hostname.replace(/^api\./, "");
const url = (label) => `https://${label}.${domain}${port ? `:${port}` : ""}`;
async function get(address) {
  const res = await fetch(address, { headers: { connection: "close" } });
  return { status: res.status, text: await res.text() };
}
const serves = async (app, text) => (await get(`${url(app.slug)}/`)).text === `${text}/`;

const ctl = (...args) => execFileSync(`${PREFIX}/sbin/nestboxctl`, ["-c", CONF, ...args]).toString();
const machines = (revision) => ctl("list", "--json").split("\n").filter((l) => l.includes(`rev_${revision.id}_`));
const machinePid = (revision) => {
  const id = /rev_[a-z0-9_]+/.exec(machines(revision)[0] ?? "")?.[0];
  is(id, `revision ${revision.id} has a machine`);
  const pid = /"?pid"?\s*:?\s*(\d+)/.exec(ctl("stat", id, "--json"))?.[1];
  is(pid > 1, "its process is known");
  return Number(pid);
};

const app = await client.apps.create({ slug: `it-${Math.random().toString(36).slice(2, 10)}` });
let good;

await test("a deployment: progress, build log, production URL", async () => {
  good = await deploy(app, server("one"));
  const r = await done(good);
  same(r.status, "succeeded", "status");
  same(r.last.deploying.status, "succeeded", "last stage");
  same(r.last.installing.status, "skipped", "installing");
  is(r.seen.length > 2, `progress came in ${r.seen.length} pieces`);
  is((await buildLog(good)).every((l) => l.timestamp && l.message && l.step), "shape of the build log");
  is(await serves(app, "one"), "production serves it");
});

await test("progress and build log can be read again, by several at once", async () => {
  const [a, b, log] = await Promise.all([done(good), done(good), buildLog(good)]);
  same(a.seen.length, b.seen.length, "both readers");
  is(log.length > 0, "the log is there");
});

await test("a server that throws at its start does not replace a good one", async () => {
  const bad = await deploy(app, 'throw new Error("no way");\n');
  const r = await done(bad);
  same(r.status, "failed", "status");
  same(r.failure_reason, "error", "reason");
  is(r.last.deploying.status === "errored", `stage is ${r.last.deploying.status}`);
  is((await buildLog(bad)).some((l) => l.level === "error" && l.message.includes("no way")), "its own words are in the build log");
  is(await serves(app, "one"), "the good one still serves");
  if (faults) same(machines(bad).length, 0, "its machines");
});

await test("no such entrypoint", async () => {
  const e = await deploy(app, server("x"), { config: { runtime: { type: "dynamic", entrypoint: "nothing.ts" } } }).catch((e) => e);
  if (!(e instanceof Error)) same((await done(e)).status, "failed", "status");
  is(await serves(app, "one"), "the good one still serves");
});

await test("install, build and predeploy commands run, with their output, before a preset's server starts", async () => {
  const r = await deploy(app, {
    "server.ts": file('Deno.serve({ port: Number(Deno.env.get("PORT")) }, () => new Response(Deno.readTextFileSync("built.txt") + "/"));\n'),
  }, {
    config: {
      framework: "nuxt",
      install: "echo installing things; echo careful >&2",
      build: "echo -n from the build > built.txt; mkdir -p .output/server; mv server.ts .output/server/index.mjs",
      predeploy: "test -f built.txt",
    },
  });
  const end = await done(r);
  same(end.status, "succeeded", "status");
  const timeline = end.last.deploying.timelines[0];
  same([timeline.slug, timeline.predeploy.status, timeline.predeploy.command, timeline.warmup.status, timeline.routing.status].join(),
    "production,succeeded,test -f built.txt,succeeded,succeeded", "deploying");
  const log = await buildLog(r);
  is(log.some((l) => l.step === "installing" && l.message === "installing things" && l.level === "info"), "stdout of install");
  is(log.some((l) => l.step === "installing" && l.message === "careful" && l.level === "error"), "stderr of install");
  is(await serves(app, "from the build"), "what was built is served");
});

await test("a build command that fails ends the revision there", async () => {
  const bad = await deploy(app, server("never"), { config: { runtime, build: "echo broken; exit 7" } });
  const small = 'sudo sh -c "cd /sys/fs/cgroup && mkdir small && echo 32M > small/memory.max && echo $$ > small/cgroup.procs"';
  const large = await deploy(app, server("never"), { config: { runtime, build: `${small}; tail /dev/zero; exit $?` } });
  const r = await done(bad);
  same(r.status, "failed", "status");
  same(r.last.building.status, "errored", "building");
  same(r.last.deploying.status, "pending", "deploying");
  is((await buildLog(bad)).some((l) => l.message.includes("7")), "the exit code is named");
  same((await done(large)).failure_reason, "error", "the large one");
  const said = (await buildLog(large)).map((l) => l.message).join("; ");
  is(said.includes("ran out of memory"), `it is said that its memory was not enough: ${said}`);
  is(await serves(app, "from the build"), "the good one still serves");
});

await test("cancelled at every stage, with the machine it had; who reads later reads the same", async () => {
  const at = {
    installing: { install: "sleep 300" },
    building: { build: "sleep 300" },
    predeploy: { predeploy: "sleep 300" },
    warmup: {},
  };
  const silent = "setInterval(() => {}, 1000);\n";
  const running = [];
  for (const [stage, commands] of Object.entries(at)) {
    running.push([stage, await deploy(app, silent, { production: false, config: { runtime, ...commands } })]);
  }
  // As many as are built at once: the next one waits, and is cancelled without a machine.
  const queued = await deploy(app, silent, { production: false });
  is((await client.revisions.cancel(queued.id)).cancellation_requested_at, "when it was asked for");
  const never = await done(queued);
  same([never.status, never.failure_reason, never.last.queued.status, never.last.preparing.status].join(), "failed,cancelled,cancelled,skipped", "queued");

  const state = (p, stage) => (p.deploying.timelines[0]?.[stage] ?? p[stage])?.status;
  await Promise.all(running.map(async ([stage, r]) => {
    const seen = [];
    let asked = false;
    for await (const p of client.revisions.progress(r.id)) {
      seen.push(p);
      if (asked || state(p, stage) !== "running") continue;
      asked = true;
      await client.revisions.cancel(r.id);
    }
    const [end, log, again] = await Promise.all([done(r), buildLog(r), buildLog(r)]);
    same([end.status, end.failure_reason, state(end.last, stage)].join(), "failed,cancelled,cancelled", stage);
    same(JSON.stringify(end.seen), JSON.stringify(seen), `${stage}, read after its end`);
    same(JSON.stringify(log), JSON.stringify(again), `log of ${stage}, read twice`);
    if (at[stage][stage]) is(log.some((l) => l.message === `$ ${at[stage][stage]}`), `${stage}: its command is in the log`);
    if (faults) await until(`no machine of ${stage}`, () => !machines(r).some((m) => !m.includes("gone")));
  }));
  is(await serves(app, "from the build"), "the good one still serves");
}, 400000);

await test("environment variables reach the server; a preview has its own URL", async () => {
  const r = await deploy(app, 'Deno.serve(() => new Response(`${Deno.env.get("COLOUR")}/`));\n',
    { env_vars: [{ key: "COLOUR", value: "blue" }], production: false, preview: true });
  same((await done(r)).status, "succeeded", "status");
  same((await get(`${url(`${app.slug}-${r.id}`)}/`)).text, "blue/", "preview");
  is(await serves(app, "from the build"), "production is as it was");
});

let overtaken; // asked for before another one that serves when it is ready
await test("requests during a change of revision are all answered", async () => {
  if (faults) overtaken = await deploy(app, server("overtaken"), { config: { runtime, build: "until [ -e go ]; do sleep 0.2; done" } });
  let stop = false, n = 0;
  const wrong = [];
  const asking = (async () => {
    while (!stop) {
      const r = await get(`${url(app.slug)}/`).catch((e) => ({ status: 0, text: String(e.cause ?? e) }));
      n++;
      if (r.status !== 200) wrong.push(`${r.status} ${r.text.slice(0, 80)}`);
    }
  })();
  good = await deploy(app, server("two"));
  same((await done(good)).status, "succeeded", "status");
  await until("the new one serves", () => serves(app, "two"));
  await sleep(4000); // the old machine is drained and ended meanwhile: that is what is watched
  stop = true;
  await asking;
  is(n > 5, "there were requests");
  same(wrong.join("; "), "", `of ${n} requests, wrong ones`);
});

await test("a deployment that a newer one has overtaken is skipped", async () => {
  if (!faults) throw new Skip("needs root and an instance of its own");
  await until("building", async () => (await client.revisions.get(overtaken.id)).status === "building" && machines(overtaken).length);
  const machine = /rev_[a-z0-9_]+/.exec(machines(overtaken)[0])[0];
  await until("told to go on", () => { try { ctl("dial", machine, "touch", "/home/app/go"); return true; } catch { return false; } });
  const r = await done(overtaken);
  same([r.status, r.failure_reason, r.last.building.status, r.last.deploying.status].join(), "skipped,skipped,succeeded,skipped", r.failure_message);
  is(await serves(app, "two"), "the newer one serves");
  await until("no machine", () => !machines(overtaken).some((m) => !m.includes("gone")));
});

await test("kill -9 of an app's machine: it is started again, visitors wait", async () => {
  if (!faults) throw new Skip("needs root and an instance of its own");
  const before = machinePid(good);
  process.kill(before, "SIGKILL");
  await until("the machine is gone", () => !existsSync(`/proc/${before}`));
  await until("served again", async () => (await get(`${url(app.slug)}/`).catch(() => ({}))).text === "two/");
  is(machinePid(good) !== before, "by another machine");
});

await test("app logs hold what the server printed", async () => {
  const start = new Date(Date.now() - 600000).toISOString();
  const r = await deploy(app, 'console.log("printed by the app");\n' + server("four"));
  same((await done(r)).status, "succeeded", "status");
  await until("the line", async () => (await client.apps.logs(app.id, { start, revision_id: r.id })).items.some((l) => l.message.includes("printed by the app")), 15000);
});

await test("a deleted app serves nothing and leaves no machine", async () => {
  await client.apps.delete(app.id);
  await until("404", async () => (await get(`${url(app.slug)}/`)).status === 404, 20000);
  if (faults) await until("no machine", () => made.every((r) => machines(r).length === 0), 20000);
});

console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
process.exit(failed ? 1 : 0);
