// SPDX-License-Identifier: Apache-2.0
// tests/lib/adversary.py as root in a guest: each attempt, what it came to there, what the ledger says of it, and that nothing
// reached a server or name server but what the policy allows.
import { globSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { assert, done, Sandbox, test, until } from "../sdk/lib.mjs";
import { has, ledger, World } from "./lib-egress.mjs";

const world = await World.start();
const VALUE = "adv-7Qm2xVb9Lr4TzKc1";
const names = ["h2", "h2other", "api", "other", "expired", "selfsigned", "wrongname", "meta", "loop", "private", "host", "fake", "cgnat", "rebind", "hole",
  "refused", "silent", "missing"].map((n) => `${n}.egress.test`);
const sandbox = await Sandbox.create({
  timeout: "15m",
  allowNet: [...names, "web.egress.test:80", "raw.egress.test:7000", "*.tunnel.egress.test"],
  secrets: { API_KEY: { hosts: ["api.egress.test", "h2.egress.test", "expired.egress.test", "selfsigned.egress.test", "wrongname.egress.test"], value: VALUE } },
});
// A neighbour has addresses that mean something only there.
const neighbour = await Sandbox.create({ timeout: "15m", allowNet: ["*.neighbour.test"] });
const theirs = (await neighbour.sh`for i in $(seq 60); do getent hosts n$i.neighbour.test; done`.text()).trim().split("\n").map((l) => l.split(" ")[0]).slice(-3);

const py = join(dirname(fileURLToPath(import.meta.url)), "../lib/adversary.py");
await sandbox.fs.writeTextFile("/tmp/adversary.py", readFileSync(py, "utf8"));
const child = await sandbox.spawn("sudo", { args: ["-E", "python3", "/tmp/adversary.py", theirs.join(","), ...process.argv.slice(2)], stdout: "piped", stderr: "piped" });
const output = await child.output();
const results = new Map(output.stdoutText.trim().split("\n").filter(Boolean).map((l) => JSON.parse(l)).map((r) => [r.name, r.result]));
const rows = await ledger(sandbox.id);
const seen = await world.seen(), strange = world.strange();
if (process.env.NESTBOX_SHOW) {
  console.log(output.stdoutText, output.stderrText, strange, JSON.stringify(seen.connections), JSON.stringify(seen.questions));
  for (const r of rows) console.log(JSON.stringify({ ...r, time: undefined, sandbox: undefined, org: undefined }));
  for (const r of seen.requests) console.log(JSON.stringify(r));
}

const S = "10.199.77.10", none = "no allow rule names it", api443 = { name: "api.egress.test", port: 443, protocol: "https" };
const h2 = { name: "h2.egress.test", port: 443, protocol: "https" };
const toName = (name, more) => ({ name: `${name}.egress.test`, ...more });
const toAddress = (address, port, rule) => ({ address, port, decision: "deny", rule });
const metadata = toAddress("169.254.169.254", 80, "link-local address");
const refused = (path, reason, status) => ({ ...api443, decision: "deny", path, reason, status });
const http = (status) => new RegExp(`^HTTP/1\\.1 ${status} `);
const denied = "HTTP/1.1 403 Forbidden", not_found = /^no such name 0(; no such name 0)*$/;
const bad = "HTTP/1.1 400 Bad Request", misdirected = "HTTP/1.1 421 Misdirected Request";
/** A row that so many attempts leave: by this one there are as many. */
const times = (n, row) => ({ times: n, row });
const h2refused = { ...h2, decision: "deny", reason: "malformed request" };
// name: [what it comes to in the guest, rows that it must leave; none: what is neither TCP nor a question to the proxy is dropped in the namespace]
const expected = {
  literal_address_of_an_allowed_name: ["reset", [toAddress(S, 443, none)]],
  literal_address_with_an_allowed_server_name: ["reset", [toAddress(S, 443, none)]],
  metadata_address: [denied, [metadata]], metadata_address_decimal: [denied, [metadata]], metadata_address_octal: [denied, [metadata]],
  metadata_address_hexadecimal: [denied, [metadata]], metadata_address_short: [denied, [metadata]], metadata_address_mapped: [denied, [metadata]],
  metadata_address_as_a_name: [not_found, [times(3, { protocol: "dns", decision: "deny", rule: "not a host name" })]],
  metadata_address_of_ipv6: ["no", []],
  the_gateway_itself: ["reset, reset, reset", [22, 8443, 15001].map((p) => toAddress("100.64.0.1", p, "shared (CGNAT) address"))],
  the_host_by_its_address: ["reset", [toAddress("10.199.77.1", 22, /private address|the host's own address/)]],
  names_of_forbidden_addresses: [{ meta: "reset", loop: "reset", private: "reset", host: "reset", fake: "reset", cgnat: "reset" }, [
    toName("meta", { decision: "deny", rule: "link-local address", address: "169.254.169.254" }), toName("loop", { decision: "deny", rule: "loopback address" }),
    toName("private", { decision: "deny", rule: "private address" }), toName("host", { decision: "deny", rule: /private address|the host's own address/, address: "10.199.77.1" }),
    toName("fake", { decision: "deny", rule: "benchmarking address" }), toName("cgnat", { decision: "deny", rule: "shared (CGNAT) address" })]],
  rebinding: [["reset", "reset", "reset"], [toName("rebind", { decision: "deny", rule: "loopback address", address: "127.0.0.1" })]],
  tunnel_in_refused_names: [["no such name 0"], [{ protocol: "dns", name: /^[a-z2-7]{32}\.\d\.evil\.test$/, decision: "deny", rule: none }]],
  tunnel_in_allowed_names: [["ok 0", "ok 1"], []],
  another_resolver: [not_found, [{ protocol: "dns", name: "stolen-data.evil.test", decision: "deny" }]],
  another_resolver_over_tcp: [not_found, [{ protocol: "dns", name: "stolen-tcp-data.evil.test", decision: "deny" }]],
  dns_over_tls: ["reset", [toAddress("8.8.8.8", 853, none)]],
  dns_over_https: ["reset; no such name", [toAddress("8.8.8.8", 443, none), { protocol: "dns", name: "dns.google", decision: "deny" }]],
  dns_on_another_port: ["refused", []],
  types_of_an_allowed_name: [(r) => /^198\.1[89]\./.test(r[1]) && r[28] === "ok 0" && r[65] === "ok 0" && r[64] === "ok 0" && r[16] === "ok 0", []],
  reverse: [["ok 1", "no such name 0", "no such name 0"], []],
  malformed_questions: [/^198\.1[89]\./, []],
  udp: [["refused"], []], ping: ["silence", []], other_protocols: ["sent", []],
  spoofed_sources: ["0", []], spoofed_hardware_address: ["0", []], other_interfaces: ["0", []],
  // The mapped address is IPv4: cut off, before or after the handshake was seen.
  ipv6: [(r) => r.slice(0, 3).join() === "0,no,no" && ["reset", "no"].includes(r[3]), [toAddress(S, 443, none)]],
  other_routes: [["no answer", "no answer", "no"], []],
  the_management_link: [(r) => r.every((x) => x.startsWith("agent") && /: (reset|end|no)$/.test(x)), []],
  fragments: [/^198\.1[89]\./, []],
  half_open_flood: ["works", []],
  guessed_synthetic_address: [/^reset; (reset|HTTP\/1\.1 403)/, [toAddress("198.18.77.77", 443, "synthetic address of no name")]],
  synthetic_address_of_another_sandbox: [["reset", "reset", "reset"], theirs.map((a) => toAddress(a, 443, "synthetic address of no name"))],
  another_server_name: ["reset", [toName("other", { decision: "deny", reason: "TLS server name is not the resolved name" })]],
  no_server_name: ["reset", [toName("other", { decision: "deny", reason: "no TLS server name" })]],
  no_tls: ["reset", [toName("other", { decision: "deny", reason: "not TLS where TLS is expected" })]],
  malformed_hello: ["reset", [toName("other", { decision: /deny|error/, reason: /ClientHello/ })]],
  server_name_with_an_end: ["reset", [toName("other", { decision: "deny", reason: /server name|ClientHello/ })]],
  encrypted_hello: ["an alert of the server", [toName("other", { decision: "allow", protocol: "tls", address: S })]],
  trickled_hello: ["cut", [toName("other", { decision: "error", reason: "no ClientHello in time" })]],
  trickled_request: ["held", [api443]],
  another_host: [misdirected, [refused("/fronted", "the Host header is not the connection's host", 421)]],
  two_hosts: [[misdirected, misdirected, bad], [refused("/h1", "not exactly one Host header", 421), refused("/h2", "not exactly one Host header", 421), refused(undefined, "malformed header", 400)]],
  no_host: [[misdirected, misdirected, misdirected], [refused("/h4", "not exactly one Host header", 421), refused("/h5", "not exactly one Host header", 421)]],
  host_with_a_port_and_others: [(r) => r.every((x) => /^HTTP\/1\.1 4/.test(x)), [refused("/h7", "the Host header is not the connection's host", 421)]],
  absolute_form: [(r) => [0, 1, 3].every((i) => /^HTTP\/1\.1 4/.test(r[i])), [..."124"].map((n) => refused(new RegExp(`/a${n}$`), "the target is not a path", 421))],
  connect: [/^HTTP\/1\.1 4.*; HTTP\/1\.1 4/, [{ ...api443, method: "CONNECT", decision: "deny" }]],
  trace: [/^HTTP\/1\.1 4/, [{ ...api443, method: "TRACE", decision: "deny" }]],
  cl_te: [bad, [refused(undefined, /Transfer-Encoding|framing|Content-Length/, 400)]],
  te_cl: [bad, [times(2, refused(undefined, "Transfer-Encoding that is not just chunked", 400))]],
  te_te: [(r) => r.every((x) => /^HTTP\/1\.1 4/.test(x)), [refused(undefined, "Transfer-Encoding that is not just chunked", 400)]],
  lengths: [(r) => r.every((x) => /^HTTP\/1\.1 4/.test(x)), [times(6, refused(undefined, "Content-Length is not one number", 400))]],
  chunks: [(r) => r.every((x) => !http(200).test(x)), [times(5, refused("/s5", "malformed chunk", undefined))]],
  line_ends: [(r) => r.slice(1).every((x) => !http(200).test(x)), [times(3, refused(undefined, "malformed first line", 400)), times(5, refused(undefined, "malformed header", 400))]],
  pipelined_to_another_host: [["HTTP/1.1 200 OK", misdirected], [{ ...api443, path: "/p1", decision: "allow" }, refused("/p2", "the Host header is not the connection's host", 421)]],
  upgrade_to_h2c: [(r) => !http(101).test(r), [{ ...api443, path: "/u1", decision: "allow", status: 200 }]],
  h2_preface_without_alpn: [(r) => !http(200).test(r), [times(4, refused(undefined, "malformed first line", 400))]],
  placeholder_to_another_host: [http(200), [toName("other", { protocol: "tls", decision: "allow", address: S })]],
  placeholder_over_plain_http: [http(200), [{ name: "web.egress.test", port: 80, protocol: "http", decision: "allow" }]],
  placeholder_in_odd_places: [http(200), [{ ...api443, path: "/odd", decision: "allow", reason: "a placeholder in the body, where it is not replaced" }]],
  secrets_and_bad_certificates: [(r) => Object.values(r).every((x) => http(502).test(x)), [
    toName("expired", { decision: "error", reason: /expired/, status: 502 }), toName("selfsigned", { decision: "error", reason: /issuer|self/, status: 502 }),
    toName("wrongname", { decision: "error", reason: /ostname|name/, status: 502 })]],
  h2_works: [["/one", "/two"], [{ ...h2, path: "/two", decision: "allow", status: 200, secret: "API_KEY" }]],
  h2_authority_of_another: [(r) => r.slice(0, 5).every((x) => !x.includes("url")) && JSON.parse(r[5]).url === "/after", [
    { ...h2, path: "/c1", decision: "deny", status: 421 }, { ...h2, path: "/c5", decision: "deny", status: 421 }, { ...h2, path: "/after", decision: "allow", status: 200 }]],
  h2_coalesced_by_server_name: ["reset", [{ name: h2.name, decision: "deny", reason: "TLS server name is not the resolved name" }]],
  h2_coalesced_by_address: ["reset", [toName("h2other", { decision: "deny", reason: "TLS server name is not the resolved name" })]],
  h2_two_authorities: [(r) => r.every((x) => !x.includes("url")), [{ ...h2, path: "/d3", decision: "deny", status: 421 }]],
  h2_connect: [(r) => r.every((x) => !x.includes("url")), [{ ...h2, method: "CONNECT", decision: "deny" }]],
  h2_scheme_and_path: [(r) => r.every((x) => !x.includes("url")), [{ ...h2, path: "/f1", decision: "deny", status: 400 }]],
  h2_to_h1_smuggling: [(r) => r.slice(0, 7).every((x) => !x.includes("url")) && JSON.parse(r[7]).url === "/after-g", [times(7, h2refused), { ...h2, path: "/after-g", decision: "allow", status: 200 }]],
  h2_trailers: [(r) => JSON.parse(r[0]).url === "/trailer", [{ ...h2, path: "/trailer", status: 200, secret: "API_KEY", reason: /held a secret/ }]],
  h2_placeholder_to_another: [true, [toName("h2other", { decision: "allow", protocol: "tls" })]],
  nobody_listens: ["reset", [toName("refused", { decision: "error", reason: "connection refused" })]],
  nobody_answers: ["reset", [toName("hole", { port: 9999, decision: "error", reason: "no answer" })]],
  name_server_is_silent: ["reset", [toName("silent", { decision: "error", reason: /did not answer|time/i })]],
  name_does_not_exist: ["reset", [toName("missing", { decision: "error", reason: /does not exist/ })]],
};
const only = process.argv.slice(2);
for (const [name, [want, wantRows]] of Object.entries(expected)) {
  if (only.length && !only.includes(name)) continue;
  await test(name, () => {
    assert.ok(results.has(name), `no result; the program said ${output.stderrText.slice(-500)}`);
    const got = results.get(name);
    if (want instanceof RegExp) assert.match(String(got), want);
    else if (typeof want === "function") assert.ok(want(got), JSON.stringify(got));
    else assert.deepEqual(got, want);
    for (const w of wantRows) assert.ok(w.times ? rows.filter((r) => has([r], w.row)).length >= w.times : has(rows, w), `no row ${JSON.stringify(w, (_, v) => v instanceof RegExp ? String(v) : v)}`);
  });
}

await test("every attempt has its expectation", () => assert.deepEqual([...results.keys()].filter((n) => !(n in expected)), []));

await test("only what the policy allows was connected to", () => {
  const allowed = new Set(rows.filter((r) => r.decision === "allow").map((r) => `${r.name ?? r.address}:${r.port}`));
  for (const a of allowed) assert.match(a, /^((api|other|expired|selfsigned|wrongname|h2|h2other)\.egress\.test:443|web\.egress\.test:80|rebind\.egress\.test:\d+)$/);
  for (const c of seen.connections) assert.match(c, /^10\.199\.77\.1[0-35]:(443|80)$/);
  assert.equal(strange, 0, "packets that no connection makes");
});

/** The names that the instance's other machines were led to, as the ledgers have them: what they resolve comes to the same name server. */
function namesOfOthers() {
  const top = `${process.env.NESTBOX_STATE}/logs/egress`;
  const rows = globSync("*/*.jsonl", { cwd: top }).flatMap((f) => readFileSync(join(top, f), "utf8").split("\n").slice(0, -1)).map((l) => JSON.parse(l));
  return new Set(rows.filter((r) => ![sandbox.id, neighbour.id].includes(r.sandbox)).map((r) => r.name));
}

await test("no name but of allowed connections reached the name server", async () => {
  const allowed = /^(api|other|expired|selfsigned|wrongname|meta|loop|private|host|fake|cgnat|rebind|hole|refused|silent|missing|web|h2|h2other)\.egress\.test$/;
  let strangers = seen.questions.map((q) => q.name).filter((name) => !allowed.test(name));
  // A row is written when its connection ends.
  await until(() => (strangers = strangers.filter((name) => !namesOfOthers().has(name))).length === 0, 20_000).catch(() => {});
  assert.deepEqual(strangers, []);
});

await test("no smuggled request reached a server, and none to another host", () => {
  for (const r of seen.requests) {
    assert.ok(!r.url.includes("smuggled"), r.url);
    if (r.sni === "api.egress.test") assert.equal(r.headers.host, "api.egress.test", r.url);
    if (r.h2) assert.equal(r.headers[":authority"], r.sni, r.url);
    assert.ok(!["10.199.77.11", "10.199.77.12", "10.199.77.13"].includes(r.server), "a request to a server with a bad certificate");
  }
});

await test("the value went to its host, in no odd place, and nowhere else", () => {
  for (const r of seen.requests) {
    const text = JSON.stringify([r.url, r.raw, r.body, r.headers, r.trailers]);
    if (text.includes(VALUE)) assert.ok(["api.egress.test", "h2.egress.test"].includes(r.sni) && !["user-agent", "referer", "x-forwarded-for"].some((h) => r.headers[h]?.includes(VALUE)) && !r.url.includes(VALUE), text);
    if (["/elsewhere", "/plain", "/odd"].some((p) => r.url.startsWith(p))) assert.ok(!text.includes(VALUE), text);
  }
  assert.ok(!output.stdoutText.includes(VALUE) && !JSON.stringify(rows).includes(VALUE));
});

await sandbox.kill();
await neighbour.kill();
await world.stop();
await done();
