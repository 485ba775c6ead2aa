// SPDX-License-Identifier: Apache-2.0
// egress-world.mjs CERTS: the internet as tests/sec/egress*.mjs know it. Runs in a network namespace of the test's own. A name server
// for the zone egress.test, HTTPS servers with certificates good and bad, echoing in every way a value could come back. One JSON
// command a line on stdin, one JSON answer a line on stdout; ends with its stdin.
import { createSocket } from "node:dgram";
import { readFileSync } from "node:fs";
import http from "node:http";
import http2 from "node:http2";
import https from "node:https";
import net from "node:net";
import { createInterface } from "node:readline";
import { createServer as createTlsServer, TLSSocket } from "node:tls";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { createHash } from "node:crypto";

const certs = process.argv[2];
export const NET = "10.199.77";
const A = (n) => `${NET}.${n}`;
const zone = {
  "api.egress.test": A(10), "other.egress.test": A(10), "web.egress.test": A(10), "files.egress.test": A(16),
  "expired.egress.test": A(11), "selfsigned.egress.test": A(12), "wrongname.egress.test": A(13),
  // HTTP/2, one server and one certificate for both.
  "h2.egress.test": A(15), "h2other.egress.test": A(15),
  // Those with a bad certificate, for a secret that is bound to them.
  "kexpired.egress.test": A(11), "kselfsigned.egress.test": A(12), "kwrongname.egress.test": A(13),
  "sqlexpired.egress.test": A(11), "sqlselfsigned.egress.test": A(12), "sqlwrongname.egress.test": A(13),
  // Servers of tests/lib/egress-servers.mjs.
  "nginx.egress.test": A(17), "knginx.egress.test": A(17), "deno.egress.test": A(18), "kdeno.egress.test": A(18), "pg.egress.test": A(19), "ssh.egress.test": A(20),
  "raw.egress.test": A(14), "hole.egress.test": A(10), "refused.egress.test": A(10),
  "meta.egress.test": "169.254.169.254", "loop.egress.test": "127.0.0.1", "private.egress.test": "10.9.0.5",
  "host.egress.test": A(1), "fake.egress.test": "198.18.0.1", "cgnat.egress.test": "100.64.0.1",
};
let questions = [], requests = [], connections = [], rebinds = 0;

// --- names ---
function dnsAnswer(msg) {
  const labels = [];
  let at = 12;
  while (msg[at]) { labels.push(msg.toString("latin1", at + 1, at + 1 + msg[at])); at += 1 + msg[at]; }
  const end = at + 5, type = msg.readUInt16BE(at + 1), name = labels.join(".").toLowerCase();
  questions.push({ name, type });
  if (name === "silent.egress.test") return null;
  let addr = zone[name];
  if (name === "rebind.egress.test" && type === 1) addr = rebinds++ % 2 ? "127.0.0.1" : A(10);
  if (name.endsWith(".tunnel.egress.test")) addr = A(10);
  const out = Buffer.from(msg.subarray(0, end));
  out.writeUInt16BE(0x8580 | (addr ? 0 : 3), 2);
  out.writeUInt16BE(0, 8); out.writeUInt16BE(0, 10);
  out.writeUInt16BE(addr && type === 1 ? 1 : 0, 6);
  if (!addr || type !== 1) return out;
  return Buffer.concat([out, Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, ...addr.split(".").map(Number)])]);
}
const dns = createSocket("udp4");
dns.on("message", (msg, from) => {
  const out = dnsAnswer(msg);
  if (out) dns.send(out, from.port, from.address);
});

// --- HTTP ---
async function handle(req, res) {
  const chunks = [];
  try {
    for await (const c of req) chunks.push(c);
  } catch {
    requests.push({ server: req.socket.localAddress, method: req.method, url: req.url, headers: req.headers, cut: true });
    return;
  }
  const body = Buffer.concat(chunks).toString("latin1");
  const server = req.socket.localAddress;
  requests.push({ server, port: req.socket.localPort, sni: req.socket.servername, method: req.method, url: req.url,
    headers: req.headers, raw: req.rawHeaders, body });
  const value = req.headers["x-key"] ?? req.headers.authorization ?? "nothing";
  const bare = value.replace(/^Bearer /, "");
  const path = req.url.split("?")[0];
  const text = (s, headers = {}) => { res.writeHead(200, { "content-type": "text/plain", ...headers }); res.end(s); };
  switch (path) {
    case "/echo": return text(JSON.stringify({ method: req.method, url: req.url, headers: req.headers, body }));
    case "/gzip": return text(gzipSync(`value: ${value}\n`), { "content-encoding": "gzip" });
    case "/brotli": return text(brotliCompressSync(Buffer.from(`value: ${value}\n`)), { "content-encoding": "br" });
    case "/header": return text("in a header\n", { "x-echo": value });
    case "/redirect": res.writeHead(302, { location: `https://api.egress.test/landing?key=${encodeURIComponent(bare)}` }); return res.end();
    case "/base64": return text(["", " ", "  "].map((p) => Buffer.from(p + value).toString("base64")).join("\n"));
    case "/error": res.writeHead(500, { "content-type": "text/html" }); return res.end(`<h1>500</h1><pre>bad key '${value}'</pre>`);
    case "/har": return text(JSON.stringify({ log: { entries: [{ request: { headers: Object.entries(req.headers)
      .map(([name, v]) => ({ name, value: v })) } }] } }), { "content-type": "application/json" });
    case "/split": {
      res.writeHead(200, { "content-type": "text/plain" });
      for (const c of `value: ${value} end\n`) { res.write(c); await new Promise((r) => setTimeout(r, 2)); }
      return res.end();
    }
    case "/trailer":
      res.writeHead(200, { trailer: "x-late", "transfer-encoding": "chunked" });
      res.write("body\n"); res.addTrailers({ "x-late": value }); return res.end();
    case "/length": return text(`${value}\n`, { "content-length": Buffer.byteLength(`${value}\n`) });
    case "/big": return text("0123456789abcdef".repeat(65536));
    case "/events":
      res.writeHead(200, { "content-type": "text/event-stream" });
      res.write(`data: one ${value}\n\n`); return res.end("data: two\n\n");
    default: return text(`${path} of ${req.headers.host}\n`);
  }
}
function upgrade(req, socket) {
  requests.push({ server: socket.localAddress, method: req.method, url: req.url, headers: req.headers, upgrade: true });
  const accept = createHash("sha1").update(`${req.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
  const value = Buffer.from(req.headers["x-key"] ?? req.headers.authorization ?? "nothing");
  socket.write(Buffer.concat([Buffer.from([0x81, value.length]), value]));
  socket.on("data", (d) => socket.write(d));
  socket.on("error", () => {});
}
function h2Handle(stream, headers) {
  const parts = [];
  const row = { server: A(15), h2: true, sni: stream.session.socket.servername, method: headers[":method"], url: headers[":path"], headers, raw: [] };
  stream.on("error", () => {});
  stream.on("data", (d) => parts.push(d));
  stream.on("trailers", (t) => row.trailers = t);
  stream.on("end", () => {
    row.body = Buffer.concat(parts).toString("latin1");
    requests.push(row);
    if (stream.destroyed) return;
    const late = headers[":path"] === "/trailer";
    stream.respond({ ":status": 200, "content-type": "application/json" }, { waitForTrailers: late });
    if (late) stream.on("wantTrailers", () => stream.sendTrailers({ "x-late": headers["x-key"] ?? "none" }));
    stream.end(JSON.stringify({ url: headers[":path"], authority: headers[":authority"], key: late ? undefined : headers["x-key"] }));
  });
}
const listen = (server, port, host) => new Promise((ok, bad) => server.once("error", bad).listen({ port, host }, ok));
const tls = (name) => ({ key: readFileSync(`${certs}/${name}.key`), cert: readFileSync(`${certs}/${name}.pem`) });
process.on("uncaughtException", (e) => console.error("world:", e.message));
async function web(cert, host) {
  const s = https.createServer({ ...tls(cert) }, handle);
  s.on("upgrade", upgrade);
  s.on("connection", () => connections.push(`${host}:443`));
  await listen(s, 443, host);
  s.on("tlsClientError", () => {});
}

/** As far as a PostgreSQL client goes before it knows the server: TLS after its request for it on 5432, at once on 5433. */
async function sql(cert, host) {
  const heard = () => requests.push({ server: host, url: "postgresql" });
  await listen(net.createServer((s) => s.on("error", () => {}).once("data", () => {
    s.write("S");
    new TLSSocket(s, { isServer: true, ...tls(cert) }).on("error", () => {}).on("data", heard);
  })), 5432, host);
  await listen(createTlsServer({ ...tls(cert) }, (s) => s.on("error", () => {}).on("data", heard)).on("tlsClientError", () => {}), 5433, host);
}

await new Promise((ok, bad) => dns.once("error", bad).bind(53, A(2), ok));
await web("good", A(10));
await web("expired", A(11));
await web("selfsigned", A(12));
await web("wrongname", A(13));
await sql("expired", A(11));
await sql("selfsigned", A(12));
await sql("wrongname", A(13));
const h2 = http2.createSecureServer({ ...tls("good"), allowHTTP1: false });
h2.on("stream", h2Handle);
h2.on("sessionError", () => {});
h2.on("connection", () => connections.push(`${A(15)}:443`));
await listen(h2, 443, A(15));
const plain = http.createServer(handle);
plain.on("upgrade", upgrade);
plain.on("connection", () => connections.push(`${A(10)}:80`));
await listen(plain, 80, A(10));
// Bytes as they are; 7001 takes connections and never says anything.
await listen(net.createServer((s) => { connections.push(`${A(14)}:7000`); s.on("error", () => {}); s.pipe(s); }), 7000, A(14));
await listen(net.createServer((s) => { connections.push(`${A(14)}:7001`); s.on("error", () => {}); s.resume(); }), 7001, A(14));

createInterface({ input: process.stdin }).on("line", (line) => {
  const { id, cmd } = JSON.parse(line);
  const out = { id, requests, questions, connections };
  if (cmd === "clear") { requests = []; questions = []; connections = []; }
  process.stdout.write(JSON.stringify(out) + "\n");
}).on("close", () => process.exit(0));
process.stdout.write(JSON.stringify({ id: 0, ready: true }) + "\n");
