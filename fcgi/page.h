/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists in pages: newest first, `limit` and an opaque `cursor` in, `Link: <...cursor=...>; rel="next"` out. A cursor names the
 * last row of the page before by its sort key (created_ms, id), so rows that come or go in between shift nothing.
 *
 *	SELECT created_ms, id, ... WHERE org_id = ? AND (created_ms, id) < (?, ?) ORDER BY created_ms DESC, id DESC LIMIT ?
 */
#ifndef NB_FCGI_PAGE_H
#define NB_FCGI_PAGE_H

#include "fcgi/request.h"

struct page {
	int64_t limit;
	int64_t before_ms;
	char before_id[ID_MAX];
	/* of the answer */
	struct json_object *list;
	int64_t last_ms;
	char last_id[ID_MAX];
	bool more;
};

static inline void page_free(struct page *p)
{
	json_object_put(p->list);
}
#define _cleanup_page_ _cleanup_(page_free)

enum api_code page_start(struct request *r, struct page *p);
/* The row that q stands at; NULL: the reason is in *ret_f. */
typedef struct json_object *page_row_fn(struct request *r, const struct db_q *q, struct fault *ret_f);
/*
 * Binds the last three values of q, the cursor's two and the limit (one more than asked for, to know whether there is a next page), answers with
 * its rows, and sets the Link header if there are more. created, id: columns of the sort key.
 */
enum api_code page_rows(struct request *r, struct page *p, struct db_q *q, int created, int id, page_row_fn *row);

/* Only the cursor's text form, for other sort keys. */
enum api_code page_limit(struct request *r, int64_t standard, int64_t max, int64_t *ret);
void page_link(struct request *r, const char *cursor);

#endif
