#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
// nestbox-gateway behind a real nginx with our template, with a fake broker, API worker and agents (tests/it/gateway_bed.c).
// GATEWAY_BENCH=1 also prints throughput and memory. Everything lives below one temporary directory.
import { spawn, execFileSync } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import https from "node:https";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import tls from "node:tls";
import crypto from "node:crypto";
import { WebSocket, WebSocketServer } from "ws";

const SRC = path.resolve(import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname), "../..");
const BUILD = process.env.NESTBOX_BUILD ?? path.join(SRC, "build");
const DIR = fs.mkdtempSync(path.join(os.tmpdir(), "nbgw-"));
const DOMAIN = "gw.localhost";
const children = [];
let passed = 0, failed = 0, PORT, bed;

// --- surroundings ------------------------------------------------------------------------------------------------
const run = (cmd, args) => execFileSync(cmd, args, { stdio: ["ignore", "pipe", "pipe"] });
const until = async (what, fn, ms = 10000) => {
	const end = Date.now() + ms;
	for (;;) {
		const v = await fn();
		if (v) return v;
		if (Date.now() > end) throw new Error(`not in time: ${what}`);
		await new Promise((r) => setTimeout(r, 10));
	}
};
const freePort = () => new Promise((r) => {
	const s = net.createServer().listen(0, "127.0.0.1", () => { const { port } = s.address(); s.close(() => r(port)); });
});

function start(cmd, args, options = {}) {
	const child = spawn(cmd, args, { stdio: ["pipe", "pipe", fs.openSync(path.join(DIR, path.basename(cmd) + ".log"), "a")], ...options });
	children.push(child);
	child.on("error", (e) => { console.log(`FAIL ${cmd} cannot be started: ${e.message}`); failed++; });
	child.stdin.on("error", () => {});
	return child;
}

class Bed {
	constructor() {
		this.child = start(path.join(BUILD, "tests/it/gateway_bed"), [path.join(DIR, "run")]);
		this.waiting = [];
		let text = "";
		this.child.stdout.on("data", (d) => {
			text += d;
			for (let i; (i = text.indexOf("\n")) >= 0; text = text.slice(i + 1)) this.waiting.shift()?.(text.slice(0, i));
		});
		this.ready = new Promise((r) => this.waiting.push(r));
	}
	ask(line) {
		return new Promise((r) => { this.waiting.push(r); this.child.stdin.write(line + "\n"); });
	}
	async ok(line) {
		const answer = await this.ask(line);
		if (!answer.startsWith("ok")) throw new Error(`${line}: ${answer}`);
		return answer.slice(3);
	}
	async stat() {
		const [tickets, streams, exposures, bytes] = (await this.ok("stat")).split(" ").map(Number);
		return { tickets, streams, exposures, bytes };
	}
}

function gatewayStart() {
	const child = start(path.join(BUILD, "nestbox-gateway"), ["-c", path.join(DIR, "nestbox.conf")]);
	return child;
}

async function setUp() {
	for (const d of ["run", "log", "cache", "state"]) fs.mkdirSync(path.join(DIR, d));
	fs.chmodSync(DIR, 0o755);
	PORT = await freePort();
	const user = (u) => { try { run("id", [u]); return u; } catch { return "nobody"; } };
	fs.writeFileSync(path.join(DIR, "nestbox.conf"),
		`state_dir = ${DIR}/state\nrun_dir = ${DIR}/run\nuser_api = root\nuser_gateway = ${user("nestbox-gw")}\n`);
	const p = (n) => path.join(DIR, n);
	run("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3", "-keyout", p("key.pem"),
		"-out", p("cert.pem"), "-subj", "/CN=test", "-addext", `subjectAltName=DNS:${DOMAIN},DNS:*.${DOMAIN}`]);
	const values = { RUN_DIR: p("run"), STATE_DIR: p("state"), LOG_DIR: p("log"), CACHE_DIR: p("cache"), DOMAIN,
		DOMAIN_RE: DOMAIN.replace(/\./g, "\\."), REGION: "local", HTTPS_PORT: PORT, LISTEN: "127.0.0.1", CERT: p("cert.pem"), KEY: p("key.pem"), CERTS: p("certs"), PREFIX: DIR };
	fs.writeFileSync(p("nginx.conf"), fs.readFileSync(path.join(SRC, "nginx/nginx.conf.in"), "utf8").replace(/@([A-Z_]+)@/g, (all, k) => {
		if (!(k in values)) throw new Error(`nginx.conf.in: ${all} is not filled in`);
		return values[k];
	}));
	const gateway = gatewayStart();
	await until("gateway's sockets", () => fs.existsSync(p("run/stream.sock")) && (fs.statSync(p("run/expose")).mode & 0o2000));
	bed = new Bed();
	await Promise.race([bed.ready, new Promise((_, j) => bed.child.on("exit", () => j(new Error("gateway_bed ended"))).on("error", j))]);
	start("nginx", ["-p", p("run"), "-e", "stderr", "-c", p("nginx.conf"), "-g", "daemon off;"]);
	await until("nginx", () => new Promise((r) => {
		const s = net.connect(PORT, "127.0.0.1", () => { s.destroy(); r(true); }).on("error", () => r(false));
	}));
	return gateway;
}

const ca = () => fs.readFileSync(path.join(DIR, "cert.pem"));
const token = () => crypto.randomBytes(16).toString("hex");

// One request; answers {status, headers, body}.
function ask(host, url, { method = "GET", headers = {}, body, ...more } = {}) {
	return new Promise((resolve, reject) => {
		const req = https.request({ host: "127.0.0.1", port: PORT, servername: host, ca: ca(), method, path: url, agent: false, ...more,
			headers: { Host: `${host}:${PORT}`, ...headers } }, (res) => {
			const parts = [];
			res.on("data", (d) => parts.push(d)).on("error", reject)
				.on("end", () => resolve({ status: res.statusCode, headers: res.headers, body: Buffer.concat(parts).toString() }));
		});
		req.on("error", reject);
		req.end(body);
	});
}
const api = (url, options) => ask(`api.${DOMAIN}`, url, options);

function ws(url, host = `api.${DOMAIN}`, options = {}) {
	return new WebSocket(`wss://127.0.0.1:${PORT}${url}`, { ca: ca(), servername: host, headers: { Host: `${host}:${PORT}` },
		perMessageDeflate: false, ...options });
}
const opened = (s) => new Promise((r, j) => {
	s.on("upgrade", (res) => { s.upgradeHeaders = res.headers; }).on("open", () => r(s)).on("error", j)
		.on("unexpected-response", (_, res) => {
			let text = "";
			res.on("data", (d) => { text += d; }).on("end", () => j(Object.assign(new Error(`status ${res.statusCode}`), { status: res.statusCode, text })));
		});
});
const closed = (s) => new Promise((r) => { if (s.readyState === 3) r(); else { s.on("close", r); s.on("error", () => {}); } });
const message = (s) => new Promise((r) => s.once("message", (d) => r(d.toString())));

// An agent whose service is the server side of a WebSocket: starts with frames, like the rpc service.
function frameAgent(onSocket) {
	const wss = new WebSocketServer({ noServer: true, perMessageDeflate: false });
	return listen((sock) => {
		const fake = { headers: { upgrade: "websocket", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-version": "13" }, method: "GET" };
		// ws wants to write the 101 itself; the gateway has done that.
		const write = sock.write.bind(sock);
		sock.write = (d, ...rest) => { sock.write = write; void d; return true; };
		wss.handleUpgrade(fake, sock, Buffer.alloc(0), (s) => onSocket(s, sock));
	});
}
function listen(fn) {
	return new Promise((r) => {
		const server = net.createServer((s) => { s.on("error", () => {}); fn(s); }).listen(0, "127.0.0.1", () => r(server));
		server.unref();
	});
}
const portOf = (server) => server.address().port;
// An agent connection to an exposed service: the agent's answer line, then HTTP.
function exposeAgent(handler, { line = '{"ok":true}\n', upgrade } = {}) {
	const app = http.createServer(handler);
	if (upgrade) app.on("upgrade", upgrade);
	return listen((sock) => { if (line) sock.write(line); app.emit("connection", sock); });
}

const tests = [];
const test = (name, fn) => tests.push({ name, fn });
const same = (a, b, what = "") => {
	if (a !== b) throw new Error(`${what} is ${JSON.stringify(a)}, not ${JSON.stringify(b)}`);
};
const is = (cond, what) => { if (!cond) throw new Error(`not true: ${what}`); };

// --- WebSocket tickets -------------------------------------------------------------------------------------------
test("ws: upgraded, headers of the ticket, bytes both ways", async () => {
	const agent = await frameAgent((s) => s.on("message", (d, binary) => s.send(binary ? d : `echo ${d}`, { binary })));
	const t = token();
	await bed.ok(`ws ${t} 5000 ${portOf(agent)}`);
	const s = await opened(ws(`/t/${t}`));
	same(s.upgradeHeaders["x-deno-sandbox-id"], "sbx_test", "header");
	s.send("hello");
	same(await message(s), "echo hello");
	const big = crypto.randomBytes(3 << 20), got = new Promise((r) => s.once("message", r));
	s.send(big);
	is(big.equals(await got), "3 MiB come back as they were");
	s.terminate();
	await until("stream is gone", async () => (await bed.stat()).streams === 0);
});

test("ws: a ticket is good once", async () => {
	const agent = await frameAgent(() => {});
	const t = token();
	await bed.ok(`ws ${t} 5000 ${portOf(agent)}`);
	const s = await opened(ws(`/t/${t}`));
	const e = await opened(ws(`/t/${t}`)).catch((e) => e);
	same(e.status, 404, "second use");
	same(JSON.parse(e.text).code, "STREAM_NOT_FOUND");
	s.terminate();
});

test("ws: unknown, malformed and expired tickets", async () => {
	const agent = await frameAgent(() => {});
	for (const t of [token(), "0", "x".repeat(32), "..%2f..", "a".repeat(500)]) {
		const e = await opened(ws(`/t/${t}`)).catch((e) => e);
		is(e.status === 404 || e.status === 400, `${t}: ${e.status}`);
		is(JSON.parse(e.text).code, "JSON body");
	}
	const ends = new Promise((r) => agent.once("connection", (s) => s.on("close", r).resume()));
	const t = token();
	await bed.ok(`ws ${t} 30 ${portOf(agent)}`);
	await ends; // the ticket's time is over: its connection was closed
	same((await opened(ws(`/t/${t}`)).catch((e) => e)).status, 404, "expired");
	same((await bed.stat()).tickets, 0);
});

test("ws: /_stream/ itself cannot be asked for", async () => {
	same((await api(`/_stream/${token()}`)).status, 404);
});

test("ws: without an upgrade", async () => {
	const agent = await frameAgent(() => {});
	const t = token();
	await bed.ok(`ws ${t} 5000 ${portOf(agent)}`);
	const r = await api(`/t/${t}`);
	same(r.status, 426);
	same(JSON.parse(r.body).code, "UPGRADE_REQUIRED");
});

test("ws: a client that vanishes ends lease and agent connection", async () => {
	let agentEnd;
	const agent = await frameAgent((s, sock) => { agentEnd = new Promise((r) => sock.on("close", r)); s.on("error", () => {}); });
	const t = token();
	await bed.ok(`ws ${t} 5000 ${portOf(agent)} lease`);
	same(await bed.ok("lease?"), "held");
	const s = await opened(ws(`/t/${t}`));
	same(await bed.ok("lease?"), "held");
	s.terminate();
	await agentEnd;
	await until("lease given up", async () => (await bed.ok("lease?")) === "gone");
});

test("ws: the broker's end of the lease may go, as in a restart, and ends nothing", async () => {
	const agent = await frameAgent((s) => s.on("message", (d) => s.send(`${d}`)));
	const t = token();
	await bed.ok(`ws ${t} 5000 ${portOf(agent)} lease`);
	const s = await opened(ws(`/t/${t}`));
	await bed.ok("lease");
	s.send("on");
	same(await message(s), "on");
	s.terminate();
});

test("ws: the agent's end ends the client", async () => {
	const agent = await frameAgent((s) => s.on("message", () => s.close(4001, "bye")));
	const t = token();
	await bed.ok(`ws ${t} 5000 ${portOf(agent)}`);
	const s = await opened(ws(`/t/${t}`));
	const code = new Promise((r) => s.on("close", r));
	s.send("end");
	same(await code, 4001);
});

test("ws: a client that never reads holds the agent back, not the gateway", async () => {
	let sent = 0, stalled;
	const agent = await listen((sock) => {
		const chunk = Buffer.alloc(65536, 0x20);
		const more = () => { while (sock.writable && sent < 512 << 20) { sent += chunk.length; if (!sock.write(chunk)) { stalled = sock.writableLength; return; } } };
		sock.on("drain", more);
		more();
	});
	const t = token();
	await bed.ok(`ws ${t} 5000 ${portOf(agent)}`);
	const raw = tls.connect({ port: PORT, host: "127.0.0.1", servername: `api.${DOMAIN}`, ca: ca(), ALPNProtocols: ["http/1.1"] });
	raw.on("error", () => {});
	await new Promise((r) => raw.on("secureConnect", r));
	raw.pause();
	raw.write(`GET /t/${t} HTTP/1.1\r\nHost: api.${DOMAIN}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n`);
	let before = -1;
	await until("back-pressure", async () => { const now = (await bed.stat()).bytes; const done = sent > 0 && now === before && stalled > 0; before = now; await new Promise((r) => setTimeout(r, 100)); return done; });
	is(sent < 64 << 20, `the agent was held back (${sent >> 20} MiB)`);
	const other = token();
	const echo = await frameAgent((s) => s.on("message", (d) => s.send(`${d}`)));
	await bed.ok(`ws ${other} 5000 ${portOf(echo)}`);
	const s = await opened(ws(`/t/${other}`));
	s.send("still here");
	same(await message(s), "still here");
	s.terminate();
	raw.destroy();
	await until("streams are gone", async () => (await bed.stat()).streams === 0);
});

test("ws: a request head that is slow, too long or not HTTP", async () => {
	const talk = (bytes) => new Promise((r) => {
		const s = net.connect(path.join(DIR, "run/stream.sock"), () => s.write(bytes));
		let text = "";
		s.on("data", (d) => { text += d; }).on("close", () => r(text)).on("error", () => {});
	});
	is((await talk(`GET /_stream/a HTTP/1.1\r\nX: ${"y".repeat(20000)}\r\n\r\n`)).startsWith("HTTP/1.1 431"), "too long");
	is((await talk("\x16\x03\x01\r\n\r\n")).startsWith("HTTP/1.1 400"), "not HTTP");
	is((await talk("GET /_stream/a HTTP/1.1\r\n\r\nmore")).startsWith("HTTP/1.1 400"), "bytes behind the head");
	if (process.env.GATEWAY_SLOW) is((await talk("GET /_stream/a HTT")).startsWith("HTTP/1.1 408"), "slow");
});

test("what carries secrets is in no file of nginx's, and in no core", async () => {
	const body = path.join(DIR, "cache/body"), files = [];
	const watch = fs.watch(body, (_, name) => files.push(name));
	// 64 KiB of variables, each byte written as six.
	const large = Buffer.alloc(400 << 10, "\\u0000");
	for (const headers of [{ "content-length": String(large.length) }, { "transfer-encoding": "chunked" }])
		same(JSON.parse((await ask(`api.${DOMAIN}`, "/api/v2/x", { method: "POST", headers, body: large })).body).body, large.length);
	same(files.length, 0, "files for a body of 400 KiB");
	// The watch sees what there is: a body that is too large for any of these.
	same(JSON.parse((await ask(`api.${DOMAIN}`, "/api/v2/x", { method: "POST", body: Buffer.alloc(3 << 20) })).body).body, 3 << 20);
	await until("a file of a larger body", () => files.length > 0);
	watch.close();
	const master = Number(fs.readFileSync(path.join(DIR, "run/nginx.pid"), "utf8"));
	for (const pid of run("ps", ["-o", "pid=", "--ppid", String(master)]).toString().trim().split(/\s+/))
		is(/^Max core file size +1 +1 /m.test(fs.readFileSync(`/proc/${pid}/limits`, "utf8")), "a worker's core");
});

// --- followed logs -----------------------------------------------------------------------------------------------
function sse(url) {
	const stream = { text: "", waiting: [], ended: false };
	stream.promise = new Promise((resolve, reject) => {
		stream.req = https.request({ host: "127.0.0.1", port: PORT, servername: `api.${DOMAIN}`, ca: ca(), path: url, agent: false, headers: { Host: `api.${DOMAIN}` } }, (res) => {
			stream.status = res.statusCode;
			stream.headers = res.headers;
			stream.res = res;
			res.on("data", (d) => { stream.text += d; }).on("end", () => { stream.ended = true; resolve(); }).on("error", reject);
		});
		stream.req.on("error", reject).end();
	});
	stream.promise.catch(() => {});
	return stream;
}
const logFile = (name, text = "") => { const f = path.join(DIR, "state", name); fs.writeFileSync(f, text, { mode: 0o644 }); return f; };

test("log: what is there, what comes, the end", async () => {
	const f = logFile("a.log", '{"n":1}\n{"n":2}\n');
	const t = token();
	await bed.ok(`log ${t} 5000 0 0 ${f}`);
	const s = sse(`/t/${t}`);
	await until("first lines", () => s.text === 'data: {"n":1}\n\ndata: {"n":2}\n\n');
	same(s.headers["content-type"], "text/event-stream");
	const t0 = Date.now();
	fs.appendFileSync(f, '{"n":3');
	fs.appendFileSync(f, '}\n');
	await until("third line", () => s.text.endsWith('data: {"n":3}\n\n'));
	const late = Date.now() - t0;
	fs.appendFileSync(f, "\x04\n");
	await s.promise;
	is(late < 1000, `a line arrives at once (${late} ms)`);
	is(!s.text.includes("\x04"), "the end mark is not sent");
});

test("log: several readers, from an offset, as lines", async () => {
	const f = logFile("b.log", "one\ntwo\nthree\n");
	const [t, u] = [token(), token()];
	await bed.ok(`log ${t} 5000 4 0 ${f}`);
	await bed.ok(`log ${u} 5000 0 1 ${f}`);
	const a = sse(`/t/${t}`), b = sse(`/t/${u}`);
	await until("both", () => a.text === "data: two\n\ndata: three\n\n" && b.text === "one\ntwo\nthree\n");
	same(b.headers["content-type"], "application/x-ndjson");
	fs.appendFileSync(f, "\x04\n");
	await Promise.all([a.promise, b.promise]);
});

test("log: 20,000 lines in order, a line that is too long is left out", async () => {
	const lines = [];
	for (let i = 0; i < 20000; i++) lines.push(i % 1000 === 7 ? "x".repeat(i * 3) : `line ${i}`);
	lines.splice(500, 0, "y".repeat(200000));
	const f = logFile("c.log", lines.join("\n") + "\n\x04\n");
	const t = token();
	await bed.ok(`log ${t} 5000 0 1 ${f}`);
	const s = sse(`/t/${t}`);
	await s.promise;
	const want = lines.filter((l) => l.length < 65536).join("\n") + "\n";
	same(s.text.length, want.length, "length");
	is(s.text === want, "all other lines, in order");
});

test("log: a reader that does not read costs a bounded buffer", async () => {
	const line = "z".repeat(999) + "\n";
	const f = logFile("d.log", line.repeat(60000));
	const t = token();
	await bed.ok(`log ${t} 5000 0 0 ${f}`);
	const raw = tls.connect({ port: PORT, host: "127.0.0.1", servername: `api.${DOMAIN}`, ca: ca(), ALPNProtocols: ["http/1.1"] });
	raw.on("error", () => {});
	await new Promise((r) => raw.on("secureConnect", r));
	raw.pause();
	const before = rss();
	raw.write(`GET /t/${t} HTTP/1.1\r\nHost: api.${DOMAIN}\r\n\r\n`);
	await until("follower", async () => (await bed.stat()).streams === 1);
	await new Promise((r) => setTimeout(r, 300));
	is(rss() - before < 2048, `gateway grew by ${rss() - before} KiB`);
	raw.destroy();
	await until("follower is gone", async () => (await bed.stat()).streams === 0);
	fs.rmSync(f);
});

test("log: readers that vanish are noticed", async () => {
	const f = logFile("e.log", "a\n");
	const t = token();
	await bed.ok(`log ${t} 5000 0 0 ${f}`);
	const s = sse(`/t/${t}`);
	await until("line", () => s.text.length > 0);
	s.req.destroy();
	await until("follower is gone", async () => (await bed.stat()).streams === 0);
});

test("log: with a place it goes on in the next file, whether the last one's end was marked or not", async () => {
	const lines = (from, n) => Array.from({ length: n }, (_, i) => `row ${from + i}\n`).join("");
	const all = lines(0, 9000), [f, g, h] = [logFile("f.log", lines(0, 2000)), logFile("g.log", lines(3000, 3000)), logFile("h.log")];
	const [t, u] = [token(), token()];
	const asked = async (...answer) => (await bed.ok(["guide", ...answer].join(" "))).replace(/^ok ?/, "");
	const nobody = async (...answer) => is((await bed.ask(["guide", ...answer].join(" "))).startsWith("error TIMEOUT"), "nobody asks");
	await bed.ok(`log ${t} 5000 0 1 ${f} org/f`);
	await bed.ok(`log ${u} 5000 0 0 ${f} org/f`);
	const a = sse(`/t/${t}`), b = sse(`/t/${u}`);
	const bText = () => b.text.replaceAll("data: ", "").replaceAll("\n\n", "\n");
	await until("the first file", () => a.text === lines(0, 2000) && bText() === a.text);
	same(await asked(), "org/f", "a guide that has just come is asked");
	same(a.ended, false);
	fs.appendFileSync(f, lines(2000, 1000) + "\x04\n");
	await until("its end", () => a.text === lines(0, 3000));
	same(await asked("org/f"), "org/f", "nothing follows so far: asked again");
	await nobody("org/f", "org/g", g);
	await until("the second file", () => a.text === lines(0, 6000) && bText() === a.text);
	// Its writer died: no end line, half a row. What stands before is read first.
	fs.appendFileSync(g, lines(6000, 1000) + "row 70");
	fs.writeFileSync(h, lines(7000, 2000));
	if (process.env.GATEWAY_SLOW) await new Promise((r) => setTimeout(r, 16000)); // asked without a new guide
	same(await asked(), "org/g");
	await nobody("org/g", "org/h", h);
	await until("the third file", () => a.text === all && bText() === all);
	is(!a.ended && !b.ended, "still open");
	a.req.destroy();
	b.req.destroy();
	await until("followers are gone", async () => (await bed.stat()).streams === 0);
});

test("log: only regular files", async () => {
	is((await bed.ask(`log ${token()} 5000 0 0 /dev/zero`)).startsWith("error INVALID"), "device refused");
});

// --- exposed hosts -----------------------------------------------------------------------------------------------
const APP = `app.${DOMAIN}`;
const hostReady = (name) => until(`socket of ${name}`, () => fs.existsSync(path.join(DIR, "run/expose", `${name}.sock`)));

test("expose: HTTP, bodies both ways, WebSocket, SSE", async () => {
	const wss = new WebSocketServer({ noServer: true });
	wss.on("connection", (s) => s.on("message", (d) => s.send(`app ${d}`)));
	const agent = await exposeAgent((req, res) => {
		if (req.url === "/sse") {
			res.writeHead(200, { "content-type": "text/event-stream" });
			res.write("data: first\n\n");
			req.on("close", () => res.end());
			return;
		}
		const parts = [];
		req.on("data", (d) => parts.push(d)).on("end", () => res.end(JSON.stringify({ url: req.url, host: req.headers.host, proto: req.headers["x-forwarded-proto"], for: req.headers["x-forwarded-for"], n: Buffer.concat(parts).length })));
	}, { upgrade: (req, sock, head) => wss.handleUpgrade(req, sock, head, (s) => wss.emit("connection", s)) });
	await bed.ok(`host ${APP} ${portOf(agent)}`);
	await hostReady(APP);
	const r = await ask(APP, "/some/path%20x?q=%2F", { method: "POST", body: Buffer.alloc(5 << 20), headers: { "X-Forwarded-For": "6.6.6.6" } });
	same(r.status, 200);
	const got = JSON.parse(r.body);
	same(got.url, "/some/path%20x?q=%2F", "URL");
	same(got.host, `${APP}:${PORT}`, "Host");
	same(got.proto, "https");
	same(got.for, "127.0.0.1");
	same(got.n, 5 << 20, "body");
	const s = await opened(ws("/", APP));
	s.send("hi");
	same(await message(s), "app hi");
	s.terminate();
	const first = await new Promise((resolve, reject) => {
		const req = https.get({ host: "127.0.0.1", port: PORT, servername: APP, ca: ca(), path: "/sse", agent: false, headers: { Host: APP } }, (res) => res.once("data", (d) => { resolve(d.toString()); req.destroy(); }));
		req.on("error", (e) => (e.code === "ECONNRESET" ? 0 : reject(e)));
	});
	same(first, "data: first\n\n");
	await until("visits are gone", async () => (await bed.stat()).streams === 0);
});

test("expose: an app is told the host that led to it, whatever else the request says", async () => {
	const agent = await exposeAgent((req, res) => res.end(`${req.headers.host} ${req.headers["x-forwarded-host"]}`));
	await bed.ok(`host ${APP} ${portOf(agent)}`);
	await hostReady(APP);
	for (const [line, host] of [["/", APP.toUpperCase()], [`http://${APP}/`, "evil.example"], [`https://${APP}/`, `evil.example:${PORT}`]]) {
		const raw = tls.connect({ port: PORT, host: "127.0.0.1", servername: APP, ca: ca(), ALPNProtocols: ["http/1.1"] });
		raw.write(`GET ${line} HTTP/1.1\r\nHost: ${host}\r\nX-Forwarded-Host: evil.example\r\nConnection: close\r\n\r\n`);
		let got = "";
		raw.on("data", (d) => got += d);
		await new Promise((resolve, reject) => raw.on("end", resolve).on("error", reject));
		const told = host.includes(":") ? `${APP}:${PORT}` : APP;
		is(got.startsWith("HTTP/1.1 200 ") && got.includes(`${told} ${told}`), `${line} ${host}: ${got}`);
	}
});

test("expose: the guest cannot steer nginx", async () => {
	const agent = await exposeAgent((req, res) => { res.setHeader("X-Accel-Redirect", "/_stream/abc"); res.setHeader("X-Accel-Limit-Rate", "1"); res.end("body of the guest"); });
	await bed.ok(`host ${APP} ${portOf(agent)}`);
	await hostReady(APP);
	const r = await ask(APP, "/");
	same(r.status, 200);
	same(r.body, "body of the guest");
});

test("expose: no such host", async () => {
	const r = await ask(`nobody.${DOMAIN}`, "/");
	same(r.status, 404);
	is(r.body.includes("nestbox") && r.body.includes(`nobody.${DOMAIN}`), "says what it is");
	same((await ask(`a.b.${DOMAIN}`, "/", { rejectUnauthorized: false })).status, 404, "two labels");
	same((await ask(DOMAIN, "/")).status, 404, "the bare domain");
});

test("expose: what the agent says no to", async () => {
	for (const [line, word] of [['{"error":{"code":"ECONNREFUSED","message":"x"}}\n', "nothing listens"], ['{"error":{"code":"ENOENT","message":"x"}}\n', "has ended"],
		["garbage\n", "did not accept"], ["x".repeat(10000), "broke off"], ['[1,[2,[3,[4,[5]]]]]\n', "did not accept"], ['{"ok":false}\n', "did not accept"]]) {
		const agent = await listen((s) => s.write(line));
		await bed.ok(`host ${APP} ${portOf(agent)}`);
		const r = await ask(APP, "/", { method: "POST", body: Buffer.alloc(300000) });
		same(r.status, 502, line.slice(0, 20));
		is(r.body.includes(word), `${line.slice(0, 30)}: ${r.body}`);
	}
	const agent = await listen((s) => s.end());
	await bed.ok(`host ${APP} ${portOf(agent)}`);
	same((await ask(APP, "/")).status, 502, "closed at once");
});

// Asked for now, looked at below: it takes a while to be given up.
let silence;
test("expose: who never answers is asked for", async () => {
	const host = `silent.${DOMAIN}`, silent = await listen((s) => s.resume()), began = Date.now();
	await bed.ok(`host ${host} ${portOf(silent)}`);
	silence = ask(host, "/").then((r) => ({ ...r, ms: Date.now() - began }));
});

test("expose: a machine whose dials hang keeps nobody else waiting", async () => {
	const agent = await exposeAgent((req, res) => res.end("quick")), other = `other.${DOMAIN}`;
	await bed.ok(`host ${APP} 1`);
	await bed.ok(`host ${other} ${portOf(agent)}`);
	same((await ask(other, "/")).body, "quick");
	// One host with many visitors, and more hosts than there are places at the broker.
	const many = Array.from({ length: 70 }, (_, i) => `stuck-${i}.${DOMAIN}`);
	for (const host of many) await bed.ok(`host ${host} 1 acme`);
	const fresh = Array.from({ length: 12 }, (_, i) => `fresh-${i}.${DOMAIN}`);
	for (const host of fresh) await bed.ok(`host ${host} ${portOf(agent)} bolt`);
	await until("their sockets", async () => (await bed.stat()).exposures >= many.length + fresh.length + 2);
	const stuck = [...Array(100).fill(APP), ...many].map((host) => ask(host, "/"));
	for (let i = 0; i < 20; i++) same((await ask(other, "/")).body, "quick");
	// Another organization's first visits to hosts that nobody has visited, while 170 dials hang: as quick as to one that is known.
	const took = async (host) => { const began = performance.now(); same((await ask(host, "/")).body, "quick", host); return performance.now() - began; };
	const known = [], first = [], middle = (list) => list.toSorted((x, y) => x - y)[list.length >> 1];
	for (const host of fresh) { known.push(await took(other)); first.push(await took(host)); }
	console.log(`  a first visit: ${middle(first).toFixed(1)} ms, at most ${Math.max(...first).toFixed(1)}; a visit to a known host: ${middle(known).toFixed(1)} ms`);
	is(middle(first) < 20 * middle(known) + 50, "a first visit waits for nobody else's dials");
	same(JSON.stringify([...new Set((await Promise.all(stuck)).map((r) => r.status))]), "[504]", "who waits for it is told so");
	same((await ask(other, "/")).body, "quick", "with all their dials still at the broker");
	for (const host of [other, ...many, ...fresh]) await bed.ok(`unhost ${host}`);
	// What the stand-in owes an answer would stay in the way of this host.
	await bed.ok("drop");
});

test("expose: who never answers is given up", async () => {
	const r = await silence;
	same(r.status, 504, "status");
	is(r.ms >= 14000, `after ${r.ms} ms, before the deadline`);
	await bed.ok(`unhost silent.${DOMAIN}`);
});

test("expose: an answer line in two pieces", async () => {
	const app = http.createServer((req, res) => res.end("fine"));
	const agent = await listen((s) => { s.setNoDelay(true); s.write('{"ok":'); setTimeout(() => { s.write("true}\n"); app.emit("connection", s); }, 50); });
	await bed.ok(`host ${APP} ${portOf(agent)}`);
	same((await ask(APP, "/")).body, "fine");
});

test("expose: a machine that sleeps is waited for", async () => {
	await bed.ok(`host ${APP} 0`);
	const r = ask(APP, "/");
	await until("the visit waits", async () => (await bed.stat()).streams === 1);
	const agent = await exposeAgent((req, res) => res.end("awake"));
	await bed.ok(`host ${APP} ${portOf(agent)}`);
	same((await r).body, "awake");
});

test("expose: a visitor that gives up waiting is forgotten", async () => {
	await bed.ok(`host ${APP} 0`);
	const req = https.get({ host: "127.0.0.1", port: PORT, servername: APP, ca: ca(), path: "/", agent: false, headers: { Host: APP } });
	req.on("error", () => {});
	await until("the visit waits", async () => (await bed.stat()).streams === 1);
	req.destroy();
	await until("the visit is gone", async () => (await bed.stat()).streams === 0);
});

test("expose: hosts come and go, also while the broker is away", async () => {
	const agent = await exposeAgent((req, res) => res.end("still"));
	await bed.ok(`host ${APP} ${portOf(agent)}`);
	for (let i = 0; i < 10; i++) await bed.ok(`host h${i}.${DOMAIN} ${portOf(agent)}`);
	await until("sockets", async () => (await bed.stat()).exposures === 11);
	await bed.ok(`unhost h0.${DOMAIN}`);
	await until("one less", async () => (await bed.stat()).exposures === 10);
	same((await ask(`h0.${DOMAIN}`, "/")).status, 404);
	// A broken connection: what went meanwhile is missing from the list, what stayed keeps serving.
	await bed.ok("drop");
	await bed.ok(`unhost h1.${DOMAIN}`);
	same((await ask(`h2.${DOMAIN}`, "/")).body, "still");
	await until("in step again", async () => (await bed.stat()).exposures === 9);
	same((await ask(`h1.${DOMAIN}`, "/")).status, 404);
	for (let i = 2; i < 10; i++) await bed.ok(`unhost h${i}.${DOMAIN}`);
	await until("back to one", async () => (await bed.stat()).exposures === 1);
});

test("expose: a host that is no file name is not made one", async () => {
	const before = (await bed.stat()).exposures;
	for (const bad of ["../../x", "UPPER.localhost", ".hidden", "a..b", "-a.b", "a/b", "x".repeat(200)]) {
		await bed.ok(`host ${bad} 1`);
		await bed.ok(`unhost ${bad}`);
	}
	same((await bed.stat()).exposures, before);
});

// --- nginx -------------------------------------------------------------------------------------------------------
test("nginx: the API's JSON errors pass, nginx's own are JSON too", async () => {
	const r = await api("/json429");
	same(r.status, 429);
	same(JSON.parse(r.body).code, "QUOTA");
	for (const [what, status, code, url, options] of [
		["long URL", 414, "INVALID_PATH", "/" + "x".repeat(90000), {}],
		["long header", 431, "CONFIG_TOO_LARGE", "/x", { headers: { "x-deno-sandbox-config": "y".repeat(90000) } }],
		["large body", 413, "BODY_TOO_LARGE", "/x", { method: "POST", headers: { "Content-Length": String(5 << 20) } }],
		["large deploy", 413, "BODY_TOO_LARGE", "/api/v2/apps/x/deploy", { method: "POST", headers: { "Content-Length": String(65 << 20) } }],
	]) {
		const e = await api(url, options).catch((e) => ({ status: 0, body: String(e) }));
		same(e.status, status, what);
		same(JSON.parse(e.body).code, code, what);
	}
});

test("nginx: a config header of 55 KiB and a body reach the worker", async () => {
	const r = JSON.parse((await api("/x", { method: "POST", headers: { "x-deno-sandbox-config": "c".repeat(55 << 10) }, body: Buffer.alloc(2 << 20) })).body);
	same(r.config, 55 << 10);
	same(r.body, 2 << 20);
	same(JSON.parse((await api("/api/v2/apps/x/deploy?a=b", { method: "POST", body: Buffer.alloc(8 << 20) })).body).body, 8 << 20, "a deploy");
});

test("nginx: a large config header with an upgrade", async () => {
	const agent = await frameAgent((s) => s.on("message", (d) => s.send(`${d}`)));
	const t = token();
	await bed.ok(`ws ${t} 5000 ${portOf(agent)}`);
	const s = await opened(ws(`/t/${t}`, `api.${DOMAIN}`, { headers: { Host: `api.${DOMAIN}`, "x-deno-sandbox-config": "c".repeat(50000) } }));
	s.send("x");
	same(await message(s), "x");
	s.terminate();
});

// --- size and speed ----------------------------------------------------------------------------------------------
let gatewayChild;
function rss() {
	return Number(/VmRSS:\s+(\d+)/.exec(fs.readFileSync(`/proc/${gatewayChild.pid}/status`, "utf8"))[1]);
}

test("many idle streams: descriptors and memory for each", async () => {
	const n = 1000, idle = [];
	const agent = await listen((s) => s.resume());
	const before = rss();
	for (let i = 0; i < n; i++) {
		const t = token();
		await bed.ok(`ws ${t} 20000 ${portOf(agent)}`);
		idle.push(await new Promise((r, j) => {
			const s = net.connect(path.join(DIR, "run/stream.sock"), () => s.write(`GET /_stream/${t} HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n`));
			s.once("data", () => r(s)).on("error", j);
		}));
	}
	const perStream = ((rss() - before) * 1024) / n;
	const fds = fs.readdirSync(`/proc/${gatewayChild.pid}/fd`).length;
	console.log(`  ${n} idle streams: ${Math.round(perStream)} bytes and ${(fds / n).toFixed(2)} descriptors each`);
	is(perStream < 4096, "less than 4 KiB a stream");
	is(fds < 2 * n + 100, "two descriptors a stream");
	idle.forEach((s) => s.destroy());
	await until("all gone", async () => (await bed.stat()).streams === 0);
});

test("throughput", async () => {
	const total = (process.env.GATEWAY_BENCH ? 1024 : 64) << 20;
	const chunk = Buffer.alloc(262144, 0x41);
	for (const [what, connect] of [
		["relay alone", () => net.connect(path.join(DIR, "run/stream.sock"))],
		["nginx and relay", () => tls.connect({ port: PORT, host: "127.0.0.1", servername: `api.${DOMAIN}`, ca: ca(), ALPNProtocols: ["http/1.1"] })]]) {
		const agent = await listen((sock) => {
			let sent = 0;
			const more = () => { while (sent < total) { sent += chunk.length; if (!sock.write(chunk)) return; } sock.end(); };
			sock.on("drain", more);
			more();
		});
		const t = token();
		await bed.ok(`ws ${t} 5000 ${portOf(agent)}`);
		const s = connect();
		const t0 = process.hrtime.bigint();
		let n = 0;
		const unix = what === "relay alone";
		s.write(`GET ${unix ? "/_stream" : "/t"}/${t} HTTP/1.1\r\nHost: api.${DOMAIN}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n`);
		await new Promise((r, j) => s.on("data", (d) => { n += d.length; }).on("end", r).on("close", r).on("error", j));
		const ms = Number(process.hrtime.bigint() - t0) / 1e6;
		console.log(`  ${what}: ${Math.round(total / 1048.576 / ms)} MB/s (the writer and the reader are this program)`);
		is(n >= total, `all bytes: ${n} of ${total}`);
	}
});

test("the gateway's death and return: nginx says 502, then all is well", async () => {
	const agent = await exposeAgent((req, res) => res.end("back"));
	await bed.ok(`host ${APP} ${portOf(agent)}`);
	same((await ask(APP, "/")).body, "back");
	const gone = new Promise((r) => gatewayChild.on("exit", r));
	gatewayChild.kill("SIGKILL");
	await gone;
	const r = await ask(APP, "/");
	same(r.status, 502);
	const j = await api(`/t/${token()}`);
	same(j.status, 502);
	same(JSON.parse(j.body).code, "API_UNAVAILABLE");
	gatewayChild = gatewayStart();
	await until("served again", async () => (await ask(APP, "/")).body === "back");
});

// --- run ---------------------------------------------------------------------------------------------------------
async function main() {
	const only = process.argv.slice(2);
	gatewayChild = await setUp();
	for (const { name, fn } of tests) {
		if (only.length && !only.some((o) => name.includes(o))) continue;
		try {
			await Promise.race([fn(), new Promise((_, j) => setTimeout(() => j(new Error("took more than 60 s")), 60000).unref())]);
			console.log(`ok   ${name}`);
			passed++;
		} catch (e) {
			console.log(`FAIL ${name}\n  ${e.stack ?? e}`);
			failed++;
		}
		if (gatewayChild.exitCode !== null || gatewayChild.signalCode) {
			console.log(`FAIL the gateway ended: ${gatewayChild.exitCode} ${gatewayChild.signalCode}`);
			failed++;
			break;
		}
	}
}
let status = 1;
try {
	await main();
	status = failed ? 1 : 0;
} catch (e) {
	console.log(`FAIL set-up: ${e.stack}`);
	failed++;
} finally {
	for (const c of children) c.kill("SIGTERM");
	if (failed) for (const l of fs.readdirSync(DIR)) if (l.endsWith(".log")) console.log(`--- ${l}\n${fs.readFileSync(path.join(DIR, l), "utf8").split("\n").slice(-30).join("\n")}`);
	if (!process.env.GATEWAY_KEEP) fs.rmSync(DIR, { recursive: true, force: true });
}
console.log(`${passed} passed, ${failed} failed, 0 skipped`);
process.exit(status);
