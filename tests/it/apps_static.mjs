// SPDX-License-Identifier: Apache-2.0
// Static apps: types, directories, conditional and partial requests, what is not served, single-page mode.
import { request } from "node:https";
import { check, client, deployed, finish, get, must, newSlug, same, url } from "./lib-apps.mjs";

const files = {
	"public/index.html": "<h1>index</h1>", "public/app.js": "console.log(1)", "public/about.html": "about", "public/sub/index.html": "sub", "public/data.json": "{}",
	"public/näme with space.txt": "0123456789", "public/404.html": "nothing here", "public/.env": "SECRET=1", "public/.well-known/x.txt": "known", "secret.txt": "outside",
	...Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`public/many/f${i}.txt`, `${i}`])),
};
const app = await client.apps.create({ slug: newSlug() });
const base = url(app.slug);
const make = (more) => deployed(app, files, { config: { runtime: { type: "static", cwd: "public", ...more } } });
// fetch() would tidy the path up.
const raw = (path) => new Promise((yes, no) => {
	const u = new URL(base);
	request({ host: u.hostname, port: u.port || 443, path, headers: { connection: "close" } }, (res) => {
		let text = "";
		res.on("data", (d) => text += d);
		res.on("end", () => yes({ status: res.statusCode, text }));
	}).on("error", no).end();
});

await check("files with their types, directories, names without .html", async () => {
	await make({});
	for (const [path, text, type] of [["/", "<h1>index</h1>", "text/html"], ["/app.js", "console.log(1)", "text/javascript"], ["/data.json", "{}", "application/json"],
		["/sub/", "sub", "text/html"], ["/about", "about", "text/html"], ["/n%C3%A4me%20with%20space.txt", "0123456789", "text/plain"], ["/.well-known/x.txt", "known", "text/plain"], ["/many/f999.txt", "999", "text/plain"]]) {
		const r = await get(base + path);
		same(`${r.status} ${r.text}`, `200 ${text}`, path);
		must(r.headers.get("content-type").startsWith(type), `${path}: ${r.headers.get("content-type")}`);
	}
	const r = await get(base + "/sub?x=1");
	same(`${r.status} ${r.headers.get("location")}`, "308 /sub/?x=1");
});
await check("what is not served", async () => {
	for (const path of ["/nothing", "/.env", "/%2eenv", "/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/sub/../../secret.txt", "/a%00b", "/%", "/app.js/", "/sub/.."]) {
		const r = await raw(path);
		must(!r.text.includes("outside") && !r.text.includes("SECRET"), `${path} shows ${r.text}`);
		must([400, 404].includes(r.status) || r.text === "<h1>index</h1>", `${path}: ${r.status}`);
	}
	same((await get(base + "/nothing")).text, "nothing here", "its own page");
	same((await get(base + "/", { method: "POST", body: "x" })).status, 405);
});
await check("HEAD, conditions and ranges", async () => {
	const path = `${base}/n%C3%A4me%20with%20space.txt`, whole = await get(path), head = await get(path, { method: "HEAD" });
	same(`${head.status} ${head.text} ${head.headers.get("content-length")}`, "200  10");
	same((await get(path, { headers: { "if-none-match": whole.headers.get("etag") } })).status, 304);
	same((await get(path, { headers: { "if-none-match": '"other"' } })).status, 200);
	same((await get(path, { headers: { "if-modified-since": whole.headers.get("last-modified") } })).status, 304);
	for (const [range, status, text, said] of [["bytes=2-4", 206, "234", "bytes 2-4/10"], ["bytes=7-", 206, "789", "bytes 7-9/10"], ["bytes=-2", 206, "89", "bytes 8-9/10"],
		["bytes=5-100", 206, "56789", "bytes 5-9/10"], ["bytes=0-0,2-3", 200, "0123456789", null], ["bytes=20-", 416, "416 Range Not Satisfiable\n", "bytes */10"]]) {
		const r = await get(path, { headers: { range } });
		same(`${r.status} ${r.text} ${r.headers.get("content-range")}`, `${status} ${text} ${said}`, range);
	}
});
await check("single-page mode: index.html for what there is not", async () => {
	await make({ spa: true });
	for (const path of ["/any/route", "/other"]) {
		const r = await get(base + path);
		same(`${r.status} ${r.text}`, "200 <h1>index</h1>", path);
	}
	same((await get(base + "/app.js")).text, "console.log(1)");
	must(!(await raw("/../secret.txt")).text.includes("outside"), "still inside");
});
await client.apps.delete(app.id);
finish();
