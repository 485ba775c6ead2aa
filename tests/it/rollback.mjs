// SPDX-License-Identifier: Apache-2.0
// Choosing an older revision: production serves it again, every request meanwhile is answered, one that takes long is not cut off, and
// the newer one is not lost. No sandbox is needed, the files come with the request.
import { DatabaseSync } from "node:sqlite";
import { adm, alive, api, check, client, ctl, deploy, env, finish, get, instances, must, newSlug, operator, promote, runtime, same, settled, skip, sleep, until, url } from "./lib-apps.mjs";

const app = await client.apps.create({ slug: newSlug(), config: { runtime }, env_vars: [{ key: "GREETING", value: "hello" }] });
const base = url(app.slug);
// All but the first do not start if they are told bye.
const source = (n) => `if (Deno.env.get("GREETING") === "bye" && "${n}" !== "one") throw new Error("not like this");
Deno.serve(async (r) => {
	if (new URL(r.url).pathname === "/long") await new Promise((t) => setTimeout(t, 5000));
	return new Response(Deno.env.get("GREETING") + " from ${n} in " + Deno.env.get("DENO_TIMELINE"));
});`;
const text = async (label = base) => (await get(label + "/")).text;
const made = async (n, more) => await settled(await deploy(app, source(n), more));

// Requests without a pause, on two connections at a time, until stop(): every answer that is not one of ours.
function hammer() {
	let on = true, n = 0;
	const wrong = [], one = async () => {
		while (on) {
			const r = await get(base + "/").catch((e) => ({ status: 0, text: String(e.cause ?? e) }));
			n++;
			if (r.status !== 200 || !/^hello from \w+ in production$/.test(r.text)) wrong.push(`${r.status} ${r.text.slice(0, 80)}`);
			await sleep(100);
		}
	};
	const all = [one(), one()];
	return async () => {
		on = false;
		await Promise.all(all);
		console.log(`     ${n} requests`);
		must(n > 10, "there were requests");
		same(wrong.join("; "), "", `of ${n} requests, wrong ones`);
	};
}
const starts = async (r) => (await api("GET", `/api/v2/revisions/${r.id}`)).body.starts ?? {};
const sql = (text) => {
	const db = new DatabaseSync(`${env.NESTBOX_STATE}/db/nestbox.db`, { timeout: 10000 });
	db.exec(text);
	db.close();
};
const serves = (n) => until(n, async () => (await text()) === `hello from ${n} in production`, 280000);

let one, two;
await check("two revisions, the newer one serves; no request is lost in the change", async () => {
	one = await made("one");
	same(one.status, "succeeded", one.failure_message);
	same(await text(), "hello from one in production");
	const stop = hammer();
	two = await made("two");
	same(two.status, "succeeded", two.failure_message);
	await serves("two");
	await sleep(2000); // the old machine is drained meanwhile
	await stop();
	same((await client.revisions.timelines(one.id)).length, 0, "timelines of the first");
});
await check("promoting the older one brings it back without losing a request, however long it takes", async () => {
	const stop = hammer();
	const [status] = await promote(one.id);
	same(status, 200);
	let long;
	for (let last = two; last === two;) {
		long = get(base + "/long");
		const r = await Promise.race([long, sleep(700)]);
		if (r || (await text()).includes("from one")) last = one;
	}
	same((await long).status, 200, "the long one");
	await serves("one");
	await stop();
	same((await client.revisions.timelines(one.id))[0]?.slug, "production", "timeline");
	await until("one machine is left", async () => (await alive(app)).filter((i) => i.state === "running").length === 1, 90000);
});
await check("forth and back again at once ends where it was asked to", async () => {
	const stop = hammer();
	for (const r of [two, one, two]) same((await promote(r.id))[0], 200);
	await serves("two");
	same((await promote(one.id))[0], 200);
	await serves("one");
	await stop();
});
// As many at a time as there are workers: whoever reads a row, lets another one write, and then writes himself would be refused. And names
// are being moved all the while, so that every moment of it is hit by a promotion to what serves and to what does not.
let late;
await check("of 120 promotions, eight at a time, each is taken, and the last one is what serves", async () => {
	const refused = [];
	late = await deploy(app, source("late")); // made meanwhile
	for (const last of [two, one]) {
		let n = 60;
		await Promise.all(Array.from({ length: 8 }, async () => {
			while (n-- > 0) {
				const [status, body] = await promote((n % 2 ? one : two).id);
				if (status !== 200) refused.push(`${status} ${JSON.stringify(body)}`);
			}
		}));
		same(refused.length, 0, `refused, as ${refused[0]}:`);
		same((await promote(last.id))[0], 200);
		await serves(last === two ? "two" : "one");
		same((await client.revisions.timelines(last.id))[0]?.slug, "production", "timeline");
	}
});
await check("a deployment that was asked for before a promotion does not undo it, and can be chosen later", async () => {
	const done = await settled(late);
	same(done.status, "succeeded", done.failure_message);
	same((await client.revisions.timelines(late.id)).length, 0, "timelines of the deployment");
	same(await text(), "hello from one in production");
	same((await promote(late.id))[0], 200);
	await serves("late");
	same((await promote(one.id))[0], 200);
	await serves("one");
});
let preview;
await check("a preview that is promoted becomes production, with production's variables", async () => {
	preview = await made("preview", { production: false, preview: true });
	same(preview.status, "succeeded", preview.failure_message);
	same(await text(url(`${app.slug}-${preview.id}`)), "hello from preview in preview");
	same(await text(), "hello from one in production");
	same((await promote(preview.id))[0], 200);
	await serves("preview");
	must(/^hello from preview/.test(await text(url(`${app.slug}-${preview.id}`))), "its own name serves it, too");
	same((await promote(one.id))[0], 200);
	await serves("one");
});
await check("a revision that serves cannot be deleted, another can", async () => {
	let code;
	await client.revisions.delete(one.id).catch((e) => code = e.code);
	same(code, "REVISION_ACTIVE");
	await client.revisions.delete(two.id);
	must(await client.revisions.get(two.id) === null, "it is still there");
	same((await promote(two.id))[0], 404, "it can still be promoted");
	await client.revisions.delete(preview.id);
	await until("its name leads nowhere", async () => (await get(url(`${app.slug}-${preview.id}`))).status === 404, 60000);
});
await check("a failed revision changes nothing and says why", async () => {
	const bad = await settled(await deploy(app, "throw new Error('broken');"));
	must(bad.status === "failed" && bad.failure_reason === "error" && bad.failure_message, JSON.stringify(bad));
	same(await text(), "hello from one in production", "the good one");
	same((await promote(bad.id))[1].code, "REVISION_NOT_READY");
});
await check("one that does not start leaves the app with what it had, which wakes and is started again until it does", async () => {
	if (!operator) skip("needs root and an instance of its own");
	adm("app", "idle", app.slug, "1000");
	await until("asleep", async () => (await alive(app)).every((i) => i.state === "asleep"), 90000);
	adm("app", "idle", app.slug, "0");
	await client.apps.update(app.id, { env_vars: [{ key: "GREETING", value: "bye" }] });
	same((await promote(late.id))[0], 200);
	await until("it was tried", async () => (await instances(app)).some((i) => i.revision_id === late.id && i.state === "ended" && /exit code 1/.test(i.reason)));
	const failed = await until("it counts", async () => (await starts(late)).failures);
	must(failed >= 1 && Date.parse((await starts(late)).next_at) > Date.parse((await starts(late)).last_failed_at), "when it is tried next");
	await until("tried again, after a longer pause", async () => {
		const s = await starts(late);
		return s.failures > failed && Date.parse(s.next_at) - Date.parse(s.last_failed_at) >= 2000;
	});
	await until("what it had wakes", async () => (await text()) === "bye from one in production");
	ctl("kill", (await alive(app)).find((i) => i.revision_id === one.id && i.state === "running").id);
	await until("started again", async () => (await text()) === "bye from one in production");
	// Other variables, and a promotion, are reasons to try at once, however long the pause would be.
	sql(`UPDATE starts SET failures = 30, retry_ms = failed_ms + 3600000 WHERE revision_id = '${late.id}'`);
	same((await promote(late.id))[0], 200);
	await until("tried again because it was promoted", async () => (await starts(late)).failures === 1);
	sql(`UPDATE starts SET failures = 30, retry_ms = failed_ms + 3600000 WHERE revision_id = '${late.id}'`);
	await client.apps.update(app.id, { env_vars: [{ key: "GREETING", value: "hello" }] });
	await serves("late");
	same((await starts(late)).failures, undefined, "failures of one that serves");
});
await check("a deleted app serves nobody", async () => {
	await client.apps.delete(app.id);
	await until("404", async () => (await get(base)).status === 404, 30000);
});
finish();
