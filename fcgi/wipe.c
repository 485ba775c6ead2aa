/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a worker is given values of secrets in requests' bodies, and they pass through libraries that free memory as it is (libfcgi's streams,
 * json-c's texts and buffers, grown ones included). So in this program whatever is given back to the allocator is wiped first: a value is
 * in a worker's memory for as long as its request takes. What lies on the stack is overwritten by the next call, and not wiped.
 * With AddressSanitizer, which has its own allocator, nothing is.
 */
#include <malloc.h>
#include <string.h>

#ifndef __SANITIZE_ADDRESS__
/* glibc's own, under the name that stays when a program brings another. */
extern void __libc_free(void *p);

void free(void *p)
{
	if (p)
		explicit_bzero(p, malloc_usable_size(p));
	__libc_free(p);
}

/* Never moves memory without leaving the old place clean. */
void *realloc(void *p, size_t n)
{
	size_t had = p ? malloc_usable_size(p) : 0;
	void *more;

	if (p && !n) {
		free(p);
		return NULL;
	}
	/* A little smaller stays where it is. */
	if (p && n <= had && n >= had / 2) {
		explicit_bzero((char *)p + n, had - n);
		return p;
	}
	more = malloc(n);
	if (!more)
		return NULL;
	if (p)
		memcpy(more, p, had < n ? had : n);
	free(p);
	return more;
}
#endif
