/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/egress_learn.h"

#include "fcgi/limits.h"

#include <stdio.h>
#include <string.h>

/* One entry for each host and port that was reached: nothing smaller would have allowed the same. */
static bool on_learnt(void *arg, struct json_object *row)
{
	struct json_object *found = arg;
	const char *name = NULL, *address = NULL;
	char pattern[300];
	int64_t port = 0, n = 0;

	if (json_object_object_length(found) >= EGRESS_LEARN_MAX)
		return false;
	if (json_get_str(row, "name", 260, &name, NULL) || json_get_str(row, "address", 64, &address, NULL) ||
	    json_get_int(row, "port", &port, NULL) || (!name && !address) || port <= 0)
		return true;
	if (name)
		snprintf(pattern, sizeof(pattern), "%s:%lld", name, (long long)port);
	else
		snprintf(pattern, sizeof(pattern), strchr(address, ':') ? "[%s]:%lld" : "%s:%lld", address, (long long)port);
	json_get_int(found, pattern, &n, NULL);
	json_add_int(found, pattern, n + 1);
	return true;
}

static int by_text(const void *a, const void *b)
{
	return strcmp(json_object_get_string(*(struct json_object *const *)a), json_object_get_string(*(struct json_object *const *)b));
}

enum rc egress_learn_from(int dirfd, const char *org, struct egress_query *q, struct json_object **ret, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *found = json_object_new_object();
	char cursor[EGRESS_CURSOR_MAX] = "";
	struct json_object *list, *uses, *o;
	unsigned int rounds = 0;
	enum rc rc;

	q->decision = "allow";
	do {
		rc = egress_scan(dirfd, org, q, cursor, on_learnt, found, ret_f);
		if (rc)
			return rc;
	} while (*cursor && ++rounds < EGRESS_LEARN_SCANS && json_object_object_length(found) < EGRESS_LEARN_MAX);
	list = json_object_new_array();
	uses = json_object_new_object();
	json_object_object_foreach(found, pattern, n)
	{
		json_object_array_add(list, json_object_new_string(pattern));
		json_add(uses, pattern, json_object_get(n));
	}
	json_object_array_sort(list, by_text);
	o = json_object_new_object();
	json_add(o, "allow_net", list);
	json_add(o, "uses", uses);
	json_add_bool(o, "complete", !*cursor);
	*ret = o;
	return RC_OK;
}
