// SPDX-License-Identifier: Apache-2.0
// Real frameworks: npm installs their packages on this host, from where its configuration says, the tree goes into a sandbox and is deployed
// with its build command alone, in machines that reach nothing, and what production serves is looked at: a page, and where there is a server
// something that only a server can know. SOAK_FRAMEWORKS names which of them (all). SOAK_BUILD=host builds here and deploys what the build left:
// where processors are emulated a build takes an hour, and what is to be seen is whether it is served.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { Readable } from "node:stream";
import { Client, Sandbox } from "@deno/sandbox";

async function rendered(get, revision) {
  const page = await get("/?q=rendered");
  must(page.includes(`rendered by ${revision}`), "the server has rendered it");
  return page;
}
// left: what a server needs of what a build leaves.
const FRAMEWORKS = {
  vite: {
    packages: { react: "^19", "react-dom": "^19", vite: "^7", "@vitejs/plugin-react": "^5" },
    build: "vite build",
    left: ["dist", "main.ts"],
    files: {
      "index.html": `<!doctype html><html><body><div id="root"></div><script type="module" src="/src/main.jsx"></script></body></html>`,
      "src/main.jsx": `import { createRoot } from "react-dom/client";
import "./style.css";
const App = () => <p>built by vite</p>;
createRoot(document.getElementById("root")).render(<App />);`,
      "src/style.css": "p { color: rebeccapurple }",
      "vite.config.js": `import react from "@vitejs/plugin-react"; export default { plugins: [react()] };`,
      // It leaves files; there is no preset for it, and a deployment from a sandbox has an entrypoint.
      "main.ts": `const types: Record<string, string> = { html: "text/html", js: "text/javascript", css: "text/css" };
Deno.serve(async (r) => {
  const path = new URL(r.url).pathname, file = "dist" + (path === "/" ? "/index.html" : path);
  const body = await Deno.readFile(file).catch(() => null);
  return body ? new Response(body, { headers: { "content-type": types[file.split(".").pop()!] } }) : new Response("none", { status: 404 });
});`,
    },
    async look(get) {
      const script = /src="(\/assets\/[^"]+\.js)"/.exec(await get("/"))?.[1];
      must(script, "the page names its script");
      must((await get(script)).includes("built by vite"), "the script has what was written");
    },
  },
  sveltekit: {
    preset: "sveltekit",
    packages: { "@sveltejs/adapter-node": "^5", "@sveltejs/kit": "^2", "@sveltejs/vite-plugin-svelte": "^6", svelte: "^5", vite: "^7" },
    build: "vite build",
    files: {
      "svelte.config.js": `import adapter from "@sveltejs/adapter-node"; export default { kit: { adapter: adapter() } };`,
      "vite.config.js": `import { sveltekit } from "@sveltejs/kit/vite"; export default { plugins: [sveltekit()] };`,
      "src/app.html": `<!doctype html><html><head>%sveltekit.head%</head><body><div>%sveltekit.body%</div></body></html>`,
      "src/routes/+page.svelte": `<script>let { data } = $props();</script><p>{data.q} by {data.revision}</p>`,
      "src/routes/+page.server.js": `export const load = ({ url }) => ({ q: url.searchParams.get("q"), revision: process.env.DENO_DEPLOYMENT_ID });`,
    },
    left: ["build", "node_modules"],
    look: rendered,
  },
  astro: {
    preset: "astro",
    packages: { astro: "^5", "@astrojs/node": "^9" },
    build: "ASTRO_TELEMETRY_DISABLED=1 astro build",
    left: ["dist", "node_modules"],
    files: {
      "astro.config.mjs": `import node from "@astrojs/node"; export default { output: "server", adapter: node({ mode: "standalone" }) };`,
      "src/pages/index.astro": `---\nconst q = Astro.url.searchParams.get("q"), revision = process.env.DENO_DEPLOYMENT_ID;\n---\n<p>{q} by {revision}</p>`,
    },
    look: rendered,
  },
  nextjs: {
    preset: "nextjs",
    packages: { next: "^15", react: "^19", "react-dom": "^19" },
    build: "NEXT_TELEMETRY_DISABLED=1 next build",
    left: [".next/standalone", ".next/static"],
    files: {
      "next.config.mjs": `export default { output: "standalone" };`,
      "app/layout.jsx": `export default ({ children }) => <html><body>{children}</body></html>;`,
      "app/page.jsx": `import Count from "./count.jsx";
export const dynamic = "force-dynamic";
export default async function Page({ searchParams }) {
  const { q } = await searchParams;
  return <div><p>{\`\${q} by \${process.env.DENO_DEPLOYMENT_ID}\`}</p><Count /></div>;
}`,
      "app/count.jsx": `"use client";
import { useState } from "react";
export default function Count() { const [n, set] = useState(0); return <button onClick={() => set(n + 1)}>clicked {n}</button>; }`,
    },
    async look(get, revision) {
      const page = await rendered(get, revision), script = /src="(\/_next\/static\/[^"]+\.js)"/.exec(page)?.[1];
      must(script, "the page names a script");
      must((await get(script)).length > 100, "the script is there");
    },
  },
  nuxt: {
    preset: "nuxt",
    packages: { nuxt: "^3" },
    build: "NUXT_TELEMETRY_DISABLED=1 nuxt build",
    left: [".output"],
    files: {
      "nuxt.config.ts": `export default defineNuxtConfig({ compatibilityDate: "2025-01-01" });`,
      "app.vue": `<script setup>const q = useRoute().query.q, { data } = await useFetch("/api/revision");</script><template><p>{{ q + " by " + data }}</p></template>`,
      "server/api/revision.ts": `export default defineEventHandler(() => process.env.DENO_DEPLOYMENT_ID);`,
    },
    look: rendered,
  },
};
const here = process.env.SOAK_BUILD === "host";
const must = (cond, what) => {
  if (!cond) throw new Error(`not true: ${what}`);
};

const client = new Client(), base = new URL(process.env.DENO_DEPLOY_ENDPOINT);
const url = (slug) => `https://${slug}.${base.hostname.replace(/^api\./, "")}${base.port ? ":" + base.port : ""}`;
const npm = path.join(path.dirname(process.execPath), "npm");

/** A tar file of the project with its packages. */
function tree(name, { packages, build, files, left }) {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "nbframework-"));
  const all = { ...files, "package.json": JSON.stringify({ name, private: true, type: "module", scripts: { build }, dependencies: packages }) };
  for (const [file, text] of Object.entries(all)) {
    fs.mkdirSync(path.dirname(path.join(dir, file)), { recursive: true });
    fs.writeFileSync(path.join(dir, file), text);
  }
  execFileSync(fs.existsSync(npm) ? npm : "npm", ["install", "--no-audit", "--no-fund", "--loglevel=error"], { cwd: dir, stdio: "inherit" });
  if (here) execFileSync(fs.existsSync(npm) ? npm : "npm", ["run", "build"], { cwd: dir, stdio: "inherit", env: { ...process.env, PATH: `${path.dirname(npm)}:${process.env.PATH}` } });
  execFileSync("tar", ["-czf", `${dir}.tgz`, "-C", dir, ...(here ? [...left, "package.json"] : ["."])]);
  fs.rmSync(dir, { recursive: true });
  return `${dir}.tgz`;
}

async function deploy(name, framework) {
  const file = tree(name, framework), app = await client.apps.create({ slug: `fw-${name}-${Math.random().toString(36).slice(2, 8)}` });
  const sandbox = await Sandbox.create({ timeout: "120m", allowNet: [] });
  try {
    const began = Date.now(), times = [];
    const lap = (what) => times.push(`${what} at ${Math.round((Date.now() - began) / 1000)} s`);
    await sandbox.fs.writeFile("/tmp/tree.tgz", Readable.toWeb(fs.createReadStream(file)));
    await sandbox.sh`mkdir project && tar -xzf /tmp/tree.tgz -C project`;
    lap("unpacked");
    const build = await sandbox.deno.deploy(app.slug, {
      path: "/home/app/project", production: true, build: { mode: "local", frameworkPreset: framework.preset ?? "", ...(here ? {} : { buildCommand: "npm run build" }) },
    });
    lap("accepted");
    const revision = await build.done;
    lap("ended");
    const log = [];
    for await (const l of client.revisions.buildLogs(revision.id)) log.push(`${l.step}: ${l.message}`);
    if (revision.status !== "succeeded") throw new Error(`${revision.status}: ${revision.failure_message}\n${log.slice(-30).join("\n")}`);
    await framework.look(async (p) => {
      const res = await fetch(url(app.slug) + p);
      must(res.status === 200, `${p} answers ${res.status}`);
      return await res.text();
    }, revision.id);
    return `${(fs.statSync(file).size / 1048576).toFixed(1)} MiB packed; ${times.join(", ")}`;
  } finally {
    fs.rmSync(file);
    await client.apps.delete(app.id);
    await sandbox.kill();
  }
}

const wanted = process.env.SOAK_FRAMEWORKS?.split(/[ ,]+/) ?? Object.keys(FRAMEWORKS);
let passed = 0, failed = 0;
for (const name of wanted) {
  try {
    console.log(`ok   ${name}: ${await deploy(name, FRAMEWORKS[name])}`);
    passed++;
  } catch (e) {
    console.log(`FAIL ${name}\n  ${e.stack}`);
    failed++;
  }
}
console.log(`${passed} passed, ${failed} failed, 0 skipped`);
process.exit(failed ? 1 : 0);
