// SPDX-License-Identifier: Apache-2.0
// The programs that people use, in a guest, through the proxy, to servers that people use: to a host whose TLS passes untouched, and to
// one whose TLS is ended for a secret. Each refuses a server whose certificate is not good.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Servers } from "../lib/egress-servers.mjs";
import { assert, done, Sandbox } from "../sdk/lib.mjs";
import { api, has, ledger, row, test, World } from "./lib-egress.mjs";

const OPEN = "nginx.egress.test", KEYED = "knginx.egress.test", VALUE = "sk-client-3Jq8Vn5Wc0Rt7Yb";
const bad = ["expired", "selfsigned", "wrongname"], badHosts = [...bad, ...bad.map((n) => `k${n}`)].map((n) => `${n}.egress.test`);
const certs = process.env.NESTBOX_EGRESS_CERTS;
const world = await World.start(certs);
const [servers, sandbox] = await Promise.all([
  Servers.start(world, certs, { open: OPEN, closed: KEYED, secret: VALUE }),
  Sandbox.create({
    timeout: "15m", memory: "1GiB",
    allowNet: ["*.egress.test"],
    secrets: { KEY: { hosts: [KEYED, "kdeno.egress.test", ...bad.map((n) => `k${n}.egress.test`)], value: VALUE } },
  }),
]);

// TLS of a database that is ended here: rules name its ports, as a secret is for 443.
const rules = bad.flatMap((n) => [5432, 5433].map((port) => ({ host: `sql${n}.egress.test:${port}` })));
const changed = await api(`/api/v2/sandboxes/${sandbox.id}/egress-policy`, { method: "PATCH", body: JSON.stringify({ egress: { rules } }) });
if (changed.status !== 200) throw new Error(changed.body);

// --- programs ---
const H = JSON.stringify([OPEN, KEYED]), B = JSON.stringify(badHosts), D = '["deno.egress.test", "kdeno.egress.test"]';
const files = {
  "/tmp/ca.pem": readFileSync(`${certs}/ca.pem`, "utf8"),
  "/tmp/deno.ts": `
const key = Deno.env.get("KEY")!;
for (const h of ${H}) {
  const r = await fetch("https://" + h + "/hello");
  console.log(h, r.status, (await r.text()).trim());
}
const r = await fetch("https://${KEYED}/key", { headers: { "x-key": key } });
console.log("key", r.status, (await r.text()).includes(key));
for (const h of ${D}) {
  const big = await (await fetch("https://" + h + "/post", { method: "POST", body: "x".repeat(300000), headers: { "x-key": key } })).json();
  console.log(h, big.method, big.length, big.key === key, (await (await fetch("https://" + h + "/stream")).text()).split("\\n").length);
}
for (const h of ${B}) console.log(h, await fetch("https://" + h + "/bad", { headers: { "x-key": key } }).then((r) => r.status, (e) => /certificate/.test(String(e) + e.cause) ? "refused" : String(e)));
`,
  "/tmp/node.mjs": `
import https from "node:https"; import http2 from "node:http2"; import { readFileSync } from "node:fs";
const key = process.env.KEY, text = async (s) => { let t = ""; for await (const c of s) t += c; return t.trim(); };
for (const h of ${H}) {
  const r = await fetch("https://" + h + "/hello");
  console.log("fetch", h, r.status, (await r.text()).trim());
  await new Promise((ok, no) => https.get("https://" + h + "/hello", async (r) => { console.log("https", h, r.statusCode, await text(r)); ok(); }).on("error", no));
  const c = http2.connect("https://" + h), s = c.request({ ":path": "/hello" });
  const head = new Promise((ok) => s.on("response", ok));
  console.log("http2", h, (await head)[":status"], await text(s));
  c.close();
}
const r = await fetch("https://${KEYED}/key", { headers: { "x-key": key } });
console.log("key", r.status, (await r.text()).includes(key));
for (const h of ${D}) {
  // The one of undici that Node has as its own takes headers.
  const w = new WebSocket("wss://" + h + "/ws", { headers: { "x-key": key } });
  const said = await new Promise((ok) => { w.onopen = () => w.send("hello"); w.onmessage = (e) => ok(e.data); w.onerror = (e) => ok("error " + e.message); });
  console.log("websocket", h, said === "hello with " + key ? "ok" : said);
  w.close();
}
for (const h of ${B}) console.log(h, await fetch("https://" + h + "/bad", { headers: { "x-key": key } }).then((r) => r.status, (e) => /CERT|SELF_SIGNED|SIGNATURE|UNABLE_TO/.test(e.cause?.code) ? "refused" : String(e.cause)));
`,
  // The npm package, newer than what Node has inside: HTTP/1.1, HTTP/2, and a request without fetch.
  "/tmp/undici/undici.mjs": `
import { Agent, fetch, request } from "undici";
const key = process.env.KEY, two = new Agent({ allowH2: true });
for (const h of ${H}) {
  console.log("fetch", h, (await (await fetch("https://" + h + "/hello")).text()).trim());
  console.log("h2", h, (await (await fetch("https://" + h + "/hello", { dispatcher: two })).text()).trim());
}
const r = await request("https://${KEYED}/key", { headers: { "x-key": key } });
console.log("key", r.statusCode, (await r.body.text()).includes(key));
for (const h of ${B}) console.log(h, await request("https://" + h + "/bad", { headers: { "x-key": key } }).then((r) => r.statusCode, (e) => /CERT|SELF_SIGNED|SIGNATURE|UNABLE_TO/.test(e.code) ? "refused" : String(e)));
process.exit(0);
`,
  "/tmp/t-requests.py": `
import os, requests
key = os.environ["KEY"]
s = requests.Session()
for h in ${H}: r = s.get("https://" + h + "/hello", timeout=120); print(h, r.status_code, r.text.strip())
r = s.get("https://${KEYED}/key", headers={"x-key": key}, timeout=120); print("key", r.status_code, key in r.text)
r = s.get("https://${KEYED}/private", auth=("user", key), timeout=120); print("basic", r.status_code, len(r.content))
for h in ${B}:
    try: print(h, s.get("https://" + h + "/bad", headers={"x-key": key}, timeout=120).status_code)
    except requests.exceptions.SSLError: print(h, "refused")
`,
  "/tmp/t-urllib.py": `
import os, ssl, urllib.error, urllib.request as u
key = os.environ["KEY"]
for h in ${H}:
    with u.urlopen("https://" + h + "/hello", timeout=120) as r: print(h, r.status, r.read().decode().strip())
with u.urlopen(u.Request("https://${KEYED}/key", headers={"x-key": key}), timeout=120) as r: print("key", r.status, key in r.read().decode())
for h in ${B}:
    try: print(h, u.urlopen(u.Request("https://" + h + "/bad", headers={"x-key": key}), timeout=120).status)
    except urllib.error.HTTPError as e: print(h, e.code)
    except urllib.error.URLError as e: print(h, "refused" if isinstance(e.reason, ssl.SSLCertVerificationError) else e)
`,
  "/tmp/ssh/key": servers.clientKey(), "/tmp/ssh/known": `ssh.egress.test ${servers.hostKey()}\n`,
};
const jobs = {
  deno: "DENO_NO_UPDATE_CHECK=1 deno run --quiet --no-lock --no-config --allow-net --allow-env /tmp/deno.ts",
  node: "node /tmp/node.mjs",
  requests: "python3 /tmp/t-requests.py",
  urllib: "python3 /tmp/t-urllib.py",
  // A registry for everything, and one for a scope.
  npm: `mkdir -p /tmp/npm && cd /tmp/npm && echo '{}' >package.json
  # In npm's files a password is in base64: that of the placeholder, as people would write the value's.
  printf 'registry=https://${KEYED}/npm/\\n//${KEYED}/npm/:username=user\\n//${KEYED}/npm/:_password=%s\\n@open:registry=https://${OPEN}/npm/\\nfetch-retries=0\\naudit=false\\ncache=/tmp/npm/cache\\n' "$(printf %s "$KEY" | base64 -w0)" >.npmrc
  npm install --loglevel=error nbtest-module @open/nbtest-module >log 2>&1 && node -p 'require("nbtest-module") + ", " + require("@open/nbtest-module")' || cat log
  for h in selfsigned kexpired; do
    { npm view nbtest-module --registry=https://$h.egress.test/npm/ --cache=/tmp/npm/$h >/dev/null 2>$h.err && echo $h installed || grep -oE 'E502|SELF_SIGNED_CERT_IN_CHAIN|UNABLE_TO_GET_ISSUER_CERT_LOCALLY|UNABLE_TO_VERIFY_LEAF_SIGNATURE' $h.err | head -n 1 | sed "s/^/$h /"; } &
  done | sort
  wait`,
  // One program for each way, as most of the time is its start.
  curl: `for v in --http1.1 --http2; do curl -sS -m 90 $v -w "%{url} %{http_version} %{http_code}\\n" https://${OPEN}/hello https://${KEYED}/hello; done
  curl -sS -m 90 -o /dev/null -o /dev/null -w "basic %{http_code}\\n" -u "user:$KEY" https://${KEYED}/private --next -sS -m 90 -o /dev/null -w "without %{http_code}\\n" -u user:nothing https://${KEYED}/private
  curl -sS -m 90 -H "x-key: $KEY" https://${KEYED}/key https://${OPEN}/key | sed "s/$KEY/placeholder/"
  curl -s -m 90 -H "x-key: $KEY" -w "%{url} %{exitcode} %{http_code}\\n" ${badHosts.map((h) => `-o /dev/null https://${h}/`).join(" ")}`,
  git: `cd /tmp && git config --global user.email a@b && git config --global user.name n
  git clone -q https://${OPEN}/git/repo.git open && cat open/file
  git clone -q https://user:$KEY@${KEYED}/git/repo.git keyed && cat keyed/file
  cd keyed && echo more >more && git add more && git commit -qm "from the guest" && git push -q origin HEAD:pushed && echo pushed
  GIT_SSH_COMMAND="ssh -i /tmp/ssh/key -o UserKnownHostsFile=/tmp/ssh/known -o StrictHostKeyChecking=yes -o BatchMode=yes" git clone -q ssh://root@ssh.egress.test/any /tmp/overssh && cat /tmp/overssh/file
  for h in expired.egress.test kwrongname.egress.test; do GIT_TERMINAL_PROMPT=0 git ls-remote https://user:$KEY@$h/repo.git 2>&1 | grep -oE 'error: 502|certificate' | head -n 1 | sed "s/^/$h /"; done`,
  psql: `export PGPASSWORD=pg-pass-word PGSSLROOTCERT=/tmp/ca.pem PGCONNECT_TIMEOUT=60
  psql -XAt "host=pg.egress.test user=tester dbname=postgres sslmode=verify-full" -c "create table t as select generate_series(1, 20000) n" -c "select sum(n), (select ssl from pg_stat_ssl where pid = pg_backend_pid()) from t" -c "select repeat('x', 300000)" | awk '{ print length($0) < 80 ? $0 : length($0) }'
  # A bad certificate: untouched, psql refuses it; where TLS is ended here, the request for it that comes first is no TLS, and without that the proxy refuses.
  bad() { { psql -XAt "host=$1 port=$2 user=tester dbname=postgres sslmode=verify-full $3" -c "select 1" 2>&1 | sed -nE 's/.* failed: //p' | head -n 1 | sed "s/^/$1 $2 /"; } & }
  : >/tmp/psql-bad
  for h in expired selfsigned wrongname; do bad $h.egress.test 5432; bad sql$h.egress.test 5433 sslnegotiation=direct; done >>/tmp/psql-bad
  bad sqlexpired.egress.test 5432 >>/tmp/psql-bad; wait; sort /tmp/psql-bad`,
  undici: `mkdir -p /tmp/undici/node_modules && cd /tmp/undici && tar -xf /tmp/undici.tar -C node_modules && node undici.mjs`,
  // Of the bad ones one after the other: six handshakes at once are too many for an emulated machine.
  apt: `export DEBIAN_FRONTEND=noninteractive
  printf 'machine ${KEYED} login user password %s\\n' "$KEY" | sudo tee /etc/apt/auth.conf.d/nbtest.conf >/dev/null
  o="-o Dir::Etc::sourceparts=- -o Acquire::Retries=0 -o APT::Sandbox::User=root"
  for h in ${OPEN} ${KEYED}; do
    echo "deb [trusted=yes] https://$h/apt ./" >/tmp/$h.list
    sudo -E apt-get -qq $o -o Dir::Etc::sourcelist=/tmp/$h.list update && sudo -E apt-get -qq $o -o Dir::Etc::sourcelist=/tmp/$h.list install --reinstall -y nbtest-hello >/tmp/apt-$h.log 2>&1 && cat /usr/share/nbtest/hello
    sudo dpkg --purge nbtest-hello >/dev/null 2>&1
  done
  for h in ${badHosts.join(" ")}; do echo "deb [trusted=yes] https://$h/apt ./"; done >/tmp/bad.list
  sudo -E apt-get $o -o Acquire::Queue-Mode=access -o Dir::Etc::sourcelist=/tmp/bad.list update 2>&1 | grep -oE '(Failed to fetch|Err:[0-9]+) https://[a-z.]+.*' | sort -u >/tmp/apt-bad
  sed -nE 's|Failed to fetch https://([a-z.]+)/.*(502\\|ertificate).*|\\1 \\2|p' /tmp/apt-bad; cat /tmp/apt-bad >&2`,
};

const first = ["npm", "git", "apt", "deno", "node"]; // what takes longest
const rank = (name) => (first.indexOf(name) + 99) % 99;
// Several at a time: each waits for the other side most of its own.
const results = {}, times = {};
await (async () => {
  const sh = async (script) => {
    const p = await sandbox.spawn("bash", { args: ["-c", `timeout 600 bash -c '${script.replaceAll("'", "'\\''")}'`], stdout: "piped", stderr: "piped" });
    const out = await p.output();
    return { out: out.stdoutText, err: out.stderrText };
  };
  await sandbox.fs.mkdir("/tmp/ssh");
  await sandbox.fs.mkdir("/tmp/undici");
  // From here: the guest reaches no registry.
  const modules = fileURLToPath(new URL("../node_modules", import.meta.url));
  await sandbox.fs.writeFile("/tmp/undici.tar", execFileSync("tar", ["-C", modules, "-cf", "-", "undici"], { maxBuffer: 1 << 26 }));
  for (const [path, text] of Object.entries(files)) await sandbox.fs.writeTextFile(path, text);
  const trust = await sh("chmod 600 /tmp/ssh/key; sudo sh -c 'cat /tmp/ca.pem >>/etc/ssl/certs/ca-certificates.crt' && echo ok");
  if (trust.out !== "ok\n") throw new Error(trust.err);
  const left = Object.keys(jobs).sort((a, b) => rank(a) - rank(b)).filter((n) => process.argv.length < 3 || process.argv.includes(n));
  const worker = async () => {
    for (let name; (name = left.shift());) {
      const t = Date.now();
      results[name] = await sh(jobs[name]);
      times[name] = ((Date.now() - t) / 1000).toFixed(1);
      if (process.env.NESTBOX_SHOW) console.log(`--- ${name} ${times[name]} s\n${results[name].out}${results[name].err}`);
    }
  };
  await Promise.all([worker(), worker()]);
})();

/** The lines that the program printed, in this order. */
const check = (name, want) => test(`${name}`, () => {
  if (process.argv.length > 2 && !results[name]) return;
  const lines = results[name].out.trim().split("\n");
  for (const [i, w] of want.entries())
    if (w instanceof RegExp) assert.match(lines[i] ?? "", w, results[name].out + results[name].err);
    else assert.equal(lines[i], w, results[name].out + results[name].err);
  assert.equal(lines.length, want.length, results[name].out + results[name].err);
  assert.ok(!results[name].out.includes(VALUE) && !results[name].err.includes(VALUE), "the value was shown");
});
// Untouched: the client itself refuses. Intercepted: the proxy does, and tells.
const refusals = (shown) => [...bad.map((n) => `${n}.egress.test refused`), ...bad.map((n) => `k${n}.egress.test ${shown}`)];

await check("deno", [...[OPEN, KEYED].map((h) => `${h} 200 hello from nginx, HTTP/2.0`), "key 200 true",
  "deno.egress.test POST 300000 true 51", "kdeno.egress.test POST 300000 true 51", ...refusals("502")]);
await check("node", [...[OPEN, KEYED].flatMap((h) => [`fetch ${h} 200 hello from nginx, HTTP/1.1`, `https ${h} 200 hello from nginx, HTTP/1.1`,
  `http2 ${h} 200 hello from nginx, HTTP/2.0`]), "key 200 true", "websocket deno.egress.test ok", "websocket kdeno.egress.test ok", ...refusals("502")]);
await check("requests", [...[OPEN, KEYED].map((h) => `${h} 200 hello from nginx, HTTP/1.1`), "key 200 True", "basic 200 300000", ...refusals("502")]);
await check("urllib", [...[OPEN, KEYED].map((h) => `${h} 200 hello from nginx, HTTP/1.1`), "key 200 True", ...refusals("502")]);
await check("npm", ["hello from a module, hello from a module", "kexpired E502", /^selfsigned (UNABLE|SELF)/]);
await check("curl", [...["1.1", "2"].flatMap((v) => [OPEN, KEYED].flatMap((h) => [`hello from nginx, HTTP/${v === "2" ? "2.0" : v}`, `https://${h}/hello ${v} 200`])),
  "basic 200", "without 401", "your key is placeholder", "wrong key", ...badHosts.map((h) => `https://${h}/ ${h.startsWith("k") ? "0 502" : "60 000"}`)]);
await check("git", ["hello from a repository", "hello from a repository", "pushed", "hello from a repository",
  "expired.egress.test certificate", "kwrongname.egress.test error: 502"]);
await check("undici", [...[OPEN, KEYED].flatMap((h) => [`fetch ${h} hello from nginx, HTTP/1.1`, `h2 ${h} hello from nginx, HTTP/2.0`]), "key 200 true", ...refusals("502")]);
await check("psql", ["SELECT 20000", "200010000|t", "300000", /^expired.egress.test 5432 .*certificate verify failed/, /^selfsigned.egress.test 5432 .*certificate verify failed/,
  /^sqlexpired.egress.test 5432 ./, ...bad.map((n) => new RegExp(`^sql${n}.egress.test 5433 .`)).sort(), /^wrongname.egress.test 5432 .*does not match host name/]);
await check("apt", ["hello from a package", "hello from a package",
  ...[...badHosts].sort().map((h) => `${h} ${h.startsWith("k") ? "502" : "ertificate"}`)]);

await test("what the servers saw: the value from its host's clients, the placeholder elsewhere", async () => {
  const rows = servers.nginxRows();
  const basic = `Basic ${Buffer.from(`user:${VALUE}`).toString("base64")}`;
  for (const agent of [/^curl/, /^git/, /^npm/, /^Debian APT/, /^python-requests/])
    assert.ok(has(rows, { name: KEYED, agent, authorization: basic, status: 200 }), `${agent} ${JSON.stringify(rows.filter((r) => agent.test(r.agent)), null, 1)}`);
  for (const agent of [/^Deno/, /^node/, /^Python-urllib/, /^python-requests/, /^curl/]) assert.ok(has(rows, { name: KEYED, agent, key: VALUE, status: 200 }), String(agent));
  for (const r of rows.filter((r) => r.name === OPEN)) assert.ok(!JSON.stringify(r).includes(VALUE) && !r.authorization.includes(basic), JSON.stringify(r));
  assert.ok(servers.denoRows.some((r) => r.host === "kdeno.egress.test" && r.key === VALUE && r.upgrade === "websocket"));
  for (const r of servers.denoRows.filter((r) => r.host === "deno.egress.test")) assert.ok(r.key === null || r.key.startsWith("nbs_"), JSON.stringify(r));
  assert.equal(servers.gitHead("pushed"), "from the guest");
  // Nothing was asked of a server whose certificate is bad.
  assert.deepEqual((await world.seen()).requests, []);
});

await test("what the ledger says", async () => {
  const K = { name: KEYED, port: 443, protocol: "https", decision: "allow", address: "10.199.77.17" };
  await row(sandbox.id, { ...K, path: "/key", status: 200, secret: "KEY" });
  const rows = await ledger(sandbox.id);
  for (const want of [{ ...K, method: "GET", path: "/npm/nbtest-module", status: 200, secret: "KEY" }, { ...K, path: "/apt/./Packages", status: 200, secret: "KEY" },
    { ...K, method: "POST", path: "/git/repo.git/git-receive-pack", status: 200, secret: "KEY" },
    { name: OPEN, port: 443, protocol: "tls", decision: "allow", bytes_in: /^\d{4,}$/ }, { name: "pg.egress.test", port: 5432, protocol: "tcp", decision: "allow" },
    { name: "ssh.egress.test", port: 22, protocol: "tcp", decision: "allow" }, { name: "kdeno.egress.test", path: "/ws", status: 101, secret: "KEY" },
    { name: "kexpired.egress.test", decision: "error", reason: /expired/, status: 502 }, { name: "kselfsigned.egress.test", decision: "error", status: 502 },
    { name: "kwrongname.egress.test", decision: "error", status: 502 }, { name: "expired.egress.test", port: 5432, protocol: "tcp", decision: "allow" },
    { name: "sqlexpired.egress.test", port: 5432, decision: "deny", reason: "not TLS where TLS is expected" }, { name: "sqlexpired.egress.test", port: 5433, protocol: "https", reason: /expired/ },
    { name: "sqlselfsigned.egress.test", port: 5433, protocol: "https", reason: /self-signed|issuer/ }, { name: "sqlwrongname.egress.test", port: 5433, protocol: "https", reason: /[Hh]ostname/ }])
    assert.ok(has(rows, want), `no row like ${JSON.stringify(want, (_, v) => v instanceof RegExp ? String(v) : v)}\n${rows.map((r) => JSON.stringify(r)).join("\n")}`);
  assert.ok(!JSON.stringify(rows).includes(VALUE));
});

console.log(`seconds: ${Object.entries(times).map(([n, t]) => `${n} ${t}`).join(", ")}`);
await sandbox.kill();
await servers.stop();
await world.stop();
await done();
