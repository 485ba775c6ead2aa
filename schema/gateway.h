/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the API workers tell the gateway, on <run_dir>/gateway.sock (encoding: schema/message.h, peer: user_api only).
 *
 * A ticket names bytes that are already open. It is redeemed once, by the HTTP request that nginx passes to
 * <run_dir>/stream.sock with the path /_stream/<token>; after ttl_ms it is void and its descriptors are closed.
 *
 * WS:  +fd connected agent service (its answer line already read) [+fd lease]. The gateway answers the upgrade request of
 *      the client with 101 and `headers`, then relays bytes both ways; WebSocket frames are the agent's business.
 * LOG: +fd regular file that grows by lines. Each line is sent as `data: <line>\n\n` (SSE) or as it is (format 1) until the line
 *      GATEWAY_LOG_END is read; then the stream ends. `offset` bytes are skipped. Only lines that match `filter` are sent: each of
 *      its lines is a list of texts separated by tabs, and of each list one must stand in the line (ASCII case is ignored).
 *      With a `place` the log goes on in further files: when the end line was read, and now and then while nothing comes, the gateway
 *      asks the guide what follows that place. An empty place: there is nothing to go on in.
 * FOLLOW: by the guide, a process of the API's that may open what the gateway may not. It answers the last question (`place`
 *      as it was asked, `next` and a descriptor if there is a next file; both empty the first time) and is answered with the next
 *      question as soon as there is one. Once there is a next file nothing is added to the one before, so the gateway reads that to its
 *      end first. Places are the API's words; the gateway keeps and returns them.
 * HOST_STAT: who visits an exposed host. A visit is a connection; `waiting` of the `open` ones wait for a machine, the others have or
 *      are about to have a connection into one, the oldest of them since oldest_ms. idle_ms: since the last visit ended, or
 *      since the gateway knows the host.
 *
 * Exposures are not asked for here: the gateway subscribes to the broker and keeps one listening socket
 * <run_dir>/expose/<host>.sock for each host the broker names.
 */
#ifndef NB_SCHEMA_GATEWAY_H
#define NB_SCHEMA_GATEWAY_H

#include "schema/message.h"

#define GATEWAY_TOKEN_BYTES 16
#define GATEWAY_TOKEN_MAX (2 * GATEWAY_TOKEN_BYTES + 1)
#define GATEWAY_HEADERS_MAX 2048
#define GATEWAY_FILTER_MAX 1024
#define GATEWAY_HOST_MAX 256
#define GATEWAY_PLACE_MAX 160
#define GATEWAY_LOG_END "\x04" /* the line that ends a followed log */

#define GATEWAY_OPS(X)                                     \
	X(TICKET_WS, 1, gateway_ticket_ws, gateway_none)   \
	X(TICKET_LOG, 2, gateway_ticket_log, gateway_none) \
	X(STAT, 3, gateway_none, gateway_stat)             \
	X(HOST_STAT, 4, gateway_host, gateway_host_stat)   \
	X(FOLLOW, 5, gateway_follow, gateway_place)

enum gateway_op {
#define X(name, number, request, reply) GATEWAY_##name = (number),
	GATEWAY_OPS(X)
#undef X
};

MESSAGE_DECLARE(gateway_none, MESSAGE_EMPTY)
/* headers: complete lines, each ended by CRLF, for the 101. */
#define GATEWAY_TICKET_WS_FIELDS(F) \
	F(STR, token, GATEWAY_TOKEN_MAX) F(U32, ttl_ms, 0) F(STR, headers, GATEWAY_HEADERS_MAX)
MESSAGE_DECLARE(gateway_ticket_ws, GATEWAY_TICKET_WS_FIELDS)
#define GATEWAY_TICKET_LOG_FIELDS(F)                                                       \
	F(STR, token, GATEWAY_TOKEN_MAX) F(U32, ttl_ms, 0) F(U64, offset, 0)              \
	F(U32, format, 0) /* 0: SSE; 1: lines as they are, application/x-ndjson */         \
	F(STR, headers, GATEWAY_HEADERS_MAX) F(STR, filter, GATEWAY_FILTER_MAX)            \
	F(STR, place, GATEWAY_PLACE_MAX)
MESSAGE_DECLARE(gateway_ticket_log, GATEWAY_TICKET_LOG_FIELDS)
#define GATEWAY_STAT_FIELDS(F) F(U32, tickets, 0) F(U32, streams, 0) F(U32, exposures, 0) F(U64, bytes, 0)
MESSAGE_DECLARE(gateway_stat, GATEWAY_STAT_FIELDS)
#define GATEWAY_HOST_FIELDS(F) F(STR, host, GATEWAY_HOST_MAX)
MESSAGE_DECLARE(gateway_host, GATEWAY_HOST_FIELDS)
#define GATEWAY_HOST_STAT_FIELDS(F) \
	F(U32, known, 0) F(U32, open, 0) F(U32, waiting, 0) F(U64, idle_ms, 0) F(U64, oldest_ms, 0)
MESSAGE_DECLARE(gateway_host_stat, GATEWAY_HOST_STAT_FIELDS)
#define GATEWAY_FOLLOW_FIELDS(F) F(STR, place, GATEWAY_PLACE_MAX) F(STR, next, GATEWAY_PLACE_MAX)
MESSAGE_DECLARE(gateway_follow, GATEWAY_FOLLOW_FIELDS)
#define GATEWAY_PLACE_FIELDS(F) F(STR, place, GATEWAY_PLACE_MAX)
MESSAGE_DECLARE(gateway_place, GATEWAY_PLACE_FIELDS)

#endif
