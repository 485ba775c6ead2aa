// SPDX-License-Identifier: Apache-2.0
// Create, run, write, preview, deploy and kill in random order at full speed. No error that is not a limit, and memory and
// descriptors of every daemon as flat at the end as after the first tenth.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import { Client, Sandbox } from "@deno/sandbox";

const seconds = Number(process.env.SOAK_SECONDS ?? 600);
const workers = Number(process.env.SOAK_WORKERS ?? 4);
const { NESTBOX_SV: SV, NESTBOX_CONF: CONF, NESTBOX_PREFIX: PREFIX } = process.env;
const daemons = ["nestboxd", "nestbox-egress", "nestbox-gateway", "nestbox-api", "nestbox-runner"];
const end = Date.now() + seconds * 1000;
const client = new Client();
const counts = {}, errors = [];
console.debug = () => {};

function usage() {
  const out = {};
  for (const d of daemons) {
    const pid = fs.readFileSync(`${SV}/${d}/supervise/pid`, "utf8").trim();
    const kb = /^Pss:\s+(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))[1];
    out[d] = { pid, mib: Number(kb) / 1024, fds: fs.readdirSync(`/proc/${pid}/fd`).length };
  }
  return out;
}

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

async function deploy(slug) {
  await client.apps.create({ slug }).catch((e) => must(e.code === "SLUG_TAKEN" || e.status === 409, String(e)));
  const r = await client.apps.deploy(slug, {
    assets: { "main.ts": { kind: "file", content: "Deno.serve(() => new Response('soak'))", encoding: "utf-8" } },
    config: { runtime: { type: "dynamic", entrypoint: "main.ts" } },
    production: true,
  });
  for await (const _ of client.revisions.progress(r.id));
  const done = await client.revisions.get(r.id);
  must(["succeeded", "skipped"].includes(done.status), `revision ${r.id} ended as ${done.status}`);
}

async function worker(n) {
  while (Date.now() < end) {
    let what = "create";
    try {
      if (n === 0 && Math.random() < 0.1) {
        what = "deploy";
        await deploy("soak");
        counts.deploy = (counts.deploy ?? 0) + 1;
        continue;
      }
      const s = await Sandbox.create(Math.random() < 0.3 ? { timeout: "60s" } : {});
      counts.create = (counts.create ?? 0) + 1;
      for (let i = 0; i < 1 + Math.random() * 4; i++) {
        what = pick(Object.keys(steps));
        await steps[what](s);
        counts[what] = (counts[what] ?? 0) + 1;
      }
      what = "end";
      await (Math.random() < 0.5 ? s.kill() : s.close());
    } catch (e) {
      if (e.status === 429) {
        counts.limited = (counts.limited ?? 0) + 1;
        await new Promise((r) => setTimeout(r, 300));
      } else {
        errors.push(`${what}: ${e.message}`);
        console.log(`FAIL ${what}: ${e.stack}`);
      }
    }
  }
}

const running = Array.from({ length: workers }, (_, n) => worker(n));
await new Promise((r) => setTimeout(r, seconds * 100));
const early = usage();
await Promise.all(running);
await client.apps.delete("soak").catch(() => {});
// Machines whose connection was closed get their grace, those with a timeout are ended here.
for (const m of JSON.parse(execFileSync(`${PREFIX}/sbin/nestboxctl`, ["-c", CONF, "--json", "list"], { encoding: "utf8" })))
  execFileSync(`${PREFIX}/sbin/nestboxctl`, ["-c", CONF, "kill", m.id], { stdio: "ignore" });
await new Promise((r) => setTimeout(r, 5000));
const late = usage();
console.log(`\n${seconds} s, ${workers} clients:`, counts);
let passed = 0, failed = errors.length;
for (const d of daemons) {
  const a = early[d], b = late[d];
  const flat = a.pid === b.pid && b.mib < a.mib * 1.25 + 1 && b.fds <= a.fds + 4;
  console.log(`${flat ? "ok  " : "FAIL"} ${d.padEnd(16)} ${a.mib.toFixed(1)} -> ${b.mib.toFixed(1)} MiB PSS, ${a.fds} -> ${b.fds} descriptors`);
  flat ? passed++ : failed++;
}
if (!errors.length) passed++;
console.log(`${passed} passed, ${failed} failed, 0 skipped`);
process.exit(failed ? 1 : 0);
