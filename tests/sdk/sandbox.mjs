// SPDX-License-Identifier: Apache-2.0
// Sandbox and Client.sandboxes: create and connect with every option, life and end, environment, previews, error classes.
import { execFileSync } from "node:child_process";
import { inspect } from "node:util";
import * as sdk from "@deno/sandbox";
import { alone, assert, createSlowly, done, rejection, Sandbox, skip, sleep, test, until } from "./lib.mjs";

if (alone) await test("all of it", () => skip("needs a running system")).then(done);

const { Client } = sdk;
const env = process.env;
const ORG = env.NESTBOX_ORG ?? "demo";
const piped = { stdout: "piped", stderr: "piped" };
// The package prints what it throws as well.
console.error = console.debug = () => {};

const sandbox = await Sandbox.create({ labels: { suite: "sandbox", run: `r${Date.now()}` } });
const client = new Client();

await test("id, inspect, namespaces; what was not asked for is undefined", () => {
  assert.match(sandbox.id, /^sbx_[a-z]{3}_[0-9a-hjkmnp-z]{20}$/);
  assert.equal(inspect(sandbox), `Sandbox { id: '${sandbox.id}' }`);
  assert.equal(inspect([[[sandbox]]], { depth: 1 }), "[ [ [Array] ] ]");
  assert.equal(sandbox.ssh, undefined);
  assert.equal(sandbox.url, undefined);
  for (const space of [sandbox.fs, sandbox.deno, sandbox.env]) assert.equal(typeof space, "object");
  assert.throws(() => new Sandbox(), TypeError);
});

await test("create: env, memory, port, labels, region, endpoints and token given by hand", async () => {
  const [, region] = sandbox.id.split("_");
  await using s = await createSlowly({
    env: { NB_ONE: "1", NB_TWO: "zwei wörter" },
    memory: "1GiB",
    port: 8000,
    labels: { a: "1", b: "2", c: "3", d: "4", e: "5" },
    region,
    debug: false,
    token: env.DENO_DEPLOY_TOKEN,
    org: env.DENO_DEPLOY_ORG,
    apiEndpoint: env.DENO_DEPLOY_ENDPOINT,
    sandboxEndpoint: () => env.DENO_SANDBOX_ENDPOINT,
  });
  assert.equal(await s.sh`echo "$NB_ONE $NB_TWO"`.text(), "1 zwei wörter\n");
  const total = Number(/MemTotal:\s+(\d+)/.exec(await s.fs.readTextFile("/proc/meminfo"))[1]) / 1024;
  assert.ok(total > 850 && total <= 1024, `${total} MiB`);
  assert.match(s.url, /^https:\/\/[0-9a-z]{20}\./);
  assert.ok(inspect(s).includes(s.url));
  const listed = (await client.sandboxes.list({ labels: { a: "1", e: "5" } })).find((x) => x.id === s.id);
  assert.deepEqual(listed.labels, { a: "1", b: "2", c: "3", d: "4", e: "5" });
  assert.equal(listed.status, "running");
  assert.ok(listed.createdAt instanceof Date && listed.stoppedAt === null && listed.region === region);
  // Nothing listens on 8000 yet; once something does, the same URL is its.
  const early = await fetch(s.url);
  await early.body?.cancel();
  assert.ok(early.status >= 500, `${early.status}`);
  const server = await s.deno.run({ code: `Deno.serve({ port: 8000 }, () => new Response("on 8000"))`, ...piped });
  await server.httpReady;
  assert.equal(await (await fetch(s.url)).text(), "on 8000");
}, 240_000);

await test("create: what the package itself refuses", async () => {
  for (const timeout of ["soon", "5h", "0s", "-1m", "xm"]) {
    assert.ok(await rejection(Sandbox.create({ timeout })) instanceof sdk.InvalidTimeoutError, timeout);
  }
  for (const memory of ["1TB", "lots", 1000, "767MiB", "5GiB"]) {
    assert.ok(await rejection(Sandbox.create({ memory })) instanceof sdk.InvalidMemoryError, String(memory));
  }
  assert.match((await rejection(Sandbox.create({ sandboxEndpoint: `${env.DENO_SANDBOX_ENDPOINT}/` }))).message, /should not end with/);
  assert.match((await rejection(Sandbox.create({ apiEndpoint: `${env.DENO_DEPLOY_ENDPOINT}/` }))).message, /should not end with/);
  assert.match((await rejection(Sandbox.create({ token: "ddp_personal", org: undefined }))).message, /no organization/);
  const kept = env.DENO_DEPLOY_TOKEN;
  delete env.DENO_DEPLOY_TOKEN;
  try {
    assert.ok(await rejection(Sandbox.create()) instanceof sdk.MissingTokenError);
    assert.throws(() => new Client(), sdk.MissingTokenError);
  } finally {
    env.DENO_DEPLOY_TOKEN = kept;
  }
});

await test("create: what the server refuses", async () => {
  const refused = async (options, status, code) => {
    const e = await rejection(Sandbox.create(options));
    assert.ok(e instanceof sdk.ConnectionEstablishmentError && e instanceof sdk.SandboxSdkError, e.stack);
    assert.deepEqual([e.status, e.code], [status, code]);
    assert.ok(e.traceId && e.message.includes(e.traceId));
  };
  await refused({ labels: { a: "1", b: "2", c: "3", d: "4", e: "5", f: "6" } }, 400, "INVALID_LABELS");
  await refused({ volumes: { "/data": "no-such-volume" } }, 404, "VOLUME_NOT_FOUND");
  await refused({ root: "no-such-root" }, 404, "VOLUME_NOT_FOUND");
  await refused({ allowNet: ["https://example.com"] }, 400, "INVALID_CONFIG");
  await refused({ secrets: { "NOT A NAME": { hosts: ["example.com"], value: "x" } } }, 400, "INVALID_CONFIG");
  assert.ok(await rejection(Sandbox.create({ token: "ddo_wrong" })) instanceof sdk.InvalidTokenError);
  assert.ok(await rejection(Sandbox.connect({ id: sandbox.id, token: "ddo_wrong" })) instanceof sdk.InvalidTokenError);
  await rejection(Sandbox.create({ sandboxEndpoint: "https://127.0.0.1:1" }));
});

await test("create: allowNet and secrets are in force", async () => {
  await using s = await Sandbox.create({
    allowNet: ["allowed.example"],
    secrets: { NB_KEY: { hosts: ["api.example"], value: "the-real-value" } },
  });
  assert.notEqual(await s.sh`echo $NB_KEY`.text(), "\n");
  assert.doesNotMatch(await s.sh`env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' || true`.text(), /the-real-value/);
  assert.notEqual((await s.sh`getent hosts forbidden.example`.noThrow()).status.code, 0);
  const e = await rejection(s.fetch("http://forbidden.example/"));
  assert.ok(e instanceof TypeError, e.stack);
});

/** Without an endpoint the package makes one of the region and this variable. */
function byBaseDomain() {
  const endpoint = env.DENO_SANDBOX_ENDPOINT;
  delete env.DENO_SANDBOX_ENDPOINT;
  env.DENO_SANDBOX_BASE_DOMAIN = endpoint.replace(/^https:\/\/api\./, "");
  try {
    return Sandbox.connect(sandbox.id);
  } finally {
    delete env.DENO_SANDBOX_BASE_DOMAIN;
    env.DENO_SANDBOX_ENDPOINT = endpoint;
  }
}

await test("connect: by id, by options, many at once; what one does the others see", async () => {
  const others = await Promise.all([
    Sandbox.connect(sandbox.id),
    Sandbox.connect(sandbox.id, { debug: false, org: undefined, apiEndpoint: env.DENO_DEPLOY_ENDPOINT }),
    Sandbox.connect({ id: sandbox.id, token: env.DENO_DEPLOY_TOKEN, sandboxEndpoint: env.DENO_SANDBOX_ENDPOINT }),
    client.sandboxes.connect(sandbox.id, {}),
    byBaseDomain(),
    ...Array.from({ length: 8 }, () => Sandbox.connect(sandbox.id)),
  ]);
  await Promise.all(others.map((o, i) => o.fs.writeTextFile(`c${i}`, `${i}`)));
  assert.deepEqual(await Promise.all(others.map((_, i) => sandbox.fs.readTextFile(`c${i}`))), others.map((_, i) => `${i}`));
  await others[0].env.set("NB_SHARED", "yes");
  assert.equal(await others[5].env.get("NB_SHARED"), "yes");
  // close() is the end of one connection only.
  await Promise.all(others.slice(1).map((o) => o.close()));
  assert.equal(await others[0].sh`echo $NB_SHARED`.text(), "yes\n");
  await others[0].close();
  await others[0].closed;
  assert.ok(await rejection(others[0].fs.stat("/")) instanceof sdk.ConnectionClosedError);
  assert.equal(await sandbox.env.get("NB_SHARED"), "yes");
  for (const id of [`${sandbox.id.slice(0, 8)}${"0".repeat(20)}`]) {
    assert.equal((await rejection(Sandbox.connect(id))).code, "SANDBOX_NOT_FOUND");
  }
  assert.throws(() => Sandbox.connect("no id"));
});

await test("env: get, set, delete, toObject", async () => {
  assert.equal(await sandbox.env.get("NB_NO"), undefined);
  for (const value of ["", "a=b", "zwei\nZeilen", "ä\u{1F600}", "x".repeat(100_000)]) {
    await sandbox.env.set("NB_E", value);
    assert.equal(await sandbox.env.get("NB_E"), value);
  }
  const all = await sandbox.env.toObject();
  assert.equal(all.NB_E.length, 100_000);
  assert.ok(all.HOME === "/home/app" && all.PATH && all.DENO_DEPLOY_ORGANIZATION_ID);
  await sandbox.env.delete("NB_E");
  await sandbox.env.delete("NB_E");
  assert.equal((await sandbox.env.toObject()).NB_E, undefined);
  // What no environment can hold is refused in Deno's words.
  for (const [bad, why] of [["", "Key is an empty string."], ["a=b", 'Key contains invalid characters: "a=b"'], ["a\0\"b", 'Key contains invalid characters: "a\\0\\"b"']]) {
    for (const call of [sandbox.env.get(bad), sandbox.env.set(bad, "x"), sandbox.env.delete(bad)]) {
      const e = await rejection(call);
      assert.ok(e instanceof TypeError, e.stack);
      assert.equal(e.message, why);
    }
  }
  assert.equal((await rejection(sandbox.env.set("NB_E", "a\0b"))).message, 'Value contains invalid characters: "a\\0b"');
});

await test("a session ends with its creator's connection; calls under way are told", async () => {
  const s = await Sandbox.create();
  const other = await Sandbox.connect(s.id);
  const slow = rejection((await s.spawn("sleep", { args: ["1000"], ...piped })).status);
  const told = rejection(other.fs.readFile("/dev/random")); // never ends
  await s.close();
  assert.ok(await slow instanceof sdk.ConnectionClosedError);
  await other.closed;
  const e = await told;
  assert.ok(e instanceof sdk.ConnectionClosedError, e.stack);
  assert.equal(typeof e.code, "number");
  const gone = await until(async () => (await client.sandboxes.list()).find((x) => x.id === s.id && x.status === "stopped"), 30_000);
  assert.ok(gone.stoppedAt instanceof Date);
  assert.ok(await rejection(Sandbox.connect(s.id)) instanceof sdk.ConnectionEstablishmentError);
}, 90_000);

await test("a timeout outlives the connection; extendTimeout moves it; kill ends it", async () => {
  const s = await client.sandboxes.create({ timeout: "300s", memory: 1e9 }); // bytes; of the size that was made above
  await s.fs.writeTextFile("kept", "here");
  await s.close();
  const again = await Sandbox.connect({ id: s.id });
  assert.equal(await again.fs.readTextFile("kept"), "here");
  const total = Number(/MemTotal:\s+(\d+)/.exec(await again.fs.readTextFile("/proc/meminfo"))[1]) / 1024;
  assert.ok(total > 850 && total <= 1024, `${total} MiB`);
  for (const [by, ms] of [["10m", 600_000], ["700s", 700_000]]) {
    const at = await again.extendTimeout(by);
    assert.ok(at instanceof Date && Math.abs(+at - Date.now() - ms) < 20_000, `${at}`);
  }
  assert.ok(await rejection(again.extendTimeout("session")) instanceof sdk.InvalidTimeoutError);
  await again.kill();
  await again.closed;
  assert.ok(await rejection(again.fs.stat("/")) instanceof sdk.ConnectionClosedError);
  await again.kill(); // it is what was wanted
}, 90_000);

await test("kill and extendTimeout by one who may no longer", async () => {
  const { NESTBOX_PREFIX, NESTBOX_CONF } = env;
  if (!NESTBOX_CONF) skip("needs nestboxadm");
  const adm = (...args) => execFileSync(`${NESTBOX_PREFIX}/sbin/nestboxadm`, ["-c", NESTBOX_CONF, "--json", ...args], { encoding: "utf8" });
  const token = /ddo_[0-9a-z]+/.exec(adm("token", "create", "--org", ORG, "--name", "short-lived"))[0];
  const guest = await Sandbox.connect({ id: sandbox.id, token });
  const { id } = JSON.parse(adm("token", "list", "--org", ORG)).find((t) => t.name === "short-lived" && !t.revoked);
  adm("token", "revoke", String(id));
  const e = await rejection(guest.kill());
  assert.ok(e instanceof sdk.SandboxKillError && e instanceof sdk.SandboxSdkError, e.stack);
  assert.equal(e.status, 401);
  assert.match(e.response, /INVALID_TOKEN/);
  assert.match((await rejection(guest.extendTimeout("5m"))).message, /Failed to extend timeout: 401 /);
  await guest.close();
  // A person's token names the organization as well.
  assert.match((await rejection(Sandbox.create({ token: "ddp_wrong", org: ORG }))).message, /token is invalid/);
  const personal = /ddp_[0-9a-z]+/.exec(adm("token", "create", "--personal", "--org", ORG))[0];
  await using mine = await Sandbox.connect({ id: sandbox.id, token: personal, org: ORG });
  assert.equal(await mine.env.get("HOME"), "/home/app");
  assert.equal((await rejection(Sandbox.connect({ id: sandbox.id, token: personal, org: "no-such-org" }))).code, "ORG_NOT_FOUND");
});

await test("a timeout ends the sandbox and its connections", async () => {
  const s = await Sandbox.create({ timeout: "8s" });
  const began = Date.now();
  await s.closed;
  assert.ok(Date.now() - began < 40_000, "long after the time");
  assert.ok(await rejection(s.fs.stat("/")) instanceof sdk.ConnectionClosedError);
}, 90_000);

await test("await using closes, also when the block throws", async () => {
  let kept;
  const e = await rejection((async () => {
    await using s = await Sandbox.connect(sandbox.id);
    kept = s;
    throw new Error("out");
  })());
  assert.equal(e.message, "out");
  assert.ok(await rejection(kept.env.get("HOME")) instanceof sdk.ConnectionClosedError);
});

// --- previews -------------------------------------------------------------------------------------------------------

const SERVER = `
const name = Deno.args[0];
Deno.serve({ port: Number(Deno.args[1] ?? 0), onListen() {} }, (req) => {
  const url = new URL(req.url);
  if (url.pathname === "/ws") {
    const { socket, response } = Deno.upgradeWebSocket(req, { protocol: "chat" });
    socket.onmessage = (e) => socket.send(typeof e.data === "string" ? name + ":" + e.data : e.data);
    return response;
  }
  if (url.pathname === "/sse") {
    let i = 0, timer;
    return new Response(new ReadableStream({
      start(c) { timer = setInterval(() => c.enqueue(new TextEncoder().encode("data: " + i++ + "\\n\\n")), 100); },
      cancel() { clearInterval(timer); console.log("sse left"); },
    }), { headers: { "content-type": "text/event-stream" } });
  }
  if (url.pathname === "/echo") return new Response(req.body, { headers: { "x-method": req.method, "x-q": url.search } });
  return new Response(name);
});`;

async function serve(name, port) {
  const child = await sandbox.deno.run({ code: SERVER, scriptArgs: [name, ...(port ? [String(port)] : [])], ...piped });
  return child;
}
const get = async (url) => await (await fetch(url)).text();

await test("exposeHttp: by port and by process, before and after they listen, several at once", async () => {
  const before = await sandbox.exposeHttp({ port: 9101 });
  const one = await serve("one", 9101);
  const byPid = await sandbox.exposeHttp({ pid: one.pid });
  const two = await serve("two");
  const byProcess = await sandbox.exposeHttp(two);
  assert.ok(await one.httpReady && await two.httpReady);
  const urls = [before, byPid, byProcess];
  assert.equal(new Set(urls).size, 3);
  assert.deepEqual(await Promise.all(urls.map(get)), ["one", "one", "two"]);
  const many = await Promise.all(Array.from({ length: 12 }, (_, i) => get(urls[i % 3])));
  assert.deepEqual(many, many.map((_, i) => ["one", "one", "two"][i % 3]));

  const body = new Uint8Array(3_000_000).map((_, i) => i * 7);
  const echo = await fetch(`${byProcess}/echo?a=b%20c`, { method: "PUT", body });
  assert.deepEqual([echo.headers.get("x-method"), echo.headers.get("x-q")], ["PUT", "?a=b%20c"]);
  assert.deepEqual(new Uint8Array(await echo.arrayBuffer()), body);

  const events = (await fetch(`${byPid}/sse`)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (!text.includes("data: 3")) text += (await events.read()).value;
  await events.cancel();

  await Promise.all([before, byProcess].map(async (url, i) => {
    const ws = new WebSocket(`${url.replace("https", "wss")}/ws`, ["chat"]);
    ws.binaryType = "arraybuffer";
    const message = () => new Promise((resolve, reject) => {
      ws.onmessage = (e) => resolve(e.data);
      ws.onerror = ws.onclose = (e) => reject(new Error(e.message ?? e.type));
    });
    await new Promise((resolve, reject) => {
      ws.onopen = resolve;
      ws.onerror = (e) => reject(new Error(e.message ?? "no WebSocket"));
    });
    assert.equal(ws.protocol, "chat");
    let next = message();
    ws.send("hé");
    assert.equal(await next, `${["one", "two"][i]}:hé`);
    next = message();
    ws.send(new Uint8Array(200_000).fill(i + 1));
    assert.deepEqual(new Uint8Array(await next), new Uint8Array(200_000).fill(i + 1));
    const closed = new Promise((resolve) => ws.onclose = resolve);
    ws.close(1000);
    await closed;
  }));

  // A process that has ended has no service; the port's next owner has.
  await one.kill();
  await one.status;
  assert.ok((await fetch(before)).status >= 500);
  const next = await serve("three", 9101);
  await next.httpReady;
  assert.equal(await get(before), "three");
  await Promise.all([next.kill(), two.kill()]);
}, 180_000);

await test("exposeHttp: refusals", async () => {
  for (const port of [0, 65536, 1.5]) await rejection(sandbox.exposeHttp({ port }));
  assert.equal((await rejection(sandbox.exposeHttp({ pid: 999_999 }))).code, "ENOENT");
});

await test("ssh: access for whoever knows the name, or a clear refusal", async () => {
  const refused = (e) => {
    if (/NOT_SUPPORTED/.test(e.message)) skip("the host has no SSH gateway");
    throw e;
  };
  const { hostname, username } = await sandbox.exposeSsh().catch(refused);
  assert.ok(hostname && username);
  await using s = await Sandbox.create({ ssh: true });
  assert.ok(s.ssh.hostname && s.ssh.username && inspect(s).includes(s.ssh.username));
});

await test("exposeVscode says what is missing", async () => {
  assert.ok(await rejection(sandbox.exposeVscode("/")) instanceof TypeError);
  assert.match((await rejection(sandbox.exposeVscode("/home/app", {
    env: { A: "1" }, extensions: ["denoland.vscode-deno"], preview: "http://localhost:8000", disableStopButton: true,
    editorSettings: { "editor.tabSize": 2 },
  }))).message, /code-server/);
});

await test("errors of the protocol", async () => {
  // What the package's own types forbid reaches the server from programs without them.
  const e = await rejection(sandbox.spawn("true", { stdout: "piped", stderr: "piped", args: ["x".repeat(4_000_000)] }));
  assert.equal(e.code, "E2BIG", e.stack);
  assert.ok(await rejection(sandbox.deno.run({ code: "1", stdout: "piped", stderr: "piped", cwd: "/no/such" })) instanceof Error);
  const rpc = await rejection(sandbox.deno.run({ entrypoint: "x.ts", watch: ["x".repeat(10_000)] }));
  assert.ok(rpc instanceof sdk.RpcError && rpc instanceof sdk.SandboxSdkError, rpc.stack);
  assert.equal(rpc.code, -32602);
  const down = new Client({ token: "ddo_x", apiEndpoint: "http://127.0.0.1:1" });
  assert.ok(await rejection(down.apps.list()) instanceof sdk.NetworkError);
  assert.ok(await rejection(new Client({ token: "ddo_wrong" }).apps.list()) instanceof sdk.ApiError);
});

await sandbox.close();
await done();
