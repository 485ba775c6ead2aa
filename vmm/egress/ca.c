/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/egress/ca.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "vmm/egress/limits.h"

#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/kdf.h>
#include <openssl/param_build.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

#define SCALAR_BYTES 48 /* 128 bits more than the group's order: the remainder is even enough (FIPS 186-5 A.2.1) */
#define SERIAL_BYTES 16
#define POINT_BYTES 65
#define DAY 86400L
#define BACKDATED (2 * DAY) /* guests' clocks may lag behind */
#define LEAF_LIFE (3 * DAY)
#define LEAF_RENEW (1 * DAY)
#define CA_LIFE (3650 * DAY)

struct leaf {
	char name[POLICY_NAME_MAX];
	X509 *cert;
	uint64_t made_ms, used_ms;
};

struct ca {
	EVP_PKEY *key, *leaf_key;
	X509 *cert;
	char pem[CA_PEM_MAX];
	struct leaf leaves[EGRESS_LEAVES_MAX];
};

static bool derive(const uint8_t key[EGRESS_KEY_BYTES], const char *label, const char *id, uint8_t *out, size_t n)
{
	char info[128];
	int info_n = snprintf(info, sizeof(info), "nestbox %s %s", label, id);
	EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
	EVP_KDF_CTX *ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
	char digest[] = "SHA256";
	uint8_t copy[EGRESS_KEY_BYTES];
	OSSL_PARAM params[] = { OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
				OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, copy, sizeof(copy)),
				OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info, (size_t)info_n),
				OSSL_PARAM_construct_end() };
	bool ok;

	memcpy(copy, key, sizeof(copy));
	ok = ctx && EVP_KDF_derive(ctx, out, n, params) > 0;
	OPENSSL_cleanse(copy, sizeof(copy));
	EVP_KDF_CTX_free(ctx);
	EVP_KDF_free(kdf);
	return ok;
}

/* scalar mod (order - 1) + 1, and its public point */
static bool scalar_and_point(const uint8_t seed[SCALAR_BYTES], BIGNUM **ret_d, uint8_t point[POINT_BYTES])
{
	EC_GROUP *group = EC_GROUP_new_by_curve_name(NID_X9_62_prime256v1);
	EC_POINT *q = group ? EC_POINT_new(group) : NULL;
	BIGNUM *d = BN_secure_new(), *m = BN_new();
	BN_CTX *ctx = BN_CTX_secure_new();
	bool ok = q && d && m && ctx && BN_bin2bn(seed, SCALAR_BYTES, d) && BN_copy(m, EC_GROUP_get0_order(group)) &&
		  BN_sub_word(m, 1) && BN_nnmod(d, d, m, ctx) && BN_add_word(d, 1) &&
		  EC_POINT_mul(group, q, d, NULL, NULL, ctx) &&
		  EC_POINT_point2oct(group, q, POINT_CONVERSION_UNCOMPRESSED, point, POINT_BYTES, ctx) == POINT_BYTES;

	if (ok) {
		*ret_d = d;
		d = NULL;
	}
	BN_clear_free(d);
	BN_free(m);
	BN_CTX_free(ctx);
	EC_POINT_free(q);
	EC_GROUP_free(group);
	return ok;
}

static EVP_PKEY *key_from_seed(const uint8_t seed[SCALAR_BYTES])
{
	OSSL_PARAM_BLD *b = OSSL_PARAM_BLD_new();
	EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
	uint8_t point[POINT_BYTES];
	OSSL_PARAM *params = NULL;
	EVP_PKEY *key = NULL;
	BIGNUM *d = NULL;

	if (b && ctx && scalar_and_point(seed, &d, point) &&
	    OSSL_PARAM_BLD_push_utf8_string(b, OSSL_PKEY_PARAM_GROUP_NAME, "prime256v1", 0) &&
	    OSSL_PARAM_BLD_push_BN(b, OSSL_PKEY_PARAM_PRIV_KEY, d) &&
	    OSSL_PARAM_BLD_push_octet_string(b, OSSL_PKEY_PARAM_PUB_KEY, point, sizeof(point)))
		params = OSSL_PARAM_BLD_to_param(b);
	if (!params || EVP_PKEY_fromdata_init(ctx) <= 0 || EVP_PKEY_fromdata(ctx, &key, EVP_PKEY_KEYPAIR, params) <= 0)
		key = NULL;
	OSSL_PARAM_free(params);
	BN_clear_free(d);
	EVP_PKEY_CTX_free(ctx);
	OSSL_PARAM_BLD_free(b);
	return key;
}

static bool extend(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX ctx;
	X509_EXTENSION *e;
	bool ok;

	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	ok = e && X509_add_ext(cert, e, -1);
	X509_EXTENSION_free(e);
	return ok;
}

static bool name_set(X509_NAME *n, const char *id)
{
	char text[64];

	snprintf(text, sizeof(text), "nestbox sandbox %s", id);
	return n && X509_NAME_add_entry_by_txt(n, "CN", MBSTRING_ASC, (const unsigned char *)text, -1, -1, 0);
}

static X509 *cert_new(EVP_PKEY *key, const uint8_t serial[SERIAL_BYTES], long life)
{
	BIGNUM *number = BN_bin2bn(serial, SERIAL_BYTES, NULL);
	X509 *c = X509_new();

	/* The first bit is cleared: a serial is positive and at most 20 bytes. */
	if (c && number && X509_set_version(c, X509_VERSION_3) && BN_mask_bits(number, SERIAL_BYTES * 8 - 1) &&
	    BN_to_ASN1_INTEGER(number, X509_get_serialNumber(c)) && X509_gmtime_adj(X509_getm_notBefore(c), -BACKDATED) &&
	    X509_gmtime_adj(X509_getm_notAfter(c), life) && X509_set_pubkey(c, key)) {
		BN_free(number);
		return c;
	}
	BN_free(number);
	X509_free(c);
	return NULL;
}

static bool pem_make(struct ca *ca)
{
	BIO *bio = BIO_new(BIO_s_mem());
	int n = bio && PEM_write_bio_X509(bio, ca->cert) ? BIO_read(bio, ca->pem, sizeof(ca->pem) - 1) : 0;

	BIO_free(bio);
	ca->pem[n > 0 ? n : 0] = '\0';
	return n > 0;
}

enum rc ca_new(const uint8_t key[EGRESS_KEY_BYTES], const char *id, struct ca **ret, struct fault *ret_f)
{
	struct ca *ca = calloc(1, sizeof(*ca));
	uint8_t seed[SCALAR_BYTES], serial[SERIAL_BYTES];
	bool ok;

	if (!ca)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	ok = derive(key, "ca key", id, seed, sizeof(seed)) && derive(key, "ca serial", id, serial, sizeof(serial));
	if (ok) {
		serial[0] |= 0x40;
		ca->key = key_from_seed(seed);
		ca->leaf_key = EVP_EC_gen("P-256");
	}
	OPENSSL_cleanse(seed, sizeof(seed));
	ca->cert = ca->key && ca->leaf_key ? cert_new(ca->key, serial, CA_LIFE) : NULL;
	ok = ca->cert && name_set(X509_get_subject_name(ca->cert), id) && name_set(X509_get_issuer_name(ca->cert), id) &&
	     extend(ca->cert, ca->cert, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
	     extend(ca->cert, ca->cert, NID_key_usage, "critical,keyCertSign,cRLSign") &&
	     extend(ca->cert, ca->cert, NID_subject_key_identifier, "hash") && X509_sign(ca->cert, ca->key, EVP_sha256()) &&
	     pem_make(ca);
	if (!ok) {
		ca_free(ca);
		return fault_set(ret_f, RC_SYS, 0, "could not make the sandbox's certificate authority");
	}
	*ret = ca;
	return RC_OK;
}

void ca_free(struct ca *ca)
{
	if (!ca)
		return;
	for (size_t i = 0; i < EGRESS_LEAVES_MAX; i++)
		X509_free(ca->leaves[i].cert);
	X509_free(ca->cert);
	EVP_PKEY_free(ca->key);
	EVP_PKEY_free(ca->leaf_key);
	free(ca);
}

const char *ca_pem(const struct ca *ca)
{
	return ca->pem;
}

static X509 *leaf_make(struct ca *ca, const char *name)
{
	char san[POLICY_NAME_MAX + 16];
	uint8_t serial[SERIAL_BYTES];
	X509 *c;

	random_bytes(serial, sizeof(serial));
	serial[0] |= 0x40;
	snprintf(san, sizeof(san), "critical,DNS:%s", name);
	c = cert_new(ca->leaf_key, serial, LEAF_LIFE);
	/* An empty subject with a critical SAN: a CN holds 64 bytes, a name up to 253 (RFC 5280 4.1.2.6). */
	if (c && X509_set_issuer_name(c, X509_get_subject_name(ca->cert)) &&
	    extend(c, ca->cert, NID_basic_constraints, "critical,CA:FALSE") &&
	    extend(c, ca->cert, NID_key_usage, "critical,digitalSignature") &&
	    extend(c, ca->cert, NID_ext_key_usage, "serverAuth") &&
	    extend(c, ca->cert, NID_subject_key_identifier, "hash") &&
	    extend(c, ca->cert, NID_authority_key_identifier, "keyid:always") &&
	    extend(c, ca->cert, NID_subject_alt_name, san) && X509_sign(c, ca->key, EVP_sha256()))
		return c;
	X509_free(c);
	return NULL;
}

enum rc ca_use(struct ca *ca, SSL *ssl, const char *name, struct fault *ret_f)
{
	struct leaf *l = &ca->leaves[0];
	uint64_t now = now_ms();

	for (size_t i = 0; i < EGRESS_LEAVES_MAX; i++) {
		if (ca->leaves[i].cert && !strcmp(ca->leaves[i].name, name)) {
			l = &ca->leaves[i];
			break;
		}
		if (ca->leaves[i].used_ms < l->used_ms)
			l = &ca->leaves[i];
	}
	if (!l->cert || strcmp(l->name, name) || now - l->made_ms > (LEAF_LIFE - LEAF_RENEW) * 1000u) {
		X509 *c = leaf_make(ca, name);

		if (!c)
			return fault_set(ret_f, RC_SYS, 0, "could not make a certificate for '%.100s'", name);
		X509_free(l->cert);
		l->cert = c;
		memcpy(l->name, name, strlen(name) + 1);
		l->made_ms = now;
	}
	l->used_ms = now;
	if (SSL_use_certificate(ssl, l->cert) != 1 || SSL_use_PrivateKey(ssl, ca->leaf_key) != 1)
		return fault_set(ret_f, RC_SYS, 0, "could not use the certificate");
	return RC_OK;
}
