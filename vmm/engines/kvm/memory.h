/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory, seen by the guest as [0, low) below the hole at 3 GiB and [4 GiB, 4 GiB + high) above it.
 *
 * Theory. A machine's memory is three layers: the *base* (a sealed memfd, the template's, or a capture's file; shared by all that start from it), over
 * it the *delta* (a sealed memfd, what a fork's parent had changed; shared by the children of one fork; or a capture's file, if the
 * capture has a base), over both this machine's
 * own pages, made by copy-on-write. Either memfd may be absent; a machine that boots cold has only pages of its own. Which
 * pages are its own is known without looking at page tables: KVM logs what vCPUs write, memory_at() what devices write, and
 * `own` gathers both. Saving and forking need nothing else. The log costs huge pages. Only a machine that boots cold has a use for them, and
 * nothing that its pages could differ from but zeroes: so its log begins when it is first asked for, and what is not zero then is its own.
 *
 * memory_at() is the one function that turns a guest address into a pointer. It only ever subtracts, so that no guest value
 * can overflow it, and refuses what does not lie wholly in one region.
 */
#ifndef NB_VMM_MEMORY_H
#define NB_VMM_MEMORY_H

#include "base/fault.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEMORY_HOLE 0xc0000000ull
#define MEMORY_HIGH 0x100000000ull
#define MEMORY_PAGE 4096u
#define MEMORY_RUNS_MAX 16000

struct memory {
	uint8_t *base;     /* one mapping; the high region follows the low one in it. Where the guest has a huge page there is room for one. */
	uint8_t *room;     /* what is mapped, `base` and guard pages */
	size_t room_bytes;
	uint64_t bytes, low, high;
	int base_fd, delta_fd; /* owned, -1: absent */
	uint64_t *written; /* a bit a page: written by the VMM since the last memory_gather() */
	uint64_t *own;     /* a bit a page: differs, or may, from base and delta */
};

/* Takes both descriptors. base must be sealed against writing and shrinking, or be a file on disk that is open for reading only and
 * that its owner leaves alone, and have exactly `bytes`; delta likewise, or the bitmap more. */
enum rc memory_create(uint64_t bytes, int base_fd, int delta_fd, struct memory *ret, struct fault *ret_f);
void memory_free(struct memory *m);

static inline uint64_t memory_pages(const struct memory *m)
{
	return m->bytes / MEMORY_PAGE;
}

/*
 * NULL if [addr, addr + n) is not wholly inside one region. `write`: the caller will write there while no machine runs; while
 * one does, memory_wrote() says it after the fact, because what was marked before may have been gathered and copied already.
 */
void *memory_at(const struct memory *m, uint64_t addr, uint64_t n, bool write);
void memory_wrote(const struct memory *m, const void *at, uint64_t n);
/*
 * The guest does not need what is in [addr, addr + n) any more: whole pages in it go back to the host. What the guest reads there
 * afterwards is what the layer below has, zeroes without one: old bytes of this machine's own template or parent, which
 * its kernel could read before, and no other's. Anything outside memory is ignored. Returns the bytes given back.
 */
uint64_t memory_discard(struct memory *m, uint64_t addr, uint64_t n);
/* The same of what memory_at() gave a pointer to. */
uint64_t memory_discard_at(struct memory *m, void *at, uint64_t n);

/*
 * Takes what KVM logged for the pages from `first` on (n_words words) and what devices wrote there since the last call, adds it
 * to `own` and, if `fresh` is not NULL, to that bitmap of the same shape. Returns how many pages were in it.
 */
uint64_t memory_gather(struct memory *m, uint64_t first, const uint64_t *kvm, uint64_t n_words, uint64_t *fresh);

/*
 * Adds to `own` whatever is not zero. For a machine without base and delta, whose log has just begun. pagemap_fd: /proc/<pid>/pagemap of
 * this process, which says where there is something to be looked at; -1: all of memory is read, which leaves the kernel's page of
 * zeroes mapped wherever nothing is, so that what is written there first are two faults a page.
 */
void memory_own_used(struct memory *m, int pagemap_fd);

/* Writes the pages of a bitmap into a file at their offsets; zero pages become holes where `sparse`. */
enum rc memory_write_pages(const struct memory *m, const uint64_t *pages, int fd, bool sparse, uint64_t *ret_pages,
			   struct fault *ret_f);
/*
 * Adds the pages that a layer of a machine with `bytes` of memory has something for. fd -1: none. A file says so itself, by a bitmap behind
 * its pages (MEMORY_MAP_BYTES); of a memfd it is those that were written.
 */
enum rc memory_layer_pages(int fd, uint64_t bytes, uint64_t *pages, struct fault *ret_f);
#define MEMORY_MAP_BYTES(bytes) ((bytes) / MEMORY_PAGE / 8)
/* Joins neighbours until a layer of these pages has at most MEMORY_RUNS_MAX runs, each a mapping in whoever has it. */
void memory_join(uint64_t bytes, uint64_t *pages);

uint64_t *memory_bitmap(uint64_t bytes); /* empty, to be freed; NULL: no memory */
/* A memfd of the right size for a delta. */
enum rc memory_object(uint64_t bytes, const char *name, int *ret_fd, struct fault *ret_f);
/* Nobody can write it, or map it for writing, any more; who has it mapped so already still can. The same time for any size. */
enum rc memory_freeze(int fd, struct fault *ret_f);
/* Immutable, or a failure if somebody has it mapped for writing. Looks at each of its pages. */
enum rc memory_seal(int fd, struct fault *ret_f);

#endif
