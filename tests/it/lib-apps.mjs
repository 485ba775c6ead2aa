// SPDX-License-Identifier: Apache-2.0
// What the suites about apps share: tests that count themselves, deployments of inline files, requests, waiting.
import { Client } from "@deno/sandbox";
import { execFileSync } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";

export const env = process.env;
export const PREFIX = env.NESTBOX_PREFIX ?? "/opt/nestbox";
// Operators' tools, and faults, need root and the instance's own files.
export const operator = Boolean(env.NESTBOX_CONF) && process.getuid?.() === 0;
export const client = new Client();
export { sleep };

let passed = 0, failed = 0, skipped = 0;
const only = process.argv.slice(2);
class Skip extends Error {}
export const skip = (why) => {
	throw new Skip(why);
};

export async function check(name, fn, ms = 300000) {
	if (only.length && !only.some((o) => name.includes(o))) return;
	const started = Date.now();
	let timer;
	try {
		await Promise.race([fn(), new Promise((_, no) => { timer = setTimeout(() => no(new Error(`not done after ${ms} ms`)), ms); })]);
		passed++;
		console.log(`ok   ${name} (${Date.now() - started} ms)`);
	} catch (e) {
		if (e instanceof Skip) {
			skipped++;
			console.log(`skip ${name}: ${e.message}`);
		} else {
			failed++;
			console.log(`FAIL ${name}\n  ${e?.stack ?? e}`);
		}
	} finally {
		clearTimeout(timer);
	}
}
export function finish() {
	console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
	process.exit(failed ? 1 : 0);
}
export function must(v, what) {
	if (!v) throw new Error(what);
	return v;
}
export function same(got, want, what = "value") {
	if (got !== want) throw new Error(`${what} is ${JSON.stringify(got)}, not ${JSON.stringify(want)}`);
}
export async function until(what, fn, ms = 90000) {
	const end = Date.now() + ms;
	for (;;) {
		const v = await fn();
		if (v) return v;
		if (Date.now() > end) throw new Error(`not in time: ${what}`);
		await sleep(100);
	}
}

// The management API where it goes beyond the client's package.
export async function api(method, path, body) {
	const res = await fetch(env.DENO_DEPLOY_ENDPOINT + path, {
		method, headers: { authorization: `Bearer ${env.DENO_DEPLOY_TOKEN}`, ...(body ? { "content-type": "application/json" } : {}) },
		body: body && JSON.stringify(body),
	});
	const text = await res.text();
	return { status: res.status, body: text ? JSON.parse(text) : null };
}
export const adm = (...args) => execFileSync(`${PREFIX}/sbin/nestboxadm`, ["-c", env.NESTBOX_CONF, ...args], { encoding: "utf8" });
export const ctl = (...args) => execFileSync(`${PREFIX}/sbin/nestboxctl`, ["-c", env.NESTBOX_CONF, "--json", ...args], { encoding: "utf8" });

export const endpoint = new URL(env.DENO_DEPLOY_ENDPOINT);
export const domain = endpoint.hostname.replace(/^api\./, "");
export const url = (label) => `https://${label}.${domain}${endpoint.port ? `:${endpoint.port}` : ""}`;
export const newSlug = () => `it-${Math.random().toString(36).slice(2, 10)}`;

// A connection of its own each time, as a new visitor has.
export async function get(address, options = {}) {
	const res = await fetch(address, { redirect: "manual", ...options, headers: { connection: "close", ...options.headers }, signal: AbortSignal.timeout(100000) });
	return { status: res.status, headers: res.headers, text: await res.text() };
}

export const runtime = { type: "dynamic", entrypoint: "main.ts" };
// source: the text of main.ts, or {path: text}.
export async function deploy(app, source, more = {}) {
	const files = typeof source === "string" ? { "main.ts": source } : source;
	const assets = Object.fromEntries(Object.entries(files).map(([k, content]) => [k, { kind: "file", content, encoding: "utf-8" }]));
	return await client.apps.deploy(app.id, { assets, config: { runtime }, ...more });
}
// Reads progress to its end, then the revision.
export async function settled(revision) {
	for await (const _ of client.revisions.progress(revision.id)) { /* until it ends */ }
	return await client.revisions.get(revision.id);
}
export async function deployed(app, source, more = {}) {
	const r = await settled(await deploy(app, source, more));
	if (r.status !== "succeeded") throw new Error(`the deployment ${r.status}: ${r.failure_message}`);
	return r;
}
export const promote = async (id) => {
	const r = await api("POST", `/api/v2/revisions/${id}/promote`);
	return [r.status, r.body];
};
export const instances = async (app) => (await api("GET", `/api/v2/apps/${app.id}/instances`)).body;
export const alive = async (app) => (await instances(app)).filter((i) => i.state !== "ended");
