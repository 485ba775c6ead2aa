// SPDX-License-Identifier: Apache-2.0
// What a fork and a capture cost: how long the original stands still, and how long until what comes of it answers.
import { execFileSync } from "node:child_process";
import { Sandbox } from "@deno/sandbox";
import { env, finish, row, runs } from "./lib.mjs";

const RUNS = Number(env.PERF_RUNS ?? 10);
const ctl = (...args) => execFileSync(`${env.NESTBOX_PREFIX}/sbin/nestboxctl`, ["-c", env.NESTBOX_CONF, ...args], { encoding: "utf8" });
const numbers = (text) => text.match(/\d+/g).map(Number);

async function api(method, path, body) {
  const r = await fetch(`${env.DENO_DEPLOY_ENDPOINT}${path}`, {
    method,
    headers: { authorization: `Bearer ${env.DENO_DEPLOY_TOKEN}`, "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!r.ok) throw new Error(`${path}: ${r.status} ${await r.text()}`);
  return r.json();
}

const parent = await Sandbox.create({ timeout: "20m" });
await parent.sh`head -c 8000000 /dev/urandom > data; sync`.text();

const create = [], rows = [];
for (const more = runs(RUNS); more();) {
  const t = performance.now();
  const s = await Sandbox.create();
  await s.sh`echo hello`.text();
  create.push(performance.now() - t);
  await s.close();
}
for (const n of [1, 4]) {
  const pause = [], answer = [], first = [], copied = [];
  for (const more = runs(RUNS); more();) {
    await parent.sh`date > touched`.text();
    const t = performance.now();
    const r = await api("POST", `/api/v2/sandboxes/${parent.id}/fork`, { count: n });
    answer.push(performance.now() - t);
    pause.push(r.pauseUs / 1000);
    copied.push(r.privateBytes / 1048576);
    const s = await Sandbox.connect({ id: r.sandboxes[0].id });
    await s.sh`echo hello`.text();
    first.push(performance.now() - t);
    await s.close();
    for (const c of r.sandboxes) await api("DELETE", `/api/v3/sandbox/${c.id}`);
  }
  rows.push([n, pause, copied, answer, first]);
}

const captured = [], bytes = [], restored = [], total = [];
ctl("create", "perf_capture", "1280");
for (const more = runs(RUNS); more();) {
  const [pause_us, kib] = numbers(ctl("capture", "perf_capture", "perf-capture"));
  captured.push(pause_us / 1000);
  bytes.push(kib / 1024);
  const [restore_us, , total_us] = numbers(ctl("create", "perf_restored", "1280", "perf-capture"));
  restored.push(restore_us / 1000);
  total.push(total_us / 1000);
  ctl("kill", "perf_restored");
}
ctl("kill", "perf_capture");
ctl("uncapture", "perf-capture");
const against = (name, values) => ({ name, values }), created = against("create to first output", create), whole = against("memory of the machine", [1280]);
for (const [n, pause, copied, answer, first] of rows) {
  row(`fork of ${n}: the parent stands still`, "ms", pause, against("a capture's pause", captured));
  row(`fork of ${n}: memory copied`, "MiB", copied, whole);
  row(`fork of ${n}: to the API's answer`, "ms", answer, created);
  row(`fork of ${n}: to the first child's first output`, "ms", first, created);
}
row("capture: the machine stands still", "ms", captured, created);
row("capture: on disk", "MiB", bytes, whole);
row("start from a capture: the engine", "ms", restored, created);
row("start from a capture: to its identity", "ms", total, created);
await parent.kill();
finish("fork");
process.exit(0);
