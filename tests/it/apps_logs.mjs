// SPDX-License-Identifier: Apache-2.0
// Logs of apps: by time, text, level and revision, in pages; live; bounded on disk and in rate. Build logs of one step, live.
import { readdirSync, statSync } from "node:fs";
import { api, check, client, deploy, deployed, env, finish, get, must, newSlug, operator, runtime, same, settled, skip, sleep, until, url } from "./lib-apps.mjs";

const source = `
console.log("it begins");
Deno.serve((req) => {
	const u = new URL(req.url);
	if (u.pathname === "/say") console.log("said: " + u.searchParams.get("text"));
	if (u.pathname === "/cry") console.error("cried: " + u.searchParams.get("text"));
	if (u.pathname === "/flood") Deno.stdout.writeSync(new TextEncoder().encode(Array.from({ length: 60000 }, (_, i) => "flood " + i + "\\n").join("")));
	return new Response("ok");
});
`;
const began = new Date(Date.now() - 1000).toISOString();
const app = await client.apps.create({ slug: newSlug() });
const base = url(app.slug);
const logs = async (more = {}) => {
	const list = [];
	for await (const l of await client.apps.logs(app.id, { start: began, ...more })) list.push(l);
	return list;
};
const say = (what, text) => get(`${base}/${what}?text=${encodeURIComponent(text)}`);

// Events of a stream as they come; close() ends it.
async function stream(path) {
	const stop = new AbortController();
	const res = await fetch(env.DENO_DEPLOY_ENDPOINT + path, { headers: { authorization: `Bearer ${env.DENO_DEPLOY_TOKEN}`, accept: "text/event-stream" }, signal: stop.signal });
	same(res.status, 200, `status of ${path}`);
	const s = { seen: [], ended: false, close: () => stop.abort() };
	s.done = (async () => {
		let rest = "";
		try {
			for await (const chunk of res.body.pipeThrough(new TextDecoderStream())) {
				const lines = (rest + chunk).split("\n");
				rest = lines.pop();
				for (const l of lines) if (l.startsWith("data: ")) s.seen.push(JSON.parse(l.slice(6)));
			}
			s.ended = true;
		} catch { /* closed */ }
	})();
	return s;
}

let first, second;
await check("lines have time, level, revision, instance and region", async () => {
	first = await deployed(app, source);
	await say("say", "one");
	await say("cry", "two");
	const list = await until("both lines", async () => { const l = await logs(); return l.length >= 3 && l; }, 20000);
	const one = list.find((l) => l.message === "said: one"), two = list.find((l) => l.message === "cried: two");
	must(one && two, JSON.stringify(list));
	same(one.level, "info");
	same(two.level, "error");
	same(one.revision_id, first.id);
	must(one.instance.startsWith(`rev_${first.id}_`) && one.region, JSON.stringify(one));
	must(Math.abs(Date.parse(one.timestamp) - Date.now()) < 60000, one.timestamp);
});
await check("by text, level and time", async () => {
	const text = 'a "quoted" \\ näme <b>';
	await say("say", text);
	await until("the line", async () => (await logs({ query: "QUOTED" })).length === 1, 20000);
	same((await logs({ query: text }))[0].message, `said: ${text}`);
	same((await logs({ level: "error" })).every((l) => l.level === "error"), true);
	same((await logs({ level: "error", query: "cried" })).length, 1);
	same((await logs({ query: "nobody said this" })).length, 0);
	const [line] = await logs({ query: "said: one" });
	same((await logs({ start: line.timestamp, end: line.timestamp })).filter((l) => l.message === "said: one").length, 1, "at its own time");
	same((await logs({ end: new Date(Date.parse(line.timestamp) - 1).toISOString() })).filter((l) => l.message === "said: one").length, 0, "before it");
	same((await logs({ start: new Date(Date.now() + 60000).toISOString() })).length, 0, "in the future");
});
await check("pages meet without a gap, and a new revision has lines of its own", async () => {
	for (let i = 0; i < 25; i++) await say("say", `count ${i}`);
	await until("all lines", async () => (await logs({ query: "count" })).length === 25, 20000);
	same((await logs({ query: "count", limit: 4 })).map((l) => l.message).join(), Array.from({ length: 25 }, (_, i) => `said: count ${i}`).join());
	second = await deployed(app, source);
	await until("its lines", async () => (await logs({ revision_id: second.id })).some((l) => l.message === "it begins"), 20000);
	same((await logs({ revision_id: first.id })).every((l) => l.revision_id === first.id), true);
});
await check("live: what is there and what comes, filtered, to several", async () => {
	const path = `/api/v2/apps/${app.id}/logs/stream`;
	const [all, errors, from, text] = await Promise.all([stream(path), stream(`${path}?level=warn`), stream(`${path}?tail=0`),
		stream(`${path}?query=${encodeURIComponent('live "x"')}&revision_id=${second.id}`)]);
	await sleep(300);
	await say("say", 'live "x"');
	await say("cry", "live y");
	await until("everybody has it", () => all.seen.some((l) => l.message === "cried: live y") && errors.seen.some((l) => l.message === "cried: live y") &&
		from.seen.length >= 2 && text.seen.length >= 1, 20000);
	must(all.seen.some((l) => l.message === "said: one"), "from the beginning");
	must(errors.seen.every((l) => l.level === "error" || l.level === "warn"), "only errors");
	must(!from.seen.some((l) => l.message === "said: one"), "only what is new");
	same(text.seen.map((l) => l.message).join(), 'said: live "x"');
	for (const s of [all, errors, from, text]) s.close();
});
await check("a log cannot be asked for in a wrong way, nor by others", async () => {
	const stream = `/api/v2/apps/${app.id}/logs/stream`;
	same((await api("GET", `${stream}?level=loud`)).status, 400);
	same((await api("GET", `${stream}?revision_id=../..`)).status, 404);
	same((await api("GET", "/api/v2/apps/app_zzzzzzzzzzzzzzzzzzzz/logs/stream")).status, 404);
	same((await fetch(env.DENO_DEPLOY_ENDPOINT + stream)).status, 401);
});
await check("a flood costs its own lines and is told; the disk stays bounded", async () => {
	if (!operator) skip("needs root and an instance of its own");
	await get(base + "/flood");
	// Lines of the flooded seconds go with it; a later one is kept, and with it the news.
	await until("later lines are kept", async () => {
		await say("say", "after the flood");
		await sleep(1500);
		return (await logs({ query: "after the flood" })).length > 0;
	}, 90000);
	must((await logs({ query: "were not kept", revision_id: second.id })).length > 0, "what was left out is told");
	const dir = `${env.NESTBOX_STATE}/logs/apps/${app.id}`;
	const bytes = readdirSync(dir).reduce((n, f) => n + statSync(`${dir}/${f}`).size, 0);
	must(bytes < 64 * 1048576, `${bytes} bytes`);
});
await check("build logs of one step, live and afterwards", async () => {
	const r = await deploy(app, source, { config: { runtime, install: "echo at once; sleep 5; echo later", build: "echo building" } });
	const path = `/api/v2/revisions/${r.id}/build_logs`;
	const live = await stream(`${path}?step=installing`), again = await stream(`${path}?step=installing`);
	await until("the first line, live", () => live.seen.some((l) => l.message === "at once"), 60000);
	must(!live.ended, "it came live");
	const end = await settled(r);
	same(end.status, "succeeded", end.failure_message);
	await until("the streams end", () => live.ended && again.ended, 20000);
	for (const s of [live, again]) same(s.seen.filter((l) => !l.message.startsWith("$")).map((l) => l.message).join(), "at once,later");
	const late = await stream(`${path}?step=building`);
	await late.done;
	must(late.seen.some((l) => l.message === "building") && late.seen.every((l) => l.step === "building"), JSON.stringify(late.seen));
	const timeline = await stream(`${path}?timeline=production`);
	await timeline.done;
	must(timeline.seen.length && timeline.seen.every((l) => l.timeline === "production"), "of a timeline");
	same((await api("GET", `${path}?step=%22`)).status, 400);
});
await check("cancelled while its server is waited for", async () => {
	const r = await deploy(app, "setInterval(() => {}, 1000);\nconsole.log('no server here');\n");
	await until("deploying", async () => {
		for await (const p of client.revisions.progress(r.id)) if (p.deploying.status === "running") return true;
		return false;
	});
	await client.revisions.cancel(r.id);
	const end = await settled(r);
	same(`${end.status} ${end.failure_reason}`, "failed cancelled");
	same((await get(base + "/")).status, 200, "the one before serves");
});
await client.apps.delete(app.id);
finish();
