#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
// nestbox-api behind a real nginx, with stand-ins for the broker and the gateway (tests/it/api_fakes.c): what each failure of
// theirs becomes, tenancy, quotas, pages, deploys, crashes of workers. What needs no fakes is in tests/it/bad_input.mjs, which
// this runs too. Everything lives below one temporary directory.
import { execFileSync, spawn } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import net from "node:net";
import os from "node:os";
import path from "node:path";

const SRC = path.resolve(path.dirname(new URL(import.meta.url).pathname), "../..");
const BUILD = process.env.NESTBOX_BUILD ?? path.join(SRC, "build");
const DIR = fs.mkdtempSync(path.join(os.tmpdir(), "nbapi-"));
const RUN = path.join(DIR, "run"), STATE = path.join(DIR, "state"), CONF = path.join(DIR, "nestbox.conf");
const { Client } = await import(path.join(SRC, "tests/node_modules/@deno/sandbox/esm/mod.js"));
const children = [];
let passed = 0, failed = 0, PORT;

const freePort = () => new Promise((r) => {
	const s = net.createServer().listen(0, "127.0.0.1", () => { const { port } = s.address(); s.close(() => r(port)); });
});
const until = async (what, fn, ms = 10000) => {
	for (const end = Date.now() + ms; ;) {
		const v = await fn();
		if (v) return v;
		if (Date.now() > end) throw new Error(`not in time: ${what}`);
		await new Promise((r) => setTimeout(r, 10));
	}
};
const env = { ...process.env, NESTBOX_SCHEMA_DIR: path.join(DIR, "schema") };
function start(name, cmd, args) {
	const log = fs.openSync(path.join(DIR, name + ".log"), "a");
	const child = spawn(cmd, args, { stdio: ["ignore", log, log], env });
	child.done = new Promise((r) => child.on("exit", (code, signal) => r(signal ?? code)));
	children.push(child);
	return child;
}
const log = (name) => fs.readFileSync(path.join(DIR, name + ".log"), "utf8");
const adm = (...args) => execFileSync(path.join(BUILD, "nestboxadm"), ["-c", CONF, "--json", ...args], { env, encoding: "utf8" });

function setUp() {
	for (const d of [RUN, STATE, path.join(DIR, "tmp")]) fs.mkdirSync(d);
	fs.chmodSync(DIR, 0o755);
	fs.chmodSync(RUN, 0o777);
	fs.chmodSync(path.join(DIR, "tmp"), 0o777);
	fs.cpSync(path.join(SRC, "schema/migrations"), env.NESTBOX_SCHEMA_DIR, { recursive: true });
	const root = process.getuid() === 0;
	fs.writeFileSync(CONF, `state_dir = ${STATE}\nrun_dir = ${RUN}\nuser_api = nobody\nuser_gateway = nobody\nuser_egress = nobody
api_workers = 3\nhttps_port = 8443\ncreate_timeout_ms = 1000\ntenant_vms = 4\ntenant_apps = 30\ntenant_names = 31\ntenant_volumes = 3\ntenant_storage_gib = 4\nvm_memory_mib_step = 1\nstop_max_s = 86400\n`);
	// The errors that nginx itself answers are those of our template.
	const template = fs.readFileSync(path.join(SRC, "nginx/nginx.conf.in"), "utf8");
	const pages = template.match(/^\t\tlocation \/_error\/ \{$[^]*?^\t\t\}$/m)?.[0];
	must(pages, "the error pages of nginx.conf.in");
	const errors = [...new Set(template.match(/^\s+error_page .*;$/gm)), pages].join("\n");
	fs.writeFileSync(path.join(DIR, "nginx.conf"), `daemon off; worker_processes 1; pid ${DIR}/nginx.pid; ${root ? "user www-data;" : ""}
events {} http { access_log off; large_client_header_buffers 4 56k;
client_body_temp_path ${DIR}/tmp/b; fastcgi_temp_path ${DIR}/tmp/f; proxy_temp_path ${DIR}/tmp/p; uwsgi_temp_path ${DIR}/tmp/u; scgi_temp_path ${DIR}/tmp/s;
server { listen 127.0.0.1:${PORT}; client_max_body_size 64m;
${errors}
location / { fastcgi_pass unix:${RUN}/api.sock; fastcgi_param REQUEST_METHOD $request_method; fastcgi_param REQUEST_URI $request_uri;
fastcgi_param CONTENT_LENGTH $content_length; fastcgi_buffer_size 64k; fastcgi_buffers 16 64k; }
location /_stream/ { internal; default_type text/plain; return 200 "stream $uri"; } } }`);
	fs.mkdirSync(path.join(DIR, "tree"));
	fs.writeFileSync(path.join(DIR, "tree/main.ts"), "Deno.serve(() => new Response('hi'))\n");
	tree("main.ts");
}
const tree = (...files) =>
	execFileSync("tar", ["--format=pax", "-C", path.join(DIR, "tree"), "-cf", path.join(RUN, "tree.tar"), ...files]);

// --- requests ----------------------------------------------------------------------------------------------------
const UPGRADE = { upgrade: "websocket", connection: "Upgrade", "sec-websocket-version": "13", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==" };
const ask = (token, method, url, body, headers = {}) => new Promise((resolve, reject) => {
	const text = body === undefined ? undefined : typeof body === "string" ? body : JSON.stringify(body);
	const req = http.request({ host: "127.0.0.1", port: PORT, method, path: url, agent: false, headers: {
		authorization: `Bearer ${token}`, ...(text === undefined ? {} : { "content-length": Buffer.byteLength(text) }), ...headers } },
		(res) => {
			const parts = [];
			res.on("data", (d) => parts.push(d));
			res.on("end", () => {
				const out = Buffer.concat(parts).toString();
				let json;
				try { json = JSON.parse(out); } catch { /* a stream's stand-in */ }
				resolve({ status: res.statusCode, headers: res.headers, text: out, json, code: json?.code });
			});
		});
	req.on("error", reject);
	req.end(text);
});
const create = (token, config) => ask(token, "GET", "/api/v3/sandboxes/create", undefined,
	{ ...UPGRADE, "x-deno-sandbox-config": Buffer.from(JSON.stringify(config)).toString("base64") });
const list = async (token, q = "") => (await ask(token, "GET", `/api/v2/sandboxes${q}`)).json;
const running = async (token) => (await list(token)).filter((s) => s.status === "running");

const tests = [];
const test = (name, fn) => tests.push([name, fn]);
function equal(got, want, what = "") {
	if (JSON.stringify(got) !== JSON.stringify(want))
		throw new Error(`${what} is ${JSON.stringify(got)}, not ${JSON.stringify(want)}`);
}
const must = (v, what) => { if (!v) throw new Error(what); };
let acme, other, client;

test("create leads to a stream, a row and a machine", async () => {
	const res = await create(acme, { memory_mb: 1280, labels: { a: "b" }, volumes: [] });
	equal(res.status, 200);
	must(/^stream \/_stream\/[0-9a-f]{32}$/.test(res.text), res.text);
	const [s] = await running(acme);
	must(/^sbx_ord_[0-9a-hjkmnp-z]{20}$/.test(s.id), s.id);
	equal([s.status, s.region, s.labels, s.stoppedAt], ["running", "ord", { a: "b" }, null]);
	must(log("fakes").includes(`create id=${s.id} memory=1280 flags=1 stop_at=0`), "lease asked for");
	must(log("fakes").includes("ticket ws fds=2"), "the lease went with the ticket");
	equal((await list(acme, "?labels[a]=b")).length, 1);
	equal((await list(acme, "?labels[a]=c")).length, 0);
	equal((await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`)).status, 200);
	equal((await running(acme)).length, 0);
	equal((await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`)).status, 200, "a repeated kill");
	equal((await ask(acme, "GET", `/api/v3/sandbox/${s.id}/connect`, undefined, UPGRADE)).code, "SANDBOX_STOPPED");
});

test("with stop_at_ms there is no lease, and it can be extended", async () => {
	const at = Date.now() + 60000;
	equal((await create(acme, { stop_at_ms: at })).status, 200);
	const [s] = await running(acme);
	must(log("fakes").includes(`create id=${s.id} memory=1280 flags=0 stop_at=${at}`), "no lease");
	const res = await ask(acme, "PATCH", `/api/v3/sandbox/${s.id}`, { stop_at_ms: at + 5000 });
	equal([res.status, res.json], [200, { stop_at_ms: at + 5000 }]);
	equal((await list(acme))[0].stopAt, new Date(at + 5000).toISOString());
	equal((await ask(acme, "PATCH", `/api/v3/sandbox/${s.id}`, { stop_at_ms: at + 90000000 })).code, "INVALID_STOP_AT");
	await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`);
});

test("connect and expose", async () => {
	await create(acme, {});
	const [s] = await running(acme);
	equal((await ask(acme, "GET", `/api/v3/sandbox/${s.id}/connect`, undefined, UPGRADE)).status, 200);
	equal((await ask(acme, "GET", `/api/v3/sandbox/${s.id}/connect`)).code, "UPGRADE_REQUIRED");
	const { domain } = (await ask(acme, "POST", `/api/v3/sandbox/${s.id}/expose/http`, {})).json;
	must(/^[0-9a-hjkmnp-z]{20}\.nestbox\.localhost:8443$/.test(domain), domain);
	must(log("fakes").includes(`line={"service":"http","domain":"${domain}"}`), "the line names the same domain");
	const all = await Promise.all(Array.from({ length: 40 }, () => ask(acme, "POST", `/api/v3/sandbox/${s.id}/expose/http`, {})));
	equal([all.filter((r) => r.status === 200).length, all.filter((r) => r.code === "EXPOSURE_QUOTA_EXCEEDED").length], [31, 9]);
	equal((await ask(acme, "POST", `/api/v3/sandbox/${s.id}/expose/ssh`, {})).code, "NOT_SUPPORTED");
	await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`);
});

test("another organization's sandbox and app do not exist", async () => {
	await create(acme, {});
	const [s] = await running(acme);
	await ask(acme, "POST", "/api/v2/apps", { slug: "acme-app" });
	const unknown = s.id.slice(0, -4) + "0000";
	for (const [method, url, body, headers] of [
		["GET", "/api/v3/sandbox/ID/connect", undefined, UPGRADE], ["DELETE", "/api/v3/sandbox/ID"],
		["PATCH", "/api/v3/sandbox/ID", { stop_at_ms: Date.now() + 9999 }], ["POST", "/api/v3/sandbox/ID/expose/http", {}],
		["GET", "/api/v2/sandboxes/ID"], ["POST", "/api/v2/sandboxes/ID/deploy", { app: "acme-app" }],
	]) {
		const theirs = await ask(other, method, url.replace("ID", s.id), body, headers);
		const none = await ask(other, method, url.replace("ID", unknown), body, headers);
		equal([theirs.status, theirs.json], [404, none.json], `${method} ${url}`);
	}
	for (const url of ["/api/v2/apps/acme-app", "/api/v2/apps/acme-app/revisions", "/api/v2/apps/acme-app/logs?start=2026-01-01"])
		equal((await ask(other, "GET", url)).code, "APP_NOT_FOUND", url);
	equal((await ask(other, "POST", "/api/v2/apps", { slug: "acme-app" })).code, "SLUG_TAKEN");
	equal(await list(other), []);
	equal((await ask(acme, "GET", `/api/v2/sandboxes/${s.id}`)).status, 200, "and it still runs");
	await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`);
});

test("a quota holds, also against creates at once, and is per organization", async () => {
	const all = await Promise.all(Array.from({ length: 8 }, () => create(acme, {})));
	equal(all.filter((r) => r.status === 200).length, 4);
	equal(all.filter((r) => r.code === "SANDBOX_QUOTA_EXCEEDED" && r.status === 429).length, 4);
	equal((await create(other, {})).status, 200);
	for (const t of [acme, other]) for (const s of await running(t)) await ask(t, "DELETE", `/api/v3/sandbox/${s.id}`);
});

test("a sandbox that is ended while it starts: its machine goes, too", async () => {
	const made = create(acme, { memory_mb: 4009 });
	const [s] = await until("a sandbox that starts", async () => (await running(acme)).length && running(acme));
	equal((await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`)).status, 200);
	// Its creation ends after the row says that it was stopped, and is undone, or just before, and then it is killed like any other.
	const { status, code } = await made;
	must(status === 200 || code === "SANDBOX_STOPPED", `${status} ${code}`);
	await until("the machine that came after the first kill is ended", () => new RegExp(`kill id=${s.id} reason=.* found=1`).test(log("fakes")));
	equal((await list(acme)).find((x) => x.id === s.id).status, "stopped");
});

for (const [memory, status, code, why] of [
	[4001, 503, "CAPACITY_EXCEEDED", "no memory on the host"], [4002, 507, "NO_DISK_SPACE", "no disk on the host"],
	[4003, 504, "SANDBOX_START_TIMEOUT", "a broker that never answers"], [4004, 502, "SANDBOX_START_FAILED", "an agent that refuses"],
	[4005, 502, "SANDBOX_START_FAILED", "an agent that answers garbage"], [4006, 503, "NODE_UNAVAILABLE", "a broker that hangs up"],
	[4007, 502, "SANDBOX_START_FAILED", "an agent that hangs up"], [4008, 502, "SANDBOX_START_FAILED", "a machine that dies at once"],
])
	test(`create with ${why}: ${code}, nothing left`, async () => {
		const before = (await list(acme)).length;
		const res = await create(acme, { memory_mb: memory });
		equal([res.status, res.code], [status, code]);
		must(res.json.message.length > 10 && !res.text.includes("/secret"), res.text);
		must(/^[0-9a-f]{32}$/.test(res.headers["x-deno-trace-id"]), "trace id");
		const live = (await list(acme)).filter((s) => s.status === "running");
		equal(live, []);
		equal((await list(acme)).length, before, "rows");
		const id = [...log("fakes").matchAll(/create id=(\S+) memory=(\d+)/g)].findLast((m) => m[2] === `${memory}`)[1];
		must(log("fakes").includes(`kill id=${id} reason=create failed`), "the broker was told");
	});

test("a machine that ended unnoticed is listed as stopped and frees its quota", async () => {
	for (let i = 0; i < 4; i++) equal((await create(acme, {})).status, 200);
	const ids = (await running(acme)).map((s) => s.id);
	await fakes("restart");
	equal((await create(acme, {})).status, 200, "the quota is free again");
	for (const s of await list(acme)) if (ids.includes(s.id)) equal([s.status, typeof s.stoppedAt], ["stopped", "string"]);
	equal((await ask(acme, "GET", `/api/v3/sandbox/${ids[0]}/connect`, undefined, UPGRADE)).code, "SANDBOX_STOPPED");
	for (const s of await running(acme)) await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`);
});

test("without broker and gateway: clear errors, and the lists still answer", async () => {
	await fakes("stop");
	equal((await create(acme, {})).code, "NODE_UNAVAILABLE");
	must(Array.isArray(await list(acme)), "list");
	await fakes("start");
	equal((await create(acme, {})).status, 200, "and it recovers by itself");
	for (const s of await running(acme)) await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`);
});

test("the operator's egress commands", async () => {
	const dir = path.join(STATE, "logs/egress/acme");
	fs.mkdirSync(dir, { recursive: true });
	const line = (time, more) => JSON.stringify({ time, sandbox: "sbx_ord_1", org: "acme", protocol: "tls", name: "x.test", port: 443, decision: "allow", rule: "allow x.test", ...more }) + "\n";
	const put = (day, text) => fs.appendFileSync(path.join(dir, `${day}-000.jsonl`), text);
	put("2026-01-01", line("2026-01-01T10:00:00.000Z") + line("2026-01-01T11:00:00.000Z", { name: "y.test", decision: "deny", rule: "none\u001b[2J" }));
	must(adm("egress", "list", "--org", "acme") === `[${fs.readFileSync(path.join(dir, "2026-01-01-000.jsonl"), "utf8").trim().replace("\n", ",")}]\n`, "all rows, the newest last");
	equal(JSON.parse(adm("egress", "list", "--decision", "deny")).map((r) => r.name).join(), "y.test");
	equal(JSON.parse(adm("egress", "list", "--limit", "1")).map((r) => r.name).join(), "y.test");
	equal(JSON.parse(adm("egress", "list", "--since", "2026-01-01T10:30:00Z")).length, 1);
	const table = execFileSync(path.join(BUILD, "nestboxadm"), ["-c", CONF, "egress", "list"], { env, encoding: "utf8" });
	must(/^time +decision .*\n.*allow +tls +x\.test:443 +\(allow x\.test\)\n.*deny +tls +y\.test:443 +\(none\?\[2J\)\n$/.test(table), table);
	equal(adm("egress", "learn", "--org", "acme"), '{"allow_net":["x.test:443"],"uses":{"x.test:443":1},"complete":true}\n');
	fs.writeFileSync(path.join(DIR, "policy.json"), JSON.stringify({ allow_net: ["x.test", "10.0.0.1"] }), { mode: 0o644 });
	const said = (...more) => JSON.parse(adm("egress", "evaluate", "--policy", path.join(DIR, "policy.json"), ...more));
	equal(said("x.test").decision, "allow");
	equal(said("y.test", "80").decision, "deny");
	equal(said("10.0.0.1", "80").rule, "private address");
	for (const wrong of [["learn"], ["evaluate", "x.test"], ["list", "--decision", "maybe"], ["list", "--limit", "0"], ["list", "--since", "noon"], ["list", "--org", "../x"], ["list", "more"]]) {
		let status = 0;
		try { execFileSync(path.join(BUILD, "nestboxadm"), ["-c", CONF, "egress", ...wrong, ...(wrong[0] === "learn" ? ["--org", "acme", "--org", "beta"] : [])], { env, stdio: "pipe" }); } catch (e) { status = e.status; }
		equal(status, 2, wrong.join(" "));
	}
	// A tail goes on in the next file, whether the last one's end was marked or not.
	const tail = spawn(path.join(BUILD, "nestboxadm"), ["-c", CONF, "--json", "egress", "tail", "--org", "acme", "--since", "2026-01-01T10:00:00Z"], { env, stdio: ["ignore", "pipe", "inherit"] });
	let text = "";
	tail.stdout.on("data", (d) => text += d);
	const names = () => text.trim().split("\n").map((l) => l && JSON.parse(l).name).join();
	await until("the row after that time", () => names() === "y.test", 30000);
	put("2026-01-01", "\x04\n");
	put("2026-01-02", line("2026-01-02T00:00:00.000Z", { name: "z.test" }));
	await until("the next day", () => names() === "y.test,z.test", 30000);
	put("2026-01-03", line("2026-01-03T00:00:00.000Z", { name: "w.test" }).slice(0, 20));
	put("2026-01-03", line("2026-01-03T00:00:00.000Z", { name: "w.test" }).slice(20));
	await until("and the one after", () => names() === "y.test,z.test,w.test", 30000);
	tail.kill();
	fs.rmSync(path.join(STATE, "logs/egress"), { recursive: true });
});

test("secrets reach the policy sealed and the guest as placeholders only", async () => {
	await create(acme, { allow_net: ["Example.com", "10.1.0.0/16"], secrets: { KEY: { hosts: ["api.example.com"], value: "hush-hush" } } });
	await create(acme, { egress: { deny: ["Bad.example"], rules: [{ host: "Api.example", methods: ["GET"], paths: ["/v1/"] }],
		limits: { bytes_per_second: 1000 } }, secrets: { K2: { hosts: ["api.example"], value: "hush-hush", headers: ["X-Key"] } } });
	equal((await create(acme, { egress: { rules: [{ host: "api.example", methods: ["get"] }] } })).code, "INVALID_CONFIG");
	const text = log("fakes");
	must(/\ndefault none\nallow example\.com\nallow 10\.1\.0\.0\/16\nsecret KEY nbs_[0-9a-z]{40} \S+ api\.example\.com\n/.test(text), "policy");
	must(/\ndefault public\ndeny bad\.example\nrule api\.example GET \/v1\/\nlimit bytes_per_s=1000\nsecret K2 \S+ \S+ api\.example\nsecret-rule K2 headers=x-key\n/.test(text), "rules");
	must(!text.includes("hush-hush") && !log("api").includes("hush-hush"), "the value is in no log");
	for (const file of fs.readdirSync(path.join(STATE, "db")))
		must(!fs.readFileSync(path.join(STATE, "db", file)).includes("hush-hush"), `not in ${file}`);
	for (const s of await running(acme)) await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`);
});

test("of two policy changes at once none gets a secret to another place without its value", async () => {
	await create(acme, { allow_net: ["good.example"], secrets: { A: { hosts: ["good.example"], value: "hush-hush" } } });
	const [s] = await running(acme);
	const patch = (body) => ask(acme, "PATCH", `/api/v2/sandboxes/${s.id}/egress-policy`, body);
	const extend = async () => equal((await ask(acme, "PATCH", `/api/v3/sandbox/${s.id}`, { stop_at_ms: Date.now() + 60000 })).status, 200);
	const elsewhere = { A: { hosts: ["evil.example"] } };
	equal((await patch({ secrets: elsewhere })).code, "INVALID_CONFIG", "elsewhere without the value");
	// In force: the first, then the second. In the record: the second, then the first, whose place is the other one.
	const second = patch({ allow_net: ["late.example"] });
	await until("the second", () => log("fakes").includes("allow late.example"));
	const first = patch({ allow_net: ["hold.example"], secrets: { A: { hosts: ["evil.example"], value: "dummy" } } });
	await until("the first", () => log("fakes").includes("allow hold.example"));
	await extend();
	equal((await second).status, 200);
	await extend();
	equal((await first).status, 200);
	equal((await patch({ secrets: elsewhere })).code, "INVALID_CONFIG", "now by the record");
	equal((await patch({ allow_net: ["x.example"] })).code, "INVALID_CONFIG", "by what the record has");
	equal((await patch({ allow_net: [], secrets: { A: { hosts: ["evil.example"], value: "other" } } })).status, 200, "with a value");
	const sealed = (host) => new Set([...log("fakes").matchAll(/secret A \S+ (\S+) (\S+)\n/g)].filter((m) => m[2] === host).map((m) => m[1]));
	const evil = sealed("evil.example");
	must(evil.size === 2 && ![...sealed("good.example")].some((v) => evil.has(v)), "no value of the one place was meant for the other");
	await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`);
});

test("tokens: personal ones need an organization they belong to, revoked ones are dead", async () => {
	const mine = JSON.parse(adm("token", "create", "--personal", "--org", "acme", "--org", "third"));
	equal((await ask(mine.token, "GET", "/api/v2/apps")).code, "MISSING_ORG");
	equal((await ask(mine.token, "GET", "/api/v2/apps", undefined, { "x-deno-org": "third" })).status, 200);
	equal((await ask(mine.token, "GET", "/api/v2/apps", undefined, { "x-deno-org": "other" })).json,
		(await ask(mine.token, "GET", "/api/v2/apps", undefined, { "x-deno-org": "nowhere" })).json);
	equal((await ask(acme, "GET", "/api/v2/apps", undefined, { "x-deno-org": "other" })).code, "ORG_NOT_FOUND");
	equal([adm("config", "region"), adm("config", "tenant_vms"), adm("config", "state_dir")], ["ord\n", "4\n", `${STATE}\n`], "a default, a number, what was written");
	adm("token", "revoke", mine.id);
	equal((await ask(mine.token, "GET", "/api/v2/apps", undefined, { "x-deno-org": "third" })).code, "INVALID_TOKEN");
	const db = fs.readFileSync(path.join(STATE, "db/nestbox.db"));
	must(!db.includes(acme) && !db.includes(acme.slice(4)), "tokens are not in the database");
});

test("the SDK's apps, layers and pages", async () => {
	await client.layers.create({ slug: "base", env_vars: [{ key: "A", value: "1" }, { key: "S", value: "hid", secret: true }] });
	const top = await client.layers.create({ slug: "top", layers: ["base"], description: "both" });
	equal(top.layers.map((l) => l.slug), ["base"]);
	equal((await client.layers.get("base")).env_vars.map((v) => v.value), ["1", undefined]);
	await refused(client.layers.update("base", { layers: ["top"] }), "LAYER_CYCLE");
	await refused(client.layers.update("base", { layers: ["base"] }), "LAYER_CYCLE");
	// Eight deep is all there is, wherever in the chain the one is that makes it longer.
	for (let i = 1; i <= 8; i++) await client.layers.create({ slug: `deep-${i}`, layers: i > 1 ? [`deep-${i - 1}`] : [] });
	await refused(client.layers.create({ slug: "deep-9", layers: ["deep-8"] }), "LAYER_CYCLE", /more than 8 deep/);
	await client.layers.create({ slug: "under" });
	await refused(client.layers.update("deep-1", { layers: ["under"] }), "LAYER_CYCLE", /more than 8 deep/);
	equal((await client.layers.get("deep-1")).layers, [], "as it was");
	await client.layers.update("deep-2", { layers: ["under"] });
	await refused(client.layers.delete("base"), "LAYER_IN_USE");
	const app = await client.apps.create({ slug: "app-one", layers: ["top"], labels: { tier: "x" }, env_vars: [{ key: "P", value: "q" }] });
	equal([app.slug, app.labels, app.layers[0].slug], ["app-one", { tier: "x" }, "top"]);
	await refused(client.apps.create({ slug: "app-one" }), "SLUG_TAKEN");
	for (const slug of ["api", "ord"]) await refused(client.apps.create({ slug }), "SLUG_TAKEN", /reserved/); // both are names of the API
	await refused(client.apps.create({ slug: "No" }), "INVALID_SLUG");
	await refused(client.apps.create({ layers: ["nothing"] }), "LAYER_NOT_FOUND");
	const after = await client.apps.update(app.id, { slug: "app-two", env_vars: [{ key: "P", delete: true }, { key: "N", value: "2" }] });
	equal([after.slug, after.env_vars.map((v) => v.key)], ["app-two", ["N"]]);
	await refused(client.apps.update(app.id, { slug: "ord" }), "SLUG_TAKEN", /reserved/);
	await refused(client.apps.update(app.id, { env_vars: [{ id: "env_00000000000000000000", value: "x" }] }), "ENV_VAR_NOT_FOUND");
	equal(await client.apps.get("app-one"), null);
	const made = [];
	for (let i = 0; i < 7; i++) made.push((await client.apps.create()).id);
	const seen = [];
	for await (const a of await client.apps.list({ limit: 3 })) seen.push(a.id);
	equal(seen.slice(0, 7), made.reverse(), "newest first, each once");
	equal((await client.apps.list({ labels: { tier: "x" } })).items.map((a) => a.slug), ["app-two"]);
	equal((await client.apps.list({ layer: "top" })).items.map((a) => a.slug), ["app-two"]);
	equal((await client.layers.apps("top")).items[0].layer_position, 0);
	equal((await client.timelines.list("app-two")).items[0].domains, [{ domain: "app-two.nestbox.localhost:8443" }]);
	await client.apps.delete("app-two");
	equal(await client.apps.get(app.id), null);
	await client.layers.delete("top");
	await client.layers.delete("base");
});
test("an app renamed by several at once has the name that it ended with, and no other", async () => {
	const app = await client.apps.create({ slug: "rename" });
	for (let round = 0; round < 5; round++) {
		await Promise.all(Array.from({ length: 12 }, (_, i) => client.apps.update(app.id, { slug: `rename-${i}` })));
		const { slug } = await client.apps.get(app.id);
		equal((await client.timelines.list(app.id)).items[0].domains, [{ domain: `${slug}.nestbox.localhost:8443` }], `round ${round}`);
	}
	await client.apps.delete(app.id);
});

async function refused(promise, code, message = /./) {
	try { await promise; } catch (e) { return must(e.code === code && message.test(e.message), `${e.code} ${e.message}, not ${code} ${message}`); }
	throw new Error(`not refused with ${code}`);
}

test("deploy from a sandbox and from assets", async () => {
	await client.apps.create({ slug: "dep" });
	await create(acme, {});
	const [s] = await running(acme);
	const deploy = (body) => ask(acme, "POST", `/api/v2/sandboxes/${s.id}/deploy`, body);
	const { revision_id } = (await deploy({ app: "dep", entrypoint: "main.ts", preview: true })).json;
	const rev = await client.revisions.get(revision_id);
	equal([rev.status, rev.config.runtime.entrypoint], ["queued", "main.ts"]);
	must(log("fakes").includes('"service":"tar-out","path":"\\/home\\/app"') || log("fakes").includes('"service":"tar-out","path":"/home/app"'), "tar-out");
	equal((await ask(acme, "GET", `/api/v2/revisions/${revision_id}/progress`)).text.slice(0, 16), "stream /_stream/");
	equal((await deploy({ app: "nope" })).code, "APP_NOT_FOUND");
	equal((await deploy({ app: "dep", entrypoint: "missing.ts" })).code, "INVALID_ENTRYPOINT");
	equal((await deploy({ app: "dep", entrypoint: "../main.ts" })).code, "INVALID_REQUEST");
	equal((await deploy({ app: "dep", path: "/nodir" })).code, "INVALID_TREE");
	equal((await deploy({ app: "dep", path: "../../etc" })).code, "INVALID_PATH");
	equal((await deploy({ app: "dep", mode: "remote" })).code, "INVALID_REQUEST");
	fs.symlinkSync("../../../etc/passwd", path.join(DIR, "tree/out"));
	tree("main.ts", "out");
	equal((await deploy({ app: "dep" })).code, "INVALID_TREE", "a link out of the tree");
	execFileSync("mkfifo", [path.join(DIR, "tree/fifo")]);
	tree("main.ts", "fifo");
	equal((await deploy({ app: "dep" })).code, "INVALID_TREE", "a device");
	execFileSync("truncate", ["-s", "3G", path.join(DIR, "tree/sparse")]);
	execFileSync("tar", ["--format=pax", "--sparse", "-C", path.join(DIR, "tree"), "-cf", path.join(RUN, "tree.tar"), "sparse"]);
	equal((await deploy({ app: "dep" })).code, "TREE_TOO_LARGE", "a sparse file of 3 GB");
	fs.writeFileSync(path.join(RUN, "tree.tar"), "no tar at all");
	equal((await deploy({ app: "dep" })).code, "INVALID_TREE", "no tar");
	const assets = { "main.ts": { content: "x" }, "a/b.bin": { encoding: "base64", content: "AAEC" }, l: { kind: "symlink", target: "main.ts" } };
	const made = await client.apps.deploy("dep", { assets, env_vars: [{ key: "K", value: "v" }], labels: { sha: "1" }, production: false });
	equal([made.status, made.env_vars, made.labels], ["queued", [{ key: "K", value: "v" }], { sha: "1" }]);
	await refused(client.apps.deploy("dep", { assets: { "../x": { content: "" } } }), "INVALID_TREE");
	await refused(client.apps.deploy("dep", { assets: { l: { kind: "symlink", target: "/etc/passwd" } } }), "INVALID_TREE");
	await refused(client.apps.deploy("dep", { assets: {} }), "INVALID_TREE");
	await refused(client.apps.deploy("dep", { assets, config: { runtime: { type: "dynamic", entrypoint: "no.ts" } } }), "INVALID_ENTRYPOINT");
	equal((await client.revisions.list("dep", { status: "queued" })).items.map((r) => r.id), [made.id, revision_id]);
	const gone = await client.revisions.cancel(made.id);
	equal([gone.status, gone.failure_reason, typeof gone.cancellation_requested_at], ["failed", "cancelled", "string"]);
	const lines = fs.readFileSync(path.join(STATE, "logs/revisions", made.id + ".progress"), "utf8").trimEnd().split("\n");
	equal([JSON.parse(lines.at(-2)).queued.status, lines.at(-1)], ["cancelled", "\x04"]);
	await refused(client.revisions.cancel(made.id), "REVISION_FINISHED");
	equal((await ask(acme, "POST", `/api/v2/revisions/${made.id}/promote`)).code, "REVISION_NOT_READY");
	await client.revisions.delete(made.id);
	equal(await client.revisions.get(made.id), null);
	equal(fs.readdirSync(path.join(STATE, "bundles")).filter((n) => !/^[0-9a-f]{64}\.tar\.zst$/.test(n)), [], "no half bundles");
	await client.apps.delete("dep");
	await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`);
});

test("app logs: time, level, text and pages", async () => {
	const app = await client.apps.create({ slug: "logs" });
	const dir = path.join(STATE, "logs/apps", app.id);
	fs.mkdirSync(dir);
	const line = (i) => JSON.stringify({ timestamp: new Date(1700000000000 + i).toISOString(), level: i % 10 ? "info" : "error", revision_id: "r1", instance: "rev_r1", region: "ord", message: `line ${i} "x"` }) + "\n";
	const range = (a, b) => Array.from({ length: b - a }, (_, i) => line(a + i)).join("");
	fs.writeFileSync(path.join(dir, "1700000000000000-a.jsonl"), range(0, 150));
	fs.writeFileSync(path.join(dir, "1700000000150000-b.jsonl"), "{broken\n" + range(150, 250) + '{"timestamp":"2023');
	const start = new Date(1700000000000).toISOString();
	const all = [];
	for await (const l of await client.apps.logs("logs", { start, limit: 60 })) all.push(l.message);
	equal(all, Array.from({ length: 250 }, (_, i) => `line ${i} "x"`));
	equal((await client.apps.logs("logs", { start, level: "error", limit: 1000 })).items.length, 25);
	equal((await client.apps.logs("logs", { start, query: "LINE 24", limit: 1000 })).items.length, 11);
	equal((await client.apps.logs("logs", { start: new Date(1700000000200).toISOString(), end: new Date(1700000000209).toISOString() })).items.length, 10);
	for (const cursor of ["../../x.jsonl~0", "a~", "x.jsonl~99999999999999999"]) await refused(client.apps.logs("logs", { start, cursor }), "INVALID_CURSOR");
	await client.apps.delete("logs");
});

test("volumes without storage in the engine: a clear error, no row left", async () => {
	await refused(client.volumes.create({ slug: "vol", region: "ord", capacity: "2GB" }), "NOT_SUPPORTED");
	equal((await client.volumes.list()).items, []);
	await refused(client.volumes.create({ slug: "vol", region: "xyz", capacity: "2GB" }), "INVALID_REGION");
	for (const capacity of ["1MB", "22GB", 5, "2 GB", "GB", -1, null])
		await refused(client.volumes.create({ slug: "vol", region: "ord", capacity }), "INVALID_CAPACITY");
	equal((await create(acme, { root: { volume: "no-such" } })).code, "VOLUME_NOT_FOUND");
	equal((await create(acme, { volumes: [{ volume: "no-such", path: "/d" }] })).code, "VOLUME_NOT_FOUND");
});

test("an organization has so many volumes, deleted ones included, also when all are made at once", async () => {
	const make = (i) => ask(acme, "POST", "/api/v2/volumes", { slug: `full-${i}`, region: "ord", capacity: 400000000 });
	const all = await Promise.all(Array.from({ length: 9 }, (_, i) => make(i)));
	equal([all.filter((r) => r.status === 200).length, all.filter((r) => r.code === "VOLUME_QUOTA_EXCEEDED" && r.status === 429).length], [3, 6]);
	equal((await ask(acme, "DELETE", `/api/v2/volumes/${all.find((r) => r.status === 200).json.id}`)).status, 204);
	equal((await make(9)).code, "VOLUME_QUOTA_EXCEEDED", "its storage is still there");
	equal((await ask(other, "POST", "/api/v2/volumes", { slug: "full-0", region: "ord", capacity: 400000000 })).status, 200, "another organization");
});

test("an organization stores so much", async () => {
	const make = (slug, capacity) => ask(other, "POST", "/api/v2/volumes", { slug, region: "ord", capacity });
	equal((await make("stored", 400000000)).status, 200);
	const mine = (await ask(other, "GET", "/api/v2/volumes")).json.reduce((sum, v) => sum + v.capacity, 0), room = 4 * 2 ** 30 - mine;
	equal((await make("too-large", room + 1)).code, "STORAGE_QUOTA_EXCEEDED");
	equal((await make("just", room)).code, "NOT_SUPPORTED", "let through to the broker");
});

test("an organization has so many apps", async () => {
	const token = JSON.parse(adm("token", "create", "--org", "third")).token;
	const make = () => ask(token, "POST", "/api/v2/apps", {});
	const all = await Promise.all(Array.from({ length: 34 }, make));
	equal([all.filter((r) => r.status === 200).length, all.filter((r) => r.code === "APP_QUOTA_EXCEEDED" && r.status === 429).length], [30, 4]);
	equal((await ask(token, "DELETE", `/api/v2/apps/${all.find((r) => r.status === 200).json.id}`)).status, 204);
	const last = await make();
	equal(last.status, 200, "one that was deleted leaves its place");
	const theirs = new Client({ token, apiEndpoint: `http://127.0.0.1:${PORT}` });
	const preview = () => theirs.apps.deploy(last.json.slug, { assets: { "main.ts": { content: "x" } }, preview: true });
	await preview();
	await refused(preview(), "NAME_QUOTA_EXCEEDED");
	equal((await theirs.revisions.list(last.json.slug)).items.length, 1, "nothing of the refused one is left");
});

test("the runner ends a machine whose create was undone while the broker could not be told", async () => {
	equal((await create(acme, { memory_mb: 4010 })).code, "SANDBOX_START_FAILED");
	const id = [...log("fakes").matchAll(/create id=(\S+) memory=4010/g)].at(-1)[1];
	equal((await ask(acme, "GET", `/api/v2/sandboxes/${id}`)).json.status, "stopped");
	await withRunner(() => until("its end", () => log("fakes").includes(`kill id=${id} reason=its sandbox has ended found=1`), 30000));
});

test("builds of one organization do not hold up another's", async () => {
	fs.writeFileSync(path.join(RUN, "hold"), "");
	const assets = { "main.ts": { content: "x" } }, ids = [];
	const theirs = new Client({ token: other, apiEndpoint: `http://127.0.0.1:${PORT}` });
	await client.apps.create({ slug: "slow-builds" });
	await theirs.apps.create({ slug: "quick-build" });
	for (let i = 0; i < 6; i++) ids.push((await client.apps.deploy("slow-builds", { assets })).id);
	const { id } = await theirs.apps.deploy("quick-build", { assets });
	const status = async (c, r) => (await c.revisions.get(r)).status;
	await withRunner(async () => {
		await until("the other organization's build", async () => await status(theirs, id) === "building", 60000);
		await until("builds of the first", async () => (await Promise.all(ids.map((r) => status(client, r)))).filter((s) => s === "building").length === 3, 60000);
		equal(await Promise.all(ids.map((r) => status(client, r))), ["building", "building", "building", "queued", "queued", "queued"], "the oldest first");
		fs.rmSync(path.join(RUN, "hold"));
		await until("all of them", async () => (await Promise.all(ids.map((r) => status(client, r)))).every((s) => s === "failed"), 60000);
	});
	await client.apps.delete("slow-builds");
	await theirs.apps.delete("quick-build");
});
async function withRunner(fn) {
	const runner = start("runner", path.join(BUILD, "nestbox-runner"), ["-c", CONF]);
	try {
		await fn();
	} finally {
		runner.kill("SIGTERM");
		await runner.done;
	}
}

const pids = () => {
	try {
		return execFileSync("ps", ["-o", "pid=,comm=", "--ppid", `${api.pid}`], { encoding: "utf8" }).trim().split("\n")
			.filter((l) => !l.includes("nestbox-guide")).map((l) => l.trim().split(/\s+/)[0]);
	} catch { /* none now */
		return [];
	}
};

// Median proportional set size of the workers, in KB; as root only.
const pss = () => pids().map((p) => {
	try { return Number(/^Pss: +(\d+)/m.exec(fs.readFileSync(`/proc/${p}/smaps_rollup`, "utf8"))[1]); } catch { return 0; }
}).sort((a, b) => a - b)[pids().length >> 1];

test("a stranger costs a worker next to nothing, with a large body, too", async () => {
	await until("the usual workers", () => pids().length === 3, 60000);
	const same = pids(), spent = () => same.reduce((sum, p) => sum + Number(fs.readFileSync(`/proc/${p}/schedstat`, "utf8").split(" ")[0]) / 1000, 0);
	const body = JSON.stringify({ x: "x".repeat(4000000) });
	const each = async (n, ...req) => {
		const before = spent();
		for (let i = 0; i < n; i++) equal((await ask("ddo_nobody", ...req)).code, "INVALID_TOKEN");
		return (spent() - before) / n;
	};
	await each(20, "GET", "/api/v2/apps");
	const bare = await each(300, "GET", "/api/v3/sandboxes/create"), large = await each(10, "POST", "/api/v2/apps", body);
	console.log(`     processor time of a worker: ${bare.toFixed(0)} us, with 4 MB ${large.toFixed(0)} us`);
	must(bare < 5000 && large < 50000, "too much");
});

test("an organization whose machines stall has its share of the workers; others are served as before", async () => {
	await until("the usual workers", () => pids().length === 3, 60000);
	const fds = () => fs.readdirSync(`/proc/${api.pid}/fd`).length, fdsBefore = fds();
	for (const memory_mb of [4011, 1280]) equal((await create(acme, { memory_mb })).status, 200);
	const [healthy, stalled] = await running(acme);
	const connect = (s) => ask(acme, "GET", `/api/v3/sandbox/${s.id}/connect`, undefined, UPGRADE);
	const round = async () => {
		const began = performance.now();
		equal((await create(other, {})).status, 200, "another organization's create");
		for (const s of await running(other)) equal((await ask(other, "DELETE", `/api/v3/sandbox/${s.id}`)).status, 200);
		return performance.now() - began;
	};
	const median = (a) => a.sort((x, y) => x - y)[a.length >> 1];
	const before = [], meanwhile = [];
	for (let i = 0; i < 9; i++) before.push(await round());
	fs.writeFileSync(path.join(RUN, "stall"), "");
	let ended = false, refusal, waited = Infinity, quickest = Infinity;
	const stalling = Array.from({ length: 80 }, async () => {
		while (!ended) {
			const began = performance.now(), res = await connect(stalled).catch(() => ({}));
			if (res.code === "TOO_MANY_REQUESTS") {
				refusal = res;
				quickest = Math.min(quickest, performance.now() - began);
				await new Promise((r) => setTimeout(r, 200));
			} else if (res.code === "SANDBOX_UNREACHABLE") waited = Math.min(waited, performance.now() - began);
		}
	});
	try {
		await until("the share to be full", () => refusal, 60000);
		equal([refusal.status, refusal.headers["retry-after"]], [429, "1"]);
		must(pids().length > 64, `more workers: ${pids().length}`);
		for (let i = 0; i < 9; i++) meanwhile.push(await round());
		must(Array.isArray(await list(acme)), "its own lists");
		equal((await ask("ddo_nobody", "GET", "/api/v2/sandboxes")).code, "INVALID_TOKEN");
		console.log(`     a create, list and delete: ${median(before).toFixed(0)} ms before, ${median(meanwhile).toFixed(0)} ms while ${pids().length} workers of ${pss()} KB (PSS); a refusal ${quickest.toFixed(0)} ms`);
		must(median(meanwhile) < 5000, `as long as a stalled one: ${median(meanwhile)} ms`);
		// The places of workers that die are free again: without that it would be refused from now on.
		ended = true;
		for (const pid of pids()) try { process.kill(Number(pid), "SIGKILL"); } catch { /* it was one too many and has left */ }
		await Promise.all(stalling);
		await until("room for a long request", async () => (await connect(healthy).catch(() => ({}))).status === 200, 60000);
		must(waited >= 5000, `nothing waited for less than the deadline: ${waited}`);
	} finally {
		ended = true;
		fs.rmSync(path.join(RUN, "stall"));
	}
	for (const s of await running(acme)) equal((await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`)).status, 200);
	await until("the parent's descriptors", () => fds() === fdsBefore, 60000);
});

test("killed workers are replaced", async () => {
	await until("the usual workers", () => pids().length === 3, 60000);
	const before = pids();
	for (const pid of before) process.kill(Number(pid), "SIGKILL");
	await until("new workers", () => pids().length === 3 && !pids().some((p) => before.includes(p)), 60000);
	equal((await ask(acme, "GET", "/api/v2/apps")).status, 200);
});

test("every worker has the filter, no capability and its own uid", async () => {
	await until("workers", () => pids().length === 3, 60000);
	for (const pid of pids()) {
		const status = fs.readFileSync(`/proc/${pid}/status`, "utf8");
		equal(/Seccomp:\t(\d)/.exec(status)[1], "2");
		equal(/NoNewPrivs:\t(\d)/.exec(status)[1], "1");
		equal(/CapEff:\t(\S+)/.exec(status)[1], "0000000000000000");
		if (process.getuid() === 0) must(!/Uid:\t0/.test(status), "not root");
	}
});

test("1000 requests leave the workers' descriptors as they were", async () => {
	await until("workers", () => pids().length === 3, 60000);
	const same = pids(), count = () => same.map((p) => fs.readdirSync(`/proc/${p}/fd`).length);
	const round = async (n) => {
		for (let i = 0; i < n; i++) {
			await create(acme, { memory_mb: [1280, 4001, 4004, 4005][i % 4] });
			for (const s of await running(acme)) await ask(acme, "DELETE", `/api/v3/sandbox/${s.id}`);
		}
	};
	await round(30);
	const before = count();
	await round(220);
	// A worker connects to each daemon when it first needs it; a descriptor lost per create would be 70 of them.
	const most = Math.max(...before) + 4, after = count();
	must(after.every((n) => n <= most), `descriptors ${before} -> ${after}`);
});

test("bad input through the front door (tests/it/bad_input.mjs)", async () => {
	const child = spawn(process.execPath, [path.join(SRC, "tests/it/bad_input.mjs")], { stdio: ["ignore", "pipe", "inherit"], env: {
		...env, DENO_DEPLOY_ENDPOINT: `http://127.0.0.1:${PORT}`, DENO_DEPLOY_TOKEN: acme, NESTBOX_TEST_OTHER_TOKEN: other,
		NESTBOX_TEST_REVOKED_TOKEN: revoked() } });
	let out = "";
	child.stdout.on("data", (d) => out += d);
	await new Promise((r) => child.on("exit", r));
	process.stdout.write(out.replace(/^/gm, "     ").trimEnd() + "\n");
	must(/\n\d{2,} passed, 0 failed, 0 skipped\n$/.test(out), "see above");
});
function revoked() {
	const made = JSON.parse(adm("token", "create", "--org", "acme"));
	adm("token", "revoke", made.id);
	return made.token;
}

test("SIGTERM ends it cleanly, with an answer to what is under way", async () => {
	equal((await create(acme, { memory_mb: 4011 })).status, 200);
	const [s] = await running(acme);
	fs.writeFileSync(path.join(RUN, "stall"), "");
	const waiting = ask(acme, "GET", `/api/v3/sandbox/${s.id}/connect`, undefined, UPGRADE), dials = () => log("fakes").split(`dial id=${s.id}`).length;
	await until("its dial", () => dials() > 2, 60000);
	api.kill("SIGTERM");
	fs.rmSync(path.join(RUN, "stall"));
	equal((await waiting).status, 200);
	equal(await api.done, 0);
});

test("root sets owner and mode of its own directories only", async () => {
	if (process.getuid()) return;
	for (const d of ["keys", "logs"]) equal(fs.statSync(path.join(STATE, d)).uid, 0, d);
	for (const d of ["db", "bundles", "logs/apps", "logs/revisions"]) must(fs.statSync(path.join(STATE, d)).uid, d);
	const victim = path.join(DIR, "victim"), apps = path.join(STATE, "logs/apps");
	fs.mkdirSync(victim);
	fs.renameSync(apps, apps + ".away");
	fs.symlinkSync(victim, apps);
	equal(await Promise.race([start("again", path.join(BUILD, "nestbox-api"), ["-c", CONF]).done,
		until("not to go on", () => fs.statSync(victim).uid, 60000)]), 1);
	must(log("again").includes("owner and mode of"), log("again"));
	equal(fs.statSync(victim).uid, 0, "what the link led to");
});

// --- run -----------------------------------------------------------------------------------------------------------
let api, fakesChild;
async function fakes(what) {
	if (what !== "start") {
		fakesChild.kill("SIGKILL");
		await fakesChild.done;
	}
	if (what === "stop") return;
	const had = what === "start" && !fakesChild ? 0 : log("fakes").split("ready\n").length - 1;
	fakesChild = start("fakes", path.join(BUILD, "tests/it/api_fakes"), [RUN]);
	await until("fakes", () => log("fakes").split("ready\n").length - 1 > had);
}
async function main() {
	PORT = await freePort();
	setUp();
	await fakes("start");
	api = start("api", path.join(BUILD, "nestbox-api"), ["-c", CONF]);
	start("nginx", "nginx", ["-p", DIR, "-e", "stderr", "-c", path.join(DIR, "nginx.conf")]);
	await until("nestbox-api", () => fetch(`http://127.0.0.1:${PORT}/healthz`).then((r) => r.ok, () => false));
	for (const org of ["acme", "other", "third"]) adm("org", "create", org);
	acme = JSON.parse(adm("token", "create", "--org", "acme")).token;
	other = JSON.parse(adm("token", "create", "--org", "other")).token;
	client = new Client({ token: acme, apiEndpoint: `http://127.0.0.1:${PORT}` });
	const only = process.argv.slice(2);
	for (const [name, fn] of tests) {
		if (only.length && !only.some((o) => name.includes(o))) continue;
		try {
			await fn();
			passed++;
			console.log(`ok   ${name}`);
		} catch (e) {
			failed++;
			console.log(`FAIL ${name}\n  ${e.stack?.split("\n").slice(0, 3).join("\n  ")}`);
		}
	}
}
try {
	await main();
} catch (e) {
	failed++;
	console.log(`FAIL set-up\n  ${e.stack}`);
} finally {
	// nginx is asked: a master that is killed leaves its worker.
	for (const c of children) c.kill(c.spawnargs[0] === "nginx" ? "SIGTERM" : "SIGKILL");
	for (const c of children) await c.done;
	if (failed) console.log(`logs: ${DIR}`);
	else fs.rmSync(DIR, { recursive: true });
	console.log(`${passed} passed, ${failed} failed, 0 skipped`);
	process.exitCode = failed ? 1 : 0;
}
