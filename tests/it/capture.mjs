// SPDX-License-Identifier: Apache-2.0
// Node only: it asks the broker (it/captures asks the API).
// A running machine kept on disk and started again: what goes on, what is new, what is replaced, what is left.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import { assert, done, test, until } from "../sdk/lib.mjs";

const { NESTBOX_STATE: STATE, NESTBOX_CONF: CONF, NESTBOX_PREFIX: PREFIX } = process.env;
const run = (...args) => execFileSync(`${PREFIX}/sbin/nestboxctl`, ["-c", CONF, ...args], { encoding: "utf8", stdio: "pipe" });
const captures = () => JSON.parse(run("--json", "captures"));
const inside = (id, command) => run("dial", id, "/bin/sh", "-c", command).trim();
const refused = (why, ...args) => {
  try {
    run(...args);
  } catch (e) {
    assert.match(e.stderr, why);
    return;
  }
  throw new Error(`not refused: ${args.join(" ")}`);
};
const count = (id) => Number(inside(id, "cat /tmp/count"));
const counts = (id) => {
  const from = count(id);
  return until(() => count(id) > from, 30_000);
};
const names = ["it_cap_p", "it_cap_a", "it_cap_b"];
const [p, a, b] = names;
let at;

await test("a machine is captured, and goes on", async () => {
  run("create", p, "1280");
  inside(p, "(i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.1; done) > /dev/null 2>&1 & echo first > /root/mark; cat /proc/sys/kernel/random/boot_id > /root/boot");
  await until(() => count(p) > 2, 30_000);
  const said = run("capture", p, "it-capture");
  console.log(`  ${said.trim()}`);
  at = count(p);
  await counts(p);
  const [row] = captures().filter((c) => c.name === "it-capture");
  assert(row.bytes > 1 << 20 && row.bytes < 1280 << 20);
  assert.equal(row.last_used_ms, 0);
  assert.equal(JSON.parse(run("--json", "stat", p)).state, "running");
  assert(!fs.existsSync(`${STATE}/captures/.it-capture`));
}, 200_000);

await test("two start from it: they go on where it was, with identities of their own", async () => {
  for (const id of [a, b]) {
    run("create", id, "1280", "it-capture");
    assert.equal(inside(id, "cat /root/mark"), "first");
    assert.equal(inside(id, "cat /proc/sys/kernel/random/boot_id"), inside(p, "cat /root/boot"));
    await counts(id);
  }
  const ids = [p, a, b].map((id) => inside(id, "cat /etc/machine-id; head -c 16 /dev/urandom | base64").split("\n"));
  assert.equal(new Set(ids.flat()).size, 6);
  assert.equal(Number(inside(a, "cat /run/nestbox/generation")), Number(inside(p, "cat /run/nestbox/generation")) + 1);
  assert(captures().find((c) => c.name === "it-capture").last_used_ms > 0);
}, 200_000);

await test("their memory is the file's, privately: what one writes is nobody else's", async () => {
  inside(a, "echo a > /root/mark; dd if=/dev/urandom of=/dev/shm/x bs=1M count=20 2>/dev/null; sync");
  assert.equal(inside(b, "cat /root/mark"), "first");
  const pid = JSON.parse(run("--json", "stat", b)).pid;
  if (fs.readlinkSync(`/proc/${pid}/exe`).includes("qemu")) {
    const maps = fs.readFileSync(`/proc/${pid}/maps`, "utf8").split("\n").filter((l) => l.includes("/it-capture/machine/memory"));
    assert(maps.length > 0 && maps.every((l) => / rw-p /.test(l)), "the file is mapped privately");
  }
}, 120_000);

await test("the same name again replaces it; who started from the old one is not hurt", async () => {
  inside(p, "echo second > /root/mark; sync");
  run("capture", p, "it-capture");
  assert.equal(captures().filter((c) => c.name === "it-capture").length, 1);
  await counts(b);
  run("kill", a);
  run("create", a, "1280", "it-capture");
  assert.equal(inside(a, "cat /root/mark"), "second");
  run("uncapture", "it-capture");
  assert.equal(captures().filter((c) => c.name === "it-capture").length, 0);
  await counts(a);
  assert.equal(inside(a, "find / -xdev -name mark -path '/root/*' | xargs cat"), "second");
}, 200_000);

await test("a copy of a copy, after its file lost its name", async () => {
  run("capture", a, "it-second");
  run("kill", b);
  run("create", b, "1280", "it-second");
  await counts(b);
  assert.equal(Number(inside(b, "cat /run/nestbox/generation")), Number(inside(a, "cat /run/nestbox/generation")) + 1);
}, 200_000);

await test("damage is noticed, wrong sizes and names are refused", async () => {
  refused(/no capture/, "create", "it_cap_x", "1280", "nothing");
  refused(/is of a machine of 1280 MiB/, "create", "it_cap_x", "1024", "it-second");
  refused(/not a capture's name/, "capture", p, "Not/One");
  const dir = `${STATE}/captures/it-second/machine`;
  const state = fs.readFileSync(`${dir}/state`);
  // What is open already is not read again: one that nobody started from yet.
  run("capture", p, "it-bad");
  const bad = `${STATE}/captures/it-bad/machine/state`;
  const bytes = fs.readFileSync(bad);
  bytes[1000] ^= 4;
  fs.writeFileSync(bad, bytes);
  refused(/damaged/, "create", "it_cap_x", "1280", "it-bad");
  assert(state.length > 1000);
}, 120_000);

await test("nothing is left", async () => {
  for (const id of names) run("kill", id);
  for (const c of captures()) if (c.name.startsWith("it-")) run("uncapture", c.name);
  assert.deepEqual(fs.readdirSync(`${STATE}/captures`).filter((n) => n.includes("it-")), []);
}, 60_000);

await done();
