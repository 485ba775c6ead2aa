// SPDX-License-Identifier: Apache-2.0
// Bad input to the API through the front door: each row gets its stable code, its status, JSON, a trace id, and leaves nothing.
// From the environment: DENO_DEPLOY_ENDPOINT, DENO_DEPLOY_TOKEN; a token of another organization and a revoked one either from
// NESTBOX_TEST_OTHER_TOKEN and NESTBOX_TEST_REVOKED_TOKEN or made with $NESTBOX_PREFIX/sbin/nestboxadm -c $NESTBOX_CONF.
import { execFileSync } from "node:child_process";
import http from "node:http";
import https from "node:https";

const BASE = new URL(process.env.DENO_DEPLOY_ENDPOINT);
const TOKEN = process.env.DENO_DEPLOY_TOKEN;
const adm = (...args) => execFileSync(`${process.env.NESTBOX_PREFIX}/sbin/nestboxadm`, ["-c", process.env.NESTBOX_CONF, "--json", ...args], { encoding: "utf8" });

function otherToken() {
	if (process.env.NESTBOX_TEST_OTHER_TOKEN) return process.env.NESTBOX_TEST_OTHER_TOKEN;
	const org = `bad-input-${Date.now().toString(36)}`;
	adm("org", "create", org);
	return JSON.parse(adm("token", "create", "--org", org)).token;
}
function revokedToken() {
	if (process.env.NESTBOX_TEST_REVOKED_TOKEN) return process.env.NESTBOX_TEST_REVOKED_TOKEN;
	const org = `bad-input-r-${Date.now().toString(36)}`;
	adm("org", "create", org);
	const made = JSON.parse(adm("token", "create", "--org", org));
	adm("token", "revoke", made.id);
	return made.token;
}
const OTHER = otherToken(), REVOKED = revokedToken();

const UPGRADE = { upgrade: "websocket", connection: "Upgrade", "sec-websocket-version": "13", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==" };
function ask(method, path, { token = TOKEN, body, headers = {} } = {}) {
	return new Promise((resolve, reject) => {
		const all = { ...(token === null ? {} : { authorization: `Bearer ${token}` }), ...headers };
		if (body !== undefined) all["content-length"] = Buffer.byteLength(body);
		const req = (BASE.protocol === "https:" ? https : http).request({ host: BASE.hostname, port: BASE.port, method, path, headers: all, agent: false },
			(res) => {
				const parts = [];
				res.on("data", (d) => parts.push(d));
				res.on("end", () => {
					const text = Buffer.concat(parts).toString();
					let json = null;
					try { json = JSON.parse(text); } catch { /* shown by the check */ }
					resolve({ status: res.statusCode, headers: res.headers, text, json });
				});
			});
		req.on("upgrade", (res, socket) => { socket.destroy(); resolve({ status: 101, headers: res.headers, text: "", json: null }); });
		req.on("error", reject);
		req.end(body);
	});
}
const b64 = (s) => Buffer.from(s).toString("base64");
const create = (config, headers = {}) =>
	ask("GET", "/api/v3/sandboxes/create", { headers: { ...UPGRADE, "x-deno-sandbox-config": typeof config === "string" ? config : b64(JSON.stringify(config)), ...headers } });
const live = async () => (await ask("GET", "/api/v2/sandboxes")).json.filter((s) => s.status === "running").map((s) => s.id).sort();

let passed = 0, failed = 0;
async function row(name, want, promise) {
	try {
		const res = await promise;
		const [status, code] = want;
		if (res.status !== status || res.json?.code !== code || typeof res.json?.message !== "string" || !res.json.message)
			throw new Error(`${res.status} ${res.text.slice(0, 200)}, not ${status} ${code}`);
		if (!/^[0-9a-f]{32}$/.test(res.headers["x-deno-trace-id"] ?? "")) throw new Error("no x-deno-trace-id");
		passed++;
		console.log(`ok   ${name}: ${code}`);
	} catch (e) {
		failed++;
		console.log(`FAIL ${name}: ${e.message}`);
	}
}

const APP = `bad-${Date.now().toString(36)}`;
const NONE = "sbx_ord_00000000000000000000";
const before = await live();

// --- who asks
for (const [name, token] of [["no token", null], ["an empty token", ""], ["a made-up token", "ddo_" + "0".repeat(40)], ["a token of 10,000 characters", "ddo_" + "x".repeat(10000)],
	["a revoked token", REVOKED], ["a token with SQL in it", "ddo_' OR 1=1 --"]]) {
	await row(name, [401, "INVALID_TOKEN"], ask("GET", "/api/v2/apps", { token }));
	await row(`${name}, create`, [401, "INVALID_TOKEN"], ask("GET", "/api/v3/sandboxes/create", { token, headers: UPGRADE }));
}
await row("another scheme", [401, "INVALID_TOKEN"], ask("GET", "/api/v2/apps", { token: null, headers: { authorization: `Basic ${b64(TOKEN)}` } }));
await row("an unknown organization", [404, "ORG_NOT_FOUND"], ask("GET", "/api/v2/apps", { headers: { "x-deno-org": "no-such-org" } }));

// --- which object
for (const id of [NONE, "sbx_xyz_00000000000000000000", "x", "sbx_ord_" + "i".repeat(20), "..%2f..%2fetc", "%27%20OR%201=1"]) {
	await row(`connect to ${id}`, [404, "SANDBOX_NOT_FOUND"], ask("GET", `/api/v3/sandbox/${id}/connect`, { headers: UPGRADE }));
	await row(`kill ${id}`, [404, "SANDBOX_NOT_FOUND"], ask("DELETE", `/api/v3/sandbox/${id}`));
}
await row("an unknown root", [404, "VOLUME_NOT_FOUND"], create({ root: { volume: "no-such-root" } }));
await row("an unknown volume", [404, "VOLUME_NOT_FOUND"], create({ volumes: [{ volume: "no-such-volume", path: "/data" }] }));
await row("an unknown region", [400, "INVALID_REGION"], ask("POST", "/api/v2/volumes", { body: JSON.stringify({ slug: "vol", region: "xyz", capacity: "1GB" }) }));
await row("an unknown app", [404, "APP_NOT_FOUND"], ask("GET", "/api/v2/apps/no-such-app"));
await row("an unknown revision", [404, "REVISION_NOT_FOUND"], ask("GET", "/api/v2/revisions/000000000000/progress"));
await row("an unknown layer", [404, "LAYER_NOT_FOUND"], ask("GET", "/api/v2/layers/no-such"));
await row("an unknown snapshot", [404, "SNAPSHOT_NOT_FOUND"], ask("GET", "/api/v2/snapshots/no-such"));
await ask("POST", "/api/v2/apps", { body: JSON.stringify({ slug: APP }) });
await row("another organization's app", [404, "APP_NOT_FOUND"], ask("GET", `/api/v2/apps/${APP}`, { token: OTHER }));
await row("another organization's app, delete", [404, "APP_NOT_FOUND"], ask("DELETE", `/api/v2/apps/${APP}`, { token: OTHER }));
await row("its name", [409, "SLUG_TAKEN"], ask("POST", "/api/v2/apps", { token: OTHER, body: JSON.stringify({ slug: APP }) }));

// --- the configuration header
await row("a header that is not base64", [400, "INVALID_CONFIG"], create("{not base64}"));
await row("a header that is not JSON", [400, "INVALID_CONFIG"], create(b64("{not json")));
await row("a header that is a list", [400, "INVALID_CONFIG"], create(b64("[]")));
await row("a header nested 5,000 deep", [400, "INVALID_CONFIG"], create(b64("[".repeat(5000) + "]".repeat(5000))));
await row("a header of 80,000 characters", [431, "CONFIG_TOO_LARGE"], create("A".repeat(80000)));
await row("a NUL in a string", [400, "INVALID_CONFIG"], create(b64('{"root":{"volume":"a\\u0000b"}}')));
// What is not UTF-8 is Latin-1, as the client's btoa() makes it: then this is a key nobody knows.
await row("not UTF-8", [400, "INVALID_CONFIG"], create(Buffer.from([...Buffer.from('{"'), 0xff, 0xfe, ...Buffer.from('":1}')]).toString("base64")));
for (const [name, config, code] of [
	["an unknown key", { memory: 1280 }, "INVALID_CONFIG"], ["memory 1", { memory_mb: 1 }, "INVALID_MEMORY"],
	["memory 1e6", { memory_mb: 1000000 }, "INVALID_MEMORY"], ["memory -5", { memory_mb: -5 }, "INVALID_MEMORY"],
	["memory as text", { memory_mb: "1280" }, "INVALID_CONFIG"], ["half a megabyte", { memory_mb: 1280.5 }, "INVALID_CONFIG"],
	["six labels", { labels: { a: "", b: "", c: "", d: "", e: "", f: "" } }, "INVALID_LABELS"],
	["a label key of 65 bytes", { labels: { ["k".repeat(65)]: "" } }, "INVALID_LABELS"],
	["a label value of 129 bytes", { labels: { k: "v".repeat(129) } }, "INVALID_LABELS"],
	["an expired stop_at_ms", { stop_at_ms: Date.now() - 1000 }, "INVALID_STOP_AT"], ["stop_at_ms 0", { stop_at_ms: 0 }, "INVALID_STOP_AT"],
	["stop_at_ms beyond all dates", { stop_at_ms: 9e15 }, "INVALID_STOP_AT"],
	["a relative mount path", { volumes: [{ volume: "v", path: "data" }] }, "INVALID_PATH"],
	["a mount path with ..", { volumes: [{ volume: "v", path: "/data/../etc" }] }, "INVALID_PATH"],
	["a mount path of 5,000 characters", { volumes: [{ volume: "v", path: "/" + "d".repeat(5000) }] }, "INVALID_CONFIG"],
	["ten volumes", { volumes: Array.from({ length: 10 }, (_, i) => ({ volume: `v${i}`, path: `/v${i}` })) }, "INVALID_CONFIG"],
	["allow_net with a URL", { allow_net: ["https://example.com/"] }, "INVALID_CONFIG"],
	["allow_net with a line break", { allow_net: ["example.com\nallow *"] }, "INVALID_CONFIG"],
	["allow_net with everything", { allow_net: ["*"] }, "INVALID_CONFIG"],
	["a secret for no host", { secrets: { K: { hosts: [], value: "v" } } }, "INVALID_CONFIG"],
	["a secret with a line break", { secrets: { K: { hosts: ["h.example"], value: "a\r\nX: y" } } }, "INVALID_CONFIG"],
	["a secret called PATH=", { secrets: { "PATH=": { hosts: ["h.example"], value: "v" } } }, "INVALID_CONFIG"],
]) await row(name, [400, code], create(config));
await row("create without an upgrade", [426, "UPGRADE_REQUIRED"], ask("GET", "/api/v3/sandboxes/create"));
await row("create with a short WebSocket key", [426, "UPGRADE_REQUIRED"], create({}, { "sec-websocket-key": "short" }));
await row("create with WebSocket version 8", [426, "UPGRADE_REQUIRED"], create({}, { "sec-websocket-version": "8" }));

// --- requests
await row("a path with a NUL", [400, "INVALID_REQUEST"], ask("GET", "/api/v2/apps/a%00b"));
await row("a path of 5,000 characters", [400, "INVALID_PATH"], ask("GET", "/api/v2/apps/" + "a".repeat(5000)));
await row("a path with ..", [404, "NOT_FOUND"], ask("GET", "/api/v2/apps/../../../etc/passwd"));
await row("a broken escape", [400, "INVALID_REQUEST"], ask("GET", "/api/v2/apps/%zz"));
await row("an unknown endpoint", [404, "NOT_FOUND"], ask("GET", "/api/v9/anything"));
await row("another method", [405, "METHOD_NOT_ALLOWED"], ask("PUT", "/api/v2/apps"));
await row("a guessed ticket", [404, "NOT_FOUND"], ask("GET", "/_stream/" + "0".repeat(32), { headers: UPGRADE }));
await row("no JSON", [400, "INVALID_JSON"], ask("POST", "/api/v2/apps", { body: "slug=x" }));
await row("JSON nested 100,000 deep", [400, "INVALID_JSON"], ask("POST", "/api/v2/apps", { body: "[".repeat(100000) + "]".repeat(100000) }));
await row("objects nested 100,000 deep", [400, "INVALID_JSON"], ask("POST", "/api/v2/apps", { body: '{"a":'.repeat(100000) }));
await row("a body of 5 MiB", [413, "BODY_TOO_LARGE"], ask("POST", "/api/v2/apps", { body: "x".repeat(5 << 20) }));
await row("a body of 65 MiB to deploy", [413, "BODY_TOO_LARGE"], ask("POST", `/api/v2/apps/${APP}/deploy`, { body: "x".repeat(65 << 20) }));
await row("an unknown member", [400, "INVALID_REQUEST"], ask("POST", "/api/v2/apps", { body: '{"name":"x"}' }));
await row("a slug with a dot", [400, "INVALID_SLUG"], ask("POST", "/api/v2/apps", { body: '{"slug":"a.b"}' }));
await row("a reserved slug", [409, "SLUG_TAKEN"], ask("POST", "/api/v2/apps", { body: '{"slug":"api"}' }));
await row("six labels on an app", [400, "INVALID_LABELS"], ask("POST", "/api/v2/apps", { body: JSON.stringify({ labels: { a: "", b: "", c: "", d: "", e: "", f: "" } }) }));
await row("limit 0", [400, "INVALID_REQUEST"], ask("GET", "/api/v2/apps?limit=0"));
await row("limit 1000000", [400, "INVALID_REQUEST"], ask("GET", "/api/v2/apps?limit=1000000"));
await row("a made-up cursor", [400, "INVALID_CURSOR"], ask("GET", "/api/v2/apps?cursor=%27%20OR%201=1"));
await row("40 query parameters", [400, "INVALID_REQUEST"], ask("GET", "/api/v2/apps?" + Array.from({ length: 40 }, (_, i) => `p${i}=1`).join("&")));
await row("logs without a start", [400, "INVALID_REQUEST"], ask("GET", `/api/v2/apps/${APP}/logs`));
await row("deploy of a path out of the tree", [400, "INVALID_TREE"], ask("POST", `/api/v2/apps/${APP}/deploy`, { body: JSON.stringify({ assets: { "../x": { content: "" } } }) }));
await row("deploy of a link out of the tree", [400, "INVALID_TREE"], ask("POST", `/api/v2/apps/${APP}/deploy`, { body: JSON.stringify({ assets: { l: { kind: "symlink", target: "../../etc/passwd" } } }) }));
await row("deploy without its entrypoint", [400, "INVALID_ENTRYPOINT"], ask("POST", `/api/v2/apps/${APP}/deploy`, { body: JSON.stringify({ assets: { "a.ts": { content: "" } }, config: { runtime: { type: "dynamic", entrypoint: "b.ts" } } }) }));
await row("deploy of broken base64", [400, "INVALID_TREE"], ask("POST", `/api/v2/apps/${APP}/deploy`, { body: JSON.stringify({ assets: { "a.ts": { encoding: "base64", content: "%%%" } } }) }));
await row("an environment variable's name with =", [400, "INVALID_REQUEST"], ask("PATCH", `/api/v2/apps/${APP}`, { body: JSON.stringify({ env_vars: [{ key: "A=B", value: "" }] }) }));

// --- nothing left
const revisions = (await ask("GET", `/api/v2/apps/${APP}/revisions`)).json;
await ask("DELETE", `/api/v2/apps/${APP}`);
const after = await live();
if (JSON.stringify(before) === JSON.stringify(after) && revisions.length === 0) {
	passed++;
	console.log("ok   nothing left over");
} else {
	failed++;
	console.log(`FAIL nothing left over: sandboxes ${before} -> ${after}, ${revisions.length} revisions`);
}
console.log(`${passed} passed, ${failed} failed, 0 skipped`);
process.exitCode = failed ? 1 : 0;
