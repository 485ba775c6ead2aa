// SPDX-License-Identifier: Apache-2.0
// Stands in for nginx and the gateway: takes the SDK's upgrade request and pipes the bytes after it to the Unix socket of a
// session process. `startBridge(path)` resolves to { endpoint, close }.
import { createHash } from "node:crypto";
import http from "node:http";
import net from "node:net";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455 1.3
const ID = "sbx_ord_00000000000000000000";

export function startBridge(path) {
  const sockets = new Set();
  const server = http.createServer((_req, res) => {
    res.writeHead(404, { "content-type": "application/json" });
    res.end(JSON.stringify({ code: "NOT_FOUND", message: "only the session is here" }));
  });
  server.on("upgrade", (req, socket, head) => {
    const session = net.connect(path);
    const accept = createHash("sha1").update(req.headers["sec-websocket-key"] + GUID).digest("base64");
    sockets.add(socket);
    session.on("connect", () => {
      socket.write(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
          `Sec-WebSocket-Accept: ${accept}\r\nx-deno-sandbox-id: ${ID}\r\n\r\n`,
      );
      session.write(head);
      socket.pipe(session).pipe(socket);
    });
    for (const [a, b] of [[socket, session], [session, socket]]) {
      a.on("error", () => b.destroy());
      a.on("close", () => b.destroy());
    }
    socket.on("close", () => sockets.delete(socket));
  });
  return new Promise((resolve) =>
    server.listen(0, "127.0.0.1", () =>
      resolve({
        endpoint: `http://127.0.0.1:${server.address().port}`,
        close: () => {
          for (const s of sockets) s.destroy();
          server.close();
        },
      }))
  );
}
