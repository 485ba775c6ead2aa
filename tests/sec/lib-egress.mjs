// SPDX-License-Identifier: Apache-2.0
// A network namespace that is the internet of the instance under test, and the instance's ledger as its API tells it. The instance's
// configuration (see tests/run.sh): egress_resolver 10.199.77.2, egress_allow_private 10.199.77.8/29 10.199.77.16/28,
// egress_ca_file the ca.pem of tests/lib/egress-certs.sh in the directory NESTBOX_EGRESS_CERTS.
import { execFileSync, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { test as plainTest, until } from "../sdk/lib.mjs";

/** A host that emulates several machines at once is slow: nothing here ends for that before so long. */
export const PATIENCE_MS = 120_000;
export const test = (name, fn, limitMs = 4 * PATIENCE_MS) => plainTest(name, fn, limitMs);

const NS = "nbegress-world", HOST_IF = "nbegress0";
const ip = (...args) => execFileSync("ip", args, { stdio: ["ignore", "pipe", "pipe"] });
const quiet = (...args) => { try { ip(...args); } catch { /* was not there */ } };

export class World {
  #child; #waiting = new Map(); #next = 1;

  static async start(certs = process.env.NESTBOX_EGRESS_CERTS) {
    const w = new World();
    quiet("link", "del", HOST_IF);
    quiet("netns", "del", NS);
    ip("netns", "add", NS);
    ip("link", "add", HOST_IF, "type", "veth", "peer", "name", "world0", "netns", NS);
    ip("addr", "add", "10.199.77.1/24", "dev", HOST_IF);
    ip("link", "set", HOST_IF, "up");
    ip("-n", NS, "link", "set", "lo", "up");
    for (const n of [2, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]) ip("-n", NS, "addr", "add", `10.199.77.${n}/24`, "dev", "world0");
    ip("-n", NS, "link", "set", "world0", "up");
    // A port that swallows what comes: for time-outs.
    ip("netns", "exec", NS, "nft",
      "add table ip t; add chain ip t i { type filter hook input priority 0; }; add rule ip t i tcp dport 9999 drop; " +
      "add counter ip t strange; add rule ip t i tcp dport 31337 counter name strange; add rule ip t i udp dport != 53 counter name strange; " +
      "add rule ip t i icmp type echo-request counter name strange; add rule ip t i meta l4proto != { tcp, udp, icmp } counter name strange");
    const script = join(dirname(fileURLToPath(import.meta.url)), "../lib/egress-world.mjs");
    w.#child = spawn("ip", ["netns", "exec", NS, process.execPath, script, certs], { stdio: ["pipe", "pipe", "inherit"] });
    await new Promise((ok, bad) => {
      w.#waiting.set(0, ok);
      w.#child.once("exit", (code) => bad(new Error(`the world ended with ${code}`)));
      createInterface({ input: w.#child.stdout }).on("line", (line) => {
        const m = JSON.parse(line);
        w.#waiting.get(m.id)?.(m);
        w.#waiting.delete(m.id);
      });
    });
    return w;
  }

  /** What reached the servers and the name server since the last clear(). */
  #ask(cmd) {
    const id = this.#next++;
    return new Promise((ok) => {
      this.#waiting.set(id, ok);
      this.#child.stdin.write(JSON.stringify({ id, cmd }) + "\n");
    });
  }
  get namespace() { return NS; }
  seen() { return this.#ask("seen"); }
  clear() { return this.#ask("clear"); }

  /** Packets that no connection through the proxy can be. */
  strange() {
    return Number(/packets (\d+)/.exec(ip("netns", "exec", NS, "nft", "list counter ip t strange").toString())[1]);
  }

  async stop() {
    this.#child.stdin.end();
    await new Promise((ok) => this.#child.exitCode === null ? this.#child.once("exit", ok) : ok());
    quiet("link", "del", HOST_IF);
    quiet("netns", "del", NS);
  }
}

export const api = async (path, options = {}) => {
  const r = await fetch(new URL(path, process.env.DENO_SANDBOX_ENDPOINT), {
    ...options,
    headers: { authorization: `Bearer ${process.env.DENO_DEPLOY_TOKEN}`, "content-type": "application/json", ...options.headers },
  });
  const body = await r.text();
  return { status: r.status, headers: r.headers, body, json: () => JSON.parse(body) };
};

/** All rows of a sandbox, the oldest first. */
export async function ledger(id, query = "") {
  const rows = [];
  let url = `/api/v2/sandboxes/${id}/egress?limit=1000${query}`;
  while (url) {
    const r = await api(url);
    if (r.status !== 200) throw new Error(`${url}: ${r.status} ${r.body}`);
    rows.push(...r.json().egress);
    url = /<([^>]+)>; rel="next"/.exec(r.headers.get("link") ?? "")?.[1];
  }
  return rows.reverse();
}

const fits = (row, want) => Object.entries(want).every(([k, v]) => v instanceof RegExp ? v.test(String(row[k] ?? "")) : row[k] === v);

/** Waits for a row with these members (a value or a regular expression each) and gives it. */
export async function row(id, want, limitMs = PATIENCE_MS) {
  let rows = [];
  try {
    return await until(async () => (rows = await ledger(id)).find((r) => fits(r, want)), limitMs);
  } catch {
    throw new Error(`no row like ${JSON.stringify(want, (_, v) => v instanceof RegExp ? String(v) : v)} in\n` +
      rows.slice(-40).map((r) => JSON.stringify(r)).join("\n"));
  }
}
export const has = (rows, want) => rows.find((r) => fits(r, want));
