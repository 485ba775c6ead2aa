/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sandbox's own certificate authority. Its key is derived from the egress key and the sandbox's id, so that a restarted
 * proxy has the same one without anything being stored; it leaves this process only as signatures.
 */
#ifndef NB_EGRESS_CA_H
#define NB_EGRESS_CA_H

#include "vmm/egress/secrets.h"

#include <openssl/ssl.h>

#define CA_PEM_MAX 4096

struct ca;

enum rc ca_new(const uint8_t key[EGRESS_KEY_BYTES], const char *id, struct ca **ret, struct fault *ret_f);
void ca_free(struct ca *ca);
const char *ca_pem(const struct ca *ca);
/* Makes ssl present a certificate for this name, from a cache or new. */
enum rc ca_use(struct ca *ca, SSL *ssl, const char *name, struct fault *ret_f);

#endif
