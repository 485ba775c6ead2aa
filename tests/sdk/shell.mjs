// SPDX-License-Identifier: Apache-2.0
// Sandbox.sh, its builder and result, KillController and KillSignal.
import { KillController, SandboxCommandError, SandboxSdkError } from "@deno/sandbox";
import { assert, done, rejection, Sandbox, sleep, test, text, until } from "./lib.mjs";

const sandbox = await Sandbox.create();
const sh = sandbox.sh;

await test("substitutions are quoted, lists expand, what bash does is bash's", async () => {
  // A backslash is none of these: the package takes it for a character that needs no quotes.
  const odd = ["", " ", "a b", "'", "''", '"', "$HOME", "`id`", "zwei\nZeilen", "*", "-n", "~", "#x", "ä\u{1F600}", "a;b&c|d>e<f", "{1..3}", "!x", "(", "\t"];
  await Promise.all(odd.map(async (one) => assert.equal(await sh`printf %s ${one}`.text(), one, JSON.stringify(one))));
  assert.deepEqual((await sh`printf '%s\\0' ${odd}`.text()).split("\0").slice(0, -1), odd);
  assert.equal(await sh`echo ${1} ${true} ${null}`.text(), "1 true \n");
  assert.equal(await sh`echo {1..3} $((2 * 3)) $(echo sub) ~`.text(), "1 2 3 6 sub /home/app\n");
  assert.equal(await sh`echo ${[]}x`.text(), "x\n");
  for (const bad of [{}, [[{}]], [{ a: 1 }]]) assert.match((await rejection(sh`echo ${bad}`.text())).message, /objects as shell arguments/);
  const file = "file with 'odd' \"name\".txt";
  await sh`echo ${"Hello, world!"} > ${file}`;
  assert.equal(await sandbox.fs.readTextFile(file), "Hello, world!\n");
  await sh`rm ${[file]}`;
}, 120_000);

await test("pipes, subshells, redirections, here-documents, several lines", async () => {
  assert.equal(await sh`printf '%s\n' c a b | sort -r | head -n 2`.text(), "c\nb\n");
  assert.equal(await sh`(echo out; echo err >&2) 2>&1 | wc -l`.text(), "2\n");
  assert.equal(await sh`cat <<< ${"here $x"}`.text(), "here $x\n");
  assert.equal(await sh`
    i=0
    while [ $i -lt 3 ]; do i=$((i + 1)); done
    echo $i`.text(), "3\n");
  assert.equal((await sh`set -o pipefail; false | true`.noThrow()).status.code, 1);
});

await test("awaited: status and what was asked for", async () => {
  const r = await sh`echo out; echo err >&2`.stdout("piped");
  assert.deepEqual(r.status, { success: true, code: 0, signal: null, oom: false });
  assert.equal(r.stdoutText, "out\n");
  assert.deepEqual(r.stdout, new TextEncoder().encode("out\n"));
  const e = await sh`echo out; echo err >&2`.stderr("piped").result();
  assert.equal(e.stderrText, "err\n");
  assert.equal((await sh`echo out`.stdout("null")).stdout, null);
  const nothing = await sh`true`.stdout("piped");
  assert.deepEqual([nothing.stdout.length, nothing.stdoutText], [0, ""]);
  const binary = await sh`head -c 300000 /dev/urandom | tee r | cat`.stdout("piped");
  assert.deepEqual(binary.stdout, await sandbox.fs.readFile("r"));
});

await test("inherited output goes to the program's own", async () => {
  const real = process.stdout.write;
  let seen = "";
  process.stdout.write = (chunk, ...rest) => {
    seen += typeof chunk === "string" ? chunk : text(chunk);
    return typeof rest.at(-1) === "function" ? (rest.at(-1)(), true) : true;
  };
  try {
    await sh`echo inherited`;
    const child = await sandbox.spawn("echo", { args: ["spawned"], stderr: "null" });
    assert.throws(() => child.stdout.getReader(), TypeError); // inherited, so it is locked
    await child.status;
    await until(() => seen.includes("spawned"));
  } finally {
    process.stdout.write = real;
  }
  assert.match(seen, /inherited\n/);
});

await test("text and json", async () => {
  assert.deepEqual(await sh`echo '{"count": [42, null, "ä"]}'`.json(), { count: [42, null, "ä"] });
  assert.match((await rejection(sh`echo not json`.json())).message, /^Failed to parse JSON: .*\nnot json\n$/s);
  assert.equal(await sh`printf 'a\nb'`.text(), "a\nb");
  assert.equal((await rejection(sh`echo x; exit 3`.text())).code, 3);
});

await test("failure is a SandboxCommandError with the code, and stderr if it was piped", async () => {
  const e = await rejection(sh`echo why >&2; exit 42`.stderr("piped"));
  assert.ok(e instanceof SandboxCommandError && e instanceof Error && !(e instanceof SandboxSdkError));
  assert.deepEqual([e.name, e.code, e.message], ["SandboxCommandError", 42, "Command failed with exit code 42\nwhy\n"]);
  assert.equal((await rejection(sh`no-such-command`.stderr("null"))).code, 127);
  assert.equal((await rejection(sh`kill -9 $$`)).code, 137);
  const r = await sh`exit 42`.noThrow();
  assert.deepEqual(r.status, { success: false, code: 42, signal: null, oom: false });
  assert.equal((await rejection(sh`exit 1`.noThrow(false))).code, 1);
});

await test("cwd, env, sudo", async () => {
  assert.equal(await sh`[ $PWD = /usr/lib ] && echo > /tmp/nb-cwd`.cwd("/usr/lib").result().then(() => sh`cat /tmp/nb-cwd`.text()), "\n");
  assert.equal((await rejection(sh`true`.cwd("/no/such"))).code, "ENOENT");
  await sh`[ "$NB_X" = "a 'b' $(echo c)" ]`.env("NB_X", "a 'b' c");
  assert.equal((await sh`id -u > /tmp/nb-id`.sudo(false)).status.code, 0);
  assert.equal(await sh`cat /tmp/nb-id`.text(), "1000\n");
  await sh`bash -c 'id -u > /tmp/nb-id-root'`.sudo();
  assert.equal(await sh`cat /tmp/nb-id-root; stat -c %U /tmp/nb-id-root`.text(), "0\nroot\n");
});

await test("a builder runs each time it is awaited, spawn() gives a child", async () => {
  const count = sh`echo x >> /tmp/nb-count`;
  await count;
  await count;
  await Promise.all([count, count]);
  assert.equal(await sh`wc -l < /tmp/nb-count`.text(), "4\n");
  const child = await sh`echo spawned`.stdout("piped").spawn();
  assert.equal((await child.output()).stdoutText, "spawned\n");
});

// The package looks at a signal before it starts a command and again when the command has started; what comes between is lost,
// which a slow machine makes likely. So these wait until it runs.
let seconds = 100_000;
async function started(n) {
  const looks = () => sandbox.spawn("pgrep", { args: ["-fx", `sleep ${n}`], stdout: "null", stderr: "null" }).then((c) => c.status);
  await until(async () => (await looks()).success, 60_000);
  await sleep(500);
}

await test("AbortSignal ends it with SIGTERM and 143", async () => {
  const controller = new AbortController();
  const n = seconds++;
  const end = rejection(sh`sleep ${n}`.signal(controller.signal).result());
  await started(n);
  controller.abort();
  assert.equal((await end).code, 143);
  assert.throws(() => sh`true`.signal("SIGTERM"), /KillSignal or AbortSignal/);
}, 90_000);

await test("KillController: which signals abort, exit codes, a command that was not started yet", async () => {
  for (const [signal, code] of [[undefined, 143], ["SIGKILL", 137], ["SIGINT", 130]]) {
    const controller = new KillController();
    assert.deepEqual([controller.signal.aborted, controller.signal.abortedExitCode], [false, undefined]);
    const n = seconds++;
    const end = rejection(sh`sleep ${n}`.signal(controller.signal).result());
    await started(n);
    controller.kill(signal);
    assert.equal((await end).code, code, signal);
    assert.deepEqual([controller.signal.aborted, controller.signal.abortedExitCode], [true, code]);
    // Once aborted, what is started with it does not start.
    assert.equal((await rejection(sh`touch /tmp/nb-never`.signal(controller.signal))).code, code);
  }
  assert.equal((await sh`test -e /tmp/nb-never`.noThrow()).status.code, 1);
}, 200_000);

await test("KillSignal: other signals are passed on; listeners; children", async () => {
  const controller = new KillController();
  const heard = [];
  const listener = (s) => heard.push(s);
  controller.signal.addListener(listener);
  const child = new KillController();
  const link = controller.signal.linkChild(child.signal);
  const running = sh`trap 'echo usr2; exit 6' USR2; touch /tmp/nb-trap; while :; do sleep 0.1; done`.signal(child.signal).result().catch((e) => e);
  await until(async () => (await sh`test -e /tmp/nb-trap`.noThrow()).status.success, 30_000);
  controller.kill("SIGUSR2");
  assert.equal((await running).code, 6);
  assert.deepEqual([heard, controller.signal.aborted, child.signal.aborted], [["SIGUSR2"], false, false]);
  controller.signal.removeListener(listener);
  link.unsubscribe();
  controller.kill("SIGTERM");
  assert.deepEqual([heard.length, controller.signal.aborted, child.signal.aborted], [1, true, false]);
});

await test("60 commands at once", async () => {
  const out = await Promise.all(Array.from({ length: 60 }, (_, i) => sh`echo ${i}`.text()));
  out.forEach((t, i) => assert.equal(t, `${i}\n`));
}, 120_000);

await sandbox.close();
await done();
