// SPDX-License-Identifier: Apache-2.0
// Rows of a performance suite: figure, unit, n, p50, p95, p99, reference, ratio. Printed as a table, written as JSON.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";

export const env = process.env;
// Of the same package as the client's.
export const DENO = path.join(path.dirname(env.NESTBOX_NODE), "../../@deno/linux-x64-glibc/deno");
const rows = [];

export function quantile(list, q) {
  const s = [...list].sort((a, b) => a - b);
  return s[Math.min(s.length - 1, Math.floor(q * s.length))];
}

// values: one per run. reference: {name, values} measured in the same run, or undefined.
export function row(figure, unit, values, reference) {
  const p50 = quantile(values, 0.5);
  const ref = reference && quantile(reference.values, 0.5);
  const r = {
    figure, unit, n: values.length, p50, p95: quantile(values, 0.95), p99: quantile(values, 0.99),
    reference: reference ? { name: reference.name, p50: ref } : null,
    ratio: ref ? p50 / ref : null,
  };
  rows.push(r);
  console.error(`  ${figure.trim()}: ${num(p50)} ${unit}${r.ratio ? `, ratio ${num(r.ratio)}` : ""}`); // the table is the last thing; a run may be long
  return r;
}

const num = (v) => (v === null || v === undefined ? "" : Math.abs(v) >= 100 ? v.toFixed(0) : v.toFixed(2));

export function finish(suite) {
  const dir = `${env.NESTBOX_STATE}/bench`;
  const head = ["figure", "unit", "n", "p50", "p95", "p99", "reference", "ref p50", "ratio"];
  const body = rows.map((r) => [r.figure, r.unit, String(r.n), num(r.p50), num(r.p95), num(r.p99),
    r.reference?.name ?? "", num(r.reference?.p50), num(r.ratio)]);
  const width = head.map((h, i) => Math.max(h.length, ...body.map((b) => b[i].length)));
  for (const line of [head, ...body]) {
    console.log(line.map((c, i) => (i === 0 || i === 1 || i === 6 ? c.padEnd(width[i]) : c.padStart(width[i]))).join("  ").trimEnd());
  }
  fs.mkdirSync(dir, { recursive: true });
  fs.writeFileSync(`${dir}/${suite}.json`, JSON.stringify(rows, null, 1) + "\n");
  console.log(`\nwritten to ${dir}/${suite}.json`);
}

// JSON lines of tests/perf/direct.
export function direct(...args) {
  const [verb, ...rest] = args;
  const out = execFileSync(`${env.NESTBOX_BUILD}/tests/perf/direct`, [verb, `${env.NESTBOX_RUN}/broker.sock`, ...rest.map(String)],
    { encoding: "utf8", maxBuffer: 1 << 26 });
  return out.trim().split("\n").filter(Boolean).map((l) => JSON.parse(l));
}

export async function timed(fn) {
  const t = performance.now();
  await fn();
  return performance.now() - t;
}

/** Whether a row may go on: n times, but no longer than PERF_ROW_SECONDS, else its own (15), and at least once. A suite ends in minutes on any host. */
export function runs(n, seconds = 15) {
  const end = performance.now() + Number(env.PERF_ROW_SECONDS ?? seconds) * 1000;
  let i = 0;
  return () => i++ === 0 || (i <= n && performance.now() < end);
}

/** How long fn takes, each time. */
export async function times(n, fn, seconds) {
  const list = [];
  for (const more = runs(n, seconds); more();) list.push(await timed(() => fn(list.length)));
  return list;
}

// Resident and private bytes of processes by name, of this instance.
export function memory() {
  const out = {};
  for (const pid of fs.readdirSync("/proc").filter((d) => /^\d+$/.test(d))) {
    try {
      const cmd = fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
      const name = cmd[0].split("/").pop();
      if (!name.startsWith("nestbox") || !cmd.join(" ").includes(env.NESTBOX_CONF)) continue;
      const text = fs.readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
      const kb = (k) => Number(new RegExp(`^${k}:\\s+(\\d+)`, "m").exec(text)?.[1] ?? 0);
      out[name] = Math.max(out[name] ?? 0, kb("Pss") / 1024);
    } catch { /* it ended, or is a kernel thread */ }
  }
  return out;
}
