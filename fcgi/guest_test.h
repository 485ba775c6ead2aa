/* SPDX-License-Identifier: Apache-2.0 */
/* A question to a sandbox that a command's exit status answers. */
#ifndef NB_FCGI_GUEST_TEST_H
#define NB_FCGI_GUEST_TEST_H

#include "fcgi/request.h"

/* Runs `test <flag> <path>` as the sandbox's user. The guest may lie; it only cheats itself. Faults like broker_service(). */
enum rc guest_test(struct api *api, const char *id, const char *flag, const char *path, bool *ret, struct fault *ret_f);

#endif
