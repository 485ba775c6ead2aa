/* SPDX-License-Identifier: Apache-2.0 */
/* `nestbox-runner keep INSTANCE`: follows the output of an app's server into the app's log (fcgi/app_log.h) until its machine ends. */
#ifndef NB_RUNNER_KEEP_H
#define NB_RUNNER_KEEP_H

#include "base/config.h"
#include "base/fault.h"
#include "fcgi/db.h"

/* lock_fd: the claim on the instance; the number of the last line written is kept in it, so that none is written twice. */
enum rc keep_run(const struct config *c, struct db *db, const char *instance, int lock_fd, struct fault *ret_f);

#endif
