/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether one intercepted request may go where its connection goes, whatever version of HTTP it came in. Text in, verdict out;
 * http1.c and h2.c have made sure that the parts are well-formed.
 */
#ifndef NB_EGRESS_JUDGE_H
#define NB_EGRESS_JUDGE_H

#include "vmm/egress/http1.h"
#include "vmm/egress/secrets.h"

#define JUDGE_PATH_MAX 4096 /* of a path that rules are about */

struct judged {
	struct secret_place place;
	struct verdict verdict;
	bool normal;               /* the path was put in its normal form, and goes out like that */
	char path[JUDGE_PATH_MAX]; /* with `normal` */
	struct http_text rest;     /* "?query", or empty */
};

/*
 * 0, or the HTTP status of the refusal and in *ret_why the reason, for the guest. authority: Host or :authority. host and
 * method are pointed to by ret->place.
 */
int judge_request(const struct policy *p, const char *host, uint16_t port, const char *method, const struct http_text *authority,
		  const struct http_text *target, struct judged *ret, const char **ret_why);
/* The target as it goes out. */
enum rc judge_put_target(const struct judged *j, const struct http_text *target, struct secrets *set, struct buf *out,
			 struct secret_report *report);

#endif
