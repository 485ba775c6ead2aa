// SPDX-License-Identifier: Apache-2.0
// Sandbox.spawn, ChildProcess, Sandbox.sh, Sandbox.env: what the SDK promises, through the unmodified SDK.
import { alone, assert, done, isDeno, nodeTest, rejection, Sandbox, sessionPid, sleep, test, text, until } from "./lib.mjs";
import { KillController } from "@deno/sandbox";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const sandbox = await Sandbox.create();
const piped = { stdout: "piped", stderr: "piped" };

await test("spawn: stdout, stderr and exit code", async () => {
  const child = await sandbox.spawn("bash", { args: ["-c", "echo out; echo err >&2; exit 7"], ...piped });
  assert.ok(child.pid > 0);
  const { status, stdoutText, stderrText } = await child.output();
  assert.deepEqual(status, { success: false, code: 7, signal: null, oom: false });
  assert.equal(stdoutText, "out\n");
  assert.equal(stderrText, "err\n");
});

await test("spawn: null streams", async () => {
  const child = await sandbox.spawn("bash", { args: ["-c", "cat; echo x; echo y >&2"], stdout: "null", stderr: "null" });
  assert.equal(child.stdout, null);
  assert.equal(child.stderr, null);
  assert.equal(child.stdin, null);
  assert.equal((await child.status).code, 0);
});

await test("spawn: output of many fast children is never lost", async () => {
  const runs = [];
  for (let i = 0; i < (isDeno ? 40 : 200); i++) runs.push(sandbox.spawn("echo", { args: [String(i)], ...piped }).then((c) => c.output()));
  const all = await Promise.all(runs);
  all.forEach((r, i) => assert.equal(r.stdoutText, `${i}\n`));
});

await test("spawn: no such program", async () => {
  const e = await rejection(sandbox.spawn("no-such-program-here"));
  assert.equal(e.code, "ENOENT");
  assert.match(e.message, /no-such-program-here/);
});

await test("spawn: not executable, no such directory", async () => {
  assert.equal((await rejection(sandbox.spawn("/etc/passwd"))).code, "EACCES");
  const e = await rejection(sandbox.spawn("true", { cwd: "/no/such/dir" }));
  assert.equal(e.code, "ENOENT");
  assert.match(e.message, /cwd/);
});

await test("spawn: cwd, env, clearEnv", async () => {
  const run = async (options) =>
    (await (await sandbox.spawn("bash", { args: ["-c", "pwd; echo $NB_A; echo ${HOME:-none}"], ...piped, ...options }))
      .output()).stdoutText.split("\n");
  assert.deepEqual((await run({ cwd: "/tmp", env: { NB_A: "a b=c" } })).slice(0, 2), ["/tmp", "a b=c"]);
  const cleared = await run({ cwd: "/", clearEnv: true, env: { PATH: "/usr/bin:/bin" } });
  assert.deepEqual(cleared.slice(0, 3), ["/", "", "none"]);
});

await test("spawn: signals are default, descriptors closed, own session", async () => {
  const { stdoutText } = await (await sandbox.spawn("bash", {
    args: ["-c", "grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l; ps -o pid=,sid= -p $$"],
    ...piped,
  })).output();
  const lines = stdoutText.trim().split("\n");
  assert.match(lines[0], /SigBlk:\s+0+$/);
  assert.match(lines[1], /SigIgn:\s+0+$/);
  assert.equal(Number(lines[2]), 4); // 0, 1, 2 and that of ls
  const [pid, sid] = lines[3].trim().split(/\s+/);
  assert.equal(pid, sid);
});

await test("spawn: stdin is piped, half-closed at its end", async () => {
  const child = await sandbox.spawn("cat", { stdin: "piped", ...piped });
  const w = child.stdin.getWriter();
  await w.write(new TextEncoder().encode("hello "));
  await w.write(new TextEncoder().encode("world"));
  await w.close();
  assert.equal((await child.output()).stdoutText, "hello world");
});

await test("spawn: much through cat", async () => {
  const n = isDeno ? 3 : 16;
  const child = await sandbox.spawn("cat", { stdin: "piped", ...piped });
  const block = new Uint8Array(1 << 20).map((_, i) => (i * 31) & 255);
  const writing = (async () => {
    const w = child.stdin.getWriter();
    for (let i = 0; i < n; i++) await w.write(block);
    await w.close();
  })();
  const { stdout } = await child.output();
  await writing;
  assert.equal(stdout.length, n << 20);
  assert.deepEqual(stdout.subarray((n - 1) << 20), block);
});

await test("spawn: a reader that closed its input fails the writer", async () => {
  const child = await sandbox.spawn("bash", { args: ["-c", "exec 0<&-; echo closed; sleep 30"], stdin: "piped", ...piped });
  const reader = child.stdout.getReader();
  assert.equal(text((await reader.read()).value), "closed\n");
  const w = child.stdin.getWriter();
  w.closed.catch(() => {});
  const e = await rejection((async () => {
    for (;;) await w.write(new Uint8Array(65536)).then(() => sleep(5));
  })());
  assert.equal(e.code, "EPIPE");
  await child.kill("SIGKILL");
});

await test("spawn: a grandchild that keeps the pipe holds the output, not the status", async () => {
  const fifo = `/tmp/nb-late-${process.pid}`;
  const child = await sandbox.spawn("bash", { args: ["-c", `mkfifo ${fifo}; (read x < ${fifo}; echo late) & echo early`], ...piped });
  assert.equal((await child.status).code, 0); // while nobody has let the grandchild end
  await sandbox.sh`echo > ${fifo}`;
  const { stdoutText } = await child.output();
  assert.equal(stdoutText, "early\nlate\n");
});

await test("kill: default, by name, of the group", async () => {
  for (const [signal, code] of [[undefined, 143], ["SIGKILL", 137], ["SIGINT", 130], ["SIGUSR1", 138]]) {
    const child = await sandbox.spawn("sleep", { args: ["60"], ...piped });
    await child.kill(signal);
    assert.deepEqual(await child.status, { success: false, code, signal: signal ?? "SIGTERM", oom: false });
  }
  const group = await sandbox.spawn("bash", { args: ["-c", "sleep 61 & sleep 61; true"], ...piped });
  await group.kill("SIGTERM");
  const { status } = await group.output(); // only ends when the sleeps are gone
  assert.equal(status.signal, "SIGTERM");
});

await test("kill: a signal that is handled, one that doesn't exist, a finished child", async () => {
  const child = await sandbox.spawn("bash", {
    args: ["-c", "trap 'echo usr1; exit 3' USR1; echo ready; while :; do sleep 0.05; done"],
    ...piped,
  });
  const reader = child.stdout.getReader();
  assert.equal(text((await reader.read()).value), "ready\n");
  const e = await rejection(child.kill("SIGNOTHING"));
  assert.ok(e instanceof TypeError);
  await child.kill("SIGUSR1");
  assert.equal(text((await reader.read()).value), "usr1\n");
  assert.equal((await child.status).code, 3);
  await child.kill(); // swallowed by the SDK because the code is ENOENT
});

await test("kill: every signal by its name, and those of other systems", async () => {
  const fatal = { SIGABRT: 6, SIGALRM: 14, SIGBUS: 7, SIGFPE: 8, SIGHUP: 1, SIGILL: 4, SIGINT: 2, SIGIO: 29, SIGKILL: 9, SIGPIPE: 13, SIGPROF: 27,
    SIGPWR: 30, SIGQUIT: 3, SIGSEGV: 11, SIGSTKFLT: 16, SIGSYS: 31, SIGTERM: 15, SIGTRAP: 5, SIGUSR1: 10, SIGUSR2: 12, SIGVTALRM: 26, SIGXCPU: 24,
    SIGXFSZ: 25 };
  const others = { SIGPOLL: "SIGIO", SIGUNUSED: "SIGSYS", SIGINFO: "SIGPWR" };
  const sleeper = () => sandbox.spawn("sleep", { args: ["60"], stdout: "null", stderr: "null" });
  await Promise.all([...Object.keys(fatal), ...Object.keys(others)].map(async (name) => {
    const child = await sleeper(), signal = others[name] ?? name;
    await child.kill(name);
    assert.deepEqual(await child.status, { success: false, code: 128 + fatal[signal], signal, oom: false }, name);
  }));
  const child = await sleeper();
  const state = async () => (await sandbox.fs.readTextFile(`/proc/${child.pid}/stat`)).split(") ")[1][0];
  for (const name of ["SIGCHLD", "SIGURG", "SIGWINCH", "SIGCONT"]) await child.kill(name);
  for (const name of ["SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"]) {
    await child.kill(name);
    // A group without a terminal whose parent is elsewhere is orphaned: only SIGSTOP stops it.
    if (name === "SIGSTOP") await until(async () => (await state()) === "T", 30_000);
    await child.kill("SIGCONT");
    await until(async () => (await state()) !== "T", 30_000);
  }
  for (const name of ["SIGBREAK", "SIGEMT", "sigterm", "TERM", "", "SIG"]) assert.ok(await rejection(child.kill(name)) instanceof TypeError, name);
  await child.kill("SIGKILL");
  assert.equal((await child.status).signal, "SIGKILL");
}, 120_000);

await test("AbortSignal kills with SIGTERM", async () => {
  const child = await sandbox.spawn("sleep", { args: ["60"], signal: AbortSignal.timeout(3000), ...piped });
  assert.equal((await child.output()).status.signal, "SIGTERM");
});

await test("await using ends the child", async () => {
  let status;
  {
    await using child = await sandbox.spawn("sleep", { args: ["60"], ...piped });
    status = child.status;
  }
  assert.equal((await status).signal, "SIGTERM");
});

await test("a cancelled stdout is a broken pipe for the child", async () => {
  const child = await sandbox.spawn("bash", { args: ["-c", "while echo y; do :; done; exit 9"], ...piped });
  const reader = child.stdout.getReader();
  await reader.read();
  await reader.cancel();
  const { code, signal } = await child.status;
  assert.ok(signal === "SIGPIPE" || code === 9, `${signal} ${code}`);
});

await test("a loop over stdout may end early, or never begin; the next chunk and the end harm nobody", async () => {
  // An end that comes after the cancel is an exception in the package's socket handler: it would end this program.
  const scripts = Array.from({ length: 10 }, () => "head -c 300000 /dev/zero; sleep 0.0$((RANDOM % 10)); echo");
  for (const ms of [0, 2, 5, 12, 30]) scripts.push(`echo a; sleep ${ms / 1000}`, `sleep 0.0${ms}; echo a; exec sleep ${ms / 1000}`);
  for (const script of scripts) {
    const child = await sandbox.spawn("bash", { args: ["-c", script], ...piped });
    for await (const chunk of child.stdout) if (chunk.length) break;
    await child.status;
  }
  for (let i = 0; i < 10; i++) {
    const child = await sandbox.spawn("echo", { args: ["a"], ...piped });
    await Promise.all([child.stdout.cancel(), child.stderr.cancel()]);
    await child.status;
  }
});

await test("several clients: waiting during and after, signalling each other's children", async () => {
  const child = await sandbox.spawn("bash", { args: ["-c", "read; exit 5"], stdin: "piped", ...piped });
  await using other = await Sandbox.connect(sandbox.id);
  const raw = (s, pid) => (s.spawn("bash", { args: ["-c", `kill -0 ${pid} && echo there`], ...piped })).then((c) => c.output());
  assert.equal((await raw(other, child.pid)).stdoutText, "there\n");
  await child.stdin.close();
  assert.equal((await child.status).code, 5);
});

await test("a child outlives the client that started it", async () => {
  const marker = `/tmp/nb-outlive-${process.pid}-${Date.now()}`;
  const guest = await Sandbox.connect(sandbox.id);
  await guest.spawn("bash", {
    args: ["-c", `for i in $(seq 100); do echo some output; done; sleep 0.5; yes | head -c 3000000; echo $? > ${marker}`],
    ...piped,
  });
  await guest.close();
  await until(async () => (await sandbox.sh`cat ${marker} 2>/dev/null || true`.text()) === "0\n", 120_000);
  await sandbox.sh`rm ${marker}`;
});

await test("sh: text, json, quoting, pipes", async () => {
  assert.equal(await sandbox.sh`echo ${"a b; $HOME 'x'"}`.text(), "a b; $HOME 'x'\n");
  assert.equal(await sandbox.sh`printf '%s\n' ${["b", "a"]} | sort | tr 'a-z' 'A-Z'`.text(), "A\nB\n");
  assert.deepEqual(await sandbox.sh`echo '{"a":[1]}'`.json(), { a: [1] });
});

await test("sh: failure, noThrow, cwd, env, timeout", async () => {
  const e = await rejection(sandbox.sh`echo bad >&2; exit 4`.stderr("piped").result());
  assert.equal(e.code, 4);
  assert.match(e.message, /bad/);
  assert.equal((await sandbox.sh`exit 4`.noThrow()).status.code, 4);
  // In this version of the SDK each modifier starts from an empty state, so only the last one counts.
  const child = await sandbox.sh`test $PWD = /usr`.cwd("/usr");
  assert.equal(child.status.code, 0);
  assert.equal((await sandbox.sh`test "$NB_X" = "1 2"`.env("NB_X", "1 2")).status.code, 0);
  assert.equal((await rejection(sandbox.sh`sleep 101`.signal(AbortSignal.timeout(4000)).result())).code, 143);
  const controller = new KillController();
  const running = rejection(sandbox.sh`sleep 102; true`.signal(controller.signal).result());
  await until(async () => (await sandbox.sh`pgrep -f "sleep 10[2]" | wc -l`.text()) !== "0\n");
  controller.kill("SIGKILL");
  assert.equal((await running).code, 137);
});

await test("env: get, set, toObject, delete; seen by children and other clients", async () => {
  await using other = await Sandbox.connect(sandbox.id);
  assert.equal(await sandbox.env.get("NB_TEST_V"), undefined);
  await sandbox.env.set("NB_TEST_V", "ä=1");
  assert.equal(await other.env.get("NB_TEST_V"), "ä=1");
  assert.equal((await other.env.toObject()).NB_TEST_V, "ä=1");
  assert.equal(await other.sh`echo $NB_TEST_V`.text(), "ä=1\n");
  await other.env.delete("NB_TEST_V");
  assert.equal(await sandbox.env.get("NB_TEST_V"), undefined);
  assert.equal(await sandbox.sh`echo x$NB_TEST_V`.text(), "x\n");
});

await nodeTest("500 children at once", async () => {
  const children = await Promise.all(Array.from({ length: 500 }, (_, i) =>
    sandbox.spawn("bash", { args: ["-c", `read; echo ${i}`], stdin: "piped", ...piped })));
  await Promise.all(children.map((c) => c.stdin.close()));
  const outs = await Promise.all(children.map((c) => c.output()));
  outs.forEach((o, i) => assert.equal(o.stdoutText, `${i}\n`));
}, 240_000);

await nodeTest("much through a pipe both ways", async () => {
  const blocks = alone ? 100 : 30;
  const child = await sandbox.spawn("cat", { stdin: "piped", stdout: "piped", stderr: "null" });
  const block = new Uint8Array(1_000_000).map((_, i) => (i * 131) >>> 3);
  const writing = (async () => {
    const w = child.stdin.getWriter();
    for (let i = 0; i < blocks; i++) await w.write(block);
    await w.close();
  })();
  let n = 0, sum = 0;
  for await (const chunk of child.stdout) {
    sum += chunk[0] - block[n % block.length]; // where it belongs
    n += chunk.length;
  }
  await writing;
  assert.deepEqual([n, sum, (await child.status).code], [blocks * 1_000_000, 0, 0]);
}, 300_000);

await nodeTest("input that nobody reads stops no other call, and arrives whole once it is read", async () => {
  const child = await sandbox.spawn("bash", { args: ["-c", "trap 'exec sha256sum' USR1; echo; while :; do sleep 0.1; done"], stdin: "piped", ...piped });
  const out = child.stdout.getReader();
  await out.read();
  const hash = createHash("sha256");
  const block = new Uint8Array(1_000_000);
  const w = child.stdin.getWriter();
  for (let i = 0; i < 80; i++) {
    block.fill(i + 1);
    hash.update(block);
    await w.write(block);
  }
  await w.close();
  assert.equal(await sandbox.env.get("NB_NOT_THERE"), undefined); // after all of that, on the same connection
  assert.equal(await sandbox.sh`echo fine`.text(), "fine\n");
  await child.kill("SIGUSR1");
  assert.equal(text((await out.read()).value), `${hash.digest("hex")}  -\n`);
  assert.equal((await child.status).code, 0);

  // One that never reads: what waits for it goes when it goes.
  const never = await sandbox.spawn("sleep", { args: ["1000"], stdin: "piped", ...piped });
  const v = never.stdin.getWriter();
  for (let i = 0; i < 50; i++) await v.write(block);
  v.closed.catch(() => {});
  await never.kill("SIGKILL");
  assert.equal((await never.status).signal, "SIGKILL");
}, 240_000);

await test("a child that runs out of memory says so, the next ones run; one that is killed does not", async () => {
  assert.equal((await rejection(sandbox.sh`kill -9 $$`)).message, "Command failed with exit code 137");
  if (alone) return;
  // To fill a whole machine takes minutes under emulation; for the kernel a group's memory ends in the same way.
  await sandbox.sh`sudo sh -c 'mkdir /sys/fs/cgroup/small && echo 32M > /sys/fs/cgroup/small/memory.max'`;
  const join = "sudo sh -c \"echo $$ > /sys/fs/cgroup/small/cgroup.procs\";";
  const child = await sandbox.spawn("bash", { args: ["-c", `${join} exec tail /dev/zero`], ...piped });
  assert.deepEqual(await child.status, { success: false, code: 137, signal: "SIGKILL", oom: true });
  assert.equal(await sandbox.sh`echo fine`.text(), "fine\n");
  const e = await rejection(sandbox.sh`sh -c 'sudo sh -c "echo $$ > /sys/fs/cgroup/small/cgroup.procs"; exec tail /dev/zero'; exit $?`.stderr("null"));
  assert.equal(e.message, "Command failed with exit code 137 (process ran out of memory)");
  assert.equal((await rejection(sandbox.sh`kill -9 $$`)).message, "Command failed with exit code 137");
}, 120_000);

await nodeTest("much output streams through", async () => {
  const bytes = alone ? 200_000_000 : 50_000_000;
  const child = await sandbox.spawn("head", { args: ["-c", String(bytes), "/dev/zero"], ...piped });
  const began = performance.now();
  let n = 0;
  for await (const chunk of child.stdout) n += chunk.length;
  assert.equal(n, bytes);
  const s = (performance.now() - began) / 1000;
  console.log(`     ${(bytes / 1e6 / s).toFixed(0)} MB/s`);
  assert.equal((await child.status).code, 0);
  if (alone && !process.env.NESTBOX_SANITIZER) {
    const kib = Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${sessionPid}/status`, "utf8"))[1]);
    console.log(`     session's peak ${(kib / 1024).toFixed(0)} MiB`);
    assert.ok(kib < 120 * 1024, `${kib} KiB`);
  }
}, 180_000);

await sandbox.close();
await done();
