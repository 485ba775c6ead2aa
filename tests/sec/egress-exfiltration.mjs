// SPDX-License-Identifier: Apache-2.0
// A server that sends a secret back in every way that servers are known to; no form of it reaches the guest.
import { assert, done, Sandbox, until } from "../sdk/lib.mjs";
import { ledger, PATIENCE_MS, test, World } from "./lib-egress.mjs";

const world = await World.start();
const VALUE = "sk-echo-8Hn4Wd0sJp6Rk2Ty";
const sandbox = await Sandbox.create({
  timeout: "10m",
  allowNet: ["api.egress.test"],
  secrets: { API_KEY: { hosts: ["api.egress.test"], value: VALUE } },
});

/** The value as it is, percent-encoded, backwards, in hexadecimal, and in base64 at each alignment. */
const forms = [VALUE, encodeURIComponent(VALUE), [...VALUE].reverse().join(""), Buffer.from(VALUE).toString("hex")];
for (let i = 0; i < 3; i++) forms.push(Buffer.from(" ".repeat(i) + VALUE).toString("base64").slice(i ? 4 : 0, -4));
const clean = (text) => {
  for (const f of forms) assert.ok(!text.includes(f), `the guest was given ${f} in ${text.slice(0, 300)}`);
};
const get = (path, more = "") => sandbox.sh`bash -c ${`curl -sS -i -m 90 ${more} -H "x-key: $API_KEY" https://api.egress.test${path}; echo " [$?]"`}`.text();
const placeholder = (await sandbox.sh`bash -c ${"echo $API_KEY"}`.text()).trim();

for (const path of ["/echo", "/split", "/header", "/error", "/har", "/length", "/base64", "/redirect", "/events"])
  await test(`${path}: the placeholder comes back instead`, async () => {
    await world.clear();
    const text = await get(path);
    clean(text);
    assert.equal((await world.seen()).requests[0].headers["x-key"], VALUE, "the server had it");
    if (path !== "/base64") assert.ok(text.includes(placeholder), text);
    const r = await until(async () => (await ledger(sandbox.id)).findLast((x) => x.path === path && x.method), PATIENCE_MS);
    assert.equal(r.reason, "the answer held a secret; its placeholder was put back");
    assert.equal(r.secret, "API_KEY");
  });

for (const path of ["/gzip", "/brotli"])
  await test(`${path}: what cannot be searched does not come in`, async () => {
    const text = await get(path, "--compressed");
    clean(text);
    assert.match(text, / 502 /);
    const r = await until(async () => (await ledger(sandbox.id)).findLast((x) => x.path === path && x.method), PATIENCE_MS);
    assert.equal(r.decision, "error");
    assert.match(r.reason, /compressed/);
  });

await test("/trailer: trailers do not come in with a value", async () => clean(await get("/trailer")));

await test("Basic credentials", async () => {
  await world.clear();
  clean(await sandbox.sh`bash -c ${'curl -sS -i -m 90 -u "user:$API_KEY" https://api.egress.test/echo'}`.text());
  assert.equal(Buffer.from((await world.seen()).requests[0].headers.authorization.slice(6), "base64").toString(), `user:${VALUE}`);
});

await test("a WebSocket that sends it back", async () => {
  await sandbox.fs.writeTextFile("/tmp/ws.py", `
import os, socket, ssl
s = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt").wrap_socket(socket.create_connection(("api.egress.test", 443), 90), server_hostname="api.egress.test")
s.settimeout(90)
s.sendall(("GET /ws HTTP/1.1\\r\\nHost: api.egress.test\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\n"
           "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\\r\\nx-key: " + os.environ["API_KEY"] + "\\r\\n\\r\\n").encode())
got = b""
try:
    # The answer's head and one message.
    while (at := got.find(b"\\r\\n\\r\\n") + 4) < 4 or len(got) < at + 2 or len(got) < at + 2 + (got[at + 1] & 127):
        d = s.recv(4000)
        if not d: break
        got += d
except OSError: pass
print(got)
`);
  const text = await sandbox.sh`python3 /tmp/ws.py`.text();
  clean(text);
  assert.ok(text.includes(placeholder), text);
});

await test("HTTP/2, where the client wants it", async () => {
  await world.clear();
  const text = await sandbox.sh`bash -c ${'curl --http2 -sS -i -m 90 -H "x-key: $API_KEY" https://api.egress.test/echo'}`.text();
  clean(text);
  assert.ok(text.includes(placeholder), text);
});

await test("not one byte of it in the ledger", async () => clean(JSON.stringify(await ledger(sandbox.id))));

await sandbox.kill();
await world.stop();
await done();
