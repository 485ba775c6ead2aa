// SPDX-License-Identifier: Apache-2.0
// What the programs about volumes, snapshots and roots share.
import { alone, assert, nodeTest, Sandbox, skip, test } from "./lib.mjs";
import { Client } from "@deno/sandbox";

export const client = new Client();
export const tag = Math.random().toString(36).slice(2, 8);
export const region = process.env.NESTBOX_REGION ?? "ord";
export const slug = (name) => `${name}-${tag}`;
export const MB = 1e6;
/** Run in reverse at the end. */
export const cleanup = [];
const there = (fn) => alone ? () => skip("needs a running system") : fn;
export const system = (name, fn, ms) => test(name, there(fn), ms);
/** What disks do is the same for every client. */
export const systemOnce = (name, fn, ms) => nodeTest(name, there(fn), ms);

export async function sh(sandbox, script) {
  const child = await sandbox.spawn("bash", { args: ["-c", script], stdout: "piped", stderr: "piped" });
  const { status, stdoutText, stderrText } = await child.output();
  return { code: status.code, out: stdoutText, err: stderrText };
}
/** Its output; fails if it does. */
export const must = async (sandbox, script) => {
  const r = await sh(sandbox, script);
  assert.equal(r.code, 0, `${script}: ${r.err}`);
  return r.out;
};
export async function inSandbox(options, fn) {
  const sandbox = await Sandbox.create({ region, ...options });
  try {
    return await fn(sandbox);
  } finally {
    await sandbox.kill();
  }
}
