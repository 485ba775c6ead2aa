// SPDX-License-Identifier: Apache-2.0
// Requests from outside through a preview: latencies and rate with 1, 16 and 256 connections.
// References, with the same certificate and the same client: an nginx alone in front of the same program run here by Deno (what the
// way through gateway, broker's exposure and guest costs beside a plain proxy), and, for the rate, what that Deno does without any proxy.
import { spawn } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import https from "node:https";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { Sandbox } from "@deno/sandbox";
import { DENO, env, finish, row } from "./lib.mjs";

const SECONDS = Number(env.PERF_SECONDS ?? 5);
const PROGRAM = `Deno.serve({ port: Number(Deno.args[0] ?? 8123), hostname: "0.0.0.0", onListen() {} }, () => new Response("answer"))`;
const pause = (ms) => new Promise((r) => setTimeout(r, ms));

const freePort = () => new Promise((yes) => {
  const s = net.createServer().listen(0, "127.0.0.1", () => {
    const { port } = s.address();
    s.close(() => yes(port));
  });
});

/** As many requests as fit into SECONDS on so many connections that are kept. */
async function load(client, options, connections) {
  const agent = new client.Agent({ keepAlive: true, maxSockets: connections });
  const latencies = [], began = performance.now(), end = began + SECONDS * 1000;
  let failed = 0;
  const one = () => new Promise((yes) => {
    client.request({ ...options, agent, timeout: 60_000 }, (res) => {
      res.resume();
      res.on("end", () => yes(res.statusCode === 200));
      res.on("error", () => yes(false));
    }).on("error", () => yes(false)).on("timeout", function () { this.destroy(); }).end();
  });
  await Promise.all(Array.from({ length: connections }, async () => {
    do {
      const t = performance.now();
      if (await one()) latencies.push(performance.now() - t);
      else failed++;
    } while (performance.now() < end);
  }));
  agent.destroy();
  if (!latencies.length) throw new Error("no answer at all");
  return { latencies, rate: latencies.length / ((performance.now() - began) / 1000), failed };
}

const until = async (fn) => {
  for (const stop = Date.now() + 120_000; !(await fn().catch(() => false)); await pause(50)) if (Date.now() > stop) throw new Error("not in time");
};

// --- the reference ---
const dir = fs.mkdtempSync(path.join(os.tmpdir(), "nbperf-"));
fs.writeFileSync(`${dir}/serve.ts`, PROGRAM);
const [upstream, alone] = [await freePort(), await freePort()];
const etc = path.dirname(env.NESTBOX_CONF), domain = new URL(env.DENO_DEPLOY_ENDPOINT).hostname.replace(/^api\./, "");
fs.writeFileSync(`${dir}/nginx.conf`, `daemon off; worker_processes auto; pid ${dir}/nginx.pid; error_log stderr;
events { worker_connections 4096; }
http { access_log off; proxy_temp_path ${dir}/p; client_body_temp_path ${dir}/b; fastcgi_temp_path ${dir}/f; uwsgi_temp_path ${dir}/u; scgi_temp_path ${dir}/s;
 server { listen 127.0.0.1:${alone} ssl; ssl_certificate ${etc}/tls/server.pem; ssl_certificate_key ${etc}/tls/server.key;
  location / { proxy_pass http://127.0.0.1:${upstream}; } } }`);
const deno = spawn(DENO, ["run", "--allow-net", `${dir}/serve.ts`, String(upstream)], { stdio: "ignore" });
const nginx = spawn("nginx", ["-e", "stderr", "-c", `${dir}/nginx.conf`], { stdio: "ignore" });
process.on("exit", () => {
  deno.kill("SIGKILL");
  nginx.kill();
  fs.rmSync(dir, { recursive: true, force: true });
});
const ca = fs.readFileSync(`${etc}/ca.pem`);
const reference = { host: "127.0.0.1", port: alone, path: "/", ca, servername: `x.${domain}` };
const bare = { host: "127.0.0.1", port: upstream, path: "/" };
await until(async () => (await fetch(`http://127.0.0.1:${upstream}/`)).ok);

// --- the preview ---
const s = await Sandbox.create({ timeout: "20m" });
await s.fs.writeTextFile("serve.ts", PROGRAM);
await s.spawn("deno", { args: ["run", "--allow-net", "serve.ts", "8123"], stdout: "null", stderr: "null" });
const url = new URL(await s.exposeHttp({ port: 8123 }));
await until(async () => (await fetch(url)).ok);
const there = { host: url.hostname, port: url.port || 443, path: "/", ca };
for (const n of [1, 16, 256]) {
  const got = await load(https, there, n), plain = await load(https, reference, n), direct = await load(http, bare, n);
  row(`request through a preview, ${n} connection${n > 1 ? "s" : ""}`, "ms", got.latencies, { name: "nginx alone", values: plain.latencies });
  row("  requests a second", "1/s", [got.rate], { name: "nginx alone", values: [plain.rate] });
  row("  nginx alone: requests a second", "1/s", [plain.rate], { name: "no proxy", values: [direct.rate] });
  if (got.failed || plain.failed) row("  failed", "", [got.failed], { name: "nginx alone", values: [plain.failed] });
}
await s.kill();
finish("preview");
process.exit(0);
