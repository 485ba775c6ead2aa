// SPDX-License-Identifier: Apache-2.0
// The main job, with the unmodified npm package: a sandbox, code in it, a preview, two deployments.
import { Client, Sandbox } from "@deno/sandbox";

const tty = process.stdout.isTTY;
const dim = (s) => (tty ? `\x1b[2m${s}\x1b[0m` : s);
const began = performance.now();
let n = 0;

async function step(what, fn) {
  const t = performance.now();
  const said = [];
  const result = await fn((line) => said.push(line));
  const ms = (performance.now() - t).toFixed(0).padStart(6);
  console.log(`${String(++n).padStart(2)}. ${what.padEnd(58)} ${ms} ms`);
  for (const line of said) console.log(dim(`      ${line}`));
  return result;
}

function must(cond, what) {
  if (!cond) throw new Error(`demo: ${what}`);
}

const server = (text) =>
  `Deno.serve((req) => new Response("${text} " + new URL(req.url).pathname + "\\n"));\n`;

async function get(url, want) {
  const res = await fetch(url);
  const text = await res.text();
  must(res.status === 200 && text.includes(want), `${url} answered ${res.status}: ${text.slice(0, 200)}`);
  return text.trim();
}

const client = new Client();
const slug = `demo-${Math.random().toString(36).slice(2, 8)}`;

const sandbox = await step("create a sandbox (a microVM of its own)", async (say) => {
  const s = await Sandbox.create({ labels: { purpose: "demo" } });
  say(s.id);
  return s;
});

try {
  await step("run a command: uname, whoami", async (say) => {
    const out = await sandbox.sh`uname -sr; whoami; pwd`.text();
    must(out.includes("Linux") && out.includes("app"), out);
    say(out.trim().split("\n").join(" | "));
  });

  await step("write a file, read it back", async (say) => {
    await sandbox.fs.writeTextFile("notes/hello.txt", "x").then(
      () => must(false, "a write into a missing directory must fail"),
      (e) => say(`as it should: ${e.name}: ${e.message}`),
    );
    await sandbox.fs.mkdir("notes");
    await sandbox.fs.writeTextFile("notes/hello.txt", "written from outside\n");
    const back = await sandbox.fs.readTextFile("notes/hello.txt");
    must(back === "written from outside\n", back);
    must((await sandbox.sh`cat notes/hello.txt`.text()) === back, "the command sees another file");
  });

  await step("stream the output of a command while it runs", async (say) => {
    const child = await sandbox.spawn("bash", {
      args: ["-c", "for i in 1 2 3 4 5; do echo tick $i; sleep 0.2; done"],
      stdout: "piped",
      stderr: "null",
    });
    const times = [];
    const t = performance.now();
    for await (const chunk of child.stdout) {
      times.push(`${new TextDecoder().decode(chunk).trim()} at ${(performance.now() - t).toFixed(0)} ms`);
    }
    const status = await child.status;
    must(status.success && times.length >= 3, `came in ${times.length} pieces`);
    say(times.join(", "));
  });

  await step("evaluate TypeScript with deno.eval", async (say) => {
    const v = await sandbox.deno.eval("const squares: number[] = [1, 2, 3].map((x) => x * x); squares");
    must(JSON.stringify(v) === "[1,4,9]", JSON.stringify(v));
    say(JSON.stringify(v));
  });

  await step("start an HTTP server, open it through its preview URL", async (say) => {
    const app = await sandbox.deno.run({ code: server("preview says hello from"), stdout: "null", stderr: "null" });
    must(await app.httpReady, "the server did not start");
    const url = await sandbox.exposeHttp(app);
    say(url);
    say(await get(`${url}/some/path`, "preview says hello from /some/path"));
    await app.kill();
  });

  await step(`make an app '${slug}'`, () => client.apps.create({ slug }));

  for (const version of ["first", "second"]) {
    const build = await step(`write the ${version} version and deploy() it`, async (say) => {
      await sandbox.fs.writeTextFile("/home/app/main.ts", server(`${version} revision at`));
      const b = await sandbox.deno.deploy(slug, { build: { entrypoint: "main.ts" }, production: true });
      say(`revision ${b.id}`);
      return b;
    });
    await step("wait until it is built, started and routed", async (say) => {
      const r = await build.done;
      if (r.status !== "succeeded") console.error(r);
      must(r.status === "succeeded", `the revision ended as '${r.status}'`);
      for (const t of r.timelines ?? []) for (const d of t.domains ?? []) say(`https://${d.domain ?? d}`);
    });
    await step("fetch the production URL", async (say) => {
      const host = new URL(process.env.DENO_DEPLOY_ENDPOINT);
      const url = `https://${slug}.${host.host.replace(/^api\./, "")}/`;
      say(url);
      say(await get(url, `${version} revision at`));
    });
  }
} finally {
  await step("close the connection: the sandbox ends with it", () => sandbox.close());
}
console.log(`\nAll of it worked, in ${((performance.now() - began) / 1000).toFixed(1)} s.`);
console.log(`The app keeps running; its revisions: client.revisions.list("${slug}").`);
