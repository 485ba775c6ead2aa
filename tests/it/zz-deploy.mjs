// SPDX-License-Identifier: Apache-2.0
// Deployments that what is the instance's own does something to: its bounds, in its configuration, and the death of its daemons. The
// rest of deployments is it/deploy.
import { readFileSync, writeFileSync } from "node:fs";
import { check, client, ctl, deploy, env, finish, get, must, newSlug, operator, runtime, same, skip, until, url } from "./lib-apps.mjs";

const { NESTBOX_CONF: CONF, NESTBOX_SV: SV } = env;
const needed = () => operator && SV || skip("needs root and an instance of its own");
const server = (text) => `Deno.serve(() => new Response("${text}"));\n`;
const machines = (revision) => JSON.parse(ctl("list")).filter((m) => m.id.startsWith(`rev_${revision.id}_`) && m.state !== "gone");
const machinePid = (revision) => {
	const pid = JSON.parse(ctl("stat", machines(revision)[0].id)).pid;
	must(pid > 1, "its process is known");
	return pid;
};
const killed = (daemon) => process.kill(Number(readFileSync(`${SV}/${daemon}/supervise/pid`, "utf8")), "SIGKILL");
const app = await client.apps.create({ slug: newSlug() });
const serves = async (text) => (await get(`${url(app.slug)}/`).catch(() => ({}))).text === text;

let good;
await check("kill -9 of the runner while it deploys: the deployment is finished by the next one, built with the memory of builds", async () => {
	needed();
	const conf = readFileSync(CONF, "utf8"), memory = "awk '/^MemTotal/ { print $2 }' /proc/meminfo";
	try {
		writeFileSync(CONF, `${conf}\nbuild_memory_mib = 1024\n`);
		good = await deploy(app, `const built = Number(Deno.readTextFileSync("memory")), here = Deno.systemMemoryInfo().total;
Deno.serve((r) => r.url.endsWith("/memory") ? Response.json([built / 1024, here / 1048576]) : new Response("one"));
`, { config: { runtime, install: "touch installed", build: `test -f installed && sleep 2 && ${memory} > memory` } });
		await until("building", async () => (await client.revisions.get(good.id)).status === "building");
		killed("nestbox-runner");
		await until("succeeded", async () => (await client.revisions.get(good.id)).status === "succeeded", 100000);
	} finally {
		writeFileSync(CONF, conf);
	}
	await until("served", () => serves("one"));
	// It was built with its own bound of memory and serves with an app's; what the kernel keeps for itself is missing in both.
	const [built, here] = JSON.parse((await get(`${url(app.slug)}/memory`)).text);
	must(built > 800 && built <= 1024 && here > 1024 && here <= 1280, `built with ${built} MiB, serves with ${here} MiB`);
	same(machines(good).length, 1, "machines of it");
});
await check("kill -9 of the gateway and of the broker: apps serve again at once", async () => {
	needed();
	const machine = machinePid(good);
	killed("nestbox-gateway");
	await until("served after the gateway's death", () => serves("one"), 20000);
	killed("nestboxd");
	await until("served after the broker's death", () => serves("one"), 30000);
	same(machinePid(good), machine, "the machine that serves");
});
await check("timed out at every stage, with the machine it had", async () => {
	needed();
	const silent = "setInterval(() => {}, 1000);\n", conf = readFileSync(CONF, "utf8");
	const state = (p, stage) => (p.deploying.timelines[0]?.[stage] ?? p[stage])?.status;
	const ends = async (r, stages, because) => {
		let last;
		for await (const p of client.revisions.progress(r.id)) last = p;
		const end = await client.revisions.get(r.id), at = stages.find((s) => state(last, s) === "timed_out");
		same([end.status, end.failure_reason].join(), "failed,timed_out", end.failure_message);
		must(at, `none of ${stages} timed out: ${JSON.stringify(last)}`);
		must(because.test(end.failure_message), end.failure_message);
		await until(`no machine of ${at}`, () => machines(r).length === 0);
	};
	const bounded = async (bounds, builds) => {
		try {
			writeFileSync(CONF, conf + bounds); // a deployment reads it when it begins
			await Promise.all(builds.map(async ([stages, config, because]) =>
				await ends(await deploy(app, silent, { production: false, config: { runtime, ...config } }), stages, because)));
		} finally {
			writeFileSync(CONF, conf);
		}
	};
	await bounded("\nbuild_command_s = 2\napp_ready_s = 2\n", [
		[["installing"], { install: "sleep 300" }, /command did not end in time/],
		[["building"], { build: "while :; do echo on; done" }, /command did not end in time/],
		[["predeploy"], { predeploy: "sleep 300" }, /command did not end in time/],
		[["warmup"], {}, /nothing answered on port 8000 within 2 s/],
	]);
	await bounded("\nbuild_s = 1\n", [[["preparing", "installing"], { install: "sleep 300" }, /longer than 1 s/]]);
	must(await serves("one"), "the good one does not serve any more");
}, 400000);
await client.apps.delete(app.id);
finish();
