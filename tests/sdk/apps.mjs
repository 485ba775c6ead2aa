// SPDX-License-Identifier: Apache-2.0
// Client: apps, layers, revisions, timelines, their lists, and deployments from a sandbox, through every method and option. What
// deployments must survive is tests/it/deploy.mjs's subject; here each kind is made once.
import * as sdk from "@deno/sandbox";
import { alone, assert, done, rejection, Sandbox, skip, sleep, test, until } from "./lib.mjs";

if (alone) await test("all of it", () => skip("needs a running system")).then(done);

const client = new sdk.Client({ token: process.env.DENO_DEPLOY_TOKEN, apiEndpoint: process.env.DENO_DEPLOY_ENDPOINT });
const tag = Math.random().toString(36).slice(2, 8);
const slug = (name) => `${name}-${tag}`;
const cleanup = [];
const all = async (list) => {
  const items = [];
  for await (const i of list) items.push(i);
  return items;
};
async function refused(promise, status, code) {
  const e = await rejection(promise);
  assert.ok(e instanceof sdk.ApiError, e.stack);
  assert.deepEqual([e.status, e.code], [status, code]);
  assert.ok(e.traceId && e.message.includes(e.traceId), e.message);
}
const endpoint = new URL(process.env.DENO_DEPLOY_ENDPOINT);
const url = (label) => `https://${label}.${endpoint.host.replace(/^api\./, "")}/`;
const get = async (label) => await (await fetch(url(label), { headers: { connection: "close" } })).text();

await test("client: namespaces", () => {
  for (const n of ["apps", "volumes", "snapshots", "revisions", "timelines", "sandboxes", "layers"]) assert.equal(typeof client[n], "object");
});

let layer, inner;
await test("layers: create, get, update, list, apps, delete", async () => {
  inner = await client.layers.create({ slug: slug("inner") });
  layer = await client.layers.create({
    slug: slug("layer"),
    description: "for tests",
    layers: [inner.slug],
    env_vars: [{ key: "NB_LAYER", value: "from the layer" }, { key: "NB_SECRET", value: "s3cret", secret: true, contexts: ["production"] }],
  });
  cleanup.push(() => client.layers.delete(layer.id), () => client.layers.delete(inner.id));
  assert.equal(layer.description, "for tests");
  assert.deepEqual(layer.layers, [{ id: inner.id, slug: inner.slug }]);
  assert.equal(layer.app_count, 0);
  const [shown, hidden] = layer.env_vars;
  assert.deepEqual([shown.key, shown.value, shown.secret, shown.contexts], ["NB_LAYER", "from the layer", false, "all"]);
  assert.deepEqual([hidden.key, hidden.value ?? null, hidden.secret, hidden.contexts], ["NB_SECRET", null, true, ["production"]]);
  assert.deepEqual(await client.layers.get(layer.id), await client.layers.get(layer.slug));
  assert.equal(await client.layers.get(slug("none")), null);
  const changed = await client.layers.update(layer.slug, {
    slug: slug("layer2"),
    description: "changed",
    layers: [],
    env_vars: [{ id: shown.id, value: "changed" }, { key: "NB_NEW", value: "n" }, { key: "NB_SECRET", delete: true }],
  });
  assert.deepEqual([changed.slug, changed.description, changed.layers], [slug("layer2"), "changed", []]);
  assert.deepEqual(changed.env_vars.map((v) => [v.key, v.value]).sort(), [["NB_LAYER", "changed"], ["NB_NEW", "n"]]);
  layer = changed;
  const found = await client.layers.list({ search: tag, limit: 1 });
  assert.deepEqual([found.items.length, found.hasMore], [1, true]);
  assert.equal((await client.layers.list({ search: tag, limit: 1, cursor: found.nextCursor })).items.length, 1);
  assert.deepEqual((await all(found)).map((l) => l.id).sort(), [layer.id, inner.id].sort());
  await refused(client.layers.create({ slug: layer.slug }), 409, "SLUG_TAKEN");
  await refused(client.layers.update(layer.id, { layers: [layer.id] }), 400, "LAYER_CYCLE");
  await refused(client.layers.update(slug("none"), {}), 404, "LAYER_NOT_FOUND");
});

let app;
await test("apps: create, get, update, list, delete", async () => {
  const plain = await client.apps.create();
  assert.ok(plain.slug && plain.id);
  await client.apps.delete(plain.id);
  assert.equal(await client.apps.get(plain.id), null);

  app = await client.apps.create({
    slug: slug("app"),
    labels: { tag, kind: "one" },
    env_vars: [{ key: "NB_APP", value: "from the app" }],
    config: { install: null, build: null, predeploy: null, crons: false, runtime: { type: "dynamic", entrypoint: "main.ts", args: ["--x"] } },
    layers: [layer.slug],
  });
  cleanup.unshift(() => client.apps.delete(app.id));
  assert.deepEqual([app.slug, app.labels, app.layers], [slug("app"), { tag, kind: "one" }, [{ id: layer.id, slug: layer.slug }]]);
  assert.deepEqual(app.config.runtime, { type: "dynamic", entrypoint: "main.ts", args: ["--x"] });
  assert.deepEqual(await client.apps.get(app.slug), await client.apps.get(app.id));
  assert.ok(!Number.isNaN(Date.parse(app.created_at)) && !Number.isNaN(Date.parse(app.updated_at)));
  const framework = await client.apps.create({ slug: slug("fresh"), labels: { tag }, config: { framework: "fresh" } });
  cleanup.unshift(() => client.apps.delete(framework.id));
  assert.equal(framework.config.framework, "fresh");

  const updated = await client.apps.update(app.id, {
    slug: slug("app2"),
    labels: { tag, kind: "two" },
    env_vars: [{ key: "NB_APP", value: "updated" }, { key: "NB_MORE", value: "m", contexts: ["production"] }],
    config: { install: null, build: null, predeploy: null, crons: true, runtime: { type: "dynamic", entrypoint: "main.ts" } },
    layers: [layer.id],
  });
  assert.deepEqual([updated.slug, updated.labels.kind, updated.env_vars.length], [slug("app2"), "two", 2]);
  assert.equal(await client.apps.get(app.slug), null);
  app = updated;
  assert.equal((await client.apps.update(framework.slug, { config: { framework: "astro" } })).config.framework, "astro");
  await client.apps.update(framework.slug, { config: { runtime: { type: "static", cwd: "dist", spa: true } } });

  assert.deepEqual((await all(await client.apps.list({ labels: { tag } }))).map((a) => a.id).sort(), [app.id, framework.id].sort());
  assert.deepEqual((await client.apps.list({ labels: { tag, kind: "two" } })).items.map((a) => a.id), [app.id]);
  assert.deepEqual((await client.apps.list({ layer: layer.slug })).items.map((a) => a.id), [app.id]);
  const page = await client.apps.list({ labels: { tag }, limit: 1 });
  assert.deepEqual([page.items.length, page.hasMore, typeof page.nextCursor], [1, true, "string"]);
  const next = await page.getNextPage();
  assert.notEqual(next.items[0].id, page.items[0].id);
  assert.deepEqual([next.hasMore, await next.getNextPage()], [false, null]);
  assert.equal((await client.apps.list({ labels: { tag }, limit: 1, cursor: page.nextCursor })).items[0].id, next.items[0].id);
  assert.deepEqual((await all(await client.layers.apps(layer.id, { limit: 1 }))).map((a) => [a.id, a.slug, a.layer_position]), [[app.id, app.slug, 0]]);
  assert.equal((await client.layers.get(layer.id)).app_count, 1);
  await refused(client.layers.delete(layer.id), 409, "LAYER_IN_USE");
  await refused(client.apps.create({ slug: app.slug }), 409, "SLUG_TAKEN");
  await refused(client.apps.create({ slug: "Not A Slug" }), 400, "INVALID_SLUG");
  await refused(client.apps.update(slug("none"), {}), 404, "APP_NOT_FOUND");
  await refused(client.apps.delete(slug("none")), 404, "APP_NOT_FOUND");
  const lists = [client.apps.list({ cursor: "nonsense" }), client.layers.apps(layer.id, { cursor: "nonsense" }),
    client.revisions.list(app.id, { cursor: "nonsense" }), client.timelines.list(app.id, { cursor: "nonsense" })];
  // All are listened to at once: one that nobody listens to when it fails would end the program.
  await Promise.all(lists.map((list) => refused(list, 400, "INVALID_CURSOR")));
});

const SERVER = `const env = Object.fromEntries(["NB_APP", "NB_LAYER", "NB_REV"].map((k) => [k, Deno.env.get(k)]));
console.log("started with", Deno.args.join(","));
Deno.serve((req) => {
  console.error("asked for " + new URL(req.url).pathname);
  return Response.json({ ...env, args: Deno.args, link: Deno.readTextFileSync("link.txt"), data: Deno.readFileSync("data.bin").length });
});`;

let revision;
await test("apps.deploy: assets of every kind, configuration, layers, variables, labels; progress, logs", async () => {
  const began = new Date(Date.now() - 60_000).toISOString();
  revision = await client.apps.deploy(app.slug, {
    assets: {
      "main.ts": { kind: "file", encoding: "utf-8", content: SERVER },
      "data.bin": { encoding: "base64", content: btoa("\0\x01\x02") },
      "link.txt": { kind: "symlink", target: "sub/real.txt" },
      "sub/real.txt": { content: "real" },
    },
    config: { install: "echo installing", build: null, predeploy: null, crons: true, runtime: { type: "dynamic", entrypoint: "main.ts", args: ["a", "b c"] } },
    layers: [layer.id],
    env_vars: [{ key: "NB_REV", value: "of this revision" }],
    labels: { commit: "abc" },
    production: true,
    preview: true,
  });
  assert.deepEqual([revision.labels, revision.env_vars, revision.failure_reason], [{ commit: "abc" }, [{ key: "NB_REV", value: "of this revision" }], null]);
  const seen = [];
  for await (const p of client.revisions.progress(revision.id)) seen.push(p);
  const last = seen.at(-1);
  assert.deepEqual([last.queued.status, last.installing.status, last.installing.command, last.building.status, last.deploying.status],
    ["succeeded", "succeeded", "echo installing", "skipped", "succeeded"]);
  assert.ok(last.deploying.timelines.every((t) => t.slug && t.partition && t.routing));
  const r = await client.revisions.get(revision.id);
  assert.deepEqual([r.status, r.failure_reason, r.deleted_at, r.config.runtime.args], ["succeeded", null, null, ["a", "b c"]]);
  assert.ok(Date.parse(r.build_finished_at) >= Date.parse(r.created_at));
  assert.deepEqual(JSON.parse(await get(app.slug)), {
    NB_APP: "updated", NB_LAYER: "changed", NB_REV: "of this revision", args: ["a", "b c"], link: "real", data: 3,
  });

  const lines = await all(client.revisions.buildLogs(revision.id));
  assert.ok(lines.some((l) => l.step === "installing" && l.message === "installing" && l.level === "info"));
  assert.ok((await all(client.revisions.buildLogs(revision.id, { step: "installing" }))).every((l) => l.step === "installing"));
  const timeline = last.deploying.timelines[0].slug;
  for (const l of await all(client.revisions.buildLogs(revision.id, { step: "deploying", timeline }))) assert.equal(l.timeline, timeline);

  const logs = async (more) => (await all(await client.apps.logs(app.slug, { start: began, ...more })));
  const [entry] = await until(async () => {
    const l = await logs({ query: "asked for /" });
    return l.length && l;
  }, 30_000);
  assert.deepEqual([entry.revision_id, entry.message], [revision.id, "asked for /"]);
  assert.ok((await logs({ revision_id: revision.id })).some((l) => l.message === "started with a,b c"));
  assert.ok((await logs({ level: "error" })).every((l) => l.level === "error"));
  assert.deepEqual(await logs({ end: began }), []);
  const page = await client.apps.logs(app.id, { start: began, limit: 1 });
  assert.equal(page.items.length, 1);
  if (page.hasMore) assert.equal((await client.apps.logs(app.id, { start: began, limit: 1, cursor: page.nextCursor })).items.length, 1);
}, 240_000);

await test("revisions and timelines: list, get, refusals", async () => {
  const listed = await client.revisions.list(app.slug, { limit: 30 });
  assert.deepEqual(listed.items.map((r) => r.id), [revision.id]);
  assert.deepEqual((await client.revisions.list(app.id, { status: "failed" })).items, []);
  assert.equal((await client.revisions.list(app.id, { status: "succeeded", limit: 1 })).items.length, 1);
  const timelines = await all(await client.timelines.list(app.slug, { limit: 10 }));
  assert.ok(timelines.length >= 1);
  for (const t of timelines) assert.deepEqual([t.app.id, typeof t.context.slug, Array.isArray(t.domains)], [app.id, "string", true]);
  const active = await client.revisions.timelines(revision.id);
  assert.ok(active.some((t) => t.domains.some((d) => url(app.slug).includes(d.domain.split(":")[0]))), JSON.stringify(active));
  assert.equal(await client.revisions.get("00000000"), null);
  await refused(client.revisions.cancel(revision.id), 409, "REVISION_FINISHED");
  await refused(client.revisions.delete(revision.id), 409, "REVISION_ACTIVE");
  await refused(client.timelines.list(slug("none")), 404, "APP_NOT_FOUND");
});

await test("deployments from a sandbox: Build, a cancelled one, a failed one, a static one", async () => {
  await using sandbox = await Sandbox.create();
  await sandbox.fs.mkdir("project/site", { recursive: true });
  await sandbox.fs.writeTextFile("project/main.ts", `Deno.serve(() => new Response("built " + Deno.readTextFileSync("out.txt") + Deno.args))`);
  const build = await sandbox.deno.deploy(app.slug, {
    path: "/home/app/project",
    production: false,
    preview: true,
    build: { mode: "local", entrypoint: "main.ts", args: ["x"], installCommand: "true", buildCommand: "sleep 300", buildDirectory: ".", frameworkPreset: "" },
  });
  assert.equal(typeof build.id, "string");
  await until(async () => (await client.revisions.get(build.id)).status === "building", 120_000);
  const cancelled = await client.revisions.cancel(build.id);
  assert.ok(cancelled.cancellation_requested_at);
  const ended = await build.done;
  assert.deepEqual([ended.status, ended.failure_reason, ended.timelines], ["failed", "cancelled", []]);
  await client.revisions.delete(build.id);
  assert.ok((await client.revisions.get(build.id))?.deleted_at ?? true);

  const e = await rejection(sandbox.deno.deploy(slug("none"), { path: "/home/app/project" }));
  assert.match(e.message, /^Failed to create deployment job: .*404 .*APP_NOT_FOUND/);
  assert.match((await rejection(sandbox.deno.deploy(app.slug, { build: { entrypoint: "../x.ts" } }))).message, /400 .*must not leave the directory/);

  await sandbox.fs.writeTextFile("project/site/index.html", "<h1>static</h1>");
  const fixed = await client.apps.deploy(app.id, {
    assets: { "dist/index.html": { content: "<h1>static</h1>" }, "dist/a.txt": { content: "a" } },
    config: { framework: "", install: null, build: null, runtime: { type: "static", cwd: "dist", spa: false } },
    production: true,
  });
  const second = await sandbox.deno.deploy(app.slug, { path: "/home/app/project", build: { mode: "none", entrypoint: "nothing.ts" }, production: true })
    .then((b) => b.done, (e) => e);
  assert.ok(second instanceof Error || second.status === "failed", JSON.stringify(second));
  for await (const _ of client.revisions.progress(fixed.id));
  assert.equal((await client.revisions.get(fixed.id)).status, "succeeded");
  assert.equal(await get(app.slug), "<h1>static</h1>");

  await sandbox.fs.writeTextFile("project/first.txt", "things ");
  await sandbox.fs.link("project/first.txt", "project/out.txt"); // as installers of packages make them; a bundle has two files
  const good = await sandbox.deploy(app.slug, {
    path: "/home/app/project",
    build: { mode: "local", installCommand: "mkdir built", buildCommand: "mv main.ts out.txt built", buildDirectory: "built", entrypoint: "main.ts", args: ["x", "y"] },
    production: true,
  });
  const lines = all(good.logs());
  const r = await good.done;
  assert.deepEqual([r.id, r.status], [good.id, "succeeded"]);
  assert.ok(r.timelines.length >= 1);
  assert.ok((await lines).length > 0);
  assert.equal(await get(app.slug), "built things x,y");
}, 300_000);

for (const undo of cleanup) await test(`tidying up`, undo);
await done();
