/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: two hash tables over the same entries (by name, by address) and a list from the longest unused to the youngest.
 * Addresses are given out one after the other through the whole prefix: one that was taken from an evicted name is not
 * given to another name before 131,000 others were, so an address that a guest kept too long fails rather than misleads.
 */
#include "vmm/egress/names.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "vmm/egress/limits.h"

#include <string.h>

#define BUCKETS 1024
#define NET_BASE 0xc6120000u /* 198.18.0.0/15 */
#define NET_MASK 0xfffe0000u
#define NET_SIZE 0x20000u

struct names {
	struct name_entry *by_name[BUCKETS], *by_address[BUCKETS];
	struct name_entry *oldest, *youngest;
	size_t n;
	uint32_t next;  /* offset in the prefix */
	uint64_t seed;  /* so that a guest cannot choose names that share a bucket */
};

static uint32_t address_number(const uint8_t a[4])
{
	return (uint32_t)a[0] << 24 | (uint32_t)a[1] << 16 | (uint32_t)a[2] << 8 | a[3];
}

bool names_is_synthetic(const struct address *a)
{
	return a->family == AF_INET && (address_number(a->bytes) & NET_MASK) == NET_BASE;
}

enum rc names_new(struct names **ret, struct fault *ret_f)
{
	struct names *t = calloc(1, sizeof(*t));

	if (!t)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	random_bytes(&t->seed, sizeof(t->seed));
	*ret = t;
	return RC_OK;
}

static void entry_free(struct name_entry *e)
{
	free(e->resolved);
	free(e);
}

void names_free(struct names *t)
{
	if (!t)
		return;
	while (t->oldest) {
		struct name_entry *e = t->oldest;

		t->oldest = e->lru_next;
		entry_free(e);
	}
	free(t);
}

static size_t name_bucket(const struct names *t, const char *name)
{
	uint64_t h = t->seed ^ 0xcbf29ce484222325u;

	for (; *name; name++)
		h = (h ^ (uint8_t)*name) * 0x100000001b3u;
	h ^= h >> 32;
	return (size_t)((h * 0x9e3779b97f4a7c15u) >> 54) % BUCKETS;
}

static size_t address_bucket(const uint8_t a[4])
{
	return address_number(a) % BUCKETS;
}

static void lru_unlink(struct names *t, struct name_entry *e)
{
	if (e->lru_prev)
		e->lru_prev->lru_next = e->lru_next;
	else
		t->oldest = e->lru_next;
	if (e->lru_next)
		e->lru_next->lru_prev = e->lru_prev;
	else
		t->youngest = e->lru_prev;
	e->lru_next = e->lru_prev = NULL;
}

static void lru_append(struct names *t, struct name_entry *e)
{
	e->lru_prev = t->youngest;
	e->lru_next = NULL;
	if (t->youngest)
		t->youngest->lru_next = e;
	else
		t->oldest = e;
	t->youngest = e;
}

static void evict_oldest(struct names *t)
{
	struct name_entry *e = t->oldest, **p;

	lru_unlink(t, e);
	for (p = &t->by_name[name_bucket(t, e->name)]; *p != e;)
		p = &(*p)->name_next;
	*p = e->name_next;
	for (p = &t->by_address[address_bucket(e->address)]; *p != e;)
		p = &(*p)->address_next;
	*p = e->address_next;
	entry_free(e);
	t->n--;
}

struct name_entry *names_find(struct names *t, const uint8_t address[4])
{
	struct name_entry *e = t->by_address[address_bucket(address)];

	while (e && memcmp(e->address, address, 4))
		e = e->address_next;
	return e;
}

struct name_entry *names_find_name(struct names *t, const char *name)
{
	struct name_entry *e = t->by_name[name_bucket(t, name)];

	while (e && strcmp(e->name, name))
		e = e->name_next;
	return e;
}

/* There are more addresses than entries, so a free one always comes. */
static void address_take(struct names *t, uint8_t ret[4])
{
	do {
		uint32_t v;

		t->next = (t->next + 1) % NET_SIZE;
		/* .0 and .255 look like networks and broadcasts to some programs. */
		if ((t->next & 0xff) == 0 || (t->next & 0xff) == 0xff)
			continue;
		v = NET_BASE + t->next;
		memcpy(ret, (uint8_t[]){ (uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v }, 4);
		if (!names_find(t, ret))
			return;
	} while (true);
}

struct name_entry *names_get(struct names *t, const char *name)
{
	struct name_entry *e = names_find_name(t, name);
	struct name_entry **head;

	if (e) {
		lru_unlink(t, e);
		lru_append(t, e);
		return e;
	}
	if (t->n >= EGRESS_NAMES_MAX)
		evict_oldest(t);
	e = calloc(1, sizeof(*e));
	if (!e)
		return NULL;
	memcpy(e->name, name, strlen(name) + 1);
	address_take(t, e->address);
	head = &t->by_name[name_bucket(t, name)];
	e->name_next = *head;
	*head = e;
	head = &t->by_address[address_bucket(e->address)];
	e->address_next = *head;
	*head = e;
	lru_append(t, e);
	t->n++;
	return e;
}

size_t names_count(const struct names *t)
{
	return t->n;
}
