// SPDX-License-Identifier: Apache-2.0
// Serves the files of a static app. Arguments: directory, port, "spa" or "plain". Its permissions are to read below the app's
// directory and to listen on that one port, so that a link out of it, or a bug here, leads nowhere.
const [dir, port, mode] = Deno.args;
const root = Deno.realPathSync(dir);
const types = {
	html: "text/html; charset=utf-8", htm: "text/html; charset=utf-8", css: "text/css; charset=utf-8",
	js: "text/javascript; charset=utf-8", mjs: "text/javascript; charset=utf-8", json: "application/json", map: "application/json",
	txt: "text/plain; charset=utf-8", md: "text/markdown; charset=utf-8", xml: "application/xml", svg: "image/svg+xml", png: "image/png",
	jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp", avif: "image/avif", ico: "image/x-icon",
	woff: "font/woff", woff2: "font/woff2", ttf: "font/ttf", otf: "font/otf", wasm: "application/wasm", pdf: "application/pdf",
	mp4: "video/mp4", webm: "video/webm", mp3: "audio/mpeg", ogg: "audio/ogg", wav: "audio/wav", zip: "application/zip",
	webmanifest: "application/manifest+json", csv: "text/csv; charset=utf-8",
};

const text = (status, message, headers = {}) =>
	new Response(message + "\n", { status, headers: { "content-type": "text/plain; charset=utf-8", ...headers } });

// Segments of the path, or null for one that is not served: dots, hidden files but .well-known, control characters.
function segments(pathname) {
	let path;
	try {
		path = decodeURIComponent(pathname);
	} catch {
		return null;
	}
	if (/[\0-\x1f\x7f\\]/.test(path)) return null;
	const parts = path.split("/").filter((s) => s !== "" && s !== ".");
	return parts.some((s) => s.startsWith(".") && s !== ".well-known") ? null : parts;
}

async function info(path) {
	try {
		const real = await Deno.realPath(path);
		if (real !== root && !real.startsWith(root === "/" ? "/" : root + "/")) return null;
		return { real, stat: await Deno.stat(real) };
	} catch {
		return null;
	}
}

// {start, end} of one range; null: the whole; undefined: cannot be given.
function range(header, size) {
	const m = /^bytes=(\d*)-(\d*)$/.exec(header ?? "");
	if (!m || (m[1] === "" && m[2] === "")) return null;
	const start = m[1] === "" ? Math.max(0, size - Number(m[2])) : Number(m[1]);
	const end = m[1] === "" || m[2] === "" ? size - 1 : Math.min(Number(m[2]), size - 1);
	return start > end || start >= size ? undefined : { start, end };
}

async function file(request, found, status = 200) {
	const { real, stat } = found, mtime = stat.mtime ?? new Date(0);
	const etag = `W/"${stat.size.toString(16)}-${mtime.getTime().toString(16)}"`;
	const headers = new Headers({
		"content-type": types[real.slice(real.lastIndexOf(".") + 1).toLowerCase()] ?? "application/octet-stream",
		"etag": etag, "last-modified": mtime.toUTCString(), "accept-ranges": "bytes", "cache-control": "no-cache", "x-content-type-options": "nosniff",
	});
	const match = request.headers.get("if-none-match"), since = Date.parse(request.headers.get("if-modified-since") ?? "");
	if (status === 200 && (match !== null ? match.split(",").some((t) => t.trim() === etag || t.trim() === "*") : since >= Math.floor(mtime.getTime() / 1000) * 1000)) {
		return new Response(null, { status: 304, headers });
	}
	const part = status === 200 && request.headers.get("if-range") === null ? range(request.headers.get("range"), stat.size) : null;
	if (part === undefined) return text(416, "416 Range Not Satisfiable", { "content-range": `bytes */${stat.size}` });
	const length = part ? part.end - part.start + 1 : stat.size;
	headers.set("content-length", String(length));
	if (part) headers.set("content-range", `bytes ${part.start}-${part.end}/${stat.size}`);
	if (request.method === "HEAD") return new Response(null, { status: part ? 206 : status, headers });
	const f = await Deno.open(real);
	if (!part) return new Response(f.readable, { status, headers });
	await f.seek(part.start, Deno.SeekMode.Start);
	let left = length;
	const cut = new TransformStream({
		transform(chunk, c) {
			c.enqueue(chunk.subarray(0, left));
			left -= Math.min(left, chunk.length);
			if (!left) c.terminate();
		},
	});
	return new Response(f.readable.pipeThrough(cut), { status: 206, headers });
}

async function serve(request) {
	if (request.method !== "GET" && request.method !== "HEAD") return text(405, "405 Method Not Allowed", { allow: "GET, HEAD" });
	const url = new URL(request.url), parts = segments(url.pathname);
	const path = parts && [root, ...parts].join("/");
	let found = path && await info(path);
	if (found?.stat.isDirectory) {
		if (!url.pathname.endsWith("/")) {
			return new Response(null, { status: 308, headers: { location: "/" + parts.map(encodeURIComponent).join("/") + "/" + url.search } });
		}
		found = await info(path + "/index.html");
	} else if (found && url.pathname.endsWith("/")) {
		found = null;
	} else if (path && !found && !/\.[^/]*$/.test(url.pathname)) {
		found = await info(path + ".html");
	}
	if (found?.stat.isFile) return await file(request, found);
	if (mode === "spa") {
		const index = await info(root + "/index.html");
		if (index?.stat.isFile) return await file(request, index);
	}
	const page = await info(root + "/404.html");
	return page?.stat.isFile ? await file(request, page, 404) : text(404, "404 Not Found");
}

Deno.serve({
	hostname: "0.0.0.0", port: Number(port), onListen() {},
	onError(e) {
		console.error(e);
		return text(500, "500 Internal Server Error");
	},
}, serve);
