/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One HTTP request, independent of FastCGI: CGI variables and a body come in, a status, headers and a body go out. A handler
 * returns API_OK after one of the reply_ functions, or an error code, for which api_handle() writes the body.
 *
 * Theory: all strings of the request point into the CGI variables or into the request itself and live as long as it does.
 * Nothing of one request survives into the next but what is in struct api (connections, the database handle, keys).
 */
#ifndef NB_FCGI_REQUEST_H
#define NB_FCGI_REQUEST_H

#include "base/config.h"
#include "base/fault.h"
#include "fcgi/db.h"
#include "fcgi/errors.h"
#include "fcgi/ids.h"
#include "fcgi/json.h"
#include "fcgi/limits.h"
#include "fcgi/peer.h"
#include "fcgi/pool.h"
#include "fcgi/seal.h"
#include "schema/broker.h"
#include "schema/gateway.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TRACE_MAX 33

/* What a worker keeps between requests. */
struct api {
	struct config config;
	struct db *db;
	struct peer broker, gateway;
	struct seal_key egress_key, app_key;
	bool has_egress_key;
	int bundles_fd;   /* <state_dir>/bundles */
	int logs_fd;      /* <state_dir>/logs/revisions */
	int app_logs_fd;  /* <state_dir>/logs/apps */
	struct message_call call; /* large; one request at a time */
	struct pool *pool; /* NULL: the only one (tests) */
	size_t slot;       /* of this worker */
};

struct route;

struct pair {
	const char *key, *value;
};

struct request {
	struct api *api;
	char *const *params;
	char trace[TRACE_MAX];
	uint64_t started_ms;

	const char *method;
	char path[HTTP_PATH_MAX]; /* decoded segments, each terminated */
	const char *segments[HTTP_SEGMENTS_MAX];
	size_t n_segments;
	char query_text[HTTP_QUERY_MAX];
	struct pair query[HTTP_QUERY_PAIRS_MAX];
	size_t n_query;
	const struct route *route;
	const char *args[4]; /* what stood in the route's {} */

	char org_id[ID_MAX], org_name[64], token_id[ID_MAX];

	/* Reads up to max bytes; RC_LIMIT if there are more. Set by whoever has the stream. */
	enum rc (*read_body)(void *arg, size_t max, char **ret, size_t *ret_n, struct fault *ret_f);
	void *read_arg;
	char *body;
	size_t body_n;
	struct json_object *json; /* parsed body */

	int status;
	char headers[2048]; /* complete lines */
	size_t headers_n;
	char *out; /* owned */
	size_t out_n;
	const char *content_type;
	char message[200]; /* of an error; replaces the code's own */
};

/* Fills r from CGI variables, routes, authenticates, runs the handler, leaves a complete answer. Always gives an answer. */
void api_handle(struct request *r);
void request_free(struct request *r);

const char *request_param(const struct request *r, const char *name);  /* a CGI variable, NULL if absent */
const char *request_query(const struct request *r, const char *key);   /* NULL if absent */

/* Reads the body on first use. An empty body is {} if `optional`. */
enum api_code request_json(struct request *r, bool optional, struct json_object **ret);

/* Sets the message and returns code. */
enum api_code api_fail(struct request *r, enum api_code code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The code, with the fault's text as message: for faults that speak to the client. */
enum api_code api_refuse(struct request *r, enum api_code code, const struct fault *f);
/* A fault of ours (database, memory, disk): logged, and answered without details. */
enum api_code api_fault(struct request *r, const struct fault *f);

enum api_code reply_json(struct request *r, int status, struct json_object *take);
enum api_code reply_empty(struct request *r, int status);
enum api_code reply_text(struct request *r, const char *content_type, char *take, size_t n);
void reply_header(struct request *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
