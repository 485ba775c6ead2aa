// SPDX-License-Identifier: Apache-2.0
// Sandbox.spawn against Deno.Command: the same generated commands, by a session process of this host and by this Deno itself.
// Output, exit codes, signals, the order of things and the errors of what cannot be started must agree. Run by
// tests/alone/process-differential.sh. Arguments: SEED CASES.
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { alone, done, Sandbox, sleep, test } from "../sdk/lib.mjs";

const [seedArg, casesArg] = Deno.args;
const CASES = Number(casesArg ?? 400);
if (!alone) throw new Error("needs NESTBOX_SESSION_TEST");
console.error = console.debug = () => {};
const consoleLog = console.log;
console.log = (...a) => a[0] === "stack" || consoleLog(...a); // the package's own

let state = Number(seedArg ?? 1) * 2654435761 >>> 0;
const random = (n) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor(state / 4294967296 * n);
};
const pick = (list) => list[random(list.length)];
const maybe = (p) => random(100) < p;

const dir = mkdtempSync("/tmp/nb-procdiff-");
mkdirSync(`${dir}/bin`);
mkdirSync(`${dir}/a dir`);
const program = (name, text, mode = 0o755) => {
  writeFileSync(`${dir}/${name}`, text);
  chmodSync(`${dir}/${name}`, mode);
};
program("bin/nb-tool", "#!/bin/sh\necho tool \"$0\" \"$@\"\n");
program("here", "#!/bin/sh\necho here \"$0\" \"$@\"\n");
program("plain", "echo not executable\n", 0o644);
program("no-shebang", "echo no shebang\n");
program("bad-shebang", "#!/no/such/interpreter\n");
program("not-elf", "\x7fELF garbage");
symlinkSync("here", `${dir}/link`);
symlinkSync("loop", `${dir}/loop`);

// --- cases --------------------------------------------------------------------------------------------------------

const WORDS = ["", " ", "a", "a b", "-n", "--", "'", '"', "$HOME", "\\", "\\n", "zwei\nZeilen", "*", "ä\u{1F600}", "\t", "a=b", "x".repeat(5000), "\x7f", "\x01"];
const words = (n) => Array.from({ length: random(n) }, () => pick(WORDS));

const SCRIPTS = [
  () => `exit ${random(256)}`,
  () => `kill -${pick(["TERM", "KILL", "INT", "HUP", "QUIT", "USR1", "USR2", "ABRT", "SEGV", "PIPE", "ALRM", "BUS", "FPE", "ILL", "TRAP", "SYS", "XCPU", "VTALRM", "PROF", "IO", "PWR"])} $$; sleep 1`,
  () => `ulimit -c 0; exec 2>/dev/null; (kill -${pick(["KILL", "TERM"])} $BASHPID); exit $?`,
  () => `echo out; echo err >&2; exit ${random(3)}`,
  () => `head -c ${random(300_000)} /dev/zero | tr '\\0' x`,
  () => `head -c ${random(200_000)} /dev/zero >&2; echo end`,
  () => `cat; exit ${random(5)}`,
  () => `read -r line; echo "got $line"; cat | wc -c`,
  () => `exec 0<&-; echo closed`,
  () => `exec 1>&-; echo to-stderr >&2; sleep 0.05; exit 7`,
  () => `exec 1>&- 2>&-; sleep 0.05; exit 8`,
  () => `(sleep 1.${random(3)}; echo late) & echo early`,
  () => `(sleep 1; echo late >&2) & exit ${random(4)}`,
  () => `setsid bash -c 'sleep 1; echo from another session' & echo early`,
  () => `(sleep 0.2; echo never seen) >/dev/null 2>&1 & echo early`,
  () => `trap 'echo trapped; exit 4' EXIT; exit 2`,
  () => `for i in 1 2 3; do echo $i; echo e$i >&2; done`,
  () => `printf '\\xff\\xfe\\0\\n'`,
  () => `pwd; ls -A | sort`,
  () => `env -0 | grep -z '^NB' | sort -z`,
  () => `cat /proc/self/status | grep -E '^Sig(Blk|Ign)'`,
  () => `echo $0; tr '\\0' '|' < /proc/$$/cmdline`,
  () => `umask; ulimit -n`,
  () => `yes | head -n ${random(20000)} | tail -n 1`,
  () => `[ -t 0 ] || echo no terminal; [ -t 1 ] || echo none here`,
  () => `no-such-command-in-bash`,
  () => `{ bash -c 'kill -KILL $$'; } 2>/dev/null; echo "child said $?"`,
];

function makeCase() {
  const c = { options: { stdout: maybe(85) ? "piped" : "null", stderr: maybe(85) ? "piped" : "null", stdin: maybe(50) ? "piped" : "null" } };
  const kind = random(100);
  if (kind < 60) {
    c.command = "bash";
    c.options.args = ["-c", pick(SCRIPTS)()];
  } else if (kind < 78) {
    c.command = "printf";
    c.options.args = ["<%s>\\n", ...words(6)];
  } else {
    c.command = pick(["nb-tool", "./here", "here", `${dir}/here`, `${dir}/link`, `${dir}/loop`, "no-such-program", `${dir}/no-such`, `${dir}/plain`,
      `${dir}/no-shebang`, `${dir}/bad-shebang`, `${dir}/not-elf`, dir, "/etc/passwd", `${dir}/here/x`, "x".repeat(300), "", "true", "false"]);
    c.options.args = words(4);
  }
  if (maybe(30)) c.options.cwd = pick([dir, `${dir}/a dir`, "/", "/no/such/dir", `${dir}/here`, "/usr"]);
  if (maybe(40)) c.options.env = Object.fromEntries(Array.from({ length: random(4) }, (_, i) => [`NB_${i}`, pick(WORDS)]));
  if (maybe(5)) c.options.args = ["a\0b"];
  if (maybe(5)) c.options.env = { "NB_A=": "b", "": "c", ...maybe(30) && { NB_Z: "\0" } };
  if (maybe(2)) c.options.cwd = "/tmp\0";
  if (maybe(2)) c.command = pick(["a\0b", "\0", "./x\0y", "a\0/b", `${dir}/here\0`, "../x\0"]);
  if (maybe(20)) c.options.env = { ...c.options.env, PATH: pick([`${dir}/bin:/usr/bin:/bin`, "/usr/bin:/bin", "/nowhere"]) };
  if (maybe(15)) {
    c.options.clearEnv = true;
    if (maybe(85)) c.options.env = { PATH: "/usr/bin:/bin", ...c.options.env };
  }
  if (c.options.stdin === "piped") c.input = pick(["", "line\n", "no end", "a\nb\nc\n", "x".repeat(100_000) + "\n"]);
  if (c.command === "bash" && maybe(12)) {
    c.options.args = ["-c", pick(["echo ready; exec sleep 30", "trap 'echo handled; exit 9' TERM HUP USR1 INT; echo ready; while :; do :; done", "trap '' HUP USR1; echo ready; for ((i = 0; i < 200000; i++)); do :; done; echo survived"])];
    c.options.stdout = "piped";
    c.options.stderr = "null"; // kill() reaches the whole group here, of which a shell speaks
    c.signal = pick(["SIGTERM", "SIGKILL", "SIGHUP", "SIGINT", "SIGUSR1"]); // bash never hears SIGQUIT
  }
  return c;
}

// --- one run ------------------------------------------------------------------------------------------------------

async function collect(stream, onData) {
  if (!stream) return null;
  const chunks = [];
  for await (const c of stream) {
    chunks.push(c);
    onData?.();
  }
  const all = new Uint8Array(chunks.reduce((n, c) => n + c.length, 0));
  let at = 0;
  for (const c of chunks) {
    all.set(c, at);
    at += c.length;
  }
  return all.toBase64();
}

async function run(start, c) {
  let child;
  try {
    child = await start(c.command, c.options);
  } catch (e) {
    return { error: [e.constructor.name, e.code, e.message] };
  }
  const order = [];
  const status = child.status.then((s) => {
    order.push("status");
    return { success: s.success, code: s.code, signal: s.signal };
  });
  const feed = (async () => {
    if (c.input === undefined) return;
    const w = child.stdin.getWriter();
    w.closed.catch(() => {});
    try {
      if (c.input) await w.write(new TextEncoder().encode(c.input));
      await w.close();
    } catch { /* it did not want it; that differs with the time it takes */ }
  })();
  let sent = false;
  const stdout = (c.options.stdout === "piped" ? collect(child.stdout, () => {
    if (c.signal && !sent) child.kill(c.signal);
    sent = true;
  }) : Promise.resolve(null)).then((v) => (order.push("stdout"), v));
  const stderr = c.options.stderr === "piped" ? collect(child.stderr) : null;
  const result = { status: await status, stdout: await stdout, stderr: await stderr };
  await feed;
  // That the exit did not wait for a pipe which something else still holds.
  if (/late|another session/.test(c.options.args?.[1] ?? "")) result.first = order[0];
  return result;
}

const sandbox = await Sandbox.create();
const here = (command, options) => new Deno.Command(command, options).spawn();
const there = (command, options) => sandbox.spawn(command, options);
const short = (v) => JSON.stringify(v, (_k, x) => typeof x === "string" && x.length > 200 ? `${x.slice(0, 200)}... (${x.length})` : x);

Deno.chdir((await sandbox.sh`pwd`.text()).trim());
// What was inherited by one must have been by the other.
const theirs = await sandbox.env.toObject();
for (const name of Object.keys(Deno.env.toObject())) if (!(name in theirs)) Deno.env.delete(name);
for (const [name, value] of Object.entries(theirs)) Deno.env.set(name, value);

const cases = Array.from({ length: CASES }, makeCase);
let next = 0;
await Promise.all(Array.from({ length: 6 }, async () => {
  while (next < cases.length) {
    const n = next++, c = cases[n];
    await test(`case ${n}: ${short({ command: c.command, ...c.options, input: c.input?.length, signal: c.signal }).slice(0, 160)}`, async () => {
      const [want, got] = [await run(here, c), await run(there, c)];
      // The package's own idea of Deno does not know all classes.
      if (want.error && got.error?.[0] === "Error" && !["NotFound", "PermissionDenied"].includes(want.error[0])) want.error[0] = "Error";
      if (short(want) !== short(got) || JSON.stringify(want) !== JSON.stringify(got)) {
        throw new Error(`${short(c)}\n  Deno:    ${short(want)}\n  sandbox: ${short(got)}`);
      }
    });
  }
}));
await sleep(0);
await sandbox.close();
rmSync(dir, { recursive: true });
await done();
