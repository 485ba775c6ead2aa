// SPDX-License-Identifier: Apache-2.0
// Deployments: a tree of 1,000 files to its first answer, a rollback, the wake of an idle app.
// References: tar and zstd of the same tree; a deployment; a cold start.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { Client } from "@deno/sandbox";
import { env, finish, row, runs, timed } from "./lib.mjs";

const RUNS = Number(env.PERF_RUNS ?? 5);
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
for (const more = runs(RUNS, 45); more() || deployed.length < 2;) { // two are needed for a rollback
	packed.push(await timed(() => execFileSync("sh", ["-c", `tar -C ${dir}/tree -cf - . | zstd -q -T1 >${dir}/t.zst && sync ${dir}/t.zst`])));
	deployed.push(await timed(async () => revisions.push(await deploy(revisions.length))));
}
row("deploy of 1,000 files to production's first answer", "ms", deployed, { name: "tar and zstd alone", values: packed });

// --- rollback ---
const back = [];
for (const more = runs(RUNS, 25); more();) {
	const to = back.length % 2 ? revisions.length - 1 : 0;
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
	for (const more = runs(RUNS, 30); more();) {
		await until("asleep", async () => { const s = await state(); return s.length === 1 && s[0].state === "asleep"; });
		await pause(500);
		if (forget) await client.apps.update(app.id, { env_vars: [{ key: "N", value: String(values.length) }] });
		values.push(await timed(get));
		warm += (await state()).filter((s) => s.warm).length;
	}
	adm("app", "idle", app.slug, "0");
	return { values, warm };
}
const warm = await wakes(false), cold = await wakes(true);
row(`wake of an idle app to its first answer (${warm.warm} of ${warm.values.length} from memory)`, "ms", warm.values, { name: "cold start", values: cold.values });

fs.rmSync(dir, { recursive: true });
await client.apps.delete(app.id);
finish("deploy");
process.exit(0);
