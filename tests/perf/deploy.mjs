// SPDX-License-Identifier: Apache-2.0
// Deployments: a tree of 1,000 files to its first answer, a rollback, the wake of an idle app, and requests to an app from outside.
// References: tar and zstd of the same tree; a cold start; nginx alone in front of the same kind of answer on this host.
import { execFileSync, spawn } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import { Agent, request } from "node:https";
import os from "node:os";
import path from "node:path";
import { Client } from "@deno/sandbox";
import { env, finish, row, timed } from "./lib.mjs";

const RUNS = Number(env.PERF_RUNS ?? 5);
const SECONDS = Number(env.PERF_SECONDS ?? 5);
const client = new Client();
const endpoint = new URL(env.DENO_DEPLOY_ENDPOINT);
const domain = endpoint.hostname.replace(/^api\./, ""), port = Number(endpoint.port || 443);
const app = await client.apps.create({ slug: `perf-${Math.random().toString(36).slice(2, 9)}` });
const base = `https://${app.slug}.${domain}:${port}`;
const pause = (ms) => new Promise((r) => setTimeout(r, ms));
const adm = (...args) => execFileSync(`${env.NESTBOX_PREFIX}/sbin/nestboxadm`, ["-c", env.NESTBOX_CONF, ...args]);
const api = async (method, p) => {
	const r = await fetch(env.DENO_DEPLOY_ENDPOINT + p, { method, headers: { authorization: `Bearer ${env.DENO_DEPLOY_TOKEN}` } });
	if (!r.ok) throw new Error(`${p}: ${r.status} ${await r.text()}`);
	return await r.json();
};
const state = async () => (await api("GET", `/api/v2/apps/${app.id}/instances`)).filter((i) => i.state !== "ended");
async function until(what, fn, ms = 120000) {
	for (const end = Date.now() + ms; !(await fn()); await pause(20)) if (Date.now() > end) throw new Error(`not in time: ${what}`);
}
const get = async () => await (await fetch(base, { headers: { connection: "close" } })).text();

// --- a tree of 1,000 files ---
const files = Object.fromEntries(Array.from({ length: 999 }, (_, i) => [`lib/d${i % 30}/f${i}.ts`, `export const n${i} = ${i};\n// ${"text ".repeat(i % 200)}\n`]));
const main = (n) => `Deno.serve(() => new Response("answer ${n}"));\n`;
const deploy = async (n) => {
	const assets = Object.fromEntries(Object.entries({ ...files, "main.ts": main(n) }).map(([k, content]) => [k, { kind: "file", content, encoding: "utf-8" }]));
	const r = await client.apps.deploy(app.id, { assets, config: { runtime: { type: "dynamic", entrypoint: "main.ts" } } });
	for await (const _ of client.revisions.progress(r.id)) { /* to its end */ }
	const done = await client.revisions.get(r.id);
	if (done.status !== "succeeded") throw new Error(done.failure_message);
	return done;
};
const dir = fs.mkdtempSync(path.join(os.tmpdir(), "nbperf-"));
for (const [name, text] of Object.entries({ ...files, "main.ts": main(0) })) {
	fs.mkdirSync(path.dirname(`${dir}/tree/${name}`), { recursive: true });
	fs.writeFileSync(`${dir}/tree/${name}`, text);
}
const packed = [], deployed = [], revisions = [];
for (let i = 0; i < RUNS; i++) {
	packed.push(await timed(() => execFileSync("sh", ["-c", `tar -C ${dir}/tree -cf - . | zstd -q -T1 >${dir}/t.zst && sync ${dir}/t.zst`])));
	deployed.push(await timed(async () => revisions.push(await deploy(i))));
}
row("deploy of 1,000 files to production's first answer", "ms", deployed, { name: "tar and zstd alone", values: packed });

// --- rollback ---
const back = [];
for (let i = 0; i < RUNS; i++) {
	const to = i % 2 ? RUNS - 1 : 0;
	back.push(await timed(async () => {
		await api("POST", `/api/v2/revisions/${revisions[to].id}/promote`);
		await until("rolled back", async () => (await get()) === `answer ${to}`);
	}));
	await until("one machine", async () => (await state()).filter((s) => s.state === "running").length === 1);
}
row("rollback to its first answer", "ms", back, { name: "deploy", values: deployed });

// --- wake ---
async function wakes(forget) {
	const values = [];
	let warm = 0;
	adm("app", "idle", app.slug, "1000");
	for (let i = 0; i < RUNS; i++) {
		await until("asleep", async () => { const s = await state(); return s.length === 1 && s[0].state === "asleep"; });
		await pause(500);
		if (forget) await client.apps.update(app.id, { env_vars: [i ? { key: "N", value: String(i) } : { key: "N", value: "0" }] });
		values.push(await timed(get));
		warm += (await state()).filter((s) => s.warm).length;
	}
	adm("app", "idle", app.slug, "0");
	return { values, warm };
}
const warm = await wakes(false), cold = await wakes(true);
row(`wake of an idle app to its first answer (${warm.warm} of ${RUNS} from memory)`, "ms", warm.values, { name: "cold start", values: cold.values });

// --- requests ---
async function load(options, connections) {
	const latencies = [], end = performance.now() + SECONDS * 1000;
	const agent = new Agent({ keepAlive: true, maxSockets: connections });
	let wrong = 0;
	const started = performance.now();
	await Promise.all(Array.from({ length: connections }, async () => {
		while (performance.now() < end) {
			const t = performance.now();
			const ok = await new Promise((yes) => {
				request({ ...options, agent }, (res) => {
					res.resume();
					res.on("end", () => yes(res.statusCode === 200));
				}).on("error", () => yes(false)).end();
			});
			if (ok) latencies.push(performance.now() - t);
			else wrong++;
		}
	}));
	agent.destroy();
	if (!latencies.length) throw new Error("no answer at all");
	return { latencies, rate: latencies.length / ((performance.now() - started) / 1000), wrong };
}
const upstream = http.createServer((_, res) => res.end("answer 0")).listen(0, "127.0.0.1");
await new Promise((r) => upstream.once("listening", r));
const etc = path.dirname(env.NESTBOX_CONF), alone = 19000 + (process.pid % 1000);
fs.writeFileSync(`${dir}/nginx.conf`, `daemon off; worker_processes auto; pid ${dir}/nginx.pid; error_log stderr;
events { worker_connections 4096; }
http { access_log off; proxy_temp_path ${dir}/p; client_body_temp_path ${dir}/b; fastcgi_temp_path ${dir}/f; uwsgi_temp_path ${dir}/u; scgi_temp_path ${dir}/s;
 server { listen 127.0.0.1:${alone} ssl; ssl_certificate ${etc}/tls/server.pem; ssl_certificate_key ${etc}/tls/server.key;
  location / { proxy_pass http://127.0.0.1:${upstream.address().port}; } } }`);
const nginx = spawn("nginx", ["-e", "stderr", "-c", `${dir}/nginx.conf`], { stdio: "ignore" });
await pause(1000);
const ca = fs.readFileSync(`${etc}/ca.pem`);
for (const n of [1, 16, 256]) {
	const there = await load({ host: new URL(base).hostname, port, path: "/", ca }, n);
	const plain = await load({ host: "127.0.0.1", port: alone, path: "/", ca, servername: `x.${domain}` }, n);
	row(`request to an app, ${n} connections`, "ms", there.latencies, { name: "nginx alone", values: plain.latencies });
	row(`  requests a second`, "1/s", [there.rate], { name: "nginx alone", values: [plain.rate] });
	if (there.wrong || plain.wrong) console.log(`  ${there.wrong} (nginx alone: ${plain.wrong}) requests failed with ${n} connections`);
}
nginx.kill();
upstream.close();
upstream.closeAllConnections();
fs.rmSync(dir, { recursive: true });
await client.apps.delete(app.id);
finish("deploy");
process.exit(0);
