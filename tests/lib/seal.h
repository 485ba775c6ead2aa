/* SPDX-License-Identifier: Apache-2.0 */
/* Seals secrets as schema/policy.h says, with a code of its own: what the proxy opens was not made by the proxy. */
#ifndef NB_TESTS_SEAL_H
#define NB_TESTS_SEAL_H

#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define SEAL_MAX 16384

static inline const char *seal(const uint8_t key[32], const char *id, const char *name, const char *value, char out[SEAL_MAX])
{
	unsigned char mem[SEAL_MAX / 2] = "nonce nonce ";
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	size_t value_n = strlen(value);
	char aad[256];
	int n = snprintf(aad, sizeof(aad), "%s %s", id, name), k = 0;

	EVP_EncryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, key, mem);
	EVP_EncryptUpdate(ctx, NULL, &k, (const unsigned char *)aad, n);
	EVP_EncryptUpdate(ctx, mem + 12, &k, (const unsigned char *)value, (int)value_n);
	EVP_EncryptFinal_ex(ctx, mem + 12 + k, &n);
	EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_GET_TAG, 16, mem + 12 + value_n);
	EVP_CIPHER_CTX_free(ctx);
	EVP_EncodeBlock((unsigned char *)out, mem, (int)(12 + value_n + 16));
	return out;
}

#endif
