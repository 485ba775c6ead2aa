/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/egress/tenant.h"

#include "vmm/egress/resolve.h"

#include <stdlib.h>
#include <string.h>

enum rc tenant_join(struct tenant **list, const char *org, struct tenant **ret, struct fault *ret_f)
{
	struct tenant *t = *list;
	enum rc rc;

	if (!org || strlen(org) >= sizeof(t->org))
		org = "";
	while (t && strcmp(t->org, org))
		t = t->next;
	if (!t) {
		t = calloc(1, sizeof(*t));
		if (!t)
			return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
		rc = lookup_share_new(NULL, &t->lookups, ret_f);
		if (rc) {
			free(t);
			return rc;
		}
		memcpy(t->org, org, strlen(org) + 1);
		t->next = *list;
		*list = t;
	}
	t->n_sandboxes++;
	*ret = t;
	return RC_OK;
}

void tenant_leave(struct tenant **list, struct tenant *t)
{
	if (!t || --t->n_sandboxes)
		return;
	while (*list != t)
		list = &(*list)->next;
	*list = t->next;
	lookup_share_free(t->lookups);
	free(t);
}
