/* SPDX-License-Identifier: Apache-2.0 */
/* The table of endpoints, and the decoding of what a request names. */
#ifndef NB_FCGI_ROUTER_H
#define NB_FCGI_ROUTER_H

#include "fcgi/request.h"

typedef enum api_code route_fn(struct request *r);

struct route {
	const char *method;
	const char *pattern; /* "/api/v2/apps/{}": {} is one segment */
	route_fn *fn;
	unsigned int flags;
};
#define ROUTE_OPEN 1u     /* no token needed */
#define ROUTE_BIG_BODY 2u /* HTTP_DEPLOY_BODY_MAX */
#define ROUTE_LONG 4u     /* may wait for a guest, or works on many megabytes: an organization has its share of such (fcgi/pool.h) */
#define ROUTE_END 8u      /* the same, with the larger share of what ends machines */

extern const struct route routes[];
extern const size_t n_routes;

/* Splits and decodes REQUEST_URI into r's path, segments and query. API_INVALID_REQUEST, API_INVALID_PATH. */
enum api_code request_parse_uri(struct request *r, const char *uri);
/* Finds the route, sets r->route and r->args. API_NOT_FOUND, API_METHOD_NOT_ALLOWED (with an Allow header). */
enum api_code request_route(struct request *r);

/* All key[name]=value pairs of the query as an object; *ret NULL if there is none. */
enum api_code request_labels(struct request *r, struct json_object **ret);

#endif
