// SPDX-License-Identifier: Apache-2.0
// Drives an agent: every service of schema/agent.h, good and bad input. Run by boot_agent.sh inside the namespace of a machine,
// or against `nestbox-agent serve` with --port (then only what needs no machine).
import net from "node:net";
import { readFileSync } from "node:fs";
import { randomBytes } from "node:crypto";

const args = process.argv.slice(2);
const option = (name, dflt) => {
	const at = args.indexOf(`--${name}`);
	return at < 0 ? dflt : args.splice(at, 2)[1];
};
const port = Number(option("port", 1024));
const host = port === 1024 ? "169.254.100.2" : "127.0.0.1";
const qemu = option("qemu");
const machine = port === 1024;

// A connection with exact reads.
class Conn {
	constructor(socket) {
		this.socket = socket;
		this.data = Buffer.alloc(0);
		this.ended = false;
		this.waiting = [];
		const wake = () => this.waiting.splice(0).forEach((f) => f());
		socket.on("data", (d) => { this.data = Buffer.concat([this.data, d]); wake(); });
		socket.on("end", () => { this.ended = true; wake(); });
		socket.on("error", (e) => { this.error = e; this.ended = true; wake(); });
	}
	async until(test, ms = 60000) {
		const deadline = Date.now() + ms;
		for (let r; ; ) {
			if ((r = test()) !== undefined) return r;
			if (this.ended) throw new Error(`connection ended (${this.error?.code ?? "end of file"})`);
			const left = deadline - Date.now();
			if (left <= 0) throw new Error("no answer in time");
			await new Promise((resolve) => {
				const t = setTimeout(resolve, left);
				this.waiting.push(() => { clearTimeout(t); resolve(); });
			});
		}
	}
	line(ms) {
		return this.until(() => {
			const at = this.data.indexOf(10);
			if (at < 0) return undefined;
			const text = this.data.subarray(0, at).toString();
			this.data = this.data.subarray(at + 1);
			return JSON.parse(text);
		}, ms);
	}
	bytes(n) {
		return this.until(() => {
			if (this.data.length < n) return undefined;
			const b = this.data.subarray(0, n);
			this.data = this.data.subarray(n);
			return b;
		});
	}
	async rest(ms = 20000) {
		await this.until(() => (this.ended ? true : undefined), ms);
		return this.data;
	}
	frame(kind, data = Buffer.alloc(0)) {
		const head = Buffer.alloc(5);
		head[0] = kind;
		head.writeUInt32LE(data.length, 1);
		this.socket.write(Buffer.concat([head, Buffer.from(data)]));
	}
	close() { this.socket.destroy(); }
}

const connect = () => new Promise((resolve, reject) => {
	const s = net.connect({ port, host, noDelay: true, allowHalfOpen: true });
	s.once("connect", () => { s.removeAllListeners("error"); resolve(new Conn(s)); });
	s.once("error", reject);
});
async function ask(request, ms) {
	const c = await connect();
	c.socket.write((typeof request === "string" ? request : JSON.stringify(request)) + "\n");
	c.answer = await c.line(ms);
	return c;
}
const control = async (op, more = {}, ms) => {
	const c = await ask({ service: "control", op, ...more }, ms);
	c.close();
	return c.answer;
};

// Runs a command to its end.
async function exec(argv, more = {}, input) {
	const c = await ask({ service: "exec", argv, ...(machine ? {} : { user: "root", cwd: "/" }), ...more });
	if (c.answer.error) return { error: c.answer.error };
	if (input !== undefined) {
		for (let i = 0; i < input.length; i += 65536) c.frame(0, input.subarray(i, i + 65536));
		c.frame(0);
	}
	return frames(c);
}
async function frames(c) {
	const out = { stdout: [], stderr: [] };
	for (;;) {
		const head = await c.bytes(5);
		const data = await c.bytes(head.readUInt32LE(1));
		if (head[0] === 1) out.stdout.push(data);
		else if (head[0] === 2) out.stderr.push(data);
		else {
			Object.assign(out, JSON.parse(data.toString()));
			break;
		}
	}
	c.close();
	out.stdout = Buffer.concat(out.stdout);
	out.stderr = Buffer.concat(out.stderr);
	out.text = out.stdout.toString();
	return out;
}
const sh = (script, more) => exec(["bash", "-c", script], more);

const tests = [];
const test = (name, fn) => tests.push({ name, fn });
function equal(a, b, what = "") {
	const x = JSON.stringify(a), y = JSON.stringify(b);
	if (x !== y) throw new Error(`${what} is ${x}, not ${y}`);
}
function ok(v, what) {
	if (!v) throw new Error(`not so: ${what}`);
}
// Waits until the machine says so; never longer than the deadline.
async function eventually(fn, what, ms = 10000) {
	const deadline = Date.now() + ms;
	while (!(await fn())) {
		if (Date.now() > deadline) throw new Error(`never: ${what}`);
		await new Promise((r) => setTimeout(r, 50));
	}
}

test("hello", async () => {
	const h = await control("hello");
	equal(h.ok, true, "ok");
	equal(h.generation, 0, "generation");
	ok(h.version && h.image, "version and image are named");
});
test("exec", async () => {
	const r = await exec(["echo", "hi"]);
	equal([r.text, r.code, r.signal, r.oom], ["hi\n", 0, null, false]);
	equal((await sh("echo e >&2; exit 7")).code, 7);
	equal((await sh("kill -9 $$")).signal, "SIGKILL");
	equal((await exec(["/nonexistent"])).error.code, "ENOENT");
	equal((await exec(["true"], { cwd: "/nonexistent" })).error.code, "ENOENT");
	equal((await sh("echo $A$B", { env: { A: "x", B: "y z" } })).text, "xy z\n");
	equal((await exec(["/usr/bin/env"], { clear_env: true, env: { A: "1" } })).text, "A=1\n");
});
test("exec-latency", async () => {
	const ms = [];
	for (let i = 0; i < 20; i++) {
		const t = performance.now();
		equal((await exec(["/bin/true"])).code, 0);
		ms.push(performance.now() - t);
	}
	ms.sort((x, y) => x - y);
	console.log(`     exec of true: p50 ${ms[10].toFixed(1)} ms, p95 ${ms[18].toFixed(1)} ms`);
	const t = performance.now();
	for (let i = 0; i < 20; i++) await control("hello");
	console.log(`     hello: mean ${((performance.now() - t) / 20).toFixed(1)} ms`);
});
test("exec-streams", async () => {
	const data = randomBytes(3_000_000);
	const r = await exec(["cat"], {}, data);
	ok(r.stdout.equals(data), "3 MB come back as they went in");
	equal((await sh("head -c 20000000 /dev/zero | tee >(wc -c >&2) >/dev/null; sleep 0.05")).stderr.toString().trim(), "20000000");
	// What a command leaves behind does not keep the answer for ever, and is not killed.
	const t = Date.now();
	const left = await sh("sleep 300 & echo $!");
	equal(left.code, 0);
	ok(Date.now() - t < 5000, "the exit was not held up by a background process");
	equal((await sh(`kill ${Number(left.text)}; echo $?`)).text, "0\n");
});
test("exec-slow-reader", async () => {
	const c = await ask({ service: "exec", argv: ["bash", "-c", "head -c 50000000 /dev/zero; echo done >&2"], ...(machine ? {} : { user: "root", cwd: "/" }) });
	c.socket.pause();
	await new Promise((r) => setTimeout(r, 300));
	ok((await control("hello")).ok, "others are served meanwhile");
	c.socket.resume();
	const r = await frames(c);
	equal([r.stdout.length, r.stderr.toString()], [50000000, "done\n"]);
});
test("exec-input-nobody-wants", async () => {
	// The program ends without reading: what is still on its way to it must not cost the host the exit frame.
	for (let i = 0; i < (machine ? 3 : 30); i++) {
		const r = await exec(["bash", "-c", "echo hi; exit 5"], {}, Buffer.alloc(2_000_000));
		equal([r.text, r.code], ["hi\n", 5]);
	}
	const c = await connect();
	c.socket.write("{}\n" + "x".repeat(3_000_000));
	equal((await c.line()).error.code, "EINVAL");
	c.close();
});
test("exec-signal-and-hangup", async () => {
	let c = await ask({ service: "exec", argv: ["sleep", "100"], ...(machine ? {} : { user: "root", cwd: "/" }) });
	c.frame(4, "TERM");
	equal((await frames(c)).signal, "SIGTERM");
	const mark = `9${process.pid}.25`;
	c = await ask({ service: "exec", argv: ["bash", "-c", `trap '' HUP; sleep ${mark} & sleep ${mark}; wait`], ...(machine ? {} : { user: "root", cwd: "/" }) });
	await eventually(async () => (await sh(`pgrep -fc '^sleep ${mark}'`)).text.trim() === "2", "both sleep");
	c.close();
	await eventually(async () => (await sh(`pgrep -fc '^sleep ${mark}'`)).text.trim() === "0", "the group is gone", 15000);
});
test("exec-tty", async () => {
	const c = await ask({ service: "exec", argv: ["bash", "-c", "read x; stty size; tty; echo got $x $TERM; exit 3"],
		tty: { cols: 91, rows: 17 }, ...(machine ? {} : { user: "root", cwd: "/" }) });
	const size = Buffer.alloc(4);
	size.writeUInt16LE(133, 0);
	size.writeUInt16LE(44, 2);
	c.frame(5, size);
	c.frame(0, "word\n");
	const r = await frames(c);
	equal(r.code, 3);
	ok(/44 133/.test(r.text), "the size is the new one");
	ok(/\/dev\/pts\/\d/.test(r.text) && /got word xterm-256color/.test(r.text), "it is a terminal");
});
test("bad-lines", async () => {
	const bad = async (request, code) => {
		const c = await ask(request);
		c.close();
		equal(c.answer.error?.code, code, JSON.stringify(request).slice(0, 60));
	};
	await bad("nonsense", "EINVAL");
	await bad("[]", "EINVAL");
	await bad('{"service": "nothing"}', "EINVAL");
	await bad('{"service": 1}', "EINVAL");
	await bad("[".repeat(100000), "EINVAL");
	await bad({ service: "exec" }, "EINVAL");
	await bad({ service: "exec", argv: [] }, "EINVAL");
	await bad({ service: "exec", argv: ["a\0b"] }, "EINVAL");
	await bad({ service: "exec", argv: Array(2000).fill("x") }, "E2BIG");
	await bad({ service: "exec", argv: ["x"], user: "bin" }, "EINVAL");
	await bad({ service: "exec", argv: ["x"], env: { "A=B": "c" } }, "EINVAL");
	await bad({ service: "dial", port: 70000 }, "EINVAL");
	await bad({ service: "unit", op: "start", name: "../x", argv: ["x"] }, "EINVAL");
	await bad({ service: "unit", op: "stat", name: "absent" }, "ENOENT");
	await bad({ service: "control", op: "nothing" }, machine ? "EINVAL" : "EPERM");
	await bad("x".repeat(140000), "E2BIG");
	await bad({ service: "tar-out", path: "relative" }, "EINVAL");
	await bad({ service: "tar-out", path: "/nonexistent" }, "ENOENT");
});
test("line-in-pieces", async () => {
	const c = await connect();
	const line = JSON.stringify({ service: "exec", argv: ["cat"], ...(machine ? {} : { user: "root", cwd: "/" }) }) + "\n";
	for (const ch of line.slice(0, -1)) c.socket.write(ch);
	// The newline comes together with the first frames: they belong to the service.
	const f = Buffer.concat([Buffer.from("\n"), Buffer.from([0, 2, 0, 0, 0]), Buffer.from("ab"), Buffer.from([0, 0, 0, 0, 0])]);
	c.socket.write(f);
	c.answer = await c.line();
	equal((await frames(c)).text, "ab");
});
test("connections-and-deadline", async () => {
	// More than the bound: those beyond it are closed at once, the silent ones at their deadline, with a reason.
	// In portions that the accept queue holds: what overflows it is a connection to the client alone.
	const all = [];
	while (all.length < 1040) all.push(...(await Promise.all(Array.from({ length: 40 }, () => connect()))));
	await eventually(() => all.filter((c) => c.ended).length >= 16, "the surplus is closed");
	ok(all.filter((c) => c.ended && !c.data.length).length < 40, "no more than the surplus");
	const kept = all.filter((c) => !c.ended);
	const t = Date.now();
	await eventually(() => kept.every((c) => c.ended), "the silent ones are closed", 20000);
	ok(Date.now() - t > 5000, "not before their deadline");
	equal(JSON.parse(kept[0].data.toString()).error.code, "ETIMEDOUT");
	all.forEach((c) => c.close());
	await eventually(async () => (await control("hello").catch(() => ({}))).ok, "others are served again");
});
test("dial", async () => {
	const refused = await ask({ service: "dial", port: 1 });
	equal(refused.answer.error?.code, "ECONNREFUSED");
	refused.close();
	const never = await ask({ service: "dial", port: 1, wait_ms: 200 });
	equal(never.answer.error?.code, "ECONNREFUSED");
	never.close();
	const long = await ask({ service: "dial", port: 1, wait_ms: 10_001 });
	equal(long.answer.error?.code, "EINVAL");
	long.close();
	if (!machine) { // who listens a moment later
		const asked = ask({ service: "dial", port: 8303, wait_ms: 10_000 }), late = net.createServer((s) => s.end("late"));
		await new Promise((r) => setTimeout(r, 100));
		await new Promise((r) => late.listen(8303, "127.0.0.1", r));
		const d = await asked;
		equal(d.answer.ok, true);
		equal((await d.rest()).toString(), "late");
		d.close();
		late.close();
	}
	for (const bind of ["127.0.0.1", "::1"]) {
		const p = bind === "::1" ? 8302 : 8301;
		const server = `import socket,sys
s=socket.socket(socket.AF_INET6 if ':' in '${bind}' else socket.AF_INET); s.setsockopt(1,2,1); s.bind(('${bind}',${p})); s.listen(1)
print('up',flush=True); c,_=s.accept(); n=b''
while True:
    b=c.recv(65536)
    if not b: break
    n+=b
c.sendall(n[::-1]); c.close()`;
		let x;
		if (machine) {
			x = await ask({ service: "exec", argv: ["python3", "-c", server] });
			await x.until(() => (x.data.includes("up") ? true : undefined));
		} else {
			const here = net.createServer({ allowHalfOpen: true }, (s) => {
				const got = [];
				s.on("data", (d) => got.push(d)).on("end", () => s.end(Buffer.concat(got).reverse()));
			});
			await new Promise((r) => here.listen(p, bind, r));
			x = here;
		}
		const d = await ask({ service: "dial", port: p });
		equal(d.answer.ok, true);
		const data = randomBytes(1_000_000);
		d.socket.end(data);
		const back = await d.rest();
		ok(back.equals(Buffer.from(data).reverse()), `1 MB through ${bind} and back after a half-close`);
		d.close();
		x.close();
	}
});
if (!machine) test("dial-slow-reader", async () => {
	// The port is closed in both directions while the last bytes still wait for the host. How much the kernel takes before
	// that is its own choice, so: many lengths.
	let much;
	const server = net.createServer({ allowHalfOpen: true }, (s) => s.on("end", () => s.end(much)).resume());
	await new Promise((r) => server.listen(0, "127.0.0.1", r));
	for (let n = 1_000_000; n < 10_000_000; n += 131_072 - 1) {
		much = Buffer.alloc(n, 7);
		const d = await ask({ service: "dial", port: server.address().port });
		let got = 0;
		d.socket.removeAllListeners("data");
		d.socket.on("data", (b) => (got += b.length)).pause().end("x");
		await new Promise((r) => setTimeout(r, 30));
		d.socket.resume();
		await d.rest();
		equal(got, n);
	}
	server.close();
});
test("tar", async () => {
	const dir = machine ? "/home/app" : `/tmp/agent-test-${process.pid}`;
	const user = machine ? "app" : "root";
	await sh(`mkdir -p ${dir}/t/sub/node_modules; cd ${dir}/t; echo a > a; echo b > sub/b; ln -s a link; : > sub/node_modules/x`);
	const o = await ask({ service: "tar-out", path: `${dir}/t`, exclude: ["node_modules"] });
	equal(o.answer.ok, true);
	const tar = await o.rest();
	o.close();
	ok(tar.length % 512 === 0 && tar.subarray(-1024).every((b) => b === 0), "a whole archive");
	const i = await ask({ service: "tar-in", path: `${dir}/new/t2`, user });
	equal(i.answer.ok, true);
	i.socket.end(tar);
	equal(await i.line(), { ok: true });
	i.close();
	equal((await sh(`cd ${dir}/new/t2; cat a sub/b; readlink link; ls sub; stat -c %U a`)).text,
		`a\nb\na\nb\n${user}\n`);
	const bad = await ask({ service: "tar-in", path: `${dir}/new/t3`, user });
	bad.socket.end(randomBytes(5000));
	ok((await bad.line()).error, "garbage is an error");
	bad.close();
	await sh(`rm -rf ${dir}/t ${dir}/new; rmdir ${dir} 2>/dev/null`);
});
test("unit", async () => {
	const who = machine ? {} : { user: "root", cwd: "/" };
	const op = async (o, more = {}) => { const c = await ask({ service: "unit", op: o, name: "u1", ...more }); c.close(); return c.answer; };
	const started = await op("start", { argv: ["bash", "-c", "echo one; echo two >&2; sleep 300"], ...who });
	equal(started.ok, true);
	equal((await op("start", { argv: ["true"], ...who })).error?.code, "EEXIST");
	const f = await ask({ service: "unit", op: "follow", name: "u1", after: 0 });
	const rows = [await f.line(), await f.line()].sort((a, b) => (a.line < b.line ? -1 : 1));
	equal(rows.map((r) => [r.stream, r.line]), [["stdout", "one"], ["stderr", "two"]]);
	f.close();
	const s = await op("stat");
	equal([s.running, s.starts, s.pid > 1], [true, 1, true]);
	equal((await op("stop")).ok, true);
	equal((await op("stat")).signal, "SIGTERM");
	equal((await op("start", { argv: ["/nonexistent"], restart: true, ...who })).error?.code, "ENOENT");
	equal((await op("start", { argv: ["bash", "-c", "echo again"], restart: true, ...who })).ok, true);
	const g = await ask({ service: "unit", op: "follow", name: "u1", after: 0 });
	const said = [];
	while (said.length < 4) said.push((await g.line()).line);
	equal(said.map((s) => /again(?: in . s)?/.exec(s)?.[0]), ["again", "again in 1 s", "again", "again in 2 s"], "ever more slowly");
	g.close();
	equal((await op("stop")).ok, true);
	const long = await op("start", { argv: ["bash", "-c", "head -c 20000 /dev/zero | tr '\\0' x; sleep 300"], ...who });
	equal(long.ok, true);
	const l = await ask({ service: "unit", op: "follow", name: "u1", after: 0 });
	equal([(await l.line()).line.length, (await l.line()).line.length], [8192, 8192]);
	l.close();
	await op("stop");
});
test("session", async () => {
	const r = await ask({ service: "rpc" });
	equal(r.answer.ok, true);
	r.close();
	const h = await ask({ service: "http", domain: "x.example" }).catch((e) => ({ answer: { error: { code: e.message } } }));
	ok(h.answer.error, "nothing is exposed");
	h.close?.();
	if (!machine) return;
	const pid = async () => Number((await sh("pgrep -x nestbox-session")).text);
	const first = await pid();
	ok(/not permitted/.test((await sh(`kill -9 ${first} 2>&1`)).text), "its user cannot kill it");
	equal(await pid(), first);
	equal((await sh("grep -h Uid /proc/$(pgrep -x nestbox-session)/status | tr '\\t' ' '; cat /proc/$(pgrep -x nestbox-session)/oom_score_adj", { user: "root" })).text,
		"Uid: 0 1000 0 1000\n-1000\n");
	await sh(`kill -9 ${first}`, { user: "root" });
	await eventually(async () => (await pid()) > 0 && (await pid()) !== first, "it was started again");
	await eventually(async () => (await ask({ service: "rpc" })).answer.ok, "it takes connections again");
});
if (machine) {
	test("system", async () => {
		equal((await sh("id -un; pwd; hostname; sudo -n id -u; echo $HOME")).text, "app\n/home/app\nsandbox\n0\n/home/app\n");
		equal((await sh("id -u; echo $HOME", { user: "root" })).text, "0\n/root\n");
		equal((await sh("cat /proc/1/oom_score_adj /proc/self/oom_score_adj")).text, "-1000\n0\n");
		equal((await sh("mount | grep -c ' / type overlay'; ls -d /proc/self/fd /dev/pts/ptmx /dev/shm /sys/fs/cgroup/user")).text.split("\n").length, 6);
		equal((await sh("sudo touch /etc/x && rm -f /tmp/y && touch /tmp/y && ls /etc/x /tmp/y")).text, "/etc/x\n/tmp/y\n");
		equal((await sh("cat /proc/net/if_inet6 | grep -v ' lo$'; ip -4 route | head -1")).text.trim(), "default via 100.64.0.1 dev eth0");
		equal((await sh("cat /proc/self/cgroup")).text, "0::/user\n");
		equal((await sh("cat /sys/module/cryptomgr/parameters/notests")).text, "Y\n"); // a fifth of a boot otherwise
		equal((await sh(`exec 3<>/dev/tcp/169.254.100.2/1024; echo '{"service":"control","op":"hello"}' >&3; timeout 5 cat <&3; [ $? = 124 ] || echo closed`)).text,
			"closed\n", "the agent's answer to somebody inside");
		equal((await sh("deno eval 'console.log(6 * 7)'")).text, "42\n");
		equal((await sh("git --version >/dev/null && curl --version >/dev/null && python3 -c 'import ssl, json' && ps -p 1 -o comm=")).text, "nestbox-agent\n");
	});
	test("identity", async () => {
		const before = await sh("head -c 16 /dev/urandom | base64");
		const old = await ask({ service: "exec", argv: ["bash", "-c", "sleep 0.2; echo kept > /tmp/kept; sleep 300"] });
		const ca = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
		const t0 = performance.now();
		const r = await control("identity", { time_ns: 1234567890000000000, entropy: randomBytes(64).toString("base64"), hostname: "box-7",
			machine_id: "0123456789abcdef0123456789abcdef", env: { SECRET: "placeholder" }, ca_pem: ca });
		console.log(`     identity took ${(performance.now() - t0).toFixed(1)} ms`);
		equal(r, { ok: true });
		await old.rest().catch(() => {});
		ok(old.ended, "inherited connections are dropped");
		equal((await control("hello")).generation, 1);
		equal((await sh("hostname; cat /etc/hostname /etc/machine-id /run/nestbox/generation; echo $SECRET $GIT_SSL_CAINFO; getent hosts box-7 | wc -l")).text,
			"box-7\nbox-7\n0123456789abcdef0123456789abcdef\n1\nplaceholder /etc/ssl/certs/ca-certificates.crt\n1\n");
		const year = (await sh("date +%Y")).text;
		equal(year, "2009\n");
		equal((await sh("tail -4 /etc/ssl/certs/ca-certificates.crt")).text, "# the machine's own authority\n" + ca);
		equal((await sh("env -i python3 -c 'import ssl; print(ssl.get_default_verify_paths().cafile)'; readlink -f /usr/lib/ssl/cert.pem")).text,
			"/usr/lib/ssl/cert.pem\n/etc/ssl/certs/ca-certificates.crt\n", "OpenSSL without variables");
		await eventually(async () => (await sh("cat /tmp/kept; pgrep -c -x sleep")).text === "kept\n1\n", "the program lives on");
		ok((await sh("head -c 16 /dev/urandom | base64")).text !== before.text, "random numbers differ");
		// Again, with a hook; the certificate is replaced, not added.
		await sh(`printf '#!/bin/sh\\ncat /run/nestbox/generation >> /tmp/hook\\n' | sudo tee /etc/nestbox/on-clone.d/10-x >/dev/null; sudo chmod +x /etc/nestbox/on-clone.d/10-x`);
		const t1 = performance.now();
		equal(await control("identity", { time_ns: Date.now() * 1e6, entropy: randomBytes(64).toString("base64"), hostname: "box-8", env: {}, ca_pem: ca }), { ok: true });
		console.log(`     identity with one hook took ${(performance.now() - t1).toFixed(1)} ms`);
		equal((await sh("cat /tmp/hook; grep -c \"machine's own\" /etc/ssl/certs/ca-certificates.crt; echo x$SECRET; grep -c box- /etc/hosts")).text, "2\n1\nx\n1\n");
		// Variables and an authority for what starts from now on; the machine stays who it is.
		equal(await control("trust", { env: { LATER: "placeholder", SECRET: "new" }, ca_pem: ca.replace("MIIB", "MIIC") }), { ok: true });
		equal((await sh("echo $LATER $SECRET; hostname; cat /run/nestbox/generation; tail -2 /etc/ssl/certs/ca-certificates.crt | head -1")).text,
			"placeholder new\nbox-8\n2\nMIIC\n");
		equal((await control("trust", { env: 1 })).error?.code, "EINVAL");
		equal((await control("identity", { entropy: "short" })).error?.code, "EINVAL");
		equal((await control("identity", { hostname: "a b" })).error?.code, "EINVAL");
	});
	test("mount", async () => {
		equal(await control("mount", { device: 0, path: "/home/app/data" }), { ok: true });
		equal((await sh("echo v > data/f && cat data/f && df --output=target data | tail -1")).text, "v\n/home/app/data\n");
		ok((await control("mount", { device: 1, path: "/x" })).error, "a placeholder is no file system");
		equal((await control("mount", { device: 9, path: "/x" })).error?.code, "EINVAL");
	});
	test("freeze", async () => {
		equal(await control("sync"), { ok: true });
		equal(await control("freeze"), { ok: true });
		const w = ask({ service: "exec", argv: ["bash", "-c", "echo x > /home/app/frozen; echo done"] });
		ok((await control("hello")).ok, "the agent answers while the disk is frozen");
		equal(await control("thaw"), { ok: true });
		equal((await frames(await w)).text, "done\n");
		// A clone that was cut while frozen: identity thaws.
		equal(await control("freeze"), { ok: true });
		equal(await control("identity", { hostname: "thawed" }), { ok: true });
		equal((await sh("echo y > /home/app/data/y && echo y > /home/app/y && hostname")).text, "thawed\n");
		equal(await control("drop_caches", {}, 90000), { ok: true });
		const s = await control("stat");
		ok(s.memory_total > 5e8 && s.disk_total > 5e9 && s.processes > 0, "stat");
		console.log(`     memory used after drop_caches: ${((s.memory_total - s.memory_available) / 1048576).toFixed(0)} MiB`);
	});
	test("fork-bomb", async () => {
		const c = await ask({ service: "exec", argv: ["bash", "-c", "f() { f | f & }; f; sleep 60"] });
		await eventually(async () => (await control("stat")).processes > 600, "many processes", 60000);
		ok((await control("hello")).ok, "the agent answers");
		equal((await exec(["id", "-u"], { user: "root" })).text, "0\n", "root on the host's behalf");
		c.close();
		await eventually(async () => {
			await exec(["pkill", "-9", "-u", "app", "bash"], { user: "root" });
			return (await control("stat")).processes < 200;
		}, "the bomb is defused", 60000);
	});
	test("out-of-memory", async () => {
		await eventually(async () => (await exec(["python3", "-c", "print(1)"])).text === "1\n", "there is room again", 60000);
		const r = await exec(["python3", "-c", "x=[]\nwhile True: x.append(b'x' * (1 << 24))"]);
		equal([r.signal, r.oom], ["SIGKILL", true]);
		ok((await control("stat")).oom_kills > 0, "it is counted");
	});
	test("poweroff", async () => {
		await exec(["bash", "-c", "echo last > /home/app/last"]);
		equal(await control("poweroff"), { ok: true });
		if (qemu) await eventually(() => {
			try {
				return /^State:\s+Z/m.test(readFileSync(`/proc/${qemu}/status`, "utf8"));
			} catch {
				return true;
			}
		}, "the machine ends", 20000);
	});
}

let passed = 0, failed = 0;
if (machine) {
	const t0 = Date.now();
	for (;;) {
		try {
			if ((await Promise.race([control("hello"), new Promise((r) => setTimeout(() => r({}), 2000))])).ok) break;
		} catch { /* not yet */ }
		if (Date.now() - t0 > 60000) {
			console.log("FAIL boot\n0 passed, 1 failed, 0 skipped");
			process.exit(1);
		}
		await new Promise((r) => setTimeout(r, 20));
	}
	console.log(`     agent answers ${Date.now() - t0} ms after the machine was started`);
}
for (const { name, fn } of tests) {
	if (args.length && !args.includes(name)) continue;
	const t0 = Date.now();
	try {
		await fn();
		passed++;
		console.log(`ok   ${name} (${Date.now() - t0} ms)`);
	} catch (e) {
		failed++;
		console.log(`FAIL ${name}: ${e.message}`);
	}
}
console.log(`${passed} passed, ${failed} failed, 0 skipped`);
process.exit(failed ? 1 : 0);
