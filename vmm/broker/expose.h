/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exposures: host -> machine and the line that its agent is sent. Each is a file exposures/<host>, so that nothing that
 * was acknowledged is lost in a restart. The line is opaque here.
 */
#ifndef NB_BROKER_EXPOSE_H
#define NB_BROKER_EXPOSE_H

#include "vmm/broker/broker.h"

struct expose {
	char host[BROKER_HOST_MAX], id[BROKER_ID_MAX], org[BROKER_ORG_MAX];
	bool keep;
	char line[]; /* with terminator */
};

/* Reads exposures/. Entries whose machine is gone end, or sleep if they are to be kept. After adoption. */
enum rc expose_load(struct broker *b, struct fault *ret_f);
void expose_free(struct broker *b);
enum rc expose_add(struct broker *b, const struct broker_expose *q, struct fault *ret_f);
enum rc expose_delete(struct broker *b, const char *host, struct fault *ret_f);
const struct expose *expose_find(struct broker *b, const char *host);
/* Up to BROKER_LIST_MAX, by name. */
size_t expose_list(struct broker *b, const char *after, const struct expose *ret[BROKER_LIST_MAX]);
void expose_machine_gone(struct broker *b, const char *id);

/* A lower-case DNS name: also a safe file name. */
bool expose_host_ok(const char *host);
/* For the fuzzer: what is in a file. */
enum rc expose_parse(const char *host, char *text, struct expose **ret, struct fault *ret_f);

#endif
