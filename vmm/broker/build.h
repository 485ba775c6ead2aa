/* SPDX-License-Identifier: Apache-2.0 */
/* Making one template and opening it; the steps are in template.h. */
#ifndef NB_BROKER_BUILD_H
#define NB_BROKER_BUILD_H

#include "vmm/broker/template.h"

#define TEMPLATE_NAME_MAX 200
#define BUILD_COLD_ID "_cold"   /* machines of the one build that runs */
#define BUILD_CHECK_ID "_check"

struct build;
/* RC_OK: templates/<name>/ is there and good, and use is the callee's. Comes once; the build and its machines are gone. */
typedef void build_done_fn(void *arg, enum rc rc, const struct template_use *use, const struct fault *f);

enum rc build_start(struct broker *b, const char *image, const char *name, uint32_t memory_mib, unsigned int attempt,
		    bool background, build_done_fn *done, void *arg, struct build **ret, struct fault *ret_f);
/* Somebody waits for it now: it yields to nobody any more. */
void build_hurry(struct build *d);
void build_free(struct build *d); /* at the broker's end; NULL is fine */

/* RC_ABSENT if there is none. ret is only filled in part until done(RC_OK), and whoever called closes it, which ends the opening. */
enum rc build_open(struct broker *b, const char *image, const char *name, struct template_use *ret, engine_done_fn *done, void *arg,
		   struct fault *ret_f);

#endif
