/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/charge.h"

#include "base/cleanup.h"
#include "vmm/broker/machine.h"

#include <stdlib.h>

struct charge {
	struct charge *next; /* of the same machine */
	struct broker *b;
	struct machine *m;   /* who pays; NULL: it is gone */
	unsigned int refs;
	uint64_t bytes;
	bool known;
};

uint64_t charge_bound(const struct machine *m)
{
	return (((uint64_t)m->memory_mib + m->b->engine->ops->overhead_mib) << 20) + m->charged_bytes;
}

static void bytes_set(struct charge *c, uint64_t bytes, bool known)
{
	/* What is not known yet is a bound, and not memory that anybody else lacks. */
	c->b->copies_bytes += (known ? bytes : 0) - (c->known ? c->bytes : 0);
	if (c->m) {
		c->m->charged_bytes += bytes - c->bytes;
		if (!c->b->leaving)
			cgroup_memory_set(&c->b->cgroup, c->m->id, charge_bound(c->m));
	}
	c->bytes = bytes;
	c->known = known;
}

enum rc charge_begin(struct machine *m, struct charge **ret, struct fault *ret_f)
{
	struct charge *c;

	*ret = NULL;
	if (!m->b->engine->ops->copies_charged)
		return RC_OK;
	c = calloc(1, sizeof(*c));
	if (!c)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*c = (struct charge){ .next = m->charges, .b = m->b, .m = m, .refs = 1 };
	m->charges = c;
	bytes_set(c, (uint64_t)m->memory_mib << 20, false);
	*ret = c;
	return RC_OK;
}

void charge_known(struct charge *c, uint64_t bytes)
{
	/* The engine says it, from what the kernel told it; more than all memory it cannot be. */
	if (c)
		bytes_set(c, c->m ? MIN_OF(bytes, (uint64_t)c->m->memory_mib << 20) : bytes, true);
}

struct charge *charge_hold(struct charge *c)
{
	if (c)
		c->refs++;
	return c;
}

void charge_release(struct charge *c)
{
	if (!c || --c->refs)
		return;
	bytes_set(c, 0, true);
	for (struct charge **at = c->m ? &c->m->charges : NULL; at && *at; at = &(*at)->next)
		if (*at == c) {
			*at = c->next;
			break;
		}
	free(c);
}

void charge_adopt(struct machine *m)
{
	uint64_t had;

	if (m->b->engine->ops->copies_charged && cgroup_memory_get(&m->b->cgroup, m->id, &had) && had > charge_bound(m))
		m->charged_bytes = had - charge_bound(m);
}

void charge_machine_gone(struct machine *m)
{
	for (struct charge *c = m->charges; c; c = c->next)
		c->m = NULL;
	m->charges = NULL;
	charge_release(m->came_from);
	m->came_from = NULL;
}
