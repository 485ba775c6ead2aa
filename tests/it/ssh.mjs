// SPDX-License-Identifier: Apache-2.0
// SSH with the programs that people use: OpenSSH's ssh, scp and sftp, and script(1) for a terminal. NESTBOX_CONF names the
// configuration of the running instance.
import { execFileSync, spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { assert, done, Sandbox, test } from "../sdk/lib.mjs";

const conf = fs.readFileSync(process.env.NESTBOX_CONF, "utf8");
const get = (key) => conf.match(new RegExp(`^${key} *= *(.*)$`, "m"))?.[1];
const PORT = get("ssh_port");
const dir = fs.mkdtempSync(path.join(os.tmpdir(), "nb-ssh-"));
const OPTIONS = ["-F", "/dev/null", "-o", `UserKnownHostsFile=${dir}/known`, "-o", "StrictHostKeyChecking=accept-new",
  "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60"];
const SSH = [...OPTIONS, "-p", PORT];
const SCP = [...OPTIONS, "-P", PORT];
const MiB = 1 << 20;

function start(cmd, args, options = {}) {
  const child = spawn(cmd, args, { stdio: ["pipe", "pipe", "pipe"], ...options });
  child.out = "";
  child.err = "";
  child.stdin.on("error", () => {});
  child.stderr.on("data", (d) => child.err += d);
  child.ended = new Promise((resolve) => child.on("close", (code, signal) => resolve({ code, signal })));
  return child;
}
async function run(cmd, args, { input, binary } = {}) {
  const child = start(cmd, args);
  const chunks = [];
  child.stdout.on("data", (d) => chunks.push(d));
  child.stdin.end(input);
  const { code } = await child.ended;
  const out = Buffer.concat(chunks);
  return { code, out: binary ? out : String(out), err: child.err };
}
let who;
const ssh = (args, options) => run("ssh", [...SSH, ...[args].flat()], options);
const on = (command, options) => ssh([who, command], options);
async function until(what, fn, ms = 60000) {
  const end = Date.now() + ms;
  for (;;) {
    const v = await fn();
    if (v) return v;
    assert(Date.now() < end, `not within ${ms} ms: ${what}`);
    await new Promise((r) => setTimeout(r, 50));
  }
}
// Text of a child's output, until a pattern is in it.
function said(child, pattern, ms = 90000) {
  if (!child.listens) {
    child.listens = true;
    child.stdout.on("data", (d) => child.out += d);
  }
  return until(`${pattern} in ${JSON.stringify(child.out.slice(-300))}`, () => child.out.match(pattern), ms);
}
// Of this connection's process on the host: the one whose socket has our port.
function sessionOf(child) {
  const mine = execFileSync("ss", ["-Htnp", "state", "established", `dport = :${PORT}`], { encoding: "utf8" })
    .split("\n").find((l) => l.includes(`pid=${child.pid},`));
  const local = mine?.trim().split(/\s+/)[2].match(/:(\d+)$/)[1];
  const theirs = execFileSync("ss", ["-Htnp", "state", "established", `sport = :${PORT} and dport = :${local}`], { encoding: "utf8" });
  return Number(theirs.match(/pid=(\d+)/)?.[1]);
}
const peakKiB = (pid) => Number(fs.readFileSync(`/proc/${pid}/status`, "utf8").match(/VmHWM:\s+(\d+)/)[1]);
const alive = (pid) => fs.existsSync(`/proc/${pid}`) && !/\) [ZX] /.test(fs.readFileSync(`/proc/${pid}/stat`, "utf8"));
// One that did not end by itself is ended with the test.
const children = [];
const keep = (child) => (children.push(child), child);

let sandbox;
await test("the ssh option of create", async () => {
  sandbox = await Sandbox.create({ ssh: true, timeout: "20m" });
  assert.match(sandbox.ssh.username, /^[0-9a-z]{26}$/);
  assert.equal(sandbox.ssh.hostname, `ssh.${get("domain")}`);
  who = `${sandbox.ssh.username}@${sandbox.ssh.hostname}`;
}, 200_000);

await test("a command: output, errors and exit status are apart", async () => {
  const r = await on("echo out; echo err >&2; exit 7");
  assert.deepEqual(r, { code: 7, out: "out\n", err: "err\n" });
  assert.equal((await on("id -un; pwd")).out, "app\n/home/app\n");
  assert.equal((await on("kill -TERM $$")).code, 255);
  assert.equal((await on("true")).code, 0);
}, 200_000);

await test("standard input ends where it ends, and bytes stay as they are", async () => {
  assert.equal((await on("sort", { input: "b\na\n" })).out, "a\nb\n");
  assert.equal((await on("wc -c", { input: "" })).out.trim(), "0");
  const data = randomBytes(3 * MiB + 17);
  const r = await on("cat", { input: data, binary: true });
  assert.equal(r.code, 0);
  assert(r.out.equals(data), `${r.out.length} of ${data.length} bytes came back, or others`);
}, 200_000);

await test("language variables are taken, others are not", async () => {
  const r = await run("env", ["LANG=C.UTF-8", "LC_TIME=de_DE.UTF-8", "NB_OTHER=1", "ssh", ...SSH, "-o", "SendEnv=LANG LC_* NB_*", who,
    "echo $LC_TIME:$NB_OTHER:$LANG"]);
  assert.equal(r.out, "de_DE.UTF-8::C.UTF-8\n");
}, 200_000);

await test("an interactive shell: a terminal of the right size, resize, Ctrl-C, exit status", async () => {
  const t = keep(start("script", ["-qefc", `tty; stty cols 91 rows 31; exec ssh ${SSH.join(" ")} ${who}`, "/dev/null"],
    { env: { ...process.env, TERM: "screen-256color" } }));
  const tty = (await said(t, /(\/dev\/pts\/\d+)/))[1];
  t.stdin.write("PS1='>''> '; echo $TERM $(tty); stty size\n");
  await said(t, /screen-256color \/dev\/pts\/\d+/);
  await said(t, /31 91/);
  execFileSync("stty", ["-F", tty, "cols", "101", "rows", "41"]);
  t.stdin.write("until [ \"$(stty size)\" = '41 101' ]; do sleep 0.1; done; echo RE''SIZED\n");
  await said(t, /RESIZED/);
  // Said by the one that is to be interrupted: before that, the shell itself would be.
  t.stdin.write("bash -c 'echo GO\"\"NE; exec sleep 1000'\n");
  await said(t, /GONE\r\n/);
  t.stdin.write("\x03");
  await said(t, /GONE\r\n[^]*\^C[^]*>> /);
  t.stdin.write("echo INTER''RUPTED $?\n");
  await said(t, /INTERRUPTED 130/);
  t.stdin.write("exit 5\n");
  assert.equal((await t.ended).code, 5);
}, 300_000);

await test("sftp and scp, the new kind and the old", async () => {
  const data = randomBytes(2 * MiB + 5);
  fs.writeFileSync(`${dir}/up`, data);
  const batch = `put ${dir}/up first\nrename first second\nmkdir d\nput ${dir}/up d/x\nls -l\nget second ${dir}/down\nrm second\n`;
  const r = await run("sftp", [...SCP, "-b", "-", who], { input: batch });
  assert.equal(r.code, 0, r.err);
  assert(fs.readFileSync(`${dir}/down`).equals(data));
  for (const old of [[], ["-O"]]) {
    assert.equal((await run("scp", [...SCP, ...old, `${dir}/up`, `${who}:copy`])).code, 0);
    assert.equal((await run("scp", [...SCP, ...old, "-r", `${who}:copy`, `${dir}/back`])).code, 0);
    assert(fs.readFileSync(`${dir}/back`).equals(data), `scp ${old}`);
    fs.rmSync(`${dir}/back`);
  }
  assert(Buffer.from(await sandbox.fs.readFile("d/x")).equals(data));
  assert.equal((await run("ssh", [...SSH, "-s", who, "other"])).code, 255);
}, 300_000);

// A forwarded port of ours, and the client that holds it.
async function forward(target, args = []) {
  const server = net.createServer().listen(0, "127.0.0.1");
  await new Promise((r) => server.on("listening", r));
  const port = server.address().port;
  await new Promise((r) => server.close(r));
  const child = keep(start("ssh", [...SSH, ...args, "-N", "-o", "ExitOnForwardFailure=yes", "-L", `127.0.0.1:${port}:${target}`, who]));
  await until("forwarding", () => new Promise((r) => {
    const c = net.connect(port, "127.0.0.1", () => (c.destroy(), r(true))).on("error", () => r(false));
  }));
  return { port, child };
}
// What comes back for these bytes until the other side ends; a half-close is sent behind them.
const exchange = (port, data) => new Promise((resolve) => {
  const chunks = [];
  const c = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true }, () => c.end(data));
  c.on("data", (d) => chunks.push(d)).on("error", () => {}).on("close", () => resolve(Buffer.concat(chunks)));
  c.on("end", () => c.end());
});

await test("local forwarding reaches the sandbox, and nothing but the sandbox", async () => {
  // Answers with the number of bytes and their hash when the client has half-closed.
  const echo = `
import hashlib, socket, threading
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", 7007)); s.listen(50); print("up", flush=True)
def one(c):
    h, n = hashlib.sha256(), 0
    while d := c.recv(65536): h.update(d); n += len(d)
    c.sendall(f"{n} {h.hexdigest()}".encode()); c.close()
while True: threading.Thread(target=one, args=(s.accept()[0],)).start()
`;
  const server = keep(start("ssh", [...SSH, who, `python3 -c '${echo}'`]));
  await said(server, /up/);
  const { port, child } = await forward("localhost:7007");
  const hash = (d) => `${d.length} ${createHash("sha256").update(d).digest("hex")}`;
  const inputs = Array.from({ length: 8 }, (_, i) => randomBytes(1 + i * 150000));
  const answers = await Promise.all(inputs.map((d) => exchange(port, d)));
  answers.forEach((a, i) => assert.equal(String(a), hash(inputs[i])));
  child.kill();
  for (const target of ["localhost:7008", "192.0.2.1:80", "169.254.100.1:1024", "example.com:80"]) {
    const f = await forward(target);
    assert.equal((await exchange(f.port, "x")).length, 0, target);
    f.child.kill();
  }
  server.kill();
}, 300_000);

await test("forwarding back, agents and terminals of others are refused, and the connection goes on", async () => {
  const r = await ssh(["-o", "ExitOnForwardFailure=yes", "-R", "7009:localhost:22", who, "true"]);
  assert.equal(r.code, 255);
  assert.equal((await ssh(["-R", "7009:localhost:22", who, "echo on"])).out, "on\n");
}, 200_000);

await test("several sessions in one connection; one that floods does not hold up the others", async () => {
  const master = keep(start("ssh", [...SSH, "-M", "-S", `${dir}/master`, "-N", who]));
  await until("master", () => fs.existsSync(`${dir}/master`));
  const flood = keep(start("ssh", ["-S", `${dir}/master`, ...SSH, who, "yes"]));
  flood.stdout.on("data", () => {});
  const r = await Promise.all(Array.from({ length: 5 }, (_, i) => ssh(["-S", `${dir}/master`, who, `echo ${i}; exit ${i}`])));
  r.forEach((x, i) => assert.deepEqual([x.code, x.out], [i, `${i}\n`]));
  flood.kill();
  const more = await Promise.all(Array.from({ length: 40 }, () => keep(start("ssh", ["-S", `${dir}/master`, "-o", "ProxyCommand=false", ...SSH, who, "cat"]))));
  await until("the connection has its maximum of channels", () => more.filter((c) => c.exitCode !== null).length >= 8);
  for (const c of more) c.stdin.end();
  master.kill();
}, 300_000);

const LIMIT_KIB = 40 * 1024; // the libraries are half of it
const MUCH = 60 * MiB;
await test("60 MB through each direction, and a side that does not read, take no memory", async () => {
  const down = keep(start("ssh", [...SSH, who, `head -c ${MUCH} /dev/zero; read x`]));
  let n = 0;
  down.stdout.on("data", (d) => n += d.length);
  await until("all of it came", () => n === MUCH, 250000);
  assert(peakKiB(sessionOf(down)) < LIMIT_KIB, `${peakKiB(sessionOf(down))} KiB for the way out`);
  down.stdin.end();
  const up = keep(start("ssh", [...SSH, who, `head -c ${MUCH} | wc -c; read x`]));
  const block = Buffer.alloc(MiB);
  const fill = async () => { for (let i = 0; i < MUCH / MiB; i++) if (!up.stdin.write(block)) await new Promise((r) => up.stdin.once("drain", r)); };
  await Promise.race([fill(), up.ended.then(() => assert.fail(`the upload ended early: ${up.err}`))]);
  await said(up, new RegExp(MUCH), 250000);
  assert(peakKiB(sessionOf(up)) < LIMIT_KIB, `${peakKiB(sessionOf(up))} KiB for the way in`);
  up.stdin.end();
  // Nobody reads here: what the guest sends has to stop, there.
  const stopped = keep(start("ssh", [...SSH, who, "yes"]));
  stopped.stdout.pause();
  // Nobody reads there.
  const deaf = keep(start("ssh", [...SSH, who, "echo up; sleep 1000"]));
  await said(deaf, /up/);
  for (let i = 0; i < 20; i++) if (!deaf.stdin.write(block)) break;
  await new Promise((r) => setTimeout(r, 3000));
  for (const c of [stopped, deaf]) {
    assert(peakKiB(sessionOf(c)) < LIMIT_KIB, `${peakKiB(sessionOf(c))} KiB although nobody reads`);
    c.kill("SIGKILL");
  }
}, 600_000);

await test("a client that goes away takes its program along", async () => {
  const c = keep(start("ssh", [...SSH, who, "echo $$; exec sleep 987"]));
  const [, pid] = await said(c, /^(\d+)\n/);
  c.kill("SIGKILL");
  await until("the program is gone", async () => (await on(`kill -0 ${pid} 2>/dev/null; echo $?`)).out === "1\n", 30000);
}, 200_000);

await test("an unknown name is refused, after a while, without a question", async () => {
  const from = Date.now();
  const r = await ssh(["-b", "127.0.0.76", `${"0".repeat(26)}@${sandbox.ssh.hostname}`, "true"]);
  assert.equal(r.code, 255);
  assert.match(r.err, /Permission denied/);
  assert(Date.now() - from >= 1000, "it took no time");
  assert.equal((await ssh([`${sandbox.ssh.username.slice(0, 25)}@${sandbox.ssh.hostname}`, "true"])).code, 255);
  assert.equal((await ssh(["-o", "PreferredAuthentications=publickey", `root@${sandbox.ssh.hostname}`, "true"])).code, 255);
}, 200_000);

await test("an address that fails too often is turned away, others are not", async () => {
  const from = `127.0.77.${1 + Math.floor(Math.random() * 250)}`; // what is counted outlives one run
  const guess = () => ssh(["-b", from, `${randomBytes(13).toString("hex")}@${sandbox.ssh.hostname}`, "true"]);
  const first = await Promise.all(Array.from({ length: 10 }, guess));
  first.forEach((r) => assert.match(r.err, /Permission denied/));
  assert.doesNotMatch((await guess()).err, /Permission denied/);
  assert.equal((await ssh(["-b", from, who, "true"])).code, 255);
  assert.equal((await on("echo here")).out, "here\n");
}, 300_000);

const api = (method, id) => fetch(`${process.env.DENO_SANDBOX_ENDPOINT}/api/v3/sandbox/${id}/expose/ssh`,
  { method, headers: { authorization: `Bearer ${process.env.DENO_DEPLOY_TOKEN}`, "content-type": "application/json" }, body: method === "POST" ? "{}" : undefined });

await test("names: another one with each call, at most eight, revoked together", async () => {
  const second = await sandbox.exposeSsh();
  assert.notEqual(second.username, sandbox.ssh.username);
  assert.equal((await ssh([`${second.username}@${second.hostname}`, "echo two"])).out, "two\n");
  for (let i = 2; i < 8; i++) assert.equal((await (await api("POST", sandbox.id)).json()).port, Number(PORT));
  const full = await api("POST", sandbox.id);
  assert.deepEqual([full.status, (await full.json()).code], [429, "EXPOSURE_QUOTA_EXCEEDED"]);
  const open = keep(start("ssh", [...SSH, who, "echo in; sleep 1000"]));
  await said(open, /in/);
  const pid = sessionOf(open);
  assert.equal((await api("DELETE", sandbox.id)).status, 204);
  assert.equal((await open.ended).code, 255);
  await until("its process is gone", () => !alive(pid));
  assert.match((await on("true")).err, /Permission denied/);
  const { username, hostname } = await sandbox.exposeSsh();
  who = `${username}@${hostname}`;
  assert.equal((await on("echo new")).out, "new\n");
}, 300_000);

await test("what is kept of a name is not the name", async () => {
  const name = who.split("@")[0];
  const hash = createHash("sha256").update(name).digest("hex");
  const file = `${process.env.NESTBOX_STATE ?? get("state_dir")}/vms/${sandbox.id}/logins`;
  assert.equal(fs.readFileSync(file, "utf8"), `${hash}\n`);
  const logs = process.env.NESTBOX_LOGS;
  if (logs) assert.throws(() => execFileSync("grep", ["-rqF", name, logs]), (e) => e.status === 1, "the name is in a log");
}, 60_000);

await test("no session process may do what it need not: filter, user, capabilities, descriptors", async () => {
  const c = keep(start("ssh", [...SSH, who, "echo in; sleep 1000"]));
  await said(c, /in/);
  const pid = sessionOf(c);
  const status = fs.readFileSync(`/proc/${pid}/status`, "utf8");
  const uid = execFileSync("id", ["-u", "nestbox-ssh"], { encoding: "utf8" }).trim();
  assert.match(status, new RegExp(`^Uid:\t${uid}\t${uid}\t${uid}\t${uid}$`, "m"));
  assert.match(status, /^CapPrm:\t0+$/m);
  assert.match(status, /^CapBnd:\t0+$/m);
  assert.match(status, /^NoNewPrivs:\t1$/m);
  assert.match(status, /^Seccomp:\t2$/m);
  assert(Number(status.match(/^Seccomp_filters:\t(\d+)$/m)[1]) >= 2, "its own filter is not there");
  const files = fs.readdirSync(`/proc/${pid}/fd`).map((n) => fs.readlinkSync(`/proc/${pid}/fd/${n}`));
  assert(files.every((f) => /^(socket:|pipe:|\/dev\/null$|anon_inode:)/.test(f)), files.join(" "));
  c.kill();
}, 200_000);

await test("the sandbox ends: open connections end, nobody gets in", async () => {
  const c = keep(start("ssh", [...SSH, who, "echo in; sleep 1000"]));
  await said(c, /in/);
  const pid = sessionOf(c);
  await sandbox.kill();
  assert.equal((await c.ended).code, 255);
  await until("its process is gone", () => !alive(pid));
  assert.match((await on("true")).err, /Permission denied/);
}, 200_000);

for (const c of children) c.kill("SIGKILL");
fs.rmSync(dir, { recursive: true, force: true });
await done();
