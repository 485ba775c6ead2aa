/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds that all engines have. doc/limits.md names the test of each. */
#ifndef NB_ENGINES_LIMITS_H
#define NB_ENGINES_LIMITS_H

#define ENGINE_STORES_MAX 4 /* programs that read or write a whole snapshot at once; others wait for their turn */

#endif
