// SPDX-License-Identifier: Apache-2.0
// Domains of an app's own: asked for by its organization, approved by an operator, with a certificate of the built-in authority or from
// files. Also what a new slug leaves behind. Needs root and an instance of its own. All names lead to this host by `curl --resolve`.
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { adm, api, check, client, deployed, endpoint, env, finish, get, must, newSlug, operator, PREFIX, same, skip, until, url } from "./lib-apps.mjs";

const etc = env.NESTBOX_CONF && dirname(env.NESTBOX_CONF);
const host = `${newSlug()}.example.com`, other = `${newSlug()}.example.org`;
const port = endpoint.port || "443";
const app = await client.apps.create({ slug: newSlug() }), rival = await client.apps.create({ slug: newSlug() });
const path = `/api/v2/apps/${app.id}/domains`;
const cert = (...args) => spawnSync(`${PREFIX}/sbin/nestbox-cert`, ["-c", env.NESTBOX_CONF, ...args], { encoding: "utf8" });
function curl(name, extra = []) {
	const r = spawnSync("curl", ["-s", "-m", "60", "--cacert", `${etc}/ca.pem`, "--resolve", `${name}:${port}:127.0.0.1`, "-w", "\n%{http_code}", ...extra, `https://${name}:${port}/`],
		{ encoding: "utf8" });
	const lines = r.stdout.split("\n");
	return { exit: r.status, status: Number(lines.pop()), text: lines.join("\n") };
}
const need = () => operator || skip("needs root and an instance of its own");

await check("asked for, it is pending and of no effect", async () => {
	need();
	await deployed(app, 'Deno.serve((r) => new Response("at " + r.headers.get("host")));\n');
	const r = await api("POST", path, { domain: host });
	same(`${r.status} ${r.body.domain} ${r.body.status}`, `201 ${host} pending`);
	same((await api("GET", path)).body.length, 1);
	must(curl(host).exit !== 0, "no certificate: the handshake fails");
	same(cert("issue", host).status, 0, "issue");
	same(curl(host).status, 404, "with a certificate, and not approved");
});
await check("names that nobody may ask for", async () => {
	need();
	const own = endpoint.hostname.replace(/^api\./, "");
	for (const domain of ["localhost", own, `x.${own}`, endpoint.hostname, "UPPER.example.com", "-a.example.com", "a..example.com", "1.2.3.4", "a b.example.com",
		"../../etc/passwd", "*.example.com", `${"a".repeat(64)}.com`, `${"a.".repeat(60)}com`, ""]) {
		same((await api("POST", path, { domain })).body.code, "INVALID_DOMAIN", JSON.stringify(domain));
	}
	same((await api("POST", path, { domain: host })).body.code, "DOMAIN_EXISTS");
	same((await api("POST", path, {})).status, 400);
	same((await api("DELETE", `${path}/nobody.example.com`)).body.code, "DOMAIN_NOT_FOUND");
	same((await api("GET", "/api/v2/apps/app_zzzzzzzzzzzzzzzzzzzz/domains")).status, 404);
	same((await api("DELETE", `${path}/${app.slug}.${own}`)).status, 404, "the name by its slug");
	same((await get(url(app.slug))).status, 200, "still serves");
});
await check("an app asks for so many", async () => {
	need();
	for (let i = 1; i < 32; i++) same((await api("POST", path, { domain: `n${i}.example.com` })).status, 201);
	same((await api("POST", path, { domain: "n32.example.com" })).body.code, "DOMAIN_QUOTA_EXCEEDED");
	for (let i = 1; i < 32; i++) same((await api("DELETE", `${path}/n${i}.example.com`)).status, 204);
});
await check("approved, it leads to the app", async () => {
	need();
	same((await api("POST", `/api/v2/apps/${rival.id}/domains`, { domain: host })).status, 201, "another may ask as well");
	must(/several apps/.test(spawnSync(`${PREFIX}/sbin/nestboxadm`, ["-c", env.NESTBOX_CONF, "domain", "approve", host], { encoding: "utf8" }).stderr), "which one must be said");
	adm("domain", "approve", host, app.slug);
	await until("served", () => curl(host).status === 200, 60000);
	same(curl(host).text, `at ${host}:${port}`.replace(/:443$/, ""));
	same((await api("GET", path)).body[0].status, "active");
	must(spawnSync(`${PREFIX}/sbin/nestboxadm`, ["-c", env.NESTBOX_CONF, "domain", "approve", host, rival.slug], { encoding: "utf8" }).stderr.includes("another app"), "only one has it");
	must(adm("domain", "list").includes(host), "listed");
});
await check("a new revision serves there, too", async () => {
	need();
	const wrong = [];
	let stop = false;
	const asking = (async () => {
		while (!stop) {
			const r = curl(host);
			if (r.status !== 200) wrong.push(`${r.exit} ${r.status}`);
			await new Promise((t) => setTimeout(t, 50));
		}
	})();
	await deployed(app, 'Deno.serve(() => new Response("second"));\n');
	await until("the second", () => curl(host).text === "second", 60000);
	stop = true;
	await asking;
	same(wrong.join(), "");
});
await check("a certificate from files; one that is not its own is refused", async () => {
	need();
	const dir = mkdtempSync("/tmp/nb-cert-");
	try {
		const make = (name, file) => execFileSync("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=x",
			"-addext", `subjectAltName=DNS:${name}`, "-keyout", `${dir}/${file}.key`, "-out", `${dir}/${file}.pem`], { stdio: "ignore" });
		make(host, "good");
		make("else.example.com", "else");
		same(cert("install", host, `${dir}/good.pem`, `${dir}/good.key`).status, 0, "install");
		same(curl(host, ["--cacert", `${dir}/good.pem`]).status, 200, "it is what nginx shows, at once");
		must(curl(host).exit !== 0, "the authority did not sign this one");
		must(cert("install", host, `${dir}/else.pem`, `${dir}/else.key`).status === 1, "for another name");
		must(cert("install", host, `${dir}/good.pem`, `${dir}/else.key`).status === 1, "with another key");
		for (const name of ["../../x", "-x", "x", "A.b", "a/b.c", "a.b\nc.d"]) same(cert("issue", name).status, 2, JSON.stringify(name));
		same(cert("issue", host).status, 0);
		same(curl(host).status, 200, "issued again");
		must(cert("list").stdout.includes(host), "listed");
	} finally {
		rmSync(dir, { recursive: true });
	}
});
await check("nginx's user reads these certificates and not the authority's key", async () => {
	need();
	const reads = (file) => spawnSync("setpriv", ["--reuid=www-data", "--regid=www-data", "--clear-groups", "cat", file], { encoding: "utf8" }).status === 0;
	must(reads(`${etc}/tls/domains/${host}.key`), "its own key");
	must(!reads(`${etc}/tls/ca.key`) && !reads(`${etc}/tls/server.key`), "others");
	same(statSync(`${etc}/tls/domains/${host}.key`).mode & 0o777, 0o640, "mode");
	must(!spawnSync("setpriv", ["--reuid=nobody", "--regid=nogroup", "--clear-groups", "cat", `${etc}/tls/domains/${host}.key`]).stdout.length, "nobody else");
	must(readFileSync(`${etc}/tls/ca.key`, "utf8").includes("PRIVATE KEY"), "the key is where it was looked for");
});
await check("given up, it leads nowhere", async () => {
	need();
	same((await api("DELETE", `${path}/${host}`)).status, 204);
	await until("404", () => curl(host).status === 404, 30000);
	adm("domain", "approve", host, rival.slug);
	await until("still nothing: the other app has no revision", () => curl(host).status === 404, 5000);
	same(cert("remove", host).status, 0);
	must(!existsSync(`${etc}/tls/domains/${host}.key`), "its key is gone");
	must(curl(host).exit !== 0, "no certificate any more");
});
await check("a new slug: the old name leads nowhere, the new one to the app", async () => {
	need();
	const slug = newSlug();
	await client.apps.update(app.id, { slug });
	await until("new", async () => (await get(url(slug))).status === 200, 30000);
	await until("old", async () => (await get(url(app.slug))).status === 404, 30000);
	same((await client.apps.get(slug)).id, app.id);
});
await check("with the app its domains go", async () => {
	need();
	same((await api("POST", path, { domain: other })).status, 201);
	same(cert("issue", other).status, 0);
	adm("domain", "approve", other);
	await until("served", () => curl(other).status === 200, 60000);
	await client.apps.delete(app.id);
	await until("404", () => curl(other).status === 404, 30000);
	cert("remove", other);
});
await client.apps.delete(rival.id).catch(() => {});
finish();
