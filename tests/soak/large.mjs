// SPDX-License-Identifier: Apache-2.0
// A file of 1 GB through the client: written by a stream, read by a stream, and a sparse one of the same size; 100 MB (SOAK_PIPE_MIB) through a
// program's pipes. Every byte is compared with what it must be, no process on the way, in the host or in the guest, may hold more than a little
// of it, and daemons end with the memory and descriptors that they had.
import fs from "node:fs";
import { Sandbox } from "@deno/sandbox";

const BYTES = Number(process.env.SOAK_LARGE_MIB ?? 1024) * 1048576;
const { NESTBOX_SV: SV } = process.env;
const GROWTH_MIB = 24;
const services = ["nestboxd", "nestbox-egress", "nestbox-gateway", "nestbox-api", "nginx"];
let passed = 0, failed = 0;

/** Descriptors of each service alone. */
function descriptors() {
  return Object.fromEntries(services.map((s) => [s, fs.readdirSync(`/proc/${fs.readFileSync(`${SV}/${s}/supervise/pid`, "utf8").trim()}/fd`).length]));
}

/** The API's workers each keep a connection to the gateway once they have asked it something. */
const callers = () => {
  const parent = fs.readFileSync(`${SV}/nestbox-api/supervise/pid`, "utf8").trim();
  return fs.readFileSync(`/proc/${parent}/task/${parent}/children`, "utf8").trim().split(" ").length;
};

/** PSS of each service and of what it started (nginx's workers, the API's; not machines), in MiB. */
function memory() {
  const parents = new Map(), out = {};
  for (const pid of fs.readdirSync("/proc").filter((d) => /^\d+$/.test(d))) {
    try {
      parents.set(pid, /^PPid:\t(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, "utf8"))[1]);
    } catch { /* it ended */ }
  }
  for (const s of services) {
    const root = fs.readFileSync(`${SV}/${s}/supervise/pid`, "utf8").trim();
    out[s] = 0;
    for (const [pid] of parents) {
      let up = pid;
      while (up && up !== root) up = parents.get(up);
      if (up !== root) continue;
      try {
        if (/qemu|nestbox-vmm/.test(fs.readFileSync(`/proc/${pid}/comm`, "utf8"))) continue;
        out[s] += Number(/^Pss:\s+(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1] ?? 0) / 1024;
      } catch { /* it ended */ }
    }
  }
  return out;
}

async function check(name, fn, bytes = BYTES) {
  const began = Date.now(), before = memory(), peak = { ...before };
  const timer = setInterval(() => {
    for (const [k, v] of Object.entries(memory())) peak[k] = Math.max(peak[k], v);
  }, 1000);
  try {
    await fn();
    const grown = services.filter((s) => peak[s] > before[s] + GROWTH_MIB).map((s) => `${s} from ${before[s].toFixed(1)} to ${peak[s].toFixed(1)} MiB`);
    if (grown.length) throw new Error(`grew: ${grown.join(", ")}`);
    passed++;
    const s = (Date.now() - began) / 1000;
    console.log(`ok   ${name} (${s.toFixed(0)} s, ${(bytes / 1048576 / s).toFixed(1)} MiB/s; most: ${services.map((d) => `${d} +${(peak[d] - before[d]).toFixed(1)}`).join(", ")} MiB)`);
  } catch (e) {
    failed++;
    console.log(`FAIL ${name}\n  ${e.stack}`);
  } finally {
    clearInterval(timer);
  }
}

const CHUNK = 64 << 10;
// Words count up, so that a chunk that is lost, doubled or moved is seen.
const pattern = new Uint32Array(CHUNK / 4);
const chunkAt = (n) => {
  for (let i = 0; i < pattern.length; i++) pattern[i] = n + i;
  return new Uint8Array(pattern.buffer).slice();
};
/** Compares what comes with what fill(offset of a chunk) gives; chunks may be of any size. */
async function compared(readable, fill, bytes = BYTES) {
  let at = 0, want = null;
  for await (const chunk of readable) {
    for (let i = 0; i < chunk.length;) {
      const inside = (at + i) % CHUNK;
      if (inside === 0) want = fill(at + i);
      const n = Math.min(CHUNK - inside, chunk.length - i);
      if (Buffer.compare(chunk.subarray(i, i + n), want.subarray(inside, inside + n))) throw new Error(`other bytes near ${at + i}`);
      i += n;
    }
    at += chunk.length;
  }
  if (at !== bytes) throw new Error(`${at} bytes came`);
}

const before = { memory: memory(), descriptors: descriptors() };
const s = await Sandbox.create({ timeout: "180m" });
const agent = async () => Math.max(...(await s.sh`sudo sh -c 'grep -h VmHWM /proc/[0-9]*/status' | awk '{ print $2 }' | sort -n | tail -1`.text()).trim().split("\n").map(Number)) / 1024;
await check("written by a stream", async () => {
  let n = 0;
  await s.fs.writeFile("large", new ReadableStream({
    pull(c) {
      c.enqueue(chunkAt(n));
      n += CHUNK;
      if (n >= BYTES) c.close();
    },
  }));
  const { size } = await s.fs.stat("large");
  if (size !== BYTES) throw new Error(`it has ${size} bytes`);
});
await check("read by a stream", async () => {
  const file = await s.fs.open("large", { read: true });
  await compared(file.readable, chunkAt);
  await file.close();
});
await check("a sparse one takes no room and reads as zeros", async () => {
  await s.fs.remove("large");
  await (await s.fs.create("sparse")).close();
  await s.fs.truncate("sparse", BYTES);
  const { size, blocks } = await s.fs.stat("sparse");
  if (size !== BYTES || blocks > 64) throw new Error(`${size} bytes, ${blocks} blocks`);
  const zeros = new Uint8Array(CHUNK), file = await s.fs.open("sparse", { read: true });
  await compared(file.readable, () => zeros);
  await file.close();
});
const PIPED = Number(process.env.SOAK_PIPE_MIB ?? 100) * 1048576;
await check("through a program's pipes", async () => {
  const cat = await s.spawn("cat", { stdin: "piped", stdout: "piped" });
  let n = 0;
  const fed = new ReadableStream({
    pull(c) {
      if (n >= PIPED) return c.close();
      c.enqueue(chunkAt(n));
      n += CHUNK;
    },
  }).pipeTo(cat.stdin);
  await compared(cat.stdout, chunkAt, PIPED);
  await fed;
  if (!(await cat.status).success) throw new Error("cat failed");
}, PIPED);
await check("no process of the guest ever held much of it", async () => {
  const mib = await agent();
  if (mib > 200) throw new Error(`one had ${mib} MiB`);
});
await s.kill();
await new Promise((r) => setTimeout(r, 5000)); // its machine's network and its connections go
const after = { memory: memory(), descriptors: descriptors() };
for (const d of services) {
  const more = 4 + (d === "nestbox-gateway" ? callers() : 0);
  const flat = after.memory[d] < before.memory[d] + GROWTH_MIB && after.descriptors[d] <= before.descriptors[d] + more;
  flat ? passed++ : failed++;
  console.log(`${flat ? "ok  " : "FAIL"} ${d.padEnd(16)} ${before.memory[d].toFixed(1)} -> ${after.memory[d].toFixed(1)} MiB PSS, ${before.descriptors[d]} -> ${after.descriptors[d]} descriptors`);
}
console.log(`${passed} passed, ${failed} failed, 0 skipped`);
process.exit(failed ? 1 : 0);
