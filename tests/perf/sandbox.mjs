// SPDX-License-Identifier: Apache-2.0
// What each step of create, exec and a stream costs through the whole system, beside the same work without the control plane.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import { Sandbox } from "@deno/sandbox";
import { direct, env, finish, memory, row, timed } from "./lib.mjs";

const RUNS = Number(env.PERF_RUNS ?? 15);
const EXECS = Number(env.PERF_EXECS ?? 60);
const MIB = Number(env.PERF_MIB ?? 200);

// One of each first: page cache, connections and JIT are warm for both sides.
direct("create", 1);
await (await Sandbox.create()).close();

const first = [], created = [], lone = [];
for (let i = 0; i < RUNS; i++) {
  lone.push(...direct("create", 1));
  const t = performance.now();
  const s = await Sandbox.create();
  created.push(performance.now() - t);
  await s.sh`echo hello`.text();
  first.push(performance.now() - t);
  await s.close();
  await new Promise((r) => setTimeout(r, 200));
}
const us = (key) => lone.map((l) => l[key] / 1000);
row("create to first command's output", "ms", first, { name: "broker and agent directly", values: us("first") });
row("create", "ms", created, { name: "broker directly", values: us("create") });
row("  of which: engine restores the template", "ms", us("restore"));
row("  of which: agent takes its identity", "ms", us("agent"));
row("control plane's share of create", "ms", created.map((v, i) => v - lone[i].create / 1000));

const s = await Sandbox.create();
const run = async () => {
  const c = await s.spawn("true", { stdout: "null", stderr: "null" });
  await c.status;
};
for (let i = 0; i < 5; i++) await run();
const execs = [];
for (let i = 0; i < EXECS; i++) execs.push(await timed(run));
direct("exec", s.id, 5);
const lines = direct("exec", s.id, EXECS).map((l) => l.exec / 1000);
const exec = row("exec of `true`, start to exit status", "ms", execs, { name: "agent directly", values: lines });
row("control plane's share of exec", "ms", [exec.p50 - exec.reference.p50]);

const rtt = [];
for (let i = 0; i < EXECS; i++) rtt.push(await timed(() => s.env.get("HOME")));
row("smallest RPC round trip", "ms", rtt);

const before = memory();
let bytes = 0;
let peak = { ...before };
const watch = setInterval(() => {
  for (const [k, v] of Object.entries(memory())) peak[k] = Math.max(peak[k] ?? 0, v);
}, 500);
const t = performance.now();
const child = await s.spawn("head", { args: ["-c", `${MIB}M`, "/dev/zero"], stdout: "piped", stderr: "null" });
for await (const chunk of child.stdout) bytes += chunk.length;
await child.status;
const rate = bytes / 1048576 / ((performance.now() - t) / 1000);
clearInterval(watch);
if (bytes !== MIB * 1048576) throw new Error(`${bytes} of ${MIB * 1048576} bytes arrived`);
const plain = direct("cat", s.id, MIB)[0];
row(`stdout of ${MIB} MiB through the SDK`, "MiB/s", [rate],
  { name: "agent directly", values: [plain.bytes / 1048576 / (plain.us / 1e6)] });
for (const [name, v] of Object.entries(peak)) row(`  ${name}: PSS at most during it`, "MiB", [v], { name: "before", values: [before[name] ?? 0] });

const stat = JSON.parse(execFileSync(`${env.NESTBOX_PREFIX}/sbin/nestboxctl`, ["-c", env.NESTBOX_CONF, "--json", "stat", s.id], { encoding: "utf8" }));
const idle = await Sandbox.create();
await new Promise((r) => setTimeout(r, 3000));
const quiet = JSON.parse(execFileSync(`${env.NESTBOX_PREFIX}/sbin/nestboxctl`, ["-c", env.NESTBOX_CONF, "--json", "stat", idle.id], { encoding: "utf8" }));
// What the VM process holds beyond the mapping of guest memory.
function beyond(pid) {
  let kb = 0, guest = false;
  for (const line of fs.readFileSync(`/proc/${pid}/smaps`, "utf8").split("\n")) {
    if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) guest = /memfd:/.test(line);
    else if (line.startsWith("Pss:") && !guest) kb += Number(line.replace(/\D/g, ""));
  }
  return kb / 1024;
}
const mib = (o) => (o.memory_private ?? o.memory_private_bytes ?? 0) / 1048576;
row("PSS of an idle sandbox's VM process", "MiB", [mib(quiet)]);
row("  of which beyond guest memory", "MiB", [beyond(quiet.pid)]);
row("PSS of a used sandbox's VM process", "MiB", [mib(stat)]);
await idle.close();
await s.close();
finish("sandbox");
process.exit(0);
