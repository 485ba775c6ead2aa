/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How organizations divide what is bounded for all of them. Theory: one may take one more while it has less than what is left. So one alone gets
 * half, n of them an n+1st each, and whoever comes next always finds as much as each of the others has; nothing is set aside for
 * organizations that are not there.
 */
#ifndef NB_BASE_SHARE_H
#define NB_BASE_SHARE_H

#include <stdbool.h>
#include <stddef.h>

/* own: what it has, of all that are taken, of at most max. */
static inline bool share_allows(size_t own, size_t all, size_t max)
{
	return all < max && own < max - all;
}

#endif
