// SPDX-License-Identifier: Apache-2.0
// Node only: it edits the instance's configuration and restarts its runner.
// What is kept and for how long: revisions_keep, bundle_keep_s, captures_max_mib, and captures of sandboxes that nobody has.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import { check, client, ctl, deploy, deployed, env, finish, get, must, newSlug, same, skip, until, url } from "./lib-apps.mjs";

const { NESTBOX_CONF: CONF, NESTBOX_SV: SV, NESTBOX_STATE: STATE } = env;
const operator = Boolean(CONF && SV && STATE) && process.getuid?.() === 0;
const bundles = () => fs.readdirSync(`${STATE}/bundles`).filter((n) => n.endsWith(".tar.zst")).sort();
const captures = () => JSON.parse(ctl("captures")).filter((c) => /^(rev-|cap_)/.test(c.name));
const whole = operator && fs.readFileSync(CONF, "utf8");
// Its first look after a start is for what is old, too.
const runWith = (lines) => {
	fs.writeFileSync(CONF, whole + lines);
	execFileSync("sv", ["-w", "60", "restart", `${SV}/nestbox-runner`], { stdio: "ignore" });
};
const source = (word) => `Deno.serve(() => new Response("${word}"));`;
const [a, b] = await Promise.all([1, 2].map(() => client.apps.create({ slug: newSlug() })));
const ofRevision = (r) => captures().filter((c) => c.name.startsWith(`rev-${r.id}-`));
let one, two;

await check("two apps that serve, with a capture each", async () => {
	if (!operator) skip("needs root and an instance of its own");
	[one, two] = await Promise.all([deployed(a, source("one")), deployed(b, source("two"))]);
	same([ofRevision(one).length, ofRevision(two).length].join(), "1,1", "captures");
});
await check("revisions_keep: the newest stay, and the one that serves; bundle_keep_s: what none has any more is removed", async () => {
	if (!operator) skip("needs root and an instance of its own");
	const revisions = [], made = [];
	for (const n of [1, 2, 3]) {
		const before = bundles();
		// None of them starts: what counts is that they are there and finished.
		const r = await deploy(a, source(`never ${n}`), { production: false });
		await client.revisions.cancel(r.id);
		await until("it is finished", async () => !["queued", "building"].includes((await client.revisions.get(r.id)).status));
		revisions.push(r);
		made.push(bundles().filter((f) => !before.includes(f)));
		same(made.at(-1).length, 1, "new bundles");
	}
	runWith("revisions_keep = 2\nbundle_keep_s = 0\n");
	await until("the bundle of the oldest is gone", () => !bundles().includes(made[0][0]));
	must(await client.revisions.get(revisions[0].id) === null, "the oldest is still there");
	same((await client.revisions.list(a.id)).items.map((r) => r.id).sort().join(), [one, revisions[1], revisions[2]].map((r) => r.id).sort().join(), "revisions");
	for (const file of [made[1][0], made[2][0]]) must(bundles().includes(file), "the bundle of one that stays");
	same((await get(url(a.slug))).text, "one");
});
await check("captures_max_mib: what was not used for the longest time goes first", async () => {
	if (!operator) skip("needs root and an instance of its own");
	const all = captures().filter((c) => c.name.startsWith("rev-")), limit = Math.floor(all.reduce((n, c) => n + c.bytes, 0) / 1048576) - 1;
	const oldest = all.sort((x, y) => Math.max(x.last_used_ms, x.created_ms) - Math.max(y.last_used_ms, y.created_ms))[0];
	// Nobody has this one: as a worker leaves it that dies while it takes one.
	const [machine] = JSON.parse(ctl("list")).filter((m) => m.id.startsWith("rev_") && m.state === "running");
	ctl("capture", machine.id, "cap_ord_nobodys");
	runWith(`captures_max_mib = ${limit}\n`);
	await until("there is one less", () => !captures().some((c) => c.name === oldest.name || c.name === "cap_ord_nobodys"));
	const left = captures();
	same(left.length, all.length - 1, "captures left");
	must(left.reduce((n, c) => n + c.bytes, 0) <= limit * 1048576, "more than the bound");
});
if (operator) runWith("");
for (const app of [a, b]) await client.apps.delete(app.id);
finish();
