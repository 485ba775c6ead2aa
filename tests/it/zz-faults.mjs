// SPDX-License-Identifier: Apache-2.0
// Every daemon and a VM process killed with SIGKILL while sandboxes and an app run; then everything at once, as a power
// cut would. What was acknowledged must still be there, what is lost must be said to be, and nothing may be left over.
import { execFileSync, spawn, spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { Client } from "@deno/sandbox";
import { assert, done, Sandbox, test } from "../sdk/lib.mjs";

const { NESTBOX_SV: SV, NESTBOX_RUN: RUN, NESTBOX_STATE: STATE, NESTBOX_CONF: CONF, NESTBOX_PREFIX: PREFIX } = process.env;
const ctl = (...args) => JSON.parse(execFileSync(`${PREFIX}/sbin/nestboxctl`, ["-c", CONF, "--json", ...args], { encoding: "utf8" }));
const pidOf = (svc) => Number(fs.readFileSync(`${SV}/${svc}/supervise/pid`, "utf8").trim() || 0);
// A killed process whose parent has not looked yet is no process any more.
const alive = (pid) => {
  try {
    return !/\) [ZX] /.test(fs.readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
};

async function until(what, fn, ms = 30000) {
  const end = Date.now() + ms;
  for (;;) {
    try {
      const v = await fn();
      if (v) return v;
    } catch (e) {
      if (Date.now() > end) throw e;
    }
    if (Date.now() > end) throw new Error(`not within ${ms} ms: ${what}`);
    await new Promise((r) => setTimeout(r, 50));
  }
}

// SIGKILL, and wait until the supervisor has started it again.
async function crash(svc) {
  const pid = pidOf(svc);
  assert(pid > 1, `${svc} does not run`);
  process.kill(pid, "SIGKILL");
  await until(`${svc} is started again`, () => pidOf(svc) && pidOf(svc) !== pid && alive(pidOf(svc)));
}

const client = new Client();
const connect = (id) => until(`connection to ${id}`, () => Sandbox.connect(id));
const brokerAnswers = () => until("broker answers", () => ctl("node"));
// The SDK prints transport errors; they are what is wanted here.
console.error = () => {};
console.debug = () => {};

let sandbox;
await test("a sandbox to survive", async () => {
  sandbox = await Sandbox.create({ timeout: "15m" });
  await sandbox.fs.writeTextFile("kept.txt", "kept");
}, 200_000);
const id = sandbox.id;

await test("broker killed: running connections go on, new ones are possible again, the machine is adopted", async () => {
  const pid = ctl("stat", id).pid;
  await crash("nestboxd");
  assert.equal((await sandbox.sh`cat kept.txt`.text()), "kept");
  await brokerAnswers();
  const again = await connect(id);
  assert.equal(await again.fs.readTextFile("kept.txt"), "kept");
  await again.close();
  assert.equal(ctl("stat", id).pid, pid);
}, 200_000);

await test("broker killed in a capture and in a fork: the machine goes on, nothing half made is left", async () => {
  const counter = await sandbox.spawn("sh", {
    args: ["-c", "i=0; while :; do i=$((i+1)); echo $i > count; sleep 0.1; done"], stdout: "null", stderr: "null",
  });
  const count = async () => Number((await sandbox.fs.readTextFile("count")).trim());
  await until("the counter", async () => (await count()) > 0);
  const begun = [
    [["capture", id, "zz-half"], `${STATE}/captures/.zz-half`],
    [["fork", id, "zz_k1", "zz_k2"], `${STATE}/vms/zz_k1`],
  ];
  for (const [args, there] of begun) {
    const c = spawn(`${PREFIX}/sbin/nestboxctl`, ["-c", CONF, ...args], { stdio: "ignore" });
    const ended = new Promise((r) => c.on("exit", r));
    await until(`${args[0]} has begun`, () => fs.existsSync(there));
    await crash("nestboxd");
    assert.notEqual(await ended, 0, `${args[0]} was done before the broker was killed`);
    await brokerAnswers();
    await until("nothing is left of it", () => !fs.existsSync(there) && !ctl("list").some((m) => m.id.startsWith("zz_")));
    assert.equal(ctl("stat", id).state, "running");
    const from = await count();
    await until("it counts", async () => (await count()) > from);
  }
  counter.kill("SIGKILL");
  await counter.status;
}, 200_000);

const region = process.env.NESTBOX_REGION ?? "ord", tag = Math.random().toString(36).slice(2, 8);
let volume, holder;
await test("broker killed in a snapshot: its guest writes on, nothing half made is left, and the next one is whole", async () => {
  volume = await client.volumes.create({ slug: `faults-${tag}`, region, capacity: "300MB" });
  holder = await Sandbox.create({ region, timeout: "15m", volumes: { "/v": volume.id } });
  // Not synced: the guest has to flush it before it stands still.
  await holder.sh`yes faults | head -c 20000000 > /v/large`;
  const store = `${STATE}/snapshots`, half = () => fs.readdirSync(store).some((n) => n.startsWith("."));
  const refused = client.volumes.snapshot(volume.id, { slug: `half-${tag}` }).then(() => null, (e) => e);
  await until("it has begun", half);
  await crash("nestboxd");
  assert.ok(await refused, "the snapshot was made before the broker was killed");
  await brokerAnswers();
  assert.ok(!half(), "a half made snapshot is left");
  assert.equal(await client.snapshots.get(`half-${tag}`), null);
  assert.equal(await holder.sh`echo written > /v/sum && sync && cat /v/sum`.text(), "written\n");
  const snapshot = await until("a snapshot", () => client.volumes.snapshot(volume.id, { slug: `half-${tag}` }));
  assert.equal(spawnSync(`${PREFIX}/sbin/nestboxctl`, ["-c", CONF, "verify", snapshot.id]).status, 0);
  await client.snapshots.delete(snapshot.id);
}, 200_000);

await test("API killed: the next request is answered, the sandbox goes on", async () => {
  await crash("nestbox-api");
  assert.equal(await sandbox.fs.readTextFile("kept.txt"), "kept");
  const list = await until("list", () => client.sandboxes.list());
  assert(list.some((s) => s.id === id));
}, 200_000);

await test("gateway killed: its connections end, the sandbox lives and can be connected to", async () => {
  const closed = sandbox.closed.catch(() => {});
  await crash("nestbox-gateway");
  await closed;
  sandbox = await connect(id);
  assert.equal(await sandbox.fs.readTextFile("kept.txt"), "kept");
}, 200_000);

await test("gateway restart: a preview works again", async () => {
  const app = await sandbox.deno.run({ code: "Deno.serve(() => new Response('here'))", stdout: "null", stderr: "null" });
  assert(await app.httpReady);
  const url = await sandbox.exposeHttp(app);
  const get = async () => (await fetch(url)).text();
  assert.equal(await until("preview", get), "here");
  const closed = sandbox.closed.catch(() => {});
  await crash("nestbox-gateway");
  await closed;
  await until("preview again", async () => (await get()) === "here");
  await crash("nestboxd");
  await brokerAnswers();
  await until("preview after the broker", async () => (await get()) === "here");
  sandbox = await connect(id);
}, 200_000);

const sshPort = fs.readFileSync(CONF, "utf8").match(/^ssh_port *= *(\d+)/m)[1];
// A host key that is another one after a restart is refused.
const known = path.join(fs.mkdtempSync(path.join(os.tmpdir(), "nb-known-")), "hosts");
const ssh = (name, command) => {
  const c = spawn("ssh", ["-F", "/dev/null", "-p", sshPort, "-o", `UserKnownHostsFile=${known}`, "-o", "StrictHostKeyChecking=accept-new",
    "-o", "LogLevel=ERROR", "-o", "BatchMode=yes", name, command], { stdio: ["pipe", "pipe", "ignore"] });
  c.out = "";
  c.stdout.on("data", (d) => c.out += d);
  c.ended = new Promise((r) => c.on("close", r));
  return c;
};

await test("SSH: a connection outlives broker and API; its gateway killed, nothing of it is left and the name is still good", async () => {
  const { username, hostname } = await sandbox.exposeSsh();
  const who = `${username}@${hostname}`;
  const c = ssh(who, "cat");
  const says = async (text) => {
    c.stdin.write(`${text}\n`);
    await until(text, () => c.out.includes(text));
  };
  await says("one");
  await crash("nestboxd");
  await crash("nestbox-api");
  await says("two");
  await brokerAnswers();
  await until("another login", async () => {
    const again = ssh(who, "echo three");
    return await again.ended === 0 && again.out === "three\n";
  });
  await says("four");
  const daemon = pidOf("nestbox-ssh");
  const sessions = fs.readdirSync("/proc").filter((p) => {
    try {
      return fs.readFileSync(`/proc/${p}/stat`, "utf8").match(/\) . (\d+)/)[1] === String(daemon);
    } catch {
      return false;
    }
  });
  assert(sessions.length >= 1, "no process for the connection");
  await crash("nestbox-ssh");
  assert.equal(await c.ended, 255);
  for (const p of sessions) await until(`session ${p} ends`, () => !alive(p));
  await until("login after that", async () => {
    const again = ssh(who, "echo five");
    return await again.ended === 0 && again.out === "five\n";
  });
  assert.match(fs.readFileSync(known, "utf8"), /^\S+ ssh-ed25519 \S+\n$/);
  fs.rmSync(path.dirname(known), { recursive: true });
}, 300_000);

await test("egress killed: it attaches again and the sandbox goes on", async () => {
  await crash("nestbox-egress");
  assert.equal(await sandbox.fs.readTextFile("kept.txt"), "kept");
  const s = await until("create after egress", () => Sandbox.create({ allowNet: [] }));
  await s.close();
}, 200_000);

await test("nginx killed: back within seconds", async () => {
  const closed = sandbox.closed.catch(() => {});
  await crash("nginx");
  await closed;
  sandbox = await connect(id);
}, 200_000);

await test("a VM process killed: its connection ends, its end has a reason, nothing of it is left", async () => {
  const s = await Sandbox.create({ timeout: "5m" });
  const closed = s.closed.catch(() => {});
  process.kill(ctl("stat", s.id).pid, "SIGKILL");
  await closed;
  await until("machine gone", () => ctl("stat", s.id).state === "gone");
  assert(ctl("stat", s.id).reason.length > 0);
  assert(!fs.existsSync(`${STATE}/vms/${s.id}`));
  assert(!fs.existsSync(`${RUN}/netns/${s.id}`));
  await until("not running in the list", async () => !(await client.sandboxes.list()).some((x) => x.id === s.id && x.status === "running"));
  const e = await Sandbox.connect(s.id).then(() => null, (err) => err);
  assert.equal(e?.code, "SANDBOX_STOPPED", `connect to it gave ${e}`);
}, 200_000);

const slug = `faults-${Math.random().toString(36).slice(2, 8)}`;
const port = new URL(process.env.DENO_DEPLOY_ENDPOINT).port;
const host = new URL(process.env.DENO_DEPLOY_ENDPOINT).hostname.replace(/^api\./, "");
const appUrl = `https://${slug}.${host}${port ? `:${port}` : ""}/`;

await test("runner killed in the middle of a deployment: it is finished all the same", async () => {
  await client.apps.create({ slug });
  await sandbox.fs.mkdir("site");
  await sandbox.fs.writeTextFile("site/main.ts", "Deno.serve(() => new Response('deployed'))");
  const b = await sandbox.deno.deploy(slug, { path: "/home/app/site", build: { entrypoint: "main.ts" }, production: true });
  await crash("nestbox-runner");
  const r = await until("revision ends", async () => {
    const v = await client.revisions.get(b.id);
    return ["succeeded", "failed"].includes(v?.status) && v;
  }, 90000);
  assert.equal(r.status, "succeeded");
  assert.equal(await (await fetch(appUrl)).text(), "deployed");
}, 200_000);

await test("power cut: everything killed at once; daemons come back, losses are said, the app serves again", async () => {
  const closed = sandbox.closed.catch(() => {});
  const machines = ctl("list").filter((m) => m.state === "running").map((m) => ctl("stat", m.id).pid);
  const daemons = ["nestboxd", "nestbox-egress", "nestbox-gateway", "nestbox-ssh", "nestbox-api", "nestbox-runner", "nginx"].map(pidOf);
  holder = await connect(holder.id);
  const lost = holder.closed.catch(() => {}), words = `${tag}\n`.repeat(10_000), file = await holder.fs.create("/v/last");
  await file.write(new TextEncoder().encode(words));
  await file.sync();
  for (const pid of [...daemons, ...machines]) {
    try {
      process.kill(pid, "SIGKILL");
    } catch { /* gone already */ }
  }
  await Promise.all([closed, lost]);
  await brokerAnswers();
  await until("sandbox is reported", async () => {
    const e = await Sandbox.connect(id).then((c) => c.close(), (err) => err);
    return e?.code === "SANDBOX_STOPPED" && e;
  }, 60000);
  for (const pid of machines) await until(`machine process ${pid} ends`, () => !alive(pid));
  await until("directory gone", () => !fs.existsSync(`${STATE}/vms/${id}`));
  assert(!fs.existsSync(`${RUN}/netns/${id}`), "its network namespace is left");
  await until("app serves again", async () => {
    const res = await fetch(appUrl);
    return res.status === 200 && (await res.text()) === "deployed";
  }, 120000);
  // What was written and synced is there, in whatever machine has the volume next.
  const fresh = await until("a new sandbox", () => Sandbox.create({ region, volumes: { "/elsewhere": volume.slug } }));
  assert.equal(await fresh.fs.readTextFile("/elsewhere/last"), words);
  assert.equal(await fresh.sh`yes faults | head -c 20000000 | cmp - /elsewhere/large && cat /elsewhere/sum`.text(), "written\n");
  await fresh.kill();
  await client.volumes.delete(volume.id);
}, 200_000);

await test("clean up", async () => {
  await client.apps.delete(slug);
  await until("its machines end", () => !ctl("list").some((m) => m.id.startsWith("rev_") && m.state === "running"), 30000);
}, 200_000);

await done();
