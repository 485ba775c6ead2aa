// SPDX-License-Identifier: Apache-2.0
// Single operations of a client in a running sandbox: a command, files small and large, a walk, a REPL.
// Reference: the same work done by Deno on this host, in one program of its own (below), in the same run. Without hardware virtualization
// the guest's processor is emulated, so that its share of a row is many times what it is with it.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { Sandbox } from "@deno/sandbox";
import { DENO, env, finish, row, timed, times as measured } from "./lib.mjs";

const RUNS = Number(env.PERF_RUNS ?? 40);
const MIB = Number(env.PERF_MIB ?? 100), FILES = 10000, BIG = MIB * 1048576;
const BIG_RUNS = Math.max(1, Math.floor(RUNS / 10)), WALKS = Math.max(1, Math.floor(RUNS / 4));

/** Both sides make their tree with this: 100 directories of 100 empty files. */
const TREE = `mkdir -p tree && cd tree && for d in $(seq 0 99); do mkdir -p d$d && (cd d$d && touch $(seq -f 'f%g' 0 99)); done`;

// --- what Deno does here ---
const LOCAL = `
const [runs, bigRuns, walks, big] = Deno.args.map(Number), out = { exec: [], small: [], write: [], read: [], walk: [], start: [], repl: [] };
const timed = async (fn) => { const t = performance.now(); await fn(); return performance.now() - t; };
const times = async (list, n, fn) => { await fn(); for (let i = 0; i < n; i++) list.push(await timed(fn)); };
await times(out.exec, runs, () => new Deno.Command("true", { stdout: "null", stderr: "null" }).spawn().status);
const small = new Uint8Array(1024).fill(7), large = new Uint8Array(big).fill(7);
await times(out.small, runs, async () => { await Deno.writeFile("small", small); await Deno.readFile("small"); });
await times(out.write, bigRuns, () => Deno.writeFile("large", large));
await times(out.read, bigRuns, () => Deno.readFile("large"));
async function walk(dir) {
  let n = 1;
  for await (const e of Deno.readDir(dir)) n += e.isDirectory ? await walk(dir + "/" + e.name) : 1;
  return n;
}
await times(out.walk, walks, async () => { if (await walk("tree") !== ${FILES + 101}) throw new Error("another tree"); });
await times(out.start, 3, () => new Deno.Command(Deno.execPath(), { args: ["eval", "1"], stdout: "null", stderr: "null" }).spawn().status);
// An evaluation in another process, over pipes.
const child = new Deno.Command(Deno.execPath(), { args: ["run", "loop.js"], stdin: "piped", stdout: "piped" }).spawn();
const w = child.stdin.getWriter(), r = child.stdout.getReader(), line = new TextEncoder().encode("6 * 7");
await times(out.repl, runs, async () => { await w.write(line); if (new TextDecoder().decode((await r.read()).value).trim() !== "42") throw new Error("not 42"); });
await w.close(); r.releaseLock(); child.stdout.cancel();
console.log(JSON.stringify(out));
Deno.exit(0);
`;
const LOOP = `
for await (const chunk of Deno.stdin.readable)
  await Deno.stdout.write(new TextEncoder().encode(JSON.stringify((0, eval)(new TextDecoder().decode(chunk)))));
`;
function local() {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "nbperf-"));
  try {
    fs.writeFileSync(`${dir}/local.js`, LOCAL);
    fs.writeFileSync(`${dir}/loop.js`, LOOP);
    execFileSync("bash", ["-ec", TREE], { cwd: dir });
    return JSON.parse(execFileSync(DENO, ["run", "--quiet", "--allow-all", "--no-lock", "local.js", RUNS, BIG_RUNS, WALKS, BIG].map(String),
      { cwd: dir, encoding: "utf8" }));
  } finally {
    fs.rmSync(dir, { recursive: true });
  }
}

// --- the same through the client ---
const ref = local();
const against = (values) => ({ name: "Deno here", values });
const rate = (list) => list.map((ms) => MIB / (ms / 1000));
/** Once before, for what is only slow the first time, if that is not most of what there is time for. */
async function times(n, fn) {
  if (n > 3 && await timed(fn) > 5000) n = 1;
  return await measured(n, fn);
}
const s = await Sandbox.create({ timeout: "90m" });
row("exec of `true`, start to status", "ms", await times(RUNS, async () => {
  const c = await s.spawn("true", { stdout: "null", stderr: "null" });
  await c.status;
}), against(ref.exec));
row("sh`true`, a shell and its output", "ms", await times(RUNS, () => s.sh`true`), against(ref.exec));

const small = new Uint8Array(1024).fill(7);
row("write and read 1 KB", "ms", await times(RUNS, async () => {
  await s.fs.writeFile("small", small);
  await s.fs.readFile("small");
}), against(ref.small));

await s.sh`${"bash"} -ec ${TREE}`;
row("walk of 10,000 files", "ms", await times(WALKS, async () => {
  let n = 0;
  for await (const _ of s.fs.walk("tree")) n++;
  if (n !== FILES + 101) throw new Error(`${n} entries`);
}), against(ref.walk));

let repl;
row("REPL: start to first value", "ms", await times(3, async () => {
  await repl?.close();
  repl = await s.deno.repl();
  await repl.eval("1");
}), against(ref.start));
row("REPL: eval", "ms", await times(RUNS, async () => {
  if (await repl.eval("6 * 7") !== 42) throw new Error("not 42");
}), against(ref.repl));
await repl.close();

/** As a client sends what is too large for one message. */
const large = () => ReadableStream.from((function* () {
  const chunk = new Uint8Array(64 << 10).fill(7);
  for (let n = 0; n < BIG; n += chunk.length) yield chunk;
})());
const write = await times(BIG_RUNS, () => s.fs.writeFile("/dev/shm/large", large()));
row(`write ${MIB} MiB by a stream`, "ms", write, against(ref.write));
row("  rate", "MiB/s", rate(write), against(rate(ref.write)));
const read = await times(BIG_RUNS, async () => {
  const file = await s.fs.open("/dev/shm/large", { read: true });
  let n = 0;
  for await (const chunk of file.readable) n += chunk.length; // 64 KiB a call
  await file.close();
  if (n !== BIG) throw new Error(`${n} bytes`);
});
row(`read ${MIB} MiB by a stream`, "ms", read, against(ref.read));
row("  rate", "MiB/s", rate(read), against(rate(ref.read)));
await s.kill();
finish("ops");
process.exit(0);
