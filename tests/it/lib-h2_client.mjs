// SPDX-License-Identifier: Apache-2.0
// What a guest's programs do: node lib-h2_client.mjs CA PLACEHOLDER VALUE API-ADDRESS NGINX-ADDRESS. The last line is "N passed, N failed".
import http2 from "node:http2";
import https from "node:https";
import { readFileSync } from "node:fs";
import { createHash } from "node:crypto";
import { once } from "node:events";

const [caFile, placeholder, value, api, nginx] = process.argv.slice(2);
const ca = readFileSync(caFile);
let passed = 0, failed = 0;

function check(ok, what) {
	ok ? passed++ : failed++;
	console.log(`  ${ok ? "ok  " : "FAIL"} ${what}`);
}

const connect = (name, address) => http2.connect(`https://${name}`, { ca, lookup: (_, o, cb) => o.all ? cb(null, [{ address, family: 4 }]) : cb(null, address, 4) });

async function ask(session, headers, body) {
	const stream = session.request(headers);
	const out = { headers: {}, text: "", bytes: 0 };

	stream.on("error", (e) => (out.error = e.message));
	stream.on("response", (h) => (out.headers = h));
	stream.on("trailers", (t) => (out.trailers = t));
	stream.on("data", (d) => {
		out.bytes += d.length;
		if (out.text.length < 65536) out.text += d;
	});
	stream.end(body);
	await once(stream, "close");
	out.code = stream.rstCode;
	return out;
}

const auth = { authorization: `Bearer ${placeholder}` };
const session = connect("api.test", api);
session.on("error", (e) => console.log("  session:", e.message));
await once(session, "connect");
check(session.alpnProtocol === "h2", "ALPN gives h2 when the upstream speaks it");

const echo = await ask(session, { ":path": "/echo", ...auth });
check(echo.headers["x-version"] === "2.0", "the upstream is asked in HTTP/2, too");
check(echo.headers["x-saw-value"] === "true", "the upstream has the value");
check(echo.headers["x-echo"] === `Bearer ${placeholder}`, "a header that echoes it has the placeholder");
check(echo.text.includes(placeholder) && !echo.text.includes(value), "and so has the body");

const chat = session.request({ ":path": "/svc/Chat", ":method": "POST", "content-type": "application/grpc", te: "trailers", ...auth }, { endStream: false });
let heard = "", trailers;
chat.on("data", (d) => (heard += d));
chat.on("trailers", (t) => (trailers = t));
for (const word of ["one", "two", "three"]) {
	const before = heard.length;
	chat.write(word);
	while (heard.length === before) await once(chat, "data");
}
check(heard === "ONETWOTHREE", "messages go both ways while both are open");
chat.end();
await once(chat, "close");
check(trailers?.["grpc-status"] === "0" && trailers["x-last"] === `Bearer ${placeholder}`, "the status comes as a trailer, and no value in another");

const size = 8 << 20;
const big = await ask(session, { ":path": `/big?n=${size}` });
check(big.bytes === size, "a large answer comes whole");

const up = Buffer.alloc(size, "abc");
const sum = await ask(session, { ":path": "/sum", ":method": "POST" }, up);
check(sum.text === createHash("sha256").update(up).digest("hex"), "a large request goes whole");

const many = await Promise.all(Array.from({ length: 200 }, (_, i) => ask(session, { ":path": `/big?n=${i * 50}` })));
check(many.every((a, i) => a.bytes === i * 50), "200 requests at once, more than streams are allowed");

const other = await ask(session, { ":path": "/echo", ":authority": "evil.test", ...auth });
check(other.headers[":status"] === 421 && !other.text.includes(value), "another authority on this connection: 421");
const connectReply = await ask(session, { ":method": "POST", ":path": "/denied" });
check(connectReply.headers[":status"] === 403 && connectReply.text.includes("no rule"), "what no rule allows: 403 with the reason");
session.close();

const one = await new Promise((resolve, reject) => {
	https.get({ host: api, servername: "api.test", path: "/echo", ca, headers: { host: "api.test", ...auth } }, (res) => {
		let text = "";
		res.on("data", (d) => (text += d));
		res.on("end", () => resolve({ headers: res.headers, text }));
	}).on("error", reject);
});
check(one.headers["x-version"] === "1.1" && one.headers["x-saw-value"] === "true", "a client of HTTP/1.1 gets HTTP/1.1 on both sides");

const web = connect("x.svc.test", nginx);
web.on("error", (e) => console.log("  nginx session:", e.message));
const page = await ask(web, { ":path": "/echo", ...auth, "accept-encoding": "gzip, br" });
check(page.text === `nginx Bearer ${placeholder} HTTP/2.0`, `nginx: ${page.text}`);
const head = await ask(web, { ":method": "HEAD", ":path": "/echo" });
check(head.headers[":status"] === 200 && head.bytes === 0, "nginx: HEAD");
web.close();

console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
