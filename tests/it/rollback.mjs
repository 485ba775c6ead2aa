// SPDX-License-Identifier: Apache-2.0
// Choosing an older revision: production serves it again, requests meanwhile are all answered, and the newer one is not lost.
// DENO_DEPLOY_ENDPOINT and DENO_DEPLOY_TOKEN from the environment; no sandbox is needed, the files come with the request.
import { Client } from "@deno/sandbox";

let passed = 0, failed = 0;
async function check(name, fn) {
	try {
		await fn();
		passed++;
		console.log(`ok   ${name}`);
	} catch (e) {
		failed++;
		console.log(`FAIL ${name}: ${e.message}`);
	}
}
function must(v, what) {
	if (!v) throw new Error(what);
}
const client = new Client();
const app = await client.apps.create({ config: { runtime: { type: "dynamic", entrypoint: "main.ts" } }, env_vars: [{ key: "GREETING", value: "hello" }] });
const assets = (n) => ({ "main.ts": { content: `Deno.serve(() => new Response(Deno.env.get("GREETING") + " from ${n}"));` } });

async function settled(id) {
	for await (const _ of client.revisions.progress(id)) { /* until it ends */ }
	return await client.revisions.get(id);
}
let url;
const get = async () => (await fetch(url, { signal: AbortSignal.timeout(30000) })).text();
const promote = async (id) => {
	const res = await fetch(`${process.env.DENO_DEPLOY_ENDPOINT}/api/v2/revisions/${id}/promote`,
		{ method: "POST", headers: { authorization: `Bearer ${process.env.DENO_DEPLOY_TOKEN}` } });
	return [res.status, await res.json()];
};
async function deploy(n, extra = {}) {
	const { id } = await client.apps.deploy(app.slug, { assets: assets(n), ...extra });
	return await settled(id);
}

let one, two;
await check("two revisions, the newer one serves", async () => {
	one = await deploy("one");
	must(one.status === "succeeded", `one: ${one.status} ${one.failure_message}`);
	const [timeline] = await client.revisions.timelines(one.id);
	url = `https://${timeline.domains[0].domain}/`;
	must(await get() === "hello from one", "the first does not serve");
	two = await deploy("two");
	must(two.status === "succeeded", `two: ${two.status} ${two.failure_message}`);
	must(await get() === "hello from two", "the second does not serve");
	must((await client.revisions.timelines(one.id)).length === 0, "the first is still production");
});
await check("promoting the older one brings it back without losing a request", async () => {
	const [status] = await promote(one.id);
	must(status === 200, `status ${status}`);
	const end = Date.now() + 90000;
	for (let text = ""; text !== "hello from one";) {
		text = await get();
		must(/^hello from (one|two)$/.test(text), `lost: ${text}`);
		must(Date.now() < end, "not back after 90 s");
	}
	must((await client.revisions.timelines(one.id))[0]?.slug === "production", "timeline");
});
await check("a revision that serves cannot be deleted, another can", async () => {
	let code;
	await client.revisions.delete(one.id).catch((e) => code = e.code);
	must(code === "REVISION_ACTIVE", `${code}`);
	await client.revisions.delete(two.id);
	must(await client.revisions.get(two.id) === null, "it is still there");
	must((await promote(two.id))[0] === 404, "it can still be promoted");
});
await check("a failed revision changes nothing and says why", async () => {
	const { id } = await client.apps.deploy(app.slug, { assets: { "main.ts": { content: "throw new Error('broken');" } } });
	const bad = await settled(id);
	must(bad.status === "failed" && bad.failure_reason === "error" && bad.failure_message, JSON.stringify(bad));
	must(await get() === "hello from one", "the good one does not serve any more");
	must((await promote(id))[1].code === "REVISION_NOT_READY", "a failed one was promoted");
});
await check("a deleted app serves nobody", async () => {
	await client.apps.delete(app.id);
	const res = await fetch(url);
	must(res.status === 404, `status ${res.status}`);
	await res.text();
});
console.log(`${passed} passed, ${failed} failed, 0 skipped`);
process.exit(failed ? 1 : 0);
