// SPDX-License-Identifier: Apache-2.0
// What the programs here share. They run under Node and under Deno, against whatever DENO_SANDBOX_ENDPOINT names; with
// NESTBOX_SESSION_TEST (the program nestbox-session-test) they start a session process of their own behind a bridge, and
// need no system. A program whose second line says "Node only" is not run under Deno; of the others, the cases in
// nodeTest() are left to Node.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

export { assert, sleep };

let passed = 0, failed = 0, skipped = 0, left = 0;
let stopSession = async () => {};

export const isDeno = Boolean(globalThis.Deno?.version?.deno);
export const alone = Boolean(process.env.NESTBOX_SESSION_TEST);

async function startSession() {
  const { startBridge } = await import("../lib/ws-bridge.mjs");
  const dir = mkdtempSync(join(tmpdir(), "nb-session-"));
  const path = join(dir, "s");
  const child = spawn(process.env.NESTBOX_SESSION_TEST, [path], {
    stdio: ["pipe", "inherit", "pipe"],
    env: { ...process.env, HOME: dir },
  });
  const exited = new Promise((resolve) => child.on("exit", resolve));
  await new Promise((resolve, reject) => {
    child.stderr.on("data", (d) => {
      process.stderr.write(d);
      if (String(d).includes("listening")) resolve();
    });
    exited.then((code) => reject(new Error(`session ended with ${code}`)));
  });
  const bridge = await startBridge(path);
  process.env.DENO_SANDBOX_ENDPOINT = bridge.endpoint;
  process.env.DENO_DEPLOY_TOKEN = "ddo_test";
  stopSession = async () => {
    bridge.close();
    child.stdin.end();
    const code = await exited;
    rmSync(dir, { recursive: true, force: true });
    if (code !== 0) throw new Error(`the session ended with ${code}`);
  };
  return child.pid;
}

export const sessionPid = alone ? await startSession() : undefined;
export const { Sandbox } = await import("@deno/sandbox");

export class Skip extends Error {}
export const skip = (why) => {
  throw new Skip(why);
};

/** Runs fn now; a test that takes longer than limitMs has failed. */
export async function test(name, fn, limitMs = 200_000) {
  const late = new AbortController(), began = performance.now();
  try {
    await Promise.race([
      fn(),
      sleep(limitMs, undefined, { signal: late.signal, ref: true }).then(() => {
        throw new Error(`not done after ${limitMs} ms`);
      }),
    ]);
    passed++;
    console.log(`ok   ${name} (${((performance.now() - began) / 1000).toFixed(1)} s)`);
  } catch (e) {
    if (e instanceof Skip) {
      skipped++;
      console.log(`skip ${name}: ${e.message}`);
    } else {
      failed++;
      console.log(`FAIL ${name}\n  ${e?.stack ?? e}`);
    }
  } finally {
    late.abort();
  }
}

/** A slow case about the server alone, all of whose methods have other cases: once, under Node, is enough. */
export async function nodeTest(name, fn, limitMs) {
  if (!isDeno) return await test(name, fn, limitMs);
  left++;
  console.log(`left ${name}`);
}

/** Prints the result line and ends the process. */
export async function done() {
  try {
    await stopSession();
  } catch (e) {
    failed++;
    console.log(`FAIL end of the session\n  ${e?.stack ?? e}`);
  }
  if (left) console.log(`${left} cases left to Node`);
  console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
  process.exit(failed ? 1 : 0);
}

export const text = (bytes) => new TextDecoder().decode(bytes);

/** What a promise is rejected with; fails if it is not. */
export async function rejection(promise) {
  try {
    await promise;
  } catch (e) {
    return e;
  }
  throw new assert.AssertionError({ message: "it was not rejected" });
}

/** Waits until fn() gives something true; no longer than limitMs. */
export async function until(fn, limitMs = 10_000) {
  const end = Date.now() + limitMs;
  for (;;) {
    const v = await fn();
    if (v) return v;
    if (Date.now() > end) throw new Error(`not true within ${limitMs} ms: ${fn}`);
    await sleep(20);
  }
}

/** The first machine of a memory size boots its template, on a busy host for longer than a create may take. */
export async function createSlowly(options) {
  for (;;) {
    try {
      return await Sandbox.create(options);
    } catch (e) {
      if (e.code !== "SANDBOX_START_TIMEOUT") throw e;
    }
  }
}
