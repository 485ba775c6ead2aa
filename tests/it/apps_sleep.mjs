// SPDX-License-Identifier: Apache-2.0
// An idle app gives its machine back and wakes for its next visitor; nobody is refused or lost on the way. What crashes is started
// again, ever more slowly. Needs root and an instance of its own (nestboxadm sets the app's idle time).
import { adm, alive, check, client, ctl, deployed, finish, get, instances, must, newSlug, operator, same, skip, sleep, until, url } from "./lib-apps.mjs";

const IDLE = 1500;
const source = `
console.log("begins");
let n = 0;
const born = crypto.randomUUID();
Deno.serve(async (req) => {
	const u = new URL(req.url);
	if (req.headers.get("upgrade") === "websocket") {
		const { socket, response } = Deno.upgradeWebSocket(req);
		socket.onmessage = (e) => socket.send("echo " + e.data);
		return response;
	}
	if (u.pathname === "/slow") await new Promise((r) => setTimeout(r, 4000));
	if (u.pathname === "/crash") setTimeout(() => Deno.exit(3), 10);
	if (u.pathname === "/born") return new Response(born);
	return new Response("hello " + (Deno.env.get("COLOUR") ?? "") + ++n);
});
`;
const app = await client.apps.create({ slug: newSlug(), env_vars: [{ key: "COLOUR", value: "red" }] });
const base = url(app.slug);
const state = async () => (await alive(app)).map((i) => i.state).join(" ");
const asleep = () => until("asleep", async () => (await state()) === "asleep", 60000);
const machines = () => JSON.parse(ctl("list")).filter((m) => m.id.startsWith(`rev_${revision.id}`) && m.state !== "gone").length;
let revision, captures = false;

await check("it serves, and sleeps when nobody comes", async () => {
	if (!operator) skip("needs root and an instance of its own");
	adm("app", "idle", app.slug, String(IDLE));
	revision = await deployed(app, source);
	must(/^hello red/.test((await get(base + "/")).text), "served");
	await asleep();
	await until("its machine has ended", () => machines() === 0, 20000);
});
await check("many visitors at once are held while it wakes, one machine is made", async () => {
	if (!operator) skip("needs root and an instance of its own");
	await asleep();
	const answers = await Promise.all(Array.from({ length: 40 }, (_, i) => get(`${base}/${i}`)));
	same(answers.filter((a) => a.status !== 200).length, 0, "visitors refused");
	same(new Set(answers.map((a) => a.text)).size, 40, "different answers of one process");
	const list = await alive(app);
	same(list.length, 1, "instances");
	captures = list[0].warm;
	console.log(`     woken ${captures ? "from its memory" : "cold"}`);
});
await check("a WebSocket wakes it, too, and keeps it awake", async () => {
	if (!operator) skip("needs root and an instance of its own");
	await asleep();
	const ws = new WebSocket(base.replace("https", "wss"));
	const said = (s) => new Promise((yes, no) => {
		ws.onmessage = (e) => yes(e.data);
		ws.onerror = () => no(new Error("the socket failed"));
		ws.onclose = () => no(new Error("the socket was closed"));
		if (ws.readyState === 1) ws.send(s);
		else ws.onopen = () => ws.send(s);
	});
	same(await said("one"), "echo one");
	await sleep(IDLE + 5000);
	same(await state(), "running", "state while a connection is open");
	same(await said("two"), "echo two");
	ws.onclose = ws.onerror = null;
	ws.close();
});
await check("a request that takes longer than the idle time is not cut off", async () => {
	if (!operator) skip("needs root and an instance of its own");
	await asleep();
	same((await get(base + "/slow")).status, 200);
});
await check("requests that come just when it is put to sleep are all served", async () => {
	if (!operator) skip("needs root and an instance of its own");
	const wrong = [];
	let n = 0, slept = 0;
	for (const end = Date.now() + 25000; Date.now() < end; n++) {
		await sleep(IDLE - 400 + Math.random() * 3000);
		if ((await state()) === "asleep") slept++;
		const r = await get(base + "/").catch((e) => ({ status: 0, text: String(e.cause ?? e) }));
		if (r.status !== 200) wrong.push(`${r.status} ${r.text.slice(0, 100)}`);
	}
	console.log(`     ${n} requests, it was found asleep ${slept} times`);
	same(wrong.join("; "), "", "wrong answers");
});
await check("what it printed while captured is logged once", async () => {
	if (!operator) skip("needs root and an instance of its own");
	if (!captures) skip("apps wake cold on this host");
	const logs = (await client.apps.logs(app.id, { start: new Date(Date.now() - 600000).toISOString(), revision_id: revision.id })).items;
	same(logs.filter((l) => l.message === "begins").length, 1, "lines");
});
await check("it wakes as the same program; a changed variable is a new one", async () => {
	if (!operator) skip("needs root and an instance of its own");
	if (!captures) skip("apps wake cold on this host");
	const one = (await get(base + "/born")).text;
	await asleep();
	same((await get(base + "/born")).text, one, "identity of the process");
	await asleep();
	await client.apps.update(app.id, { env_vars: [{ key: "COLOUR", value: "blue" }] });
	must(/^hello blue/.test((await get(base + "/")).text), "the new variable");
	must((await get(base + "/born")).text !== one, "another process");
	await asleep();
	must(/^hello blue/.test((await get(base + "/")).text), "the new variable after another sleep");
});
await check("a crashed server is started again, its last words and its restarts are kept", async () => {
	if (!operator) skip("needs root and an instance of its own");
	adm("app", "idle", app.slug, "0");
	await get(base + "/crash");
	await until("it serves again", async () => (await get(base + "/").catch(() => ({}))).status === 200);
	await until("one restart", async () => (await alive(app))[0]?.restarts === 1, 20000);
	const logs = (await client.apps.logs(app.id, { start: new Date(Date.now() - 600000).toISOString(), level: "warn" })).items;
	must(logs.some((l) => /exit code 3.*again in 1 s/.test(l.message)), "the log says why and when");
});
await check("a machine that dies is replaced after a pause, and its end is told", async () => {
	if (!operator) skip("needs root and an instance of its own");
	const [i] = await alive(app);
	const pid = Number(JSON.parse(ctl("stat", i.id)).pid);
	must(pid > 1, "its process");
	process.kill(pid, "SIGKILL");
	await until("it serves again", async () => (await get(base + "/").catch(() => ({}))).status === 200);
	const [now] = await alive(app);
	must(now.id !== i.id, "another machine");
	const old = (await instances(app)).find((x) => x.id === i.id);
	must(old.state === "ended" && old.reason, JSON.stringify(old));
});
await check("a deleted app leaves no machine and no memory", async () => {
	if (!operator) skip("needs root and an instance of its own");
	await client.apps.delete(app.id);
	await until("404", async () => (await get(base + "/")).status === 404, 30000);
	await until("no machine of it", () => machines() === 0, 30000);
});
finish();
