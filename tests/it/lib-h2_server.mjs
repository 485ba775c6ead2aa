// SPDX-License-Identifier: Apache-2.0
// An upstream that speaks HTTP/2 and HTTP/1.1: node lib-h2_server.mjs ADDRESS CERT KEY VALUE. Prints "ready".
import http2 from "node:http2";
import { readFileSync } from "node:fs";
import { createHash } from "node:crypto";

const [address, cert, key, value] = process.argv.slice(2);
const server = http2.createSecureServer({ allowHTTP1: true, maxSessionMemory: 1000, cert: readFileSync(cert), key: readFileSync(key) });

server.on("request", (req, res) => {
	const url = new URL(req.url, "https://x");
	res.setHeader("x-version", req.httpVersion);
	res.setHeader("x-saw-value", String(req.headers.authorization === `Bearer ${value}`));
	if (url.pathname === "/echo") {
		res.setHeader("x-echo", req.headers.authorization ?? "");
		res.end(JSON.stringify(req.headers));
	} else if (url.pathname === "/big") {
		let left = Number(url.searchParams.get("n"));
		const piece = Buffer.alloc(65536, "0123456789abcdef");
		const more = () => {
			while (left > 0) {
				const n = Math.min(left, piece.length);
				left -= n;
				if (!res.write(n === piece.length ? piece : piece.subarray(0, n))) return res.once("drain", more);
			}
			res.end();
		};
		more();
	} else if (url.pathname === "/sum") {
		const hash = createHash("sha256");
		req.on("data", (d) => hash.update(d));
		req.on("end", () => res.end(hash.digest("hex")));
	} else if (url.pathname === "/svc/Chat") {
		// gRPC in its shape: messages both ways before either has ended, the status as a trailer.
		res.writeHead(200, { "content-type": "application/grpc" });
		req.on("data", (d) => res.write(d.toString().toUpperCase()));
		req.on("end", () => {
			res.addTrailers({ "grpc-status": "0", "x-last": req.headers.authorization });
			res.end();
		});
	} else {
		res.statusCode = 404;
		res.end();
	}
});
server.listen(443, address, () => console.log("ready"));
